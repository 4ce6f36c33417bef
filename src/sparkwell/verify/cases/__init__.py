"""The case table: one module an op folder, each with CASES."""

import importlib
import pkgutil

from sparkwell.verify.case import Case


def all_cases() -> tuple[Case, ...]:
    """Every case, module by module in alphabetical order."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__, f"{__name__}."))
    return tuple(case for name in names for case in importlib.import_module(name).CASES)
