"""One-line bugs of the dense MLA kernel and of how its rows are packed."""

KERNEL = "ops/mla/kernels/dense.py"
PLAN = "ops/mla/plan.py"
MUTANTS = [
    (KERNEL, "seen = tl.minimum(before + i + 1, width)", "seen = tl.minimum(before + i, width)"),
    (KERNEL, "seen = tl.minimum(before + i + 1, width)", "seen = tl.minimum(before + rows, width)"),
    (
        KERNEL,
        "k = tl.load(record + c[None, :], mask=ok[:, None]",
        "k = tl.load(record + c[None, :]",
    ),
    (KERNEL, "ok = n < tl.where(known, last, 0)", "ok = n < last"),
    (KERNEL, "first = split * share", "first = split * (share - BLOCK_N)"),
    (KERNEL, "tl.dot(p.to(k.dtype), k, o * fade[:, None])", "tl.dot(p.to(k.dtype), k, o)"),
    (KERNEL, "s = tl.dot(q_rope, tl.trans(k_rope), s) *", "s = s *"),
    (KERNEL, "start % PAGE * RECORD", "start % BLOCK_N * RECORD"),
    (KERNEL, "    of_pair = i < rows\n", "    of_pair = i <= rows\n"),
    (PLAN, "each = tiles if requests * tiles <= searched else 0", "each = 1"),
]
