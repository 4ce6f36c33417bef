"""Imports point down, and other promises about the shape of the code, read from its source."""

import ast
from pathlib import Path

import pytest

from line_budget import BUDGET, lines_used, report

ROOT = Path(__file__).resolve().parents[1] / "src" / "sparkwell"
FILES = sorted(ROOT.rglob("*.py"))
BASE = {"errors", "env", "testing", "lazy"}
MAY_IMPORT = {  # folder -> the project's folders it may import, beside itself
    "errors": set(),
    "env": set(),
    "lazy": set(),
    "testing": set(),
    "hardware": BASE,
    "formats": BASE | {"hardware"},
    "checkpoints": BASE | {"hardware", "formats"},
    "ops": BASE | {"hardware", "formats"},
    "verify": BASE | {"hardware", "formats", "ops"},
    "doctor": BASE | {"hardware"},
    "compat": BASE | {"hardware", "formats", "ops"},
    "models": BASE | {"hardware", "formats", "checkpoints", "ops"},
    "engine": BASE | {"hardware", "formats", "checkpoints", "ops", "models"},
    "server": BASE | {"engine"},
    "bench": BASE
    | {"hardware", "formats", "checkpoints", "ops", "verify", "models", "engine", "compat"},
    "plan": BASE | {"hardware", "formats", "checkpoints", "ops", "verify"},
    "explain": BASE | {"hardware"},
    "cli": BASE
    | {"hardware", "formats", "checkpoints", "ops", "models", "engine", "server"}
    | {"verify", "bench", "doctor", "plan", "explain"},
    "__init__": {"engine"},
    "__main__": {"cli"},
}
MAY_USE_TRITON = {"ops", "verify"}
NO_TORCH = ["hardware", "doctor", "server", "cli", "engine/request.py", "engine/pages.py"]
NO_TORCH += [
    "engine/scheduler.py",
    "engine/core.py",
    "checkpoints/config.py",
    "env.py",
    "errors.py",
]
HEAVY = {"torch", "triton", "transformers", "numpy", "fastapi", "uvicorn", "huggingface_hub"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def folder(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module `path` imports anywhere, functions included."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it from the root"
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


def top_level_imports(path: Path) -> set[str]:
    """Packages imported as soon as the module is: not those inside functions or TYPE_CHECKING."""
    names: set[str] = set()
    for node in tree(path).body:
        if isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = folder(path)
    assert here in MAY_IMPORT, f"{here} has no row in MAY_IMPORT"
    ours = {n.split(".")[1] for n in imports(path) if n.startswith("sparkwell.")}
    wrong = ours - MAY_IMPORT[here] - {here}
    assert not wrong, f"{here} may not import {sorted(wrong)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_kernels_import_triton_and_only_env_reads_the_environment(path: Path) -> None:
    packages = {name.split(".")[0] for name in imports(path)}
    if folder(path) not in MAY_USE_TRITON:
        assert "triton" not in packages
    if path.name != "env.py":
        reads = [
            node
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "putenv"}
        ]
        assert not reads, f"{path} reads the environment; only env.py may"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_capabilities_are_compared_in_hardware_only(path: Path) -> None:
    if folder(path) == "hardware":
        return
    words = ("capability", "compute_cap", "sm_count_major")
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Compare):
            text = ast.unparse(node)
            assert not any(word in text for word in words), f"{path}:{node.lineno}: {text}"
        if isinstance(node, ast.Attribute):
            assert node.attr != "get_device_capability", f"{path}:{node.lineno}: ask for features"


@pytest.mark.parametrize("where", NO_TORCH)
def test_light_modules_stay_light(where: str) -> None:
    paths = [ROOT / where] if where.endswith(".py") else sorted((ROOT / where).rglob("*.py"))
    assert paths
    for path in paths:
        banned = {"torch", "triton", "transformers"} if folder(path) == "server" else HEAVY
        found = top_level_imports(path) & banned
        assert not found, f"{path} imports {sorted(found)} at its top"


def test_lines_stay_within_their_budget() -> None:
    used = lines_used()
    over = [name for name in BUDGET if used[name] > BUDGET[name]]
    assert sum(used.values()) > 5000 and not over, f"over the line budget: {over}\n{report()}"


def test_files_and_functions_stay_small() -> None:
    lengths = sorted(len(p.read_text().splitlines()) for p in FILES if p.name != "__init__.py")
    assert lengths[-1] <= 700
    assert lengths[len(lengths) // 2] <= 150, f"median file has {lengths[len(lengths) // 2]} lines"
    for path in FILES:
        kernels = path.name == "kernel.py" or path.parent.name == "kernels"
        most = 150 if kernels else 60
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                start = node.body[1].lineno if doc and len(node.body) > 1 else node.lineno
                length = (node.end_lineno or 0) - start + 1
                assert length <= most, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_the_rules_see_files() -> None:
    assert len(FILES) >= 40  # a scan that finds nothing must fail
    assert {folder(p) for p in FILES} >= set(MAY_IMPORT) - {"__main__", "compat", "bench"}
