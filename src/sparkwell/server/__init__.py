"""OpenAI's HTTP API over an engine."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparkwell.server.app import create_app
    from sparkwell.server.limits import Limits
    from sparkwell.server.serve import run

_HOME = {"create_app": "app", "Limits": "limits", "run": "serve"}

__all__ = ["Limits", "create_app", "run"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"sparkwell.server.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
