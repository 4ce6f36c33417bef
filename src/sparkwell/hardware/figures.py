"""A number about a GPU together with where it is from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """value in `unit` ("B", "B/s", "FLOP/s", "OP/s", "SM", "Hz"), from `source`.

    weak: from memory, derived, or contradicted somewhere; measure before a decision hangs on it.
    """

    value: float
    unit: str
    source: str
    weak: bool = False
