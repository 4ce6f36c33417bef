"""One-line bugs of the experts whose warps have roles: no interpreter runs them."""

KERNEL = "ops/moe/kernels/streamed.py"
GPU = True
TESTS = ["tests/gpu/test_cases.py", "-k", "experts and nvfp4 and not 256x2048"]
MUTANTS = [
    (KERNEL, "part * steps // PARTS, (part + 1)", "0 * steps // PARTS, (part + 1)"),
    (KERNEL, "a, b = expert.to(gl.int32) * 2, outer", "a, b = expert.to(gl.int32), outer"),
    (KERNEL, "(expert.to(gl.int32) * n + outer) // HALF", "(expert.to(gl.int32) + outer) // HALF"),
    (KERNEL, "mask=(row < count)[:, None],", "mask=(row < 1)[:, None],"),
    (KERNEL, "of_row = half * n + outer + place", "of_row = outer + place"),
    (KERNEL, "of_row = outer + half * HALF + place", "of_row = outer + place"),
    (KERNEL, "known = of_row < n", "known = of_row >= 0"),
    (KERNEL, "(factor * LEFT)[:, None]", "factor[:, None]"),
    (KERNEL, "gate / (1.0 + gl.exp(-gate)) * up", "gate * up"),
    (KERNEL, "mask = (column < n)[:, None] &", "mask = (column >= 0)[:, None] &"),
    (KERNEL, "goal = goal * PARTS + part", "goal = goal * PARTS"),
    (KERNEL, "return position // per_row", "return position"),
    (KERNEL, "        at += high - low\n", "        at += 0\n"),
    (KERNEL, "row_scale_ptr + expert * stride_re", "row_scale_ptr + 0 * stride_re"),
]
