"""One-line bugs of the linear layers' kernels whose codes go straight to registers."""

DIRECT = "ops/linear/kernels/direct.py"
FRAGMENTS = "ops/linear/kernels/fragments.py"
TURNED = "ops/linear/kernels/turned.py"
RING = "ops/linear/kernels/ring.py"
STREAM = "ops/kernels/nvfp4_stream.py"
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
    (RING, "own += [[16 * warps << i, 0]", "own += [[32 * warps << i, 0]"),
    (RING, "[tile * TILE, step * (STEP // 8)]", "[tile * TILE, 0]"),
    (RING, "[tile * TILE, step * (STEP // 64)]", "[tile * TILE, 0]"),
    (RING, "first = (low + at) % steps * STEP", "first = at % steps * STEP"),
    (RING, "x_ptr + first + offsets, mask=(row < m)", "x_ptr + first + offsets, mask=(row < 1)"),
    (RING, "permute([0, 2, 3, 5, 6, 1, 4])", "permute([0, 2, 3, 6, 5, 1, 4])"),
    (RING, "begin, end = gl.maximum(low, tile * steps)", "begin, end = gl.maximum(low, 0)"),
    (RING, "y = LEFT * stream_sums(", "y = 64.0 * stream_sums("),
    (RING, "free, begin - low, end - begin,", "free, 0, end - begin,"),
    (RING, "part.to(gl.int64) * m * n + at", "part.to(gl.int64) * 0 + at"),
    (RING, "y = y * gl.load(factor_ptr + col, mask=col < n, other=0.0)[:, None]", "pass"),
    (STREAM, "factors[g], g, TYPE", "factors[0], g, TYPE"),
    (STREAM, "(at + i) % STAGES, ((at", "(at + i + 1) % STAGES, ((at"),
]  # fmt: skip
