"""One-line bugs of the kernels that score the indexer's keys."""

LOGITS = "ops/indexer/kernels/logits.py"
TILED = "ops/indexer/kernels/tiled.py"
SCHEDULE = "ops/indexer/schedule.py"
TESTS = ["tests/kernels", "-k", "index"]
MUTANTS = [
    (LOGITS, "dots = tl.maximum(dots, 0.0) * weight[:, None]", "dots = dots * weight[:, None]"),
    (LOGITS, ") * (WIDENED * WIDENED)  # fmt: skip", ") * WIDENED  # fmt: skip"),
    (
        LOGITS,
        "seen = ok[None, :] & (n[None, :] < visible[:, None])",
        "seen = ok[None, :] & (n[None, :] <= visible[:, None])",
    ),
    (LOGITS, "mine = of_row & (request == owner)", "mine = of_row"),
    (LOGITS, "PAGE * (d_width // 4) + n % PAGE", "n % PAGE"),
    (
        LOGITS,
        "(n[None, :] >= start[:, None]) & (n[None, :] < end[:, None])",
        "(n[None, :] < end[:, None])",
    ),
    (LOGITS, "base = tl.min(start, 0) if RELATIVE else 0", "base = 0"),
    (TILED, "dots = tl.maximum(dots, 0.0) * weight[None, :]", "dots = dots * weight[None, :]"),
    (TILED, "(n[:, None] < mine[None, :])", "(n[:, None] <= mine[None, :])"),
    (TILED, "(n[:, None] >= start[None, :])", "(n[:, None] > start[None, :])"),
    (TILED, "mine = tl.where(request == owner, stop, 0)", "mine = stop"),
    (TILED, "PAGE * (d_width // 4) + n % PAGE", "n % PAGE"),
    (TILED, 'score = tl.where(ok[:, None], score, -float("inf"))', "score = score"),
    (TILED, "out -= start", "out -= 0"),
    (TILED, "(row // each).to(tl.int32)", "row.to(tl.int32)"),
    (TILED, "(n < start[:, None]) | (n >= end[:, None])", "(n >= end[:, None])"),
    (TILED, "tl.minimum(end, tl.minimum(start, num_keys) + columns)", "end"),
    (TILED, "base = tl.min(start, 0)", "base = 0"),
    (
        SCHEDULE,
        "return Walk((blocks, -(-columns // chunk)), chunk, r)",
        "return Walk((blocks, 1), chunk, r)",
    ),
]
