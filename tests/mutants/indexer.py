"""One-line bugs of the indexer's kernels."""

LOGITS = "ops/indexer/kernels/logits.py"
TOPK = "ops/indexer/kernels/topk.py"
RUN = "ops/indexer/run.py"
TESTS = ["tests/kernels/test_cases.py", "-k", "index_ or topk_ or logical_"]
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
    (TOPK, 'keep & (x > -float("inf"))', "keep & (x == x)"),
    (TOPK, "tl.where(x == 0.0, 0, x.to(tl.int32, bitcast=True))", "x.to(tl.int32, bitcast=True)"),
    (TOPK, "(tie & (rank <= ties))", "tie"),
    (TOPK, "ties -= tl.sum(tie.to(tl.int32), 0)", "ties -= 0"),
    (TOPK, "prefix = (high << 11) | middle", "prefix = middle"),
    (TOPK, "if KEEP_ALL and visible <= topk:", "if KEEP_ALL and visible < 0:"),
    (TOPK, "for first in range(written, topk, BLOCK):", "for first in range(topk, topk, BLOCK):"),
    (
        TOPK,
        "known = known & (request >= 0) & (request < num_requests)",
        "known = known & (request < num_requests)",
    ),
    (TOPK, "(page >= 0) & (slot <= 2147483647)", "(page >= 0)"),
    (
        RUN,
        "visible = context_lens.int()[request] - ends[request] + t + 1",
        "visible = context_lens.int()[request] - ends[request] + t",
    ),
]
