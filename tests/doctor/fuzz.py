"""Mutated files against the scanner: whatever the bytes, a result or Unreadable, soon.

    python tests/doctor/fuzz.py [--seconds 600] [--seed N] [FILE ...]

The seeds are built here; FILEs (cubins, fatbins, small libraries, PTX) are mutated, too.  Prints
how many inputs were tried; a failure prints the seed and writes the input beside this command.
`test_binary_fuzz.py` runs the same for a few seconds.
"""

import argparse
import random
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import fatbins
from sparkwell.doctor.images import File, Level
from sparkwell.doctor.scan import scan_bytes
from sparkwell.errors import Unreadable

SLOW = 5.0  # seconds for an input of at most a few hundred KB
NASTY = [0, 1, 2, 7, 8, 63, 64, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF,
         1 << 32, 1 << 47, (1 << 63) - 1, (1 << 64) - 1]  # fmt: skip
MAGICS = [b"\x7fELF\x02\x01\x01", struct.pack("<I", 0xBA55ED50), b"\x28\xb5\x2f\xfd", b"MZ",
          b".version 8.0\n.target sm_90\n", b".entry ", b"\xbe\x00"]  # fmt: skip


def seeds() -> list[bytes]:
    """One small file of every kind."""
    bodies = {"_Z1aPf": fatbins.WORKS, "_Z1bPf": fatbins.IDLE, "_Z1cPf": fatbins.code((0x723C, 0))}
    plain = fatbins.cubin(
        90, bodies, suffix="a", outside=["vprintf"], calls=[("_Z1aPf", "vprintf")]
    )
    large = fatbins.cubin(120, bodies, extended=True)
    old = fatbins.cubin(80, bodies, abi=7, relocatable=True)
    text = fatbins.PTX.encode()
    boxes = [
        fatbins.fatbin(
            fatbins.entry("sass", 90, plain, suffix="a", packing=packing, identifier="a.cu"),
            fatbins.entry("ptx", 120, text, suffix="f", packing=packing, options="-O3 "),
            fatbins.entry("lto", 90, b"scrambled", packing=packing),
            fatbins.entry("sass", 120, large, packing=packing),
        )
        for packing in ("", "lz4", "zstd")
    ]
    every = fatbins.library({".nv_fatbin": boxes[0] + boxes[1], "__nv_relfatbin": boxes[2]})
    raw = fatbins.library({".rodata": b"x" * 5 + plain + old + text})
    return [plain, large, old, text, *boxes, every, raw, fatbins.windows({".nv_fatb": boxes[1]})]


def mutate(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    """`data` with one to eight changes of the kinds that break parsers."""
    out = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        at = dice.randrange(len(out) + 1)
        kind = dice.randrange(8)
        if kind == 0 and out:
            out[at % len(out)] = dice.randrange(256)
        elif kind == 1:
            width, form = dice.choice([(2, "<H"), (4, "<I"), (8, "<Q")])
            place = at // width * width
            value = dice.choice([*NASTY, len(out), dice.randrange(len(out) + 2)])
            if place + width <= len(out):
                struct.pack_into(form, out, place, value % (1 << 8 * width))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + dice.randrange(1, 64)]
        elif kind == 4:
            out[at:at] = out[at : at + dice.randrange(1, 256)]
        elif kind == 5:
            other = dice.choice(others)
            start = dice.randrange(len(other))
            out[at : at + 99] = other[start : start + dice.randrange(1, 999)]
        elif kind == 6:
            out[at:at] = dice.choice(MAGICS)
        else:
            out[at : at + 32] = bytes(dice.randrange(256) for _ in range(32))
    return bytes(out)


def check(data: bytes) -> File | None:
    """Scan at the deepest level; what comes back must make sense.  None: it was Unreadable."""
    try:
        file = scan_bytes(data, Level.INSTRUCTIONS, "input")
    except Unreadable as error:
        assert error.file == "input" and error.field and "want" in str(error)
        return None
    for image in file.images:
        assert 0 <= image.offset <= image.offset + image.size <= len(data)
        assert image.target.rstrip("af").isdigit() and image.kind in fatbins.KINDS
        assert image.container is None or image.container >= 0
        for kernel in image.kernels or ():
            assert kernel.code_bytes is None or kernel.code_bytes >= 0
    for problem in [*file.problems, *(p for image in file.images for p in image.problems)]:
        assert problem.isprintable() and len(problem) < 500, problem
    return file


def trials(seed: int, more: Sequence[bytes]) -> Iterator[bytes]:
    """Mutated inputs without end; every tenth is mutated twice over."""
    dice, base = random.Random(seed), [*seeds(), *more]
    while True:
        data = mutate(dice.choice(base), dice, base)
        yield mutate(data, dice, base) if dice.randrange(10) == 0 else data


def run(seconds: float, seed: int, more: Sequence[bytes] = ()) -> tuple[int, int, int, float]:
    """(inputs, unreadable ones, ones with images, seconds of the slowest)."""
    tried = unreadable = with_images = 0
    slowest, end = 0.0, time.monotonic() + seconds
    for data in trials(seed, more):
        started = time.monotonic()
        try:
            file = check(data)
            took = time.monotonic() - started
            assert took < SLOW, f"{took:.1f} s for {len(data)} bytes"
        except BaseException:
            Path(f"fuzz-failure-{seed}-{tried}.bin").write_bytes(data)
            print(f"seed {seed}, input {tried}", file=sys.stderr)
            raise
        tried, unreadable = tried + 1, unreadable + (file is None)
        with_images += bool(file and file.images)
        slowest = max(slowest, took)
        if time.monotonic() > end:
            return tried, unreadable, with_images, slowest
    raise AssertionError("unreachable")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    more = [path.read_bytes() for path in given.files]
    tried, unreadable, images, slowest = run(given.seconds, given.seed, more)
    print(f"seed {given.seed}: {tried} inputs, {unreadable} unreadable, {images} with images, "
          f"slowest {slowest:.3f} s, no failure")  # fmt: skip


if __name__ == "__main__":
    main()
