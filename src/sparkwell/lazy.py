"""Packages whose names are imported when they are first asked for.

So the tables of `ops` and the records of `formats` can be read without torch, by programs that
compute nothing.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


class _Later:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


def later(name: str) -> Any:
    """A stand-in for a module, imported when something of it is used."""
    return _Later(name)


def lazily(package: str, *modules: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package that exports `__all__` of these modules of it.

    package: its `__name__`.  A name is looked for in the modules in order and then kept.
    """

    def get(name: str) -> Any:
        here = sys.modules[package]
        if name in here.__all__:
            for module in modules:
                found = import_module(f"{package}.{module}")
                if hasattr(found, name):
                    setattr(here, name, getattr(found, name))
                    return getattr(here, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
