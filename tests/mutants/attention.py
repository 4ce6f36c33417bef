"""One-line bugs of the attention kernels."""

PARTS, PREFILL = "ops/attention/kernels/parts.py", "ops/attention/kernels/prefill.py"
PAGED, MERGE = "ops/attention/kernels/paged.py", "ops/attention/kernels/merge.py"
MUTANTS = [
    (PARTS, "total * factor + tl.sum(weights, 1)", "total + tl.sum(weights, 1)"),
    (PARTS, 'tl.where(new_top == float("-inf"), 0.0, new_top)', "new_top"),
    (PARTS, 'tl.where(empty, float("inf"), top + tl.log2(total))', "top + tl.log2(total)"),
    (PARTS, "tl.exp2(sink * LOG2E - lse)", "tl.exp2(sink - lse)"),
    (PARTS, "tl.where(scale2 < 0, -1.0, 1.0)", "tl.where(scale2 < 0, 1.0, 1.0)"),
    (PARTS, "tl.maximum(tl.abs(scale2), 1e-30)", "tl.abs(scale2)"),
    (PARTS, "((bits & 0x80) << 8) | ((bits & 0x7F) << 4)", "((bits & 0x7F) << 4)"),
    (PARTS, "tl.maximum(tl.minimum(end, total) - first, 0)", "tl.maximum(end - first, 0)"),
    (PREFILL, "tl.minimum(keys, start + 1), 0)", "tl.minimum(keys, start + BLOCK_N), 0)"),
    (PREFILL, "seen & (here[None, :] > positions[:, None] - window)", "seen"),
    (PREFILL, "tl.maximum(start + BLOCK_M - window, 0)", "tl.maximum(start - window, 0)"),
    (PREFILL, "start = row + keys - num_mine", "start = row"),
    (PREFILL, "exists = here < keys", "exists = here < keys + 1"),
    (PREFILL, "kv_head = head // GROUP", "kv_head = head % GROUP"),
    (PAGED, "seen = seen & (page >= 0) & (page < num_pages)", "seen = seen & (page < num_pages)"),
    (PAGED, "(here < high) & (page < table_width)", "(here < high)"),
    (PAGED, "products = products * k_scale[None, :]", "products = products"),
    (PAGED, "weights = weights * v_scale[None, :]", "weights = weights"),
    (PAGED, "low_tile += part * share", "low_tile += part"),
    (PAGED, "tl.maximum(first - window + 1, 0)", "tl.maximum(first - window + 2, 0)"),
    (PAGED, "pairs // GROUP, kv_head * GROUP + pairs % GROUP", "pairs // GROUP, pairs % GROUP"),
    (MERGE, "part * weights[:, None]", "part"),
    (MERGE, 'tl.where(empty, float("-inf"), part_lse)', "part_lse"),
]
