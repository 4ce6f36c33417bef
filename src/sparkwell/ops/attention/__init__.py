"""Softmax attention with grouped-query heads, over ragged tensors and over a paged cache."""

from typing import TYPE_CHECKING

from sparkwell.lazy import lazily

if TYPE_CHECKING:
    from sparkwell.ops.attention.api import attention_paged, attention_prefill
    from sparkwell.ops.attention.reference import (
        attention_paged_reference,
        attention_prefill_reference,
    )

__all__ = [
    "attention_paged",
    "attention_paged_reference",
    "attention_prefill",
    "attention_prefill_reference",
]

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, "api", "reference")
