"""Paged caches as ops: write a step's rows, as they are or made on the way; gather contexts."""

from typing import TYPE_CHECKING

from sparkwell.lazy import lazily

if TYPE_CHECKING:
    from sparkwell.ops.cache.api import cache_gather, cache_write, index_key_write, latent_write
    from sparkwell.ops.cache.reference import (
        cache_gather_reference,
        cache_write_reference,
        index_key_write_reference,
        latent_write_reference,
    )

__all__ = [
    "cache_gather",
    "cache_gather_reference",
    "cache_write",
    "cache_write_reference",
    "index_key_write",
    "index_key_write_reference",
    "latent_write",
    "latent_write_reference",
]

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, "api", "reference")
