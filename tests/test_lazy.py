"""Packages whose names come when they are asked for."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from sparkwell.lazy import later

ROOT = Path(__file__).resolve().parents[1]
LAZY = [
    path.parent.relative_to(ROOT / "src").as_posix().replace("/", ".")
    for path in (ROOT / "src" / "sparkwell").rglob("__init__.py")
    if "lazily(" in path.read_text()
]


def test_there_are_such_packages() -> None:
    assert len(LAZY) >= 12 and "sparkwell.ops.linear" in LAZY and "sparkwell.formats" in LAZY


@pytest.mark.parametrize("name", LAZY)
def test_every_name_is_there_and_stays(name: str) -> None:
    package = importlib.import_module(name)
    for exported in package.__all__:
        found = getattr(package, exported)
        assert vars(package)[exported] is found
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        _ = package.nothing
    assert not hasattr(package, "TYPE_CHECKING_ONLY")


def test_what_a_module_imports_is_not_exported() -> None:
    """api.py has `math`; the package does not."""
    package = importlib.import_module("sparkwell.ops.linear")
    with pytest.raises(AttributeError, match="no attribute 'math'"):
        _ = package.math


def test_modules_come_later() -> None:
    code = "import sys; from sparkwell.lazy import later; x = later('colorsys'); "
    code += "assert 'colorsys' not in sys.modules; x.rgb_to_hsv; assert 'colorsys' in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT / "src")}
    )
    with pytest.raises(ModuleNotFoundError):
        _ = later("no_such_module").thing
