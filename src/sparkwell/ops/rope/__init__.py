"""Rotary position embedding and its frequencies."""

from typing import TYPE_CHECKING

from sparkwell.lazy import lazily

if TYPE_CHECKING:
    from sparkwell.ops.rope.api import rope
    from sparkwell.ops.rope.frequencies import KINDS, rope_frequencies
    from sparkwell.ops.rope.reference import rope_reference

__all__ = ["KINDS", "rope", "rope_frequencies", "rope_reference"]

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, "api", "frequencies", "reference")
