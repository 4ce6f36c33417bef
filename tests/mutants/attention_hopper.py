"""One-line bugs of the causal prefill whose warps have roles: no interpreter runs it."""

KERNEL = "ops/attention/kernels/specialized.py"
GPU = True
TESTS = ["tests/gpu/test_cases.py", "-k", "attention"]
MUTANTS = [
    (KERNEL, "seen = here < keys", "seen = here < keys + 1"),
    (KERNEL, "seen & (here <= positions)", "seen & (here < positions)"),
    (KERNEL, "here > positions - window", "here >= positions - window"),
    (KERNEL, "        out = out * factor[:, None]\n", "        out = out * 1.0\n"),
    (
        KERNEL,
        "full_high = gl.maximum(gl.minimum(keys, start + 1), 0)",
        "full_high = keys + start * 0",
    ),
    (
        KERNEL,
        "full_low = (gl.maximum(start + BLOCK_M - window, 0)",
        "full_low = (gl.maximum(start - window, 0)",
    ),
    (
        KERNEL,
        "v = gl.load(v_ptr + at, mask=(key < keys)[:, None], other=0.0)",
        "v = gl.load(v_ptr + at)",
    ),
    (KERNEL, "kv_head = head // QUERY_HEADS", "kv_head = head * 0"),
    (KERNEL, "share *= sink_share", "share += 0.0 * sink_share"),
    (KERNEL, "[row, k_col + K0]", "[row, k_col]"),
    (KERNEL, "start = row + keys - num_mine", "start = row + 0"),
    (KERNEL, "lse * LN2, mask", "lse, mask"),
]
