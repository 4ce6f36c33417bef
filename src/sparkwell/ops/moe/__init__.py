"""Mixture of experts: routers, the experts' feed-forward, products by groups of rows."""

from typing import TYPE_CHECKING

from sparkwell.lazy import lazily

if TYPE_CHECKING:
    from sparkwell.ops.moe.api import experts, route_sigmoid, route_softmax
    from sparkwell.ops.moe.layouts import grouped_linear, grouped_linear_reference
    from sparkwell.ops.moe.reference import (
        experts_reference,
        route_sigmoid_reference,
        route_softmax_reference,
    )

__all__ = [
    "experts",
    "experts_reference",
    "grouped_linear",
    "grouped_linear_reference",
    "route_sigmoid",
    "route_sigmoid_reference",
    "route_softmax",
    "route_softmax_reference",
]

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, "api", "layouts", "reference")
