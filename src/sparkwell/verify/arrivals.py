"""Arrivals at a barrier that machine code makes while reads of shared memory are under way.

A warp hands a buffer back by arriving at a barrier; whoever waits there then copies something else
into it.  The arrival does not wait for reads that were issued before it: only an instruction that
uses what was read does.  On an H200 copies overtook such reads: wrong results (dev/LOG.md).  Nor
does a barrier at which warps wait for each other before one of them arrives for all.

Which instruction waits for which read stands in the control bits of each 128-bit instruction:
from bit 105 on 4 bits of stall, 1 of yield, 3 that number the counter that its result brings back,
3 that of its operands, and a mask of the 6 counters that it waits for (Jia et al. 2018, Dissecting
the NVIDIA Volta GPU Architecture via Microbenchmarking, section 2.1).
"""

import re

_INSTRUCTION = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+((?:@!?U?P\w+\s+)?[A-Z].*?)\s*;\s*/\*\s*0x[0-9a-f]{16}\s*\*/"
)
_SECOND = re.compile(r"/\*\s*0x([0-9a-f]{16})\s*\*/\s*$")
_GUARD = re.compile(r"^@!?U?P\w+\s+")
_CONTROL = 41  # of the second half of 64 bits
# At an address that all threads have: which partition's code warps run, and its arguments.
_STATE = re.compile(r"^LDS(\.\w+)* \w+, \[UR\d+")


def early_arrivals(listing: str) -> list[str]:
    """Arrivals that do not wait for reads before them, in words.

    listing: of nvdisasm with -hex.  Reads come back in the order in which they were issued, and
    shuffles with them, so that waiting for one is waiting for those before it.  Code is read from
    top to bottom: what a branch leads to from elsewhere is taken for what follows on what stands
    above it.
    """
    lines = listing.splitlines()
    waiting: list[tuple[int, str]] = []  # under way: a counter, 7: none; a read's words
    others: list[tuple[int, str]] = []  # the same of other warps, at the last barrier of all
    found = []
    for line, below in zip(lines, lines[1:], strict=False):
        this, control = _INSTRUCTION.match(line), _SECOND.search(below)
        if this is None or control is None:
            continue
        bits = int(control[1], 16) >> _CONTROL
        counter, mask = bits >> 5 & 7, bits >> 11 & 63
        done = [i for i, (of, _) in enumerate(waiting) if mask >> of & 1]
        waiting = waiting[done[-1] + 1 :] if done else waiting
        guarded, text = this[2], _GUARD.sub("", this[2])
        if text.startswith("LDS") and not guarded.startswith("@!PT") and not _STATE.match(text):
            waiting = [*waiting, (counter, f"{text} at {this[1]}")]
        elif text.startswith("SHFL"):
            waiting = [*waiting, (counter, "")]
        elif text.startswith("BAR."):
            others = waiting
        elif text.startswith("SYNCS.ARRIVE"):
            reads = [words for _, words in others + waiting if words]
            found += [f"{text} at {this[1]}, {reads[-1]} under way"] if reads else []
        elif text.startswith(("BRA", "EXIT", "BRX")) and guarded == text:
            waiting, others = [], []
    return found
