"""Puts one-line bugs into copies of the source, one at a time; the kernels' tests must find each.

    python tests/mutants/run.py [NAME ...]

NAME: a file beside this one without its ".py"; none: all of them.  Each file has

    MUTANTS = [("ops/norm/kernel.py", "a line's text", "what it becomes"), ...]

with paths below src/sparkwell and texts that stand there once, and may have

    TESTS = ["tests/kernels", "-k", "norm"]

the arguments pytest is given; the default is that, with the file's name; and INTERPRET = False
where they need a compiler, not Triton's interpreter; and GPU = True where they need a GPU: without
one, such a file is left out unless it is named.  Exits with 1 where a mutant survives, where its
text is not found once, or where the tests fail without any mutant; with 2 for a file that there is
not or that cannot run here.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMIT = 600  # seconds: a mutant that never ends is found, too


def load(path: Path) -> ModuleType:
    """A file of mutants as a module."""
    spec = importlib.util.spec_from_file_location(f"mutants_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plant(root: Path, file: str, old: str, new: str) -> str | None:
    """Change the line in the copy.  -> why not, or None."""
    path = root / "src" / "sparkwell" / file
    if not path.is_file():
        return "there is no such file"
    text = path.read_text()
    if old == new or text.count(old) != 1:
        return f"its text stands there {text.count(old)} times, want once, and changed"
    path.write_text(text.replace(old, new))
    return None


def failure(root: Path, tests: Sequence[str], interpret: bool = True) -> str | None:
    """How the tests fail on the copy: the end of what they print; None where they pass."""
    elsewhere = [path for path in (os.environ.get("PYTHONPATH"),) if path]
    environment = os.environ | {
        "TRITON_INTERPRET": "1" if interpret else "0",
        "PYTHONPATH": os.pathsep.join([str(root / "src"), *elsewhere]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *tests], cwd=root, env=environment, capture_output=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return "it never ends"
    text = (done.stdout.decode() + done.stderr.decode())[-3000:]
    if done.returncode > 2:  # 5: no test was chosen; 2: the mutant does not even import
        raise SystemExit(f"pytest {' '.join(tests)} ended with {done.returncode}:\n{text}")
    return text if done.returncode else None


def survivors(
    name: str,
    mutants: Sequence[tuple[str, str, str]],
    tests: Sequence[str],
    interpret: bool = True,
) -> int:
    """How many mutants of one file live, or are no mutants."""
    alive = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part in ("src", "tests", "bench", "docs", "examples"):
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", root)
        if (text := failure(root, tests, interpret)) is not None:
            print(f"{name}: the tests fail without any mutant:\n{text}", flush=True)
            return len(mutants)
        for file, old, new in mutants:
            start = time.perf_counter()
            source = root / "src" / "sparkwell" / file
            before = source.read_text() if source.is_file() else ""
            why = plant(root, file, old, new)
            if why is None:
                found = failure(root, tests, interpret)
                source.write_text(before)
                why = "SURVIVED" if found is None else None
            alive += why is not None
            took = time.perf_counter() - start
            print(f"{name}: {why or 'killed'} ({took:.0f} s): {file}: {new.strip()}", flush=True)
    return alive


def main(names: Sequence[str]) -> int:
    """Run the files named, or all.  -> exit code."""
    files = [HERE / f"{name}.py" for name in names]
    files = files or sorted(path for path in HERE.glob("*.py") if path.name != "run.py")
    if missing := [path.stem for path in files if not path.is_file()]:
        print(f"no mutants called {', '.join(missing)} in {HERE}", file=sys.stderr)
        return 2
    alive = total = 0
    for path in files:
        module = load(path)
        on_gpu = getattr(module, "GPU", False)
        if on_gpu and not torch.cuda.is_available():
            print(f"{path.stem}: needs a GPU, there is none here", file=sys.stderr)
            if names:
                return 2
            continue
        tests = getattr(module, "TESTS", ["tests/kernels", "-k", path.stem])
        total += len(module.MUTANTS)
        interpret = getattr(module, "INTERPRET", not on_gpu)
        alive += survivors(path.stem, module.MUTANTS, tests, interpret)
    print(f"{total - alive} of {total} mutants killed")
    return 1 if alive or not total else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
