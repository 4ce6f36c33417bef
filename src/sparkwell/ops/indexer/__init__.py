"""Lightning indexer: scores every visible key, keeps the top-k positions of each query."""

from typing import TYPE_CHECKING

from sparkwell.lazy import lazily

if TYPE_CHECKING:
    from sparkwell.ops.indexer.api import (
        index_logits,
        index_logits_paged,
        index_select,
        logical_to_physical,
        topk_select,
    )
    from sparkwell.ops.indexer.reference import (
        index_logits_paged_reference,
        index_logits_reference,
        index_scores_reference,
        index_select_reference,
        logical_to_physical_reference,
        quantize_index_query,
        topk_select_reference,
    )

__all__ = [
    "index_logits",
    "index_logits_paged",
    "index_logits_paged_reference",
    "index_logits_reference",
    "index_scores_reference",
    "index_select",
    "index_select_reference",
    "logical_to_physical",
    "logical_to_physical_reference",
    "quantize_index_query",
    "topk_select",
    "topk_select_reference",
]

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, "api", "reference")
