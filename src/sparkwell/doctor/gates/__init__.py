"""Python code that refuses a GPU, found in its syntax tree: nothing is imported or run."""

from sparkwell.doctor.gates.find import Gate, find_gates
from sparkwell.doctor.gates.vocabulary import UNKNOWN

__all__ = ["UNKNOWN", "Gate", "find_gates"]
