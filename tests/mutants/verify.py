"""One-line bugs of the checks themselves: a check that lets something through."""

TESTS = ["tests/verify/test_compile.py", "tests/verify/test_retarget.py"]
TESTS += ["tests/verify/test_coverage.py", "tests/verify/test_verb.py"]
TESTS += ["tests/verify/test_arrivals.py", "tests/verify/test_rings.py"]
TESTS += ["-k", "not the_documents_hold"]  # the copy has no documents
INTERPRET = False
CHECK, COMPILE, MATRIX = "verify/check.py", "verify/compile.py", "verify/matrix.py"
ARRIVALS = "verify/arrivals.py"
RETARGET, RECORDS = "verify/retarget.py", "verify/records.py"
MUTANTS = [
    (CHECK, "if not least <= taken <= most:", "if not taken <= most:"),
    (CHECK, "if not least <= taken <= most:", "if not least <= taken:"),
    (CHECK, 'if case.size == "small":', "if True:"),
    (CHECK, "SLACK = 1024", "SLACK = 1025"),
    (CHECK, "taken > UNMODELLED", "taken > UNMODELLED << 8"),
    (CHECK, "if result.shared > limit:", "if False:"),
    (CHECK, "if result.spills:", "if result.spills < 0:"),
    (CHECK, "stages > 1 and not any(", "stages > 1 and not all("),
    (CHECK, "if stages > 1 and", "if stages > 3 and"),
    (CHECK, "row.emits != NO_MMA and not", "row.emits == NO_MMA and not"),
    (CHECK, "if len(mine) == len(targets) > 1:", "if len(mine) == len(targets) > 2:"),
    (COMPILE, '_LOCAL = ("LDL", "STL")', '_LOCAL = ("LDLX", "STLX")'),
    (COMPILE, "if built.error is not None:  # it", "if built.error == 1:  # it"),
    (COMPILE, '"options": tuple(sorted(rest.items())),', '"options": (),'),
    (MATRIX, "(id(row), one.sm) not in reached", "id(row) not in {r for r, _ in reached}"),
    (MATRIX, 'sizes = ("model", "timed", "small")', 'sizes = ("small", "timed", "model")'),
    (RETARGET, "if lacking:", "if lacking and False:"),
    (RETARGET, 'if not before.startswith("@"):', "if True:"),
    (RETARGET, "if taken > limit:", "if taken > limit << 9:"),
    (RECORDS, "last[place] = not record.get(FAILED)", "last[place] = True"),
    (RECORDS, "RUNGS.index(rung) >= RUNGS", "RUNGS.index(rung) <= RUNGS"),
    (CHECK, "if result.early and", "if len(result.early) > 1 and"),
    (CHECK, "kernel not in WRITTEN_BY_WARPS:", "kernel in WRITTEN_BY_WARPS:"),
    (CHECK, " and kernel not in WRITTEN_BY_WARPS:", ":"),
    (COMPILE, '"-c", "-ndf", "-hex", str', '"-c", "-ndf", str'),
    (ARRIVALS, "_CONTROL = 41", "_CONTROL = 42"),
    (ARRIVALS, "bits >> 5 & 7", "bits >> 8 & 7"),
    (ARRIVALS, "bits >> 11 & 63", "bits >> 11 & 31"),
    (ARRIVALS, "waiting[done[-1] + 1 :]", "waiting[done[0] + 1 :]"),
    (ARRIVALS, "waiting[done[-1] + 1 :]", "[one for one in waiting if one[0] != counter]"),
    (ARRIVALS, '("BRA", "EXIT", "BRX")) and guarded == text', '("BRA", "EXIT", "BRX"))'),
    (ARRIVALS, '("BRA", "EXIT", "BRX")', '("BRX",)'),
    (ARRIVALS, ' and not guarded.startswith("@!PT")', ""),
    (ARRIVALS, " and not _STATE.match(text)", ""),
    (ARRIVALS, r"\w+, \[UR\d+", r"\w+, \[U?R\d+"),
    (ARRIVALS, r"^LDS(\.\w+)* ", r"^LDS\.U8 "),
    (ARRIVALS, 'text.startswith("SHFL")', 'text.startswith("SHFLX")'),
    (ARRIVALS, '(counter, "")]', "(counter, text)]"),
    (ARRIVALS, "others + waiting if words", "others + waiting"),
    (ARRIVALS, "in others + waiting", "in waiting"),
    (ARRIVALS, "            others = waiting", "            others = others + waiting"),
    (ARRIVALS, "waiting, others = [], []", "waiting = []"),
    (ARRIVALS, 'startswith("SYNCS.ARRIVE")', 'startswith("SYNCS")'),
    ("ops/kernels/nvfp4_stream.py", "        settled(total, SUMS=True)\n", ""),
    ("ops/kernels/barriers.py", "inputs[0][::each]", "()"),
    ("ops/indexer/kernels/specialized.py", "settled(factor)", "pass"),
]
