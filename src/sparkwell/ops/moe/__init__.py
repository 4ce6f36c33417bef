"""Mixture of experts: routers and the experts' feed-forward."""

from sparkwell.ops.moe.api import experts, route_sigmoid, route_softmax
from sparkwell.ops.moe.reference import (
    experts_reference,
    route_sigmoid_reference,
    route_softmax_reference,
)

__all__ = [
    "experts",
    "experts_reference",
    "route_sigmoid",
    "route_sigmoid_reference",
    "route_softmax",
    "route_softmax_reference",
]
