"""One-line bugs of the indexer's selection."""

TOPK = "ops/indexer/kernels/topk.py"
QUERIES = "ops/indexer/kernels/queries.py"
TESTS = ["tests/kernels/test_cases.py", "-k", "index_ or topk_ or logical_"]
MUTANTS = [
    (TOPK, 'keep & (x > -float("inf"))', "keep & (x == x)"),
    (TOPK, "tl.where(x == 0.0, 0, x.to(tl.int32, bitcast=True))", "x.to(tl.int32, bitcast=True)"),
    (TOPK, "(tie & (upto >> 16 <= ties))", "tie"),
    (TOPK, "ties -= tl.minimum(both >> 16, ties)", "ties -= 0"),
    (TOPK, "tl.where(reached > need, need - above, need)", "need"),
    (
        TOPK,
        "reach = reached - tl.cumsum(counts, 0) + counts",
        "reach = reached - tl.cumsum(counts, 0)",
    ),
    (
        TOPK,
        "high = tl.minimum(high, bound + ((bin + 1)",
        "high = tl.minimum(high, bound + ((bin + 0)",
    ),
    (TOPK, "bound = (bound << 11) |", "bound ="),
    (TOPK, "(marked <= KEEP) | (ties <= 0)", "marked <= KEEP"),
    (TOPK, "(marked >= topk) | (guess == LEAST)", "marked >= 0"),
    (TOPK, "(marked <= KEEP) & ((marked", "((marked"),
    (TOPK, "tl.where(count <= KEEP, tl.max(number, 0), 0)", "tl.minimum(tl.max(number, 0), 1)"),
    (
        TOPK,
        "place = count + tl.cumsum(number, 0) - number",
        "place = tl.cumsum(number, 0) - number",
    ),
    (TOPK, "if whole < last:", "if whole > last:"),
    (TOPK, "first = tl.program_id(1) * share", "first = 0"),
    (TOPK, "if KEEP_ALL and visible <= topk:", "if KEEP_ALL and visible < 0:"),
    (
        TOPK,
        "for first in range(written, topk, BLOCK):",
        "for first in range(topk, topk, BLOCK):",
    ),
    (
        TOPK,
        "known = known & (request >= 0) & (request < num_requests)",
        "known = known & (request < num_requests)",
    ),
    (TOPK, "(page >= 0) & (slot <= 2147483647)", "(page >= 0)"),
    (QUERIES, "to(tl.int32) - end + t + 1)", "to(tl.int32) - end + t)"),
    (QUERIES, "group_scale(q, floor, True, 1)", "group_scale(q, floor, False, 1)"),
    (QUERIES, "weight.to(tl.float32) * scale,", "weight.to(tl.float32),"),
    (QUERIES, "h = tl.program_id(1) * BLOCK_H +", "h = 0 * BLOCK_H +"),
]
