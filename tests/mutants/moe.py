"""One-line bugs of the routers, and of the sum over a token's experts."""

ROUTE = "ops/moe/kernels/route.py"
EXPERTS = "ops/moe/kernels/experts.py"
TESTS = ["tests/kernels", "-k", "route or experts"]
MUTANTS = [
    (ROUTE, "name = tl.min(tl.where(values == largest", "name = tl.max(tl.where(values == largest"),
    (ROUTE, "(group < GROUPS)[:, None] & (inside < size)", "(group < GROUPS)[:, None]"),
    (ROUTE, "tl.where(found, score, 0.0)", "tl.where(found, choice, 0.0)"),
    (ROUTE, "best += tl.where(size > 1, tl.max(ranked, 1), 0.0)", "best += 0.0"),
    (ROUTE, "tl.where(size > 1, tl.max(ranked, 1), 0.0)", "tl.max(ranked, 1)"),
    (ROUTE, 'float("-inf") if SIGMOID else 0.0', "0.0"),
    (ROUTE, 'float("-inf") if SIGMOID else 0.0', 'float("-inf")'),
    (ROUTE, "tl.sum(weights) + (FLOOR if SIGMOID else 0.0)", "1.0"),
    (ROUTE, "x_ptr + row * stride_x", "x_ptr + row * GROUPS * size"),
    (ROUTE, "weights * scale", "weights"),
    (ROUTE, "taken = taken | found", "taken = found"),
    (ROUTE, "names = tl.where(found, GROUPS * size, names)", "names = names + 0"),
    (EXPERTS, "total += part * weight", "total += part"),
    (EXPERTS, "part_ptr + (t * k + j) * width", "part_ptr + (t * k) * width"),
    (EXPERTS, "weight_ptr + t * stride_t + j * stride_k", "weight_ptr + t * k + j"),
]
