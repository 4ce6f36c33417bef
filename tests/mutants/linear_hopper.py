"""One-line bugs of the linear layers' kernels whose codes go straight to registers."""

DIRECT = "ops/linear/kernels/direct.py"
FRAGMENTS = "ops/linear/kernels/fragments.py"
TURNED = "ops/linear/kernels/turned.py"
GPU = True
TESTS = ["tests/gpu/test_cases.py", "-k", "linear-nvfp4 or linear-int4 or linear-fp8"]
MUTANTS = [
    (DIRECT, "return (gl.minimum(row, n - 1)", "return (gl.minimum(row, n - 2)"),
    (DIRECT, "(at // group_k)[None, :]", "(at * 0)[None, :]"),
    (DIRECT, "// group_n * stride_scale", "* stride_scale"),
    (DIRECT, "held & (pair < (high - ahead) // PAIR)", "held"),
    (DIRECT, "low = part * chunk", "low = part * 0"),
    (DIRECT, "y = y * 128.0", "y = y * 64.0"),
    (DIRECT, "y = y * 256.0", "y = y * 128.0"),
    (DIRECT, "_doubled([0, chunk * warps], chunks)", "_doubled([0, chunk], chunks)"),
    (DIRECT, "part.to(gl.int64) * m * n", "part.to(gl.int64) * 0"),
    (FRAGMENTS, "z{r}" + "\" if zeros", "z0" + "\" if zeros"),
    (FRAGMENTS, "by = f" + "\"f{2 * r + j // 2}\"", "by = f" + "\"f{2 * r + j % 2}\""),
    (FRAGMENTS, "i % 4 // 2) * chunks", "i % 2) * chunks"),
    (FRAGMENTS, "e // 2 + e % 2 * pairs", "e % 2 + e // 2 * pairs"),
    (FRAGMENTS, "lines += clear if grouped", "lines += [] if grouped"),
    (FRAGMENTS, "a{i % 2 * 4 + i // 2}", "a{i // 4 * 4 + i % 4}"),
    (TURNED, "n - 1).to(gl.int64)\n    s_ptrs", "n - 2).to(gl.int64)\n    s_ptrs"),
    (TURNED, "s_ptrs += low // 16", "s_ptrs += low // 16 * 0"),
    (TURNED, "xs.index(i % STAGES)", "xs.index(0)"),
    (TURNED, "y = acc * 128.0", "y = acc * 64.0"),
    (TURNED, "[:, None] + 2 * low\n", "[:, None]\n"),
]  # fmt: skip
