"""One-line bugs of the index scores whose warps have roles: no interpreter runs them."""

KERNEL = "ops/indexer/kernels/specialized.py"
GPU = True
TESTS = ["tests/gpu/test_cases.py", "tests/gpu/test_holes.py", "-k", "index_"]
MUTANTS = [
    (KERNEL, "return total + gl.maximum(x, 0.0) * w", "return total + x * w"),
    (KERNEL, "score = score * factor[:, None]", "score = score * 1.0"),
    (KERNEL, "score = gl.where(ok, score, float", "score = gl.where(ok | True, score, float"),
    (KERNEL, "ok = (page >= 0) & (page < num_pages)", "ok = page < num_pages"),
    (KERNEL, "mine = gl.where(request == owner, stop, 0)", "mine = stop"),
    (KERNEL, "span = gl.maximum(mine - start, 0)", "span = gl.maximum(mine - start - 1, 0)"),
    (KERNEL, "since = n[:, None] - start[None, :]", "since = n[:, None] + start[None, :] * 0"),
    (KERNEL, "        i += end - first\n", "        i += 0\n"),
    (KERNEL, "& (n >= end[:, None])", "& (n > end[:, None])"),
    (KERNEL, "& (n < start[:, None])", "& (n < start[:, None] - 1)"),
    (KERNEL, "key = tile * TILE % PAGE", "key = 0"),
    (KERNEL, "at = (my_row + column // HEADS)", "at = (my_row + column * 0)"),
]
