"""Every environment variable: name, default, meaning.  The only reader of os.environ."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """One environment variable and what it means."""

    name: str
    default: str
    meaning: str

    def get(self) -> str:
        """The variable's value, or its default where it is unset or empty."""
        return os.environ.get(self.name) or self.default


LOG_LEVEL = Variable("SPARKWELL_LOG_LEVEL", "warning", "log level: debug, info, warning or error")
API_KEY = Variable("SPARKWELL_API_KEY", "", "key that `serve` asks of its clients; empty: none")
CACHE_DIR = Variable(
    "SPARKWELL_CACHE_DIR", "~/.cache/sparkwell", "what can be computed again; safe to delete"
)

VARIABLES = (LOG_LEVEL, API_KEY, CACHE_DIR)
