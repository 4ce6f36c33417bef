"""Paged caches as ops: write a step's rows, gather whole contexts."""

from sparkwell.ops.cache.api import cache_gather, cache_write
from sparkwell.ops.cache.reference import cache_gather_reference, cache_write_reference

__all__ = ["cache_gather", "cache_gather_reference", "cache_write", "cache_write_reference"]
