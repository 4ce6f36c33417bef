"""Instruction counts of each family: by opcode, and by the mnemonics a disassembler prints."""

import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import tools

from sparkwell.doctor.binary import cubin, elf, sass, search
from sparkwell.doctor.binary.code import EXECUTABLE
from sparkwell.doctor.binary.unpack import Budget, unpack
from sparkwell.doctor.binary.view import View
from sparkwell.doctor.images import Level

MNEMONIC = re.compile(
    r"^\s+/\*[0-9a-f]+\*/ +(?:\{ )?(?:@!?U?PT?\d? +)?([A-Z][A-Z0-9_.]*)", re.MULTILINE
)
PREFIXES = (  # mnemonics of each family; the first that fits
    ("qmma.sf", ("QMMA.SF",)),
    ("hmma", ("HMMA",)),
    ("imma", ("IMMA",)),
    ("bmma", ("BMMA",)),
    ("dmma", ("DMMA",)),
    ("qmma", ("QMMA",)),
    ("omma", ("OMMA",)),
    ("wgmma", ("HGMMA", "IGMMA", "BGMMA", "QGMMA")),
    ("tcgen05", ("UTCATOMSWS", "UTCCP", "UTCBAR", "UTCHMMA", "UTCQMMA", "UTCOMMA", "UTCIMMA",
                 "STTM", "LDTM")),
    ("tma", ("UTMALDG", "UTMASTG", "UTMAREDG", "UBLKCP")),
    ("clusters", ("STAS", "UCGABAR")),
    ("setmaxnreg", ("USETMAXREG",)),
    ("cp.async", ("LDGSTS",)),
    ("ldmatrix", ("LDSM",)),
    ("stmatrix", ("STSM",)),
    ("multimem", ("LDGMC",)),
    ("pdl", ("PREEXIT", "ACQBULK")),
    ("fp64", ("DMUL", "DADD", "DFMA")),
)  # fmt: skip


def listed(path: Path) -> Counter[str]:
    """Families in the disassembler's listing."""
    found: Counter[str] = Counter()
    for mnemonic in MNEMONIC.findall(tools.run("nvdisasm", "-c", str(path))):
        for family, starts in PREFIXES:
            if any(
                mnemonic == start or mnemonic.startswith((start + ".", start + "_"))
                for start in starts
            ):
                found[family] += 1
                break
    return found


def by_opcode(data: memoryview) -> Counter[str]:
    """Families by opcode, over all code sections."""
    whole = elf.read_elf(View(data))
    sm, _ = cubin.target(whole)
    found: Counter[str] = Counter()
    for section in whole.sections:
        if section.flags & EXECUTABLE and section.type != elf.NOBITS:
            found += sass.counts(sass.opcodes(whole.body(section, "code").data), sm)
    return found


def cubins(path: Path) -> Iterator[tuple[str, memoryview]]:
    """(target, bytes) of every plain machine-code image in a file."""
    kept: list[tuple[str, memoryview]] = []

    class Keep(search.Search):
        def deepen(self, plain, entry):  # type: ignore[no-untyped-def]
            if entry.kind == "sass":
                payload = self.view.part(entry.payload_at, entry.stored, "image")
                data = payload.data
                if entry.packing:
                    data = unpack(payload, entry.packing, entry.unpacked, Budget(1 << 40))
                kept.append((plain.target, data))
            return plain

    data = memoryview(path.read_bytes())
    if path.suffix == ".cubin":
        yield "loose", data
    else:
        Keep(View(data), Level.KERNELS).run()
        yield from kept


Item = tuple[str, str, bytes]  # file, target, cubin


def known(files: Iterator[tuple[str, Path]]) -> Iterator[Item]:
    """The cubins whose instructions the doctor knows."""
    for name, path in files:
        for target, data in cubins(path):
            if cubin.target(elf.read_elf(View(data)))[0] >= sass.FIRST_SM:
                yield name.split("!")[-1], target, bytes(data)


def compare(files: Iterator[tuple[str, Path]], most: int) -> int:
    """Compare up to `most` cubins, chosen evenly; returns 1 if any differs."""
    chosen: list[Item] = []
    dice, met = random.Random(5), 0
    for item in known(files):
        met += 1
        if len(chosen) < most:
            chosen.append(item)
        elif (place := dice.randrange(met)) < most:
            chosen[place] = item
    return report(chosen, met)


def cover(files: Iterator[tuple[str, Path]]) -> int:
    """Compare cubins that together hold every opcode of every SM that is met at all."""
    smallest: dict[tuple[int, int], Item] = {}
    met = 0
    for item in known(files):
        met += 1
        whole = elf.read_elf(View(memoryview(item[2])))
        sm, _ = cubin.target(whole)
        for section in whole.sections:
            if section.flags & EXECUTABLE and section.type != elf.NOBITS:
                for opcode in sass.opcodes(whole.body(section, "code").data):
                    held = smallest.get((sm, opcode))
                    if held is None or len(item[2]) < len(held[2]):
                        smallest[sm, opcode] = item
    print(f"{len(smallest)} pairs of SM and 12-bit opcode")
    return report(list({id(item): item for item in smallest.values()}.values()), met)


def report(chosen: list[Item], met: int) -> int:
    wrong, total, targets = 0, Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "one.cubin"
        for name, target, data in chosen:
            place.write_bytes(data)
            mine, theirs = by_opcode(memoryview(data)), listed(place)
            targets[target] += 1
            total += mine
            if mine != theirs:
                wrong += 1
                print(f"DIFFERS {target} {name}")
                print(f"    {dict(mine - theirs)} here, {dict(theirs - mine)} there")
    print(
        f"{len(chosen)} of {met} cubins compared with {tools.version('nvdisasm')}, {wrong} differ"
    )
    print("targets", dict(sorted(targets.items())))
    print("instructions", dict(total.most_common()))
    return int(bool(wrong))
