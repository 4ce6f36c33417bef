"""What the doctor reads beside what NVIDIA's own tools print, on real files.

    python tests/doctor/equality images FILE_OR_WHEEL ...       image lists and kernel names
    python tests/doctor/equality instructions [--most 300] FILE_OR_WHEEL ...    families by opcode
    python tests/doctor/equality opcodes FILE_OR_WHEEL ...      the same, every opcode of every SM
    python tests/doctor/equality record wheels.json WHEEL ...   expected lists, for the tests

cuobjdump and nvdisasm are taken from PATH, from the wheels nvidia-cuda-cuobjdump and
nvidia-cuda-nvdisasm, or from the `triton` package.  They are used here only, never by the doctor.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import listing
import tools

from sparkwell.doctor.images import File, Image, Level
from sparkwell.doctor.scan import scan

SILENT = "cuobjdump says nothing of them"


def files(paths: list[Path], into: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of every file to look at; wheels are unpacked one member at a time."""
    for path in paths:
        if path.suffix == ".whl":
            yield from tools.members(path, into)
        elif path.is_dir():
            yield from ((str(p), p) for p in sorted(path.rglob("*")) if tools.may_hold(p.name))
        else:
            yield path.name, path


def images(paths: list[Path]) -> int:
    """Compare image lists, in order, and kernel names; returns how many files differ."""
    wrong = checked = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, path in files(paths, Path(folder)):
            ours = scan(path, Level.KERNELS)
            if not ours.images and not ours.problems:
                continue
            started = time.monotonic()
            theirs = tools.dump(path)
            differences = compare(ours, theirs)
            read = [compare_raw(*found) for found in tools.raw_cubins(path, ours)]
            differences += [text for text in read if text and text != SILENT]
            if SILENT in read:
                print(f"        {read.count(SILENT)} of {len(read)} raw cubins: {SILENT}")
            checked, wrong = checked + 1, wrong + bool(differences)
            seconds = time.monotonic() - started
            kernels = len(tools.names(ours, "sass"))
            print(f"{'DIFFERS' if differences else 'equal':8}{len(ours.images):6} images "
                  f"{kernels:6} kernels {seconds:6.1f} s  {name}")  # fmt: skip
            for line in differences[:10]:
                print(f"        {line}")
    print(f"{checked} files, {wrong} differ")
    return wrong


def compare(ours: File, theirs: tools.Dump) -> list[str]:
    """Differences in words; our `f` and our raw cubins are more than cuobjdump shows."""
    found = []
    for kind in ("sass", "ptx"):
        mine = tools.targets(ours, kind)
        other = theirs.targets[kind]
        if mine != other:
            more, less = Counter(mine) - Counter(other), Counter(other) - Counter(mine)
            found.append(f"{kind}: {dict(more)} only here, {dict(less)} only there"
                         if more or less else f"{kind}: another order")  # fmt: skip
        names, others = tools.names(ours, kind), theirs.names[kind]
        if names != others:
            for here, there, where in ((names, others, "here"), (others, names, "there")):
                extra = sorted(here - there)
                if extra:
                    found.append(f"{kind} kernels: {len(extra)} only {where}: {extra[:3]}")
    found += [f"problem: {text}" for text in ours.problems]
    found += [f"problem: {text}" for image in ours.images for text in image.problems]
    return found


def compare_raw(image: Image, target: str, names: set[str]) -> str:
    """How a cubin outside fatbins differs; "" if not."""
    if not target:
        return SILENT
    ours = {kernel.name for kernel in image.kernels or ()}
    if image.target.removesuffix("f") == target and ours == names:
        return ""
    return f"raw cubin at {image.offset:#x}: {image.target} {len(ours)} here, {target} there"


def record(out: Path, wheels: list[Path]) -> int:
    """Write what cuobjdump says of the wheels' members to a file the tests read."""
    found: dict[str, object] = {"made_with": tools.version("cuobjdump"), "wheels": {}}
    for wheel in wheels:
        members: dict[str, object] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, path in tools.members(wheel, Path(folder)):
                members.update(tools.recorded(name, path))
        found["wheels"][wheel.name] = members  # type: ignore[index]
    out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["images", "instructions", "opcodes", "record"])
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--most", type=int, default=300, help="cubins whose listing is compared")
    options = parser.parse_args()
    if options.what == "images":
        return int(bool(images(options.paths)))
    if options.what == "record":
        return record(options.paths[0], options.paths[1:])
    with tempfile.TemporaryDirectory() as folder:
        found = files(options.paths, Path(folder))
        return (
            listing.cover(found)
            if options.what == "opcodes"
            else listing.compare(found, options.most)
        )


if __name__ == "__main__":
    raise SystemExit(main())
