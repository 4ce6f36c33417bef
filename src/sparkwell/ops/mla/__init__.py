"""Multi-head latent attention in absorbed form: every head reads one shared latent record."""

from typing import TYPE_CHECKING

from sparkwell.lazy import lazily

if TYPE_CHECKING:
    from sparkwell.ops.mla.api import mla_paged, mla_sparse
    from sparkwell.ops.mla.reference import mla_paged_reference, mla_sparse_reference

__all__ = ["mla_paged", "mla_paged_reference", "mla_sparse", "mla_sparse_reference"]

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, "api", "reference")
