"""One-line bugs of MLA's grouped and exact kernels, the keys they read, and the merge."""

GROUPED = "ops/mla/kernels/grouped.py"
EXACT = "ops/mla/kernels/exact.py"
KEYS = "ops/mla/kernels/keys.py"
FINISH = "ops/mla/kernels/finish.py"
UNPACK = "ops/mla/kernels/unpack.py"
PLAN = "ops/mla/plan.py"
TESTS = ["tests/kernels/test_cases.py", "-k", "mla_sparse"]
MUTANTS = [
    (GROUPED, 's = tl.where(ok[None, :], s, -float("inf"))', "s = s + 0.0"),
    (GROUPED, "inverse = inverse_of(unit_new)", "inverse = inverse_of(unit)"),
    (GROUPED, "keep = (unit * inverse)[:, None, None] * fade", "keep = fade"),
    (GROUPED, "row_scale = scale * LOG2_E * power_of_two(largest)", "row_scale = scale * LOG2_E"),
    (GROUPED, "q_rope = q_rope * to_unit[None, :, None]", "q_rope = q_rope * 1.0"),
    (
        GROUPED,
        "            if SPLIT_Q:\n                s = tl.dot(q_b",
        "            if False:\n                s = tl.dot(q_b",
    ),
    (
        GROUPED,
        "        if SPLIT_Q:\n            s = tl.dot(r_b",
        "        if False:\n            s = tl.dot(r_b",
    ),
    (GROUPED, "l = l * fade + tl.sum(p, 1)", "l = l + tl.sum(p, 1)"),
    (GROUPED, "unit = unit * SHIFT_SCALE", "unit = unit * 1.0"),
    (UNPACK, "((x & 0x7F) << 7) | ((x & 0x80) << 8)", "((x & 0x7F) << 7)"),
    (KEYS, "ok = (slot >= 0) & (slot < limit)", "ok = slot < limit"),
    (KEYS, "ok = (slot >= 0) & (slot < limit)", "ok = slot >= 0"),
    (KEYS, "(slot % PAGE) * STRIDE", "slot * STRIDE"),
    (KEYS, "count = tl.minimum(width, tl.load(length_ptr + t).to(tl.int32))", "count = width"),
    (FINISH, 'float("inf"), lse2 * LN_2)', 'float("inf"), lse2)'),
    (
        FINISH,
        "weight = weight * sink_weight(lse, sink_ptr, h, heads)\n    return weight, lse, m",
        "weight = weight\n    return weight, lse, m",
    ),
    (FINISH, "1.0 / (1.0 + tl.exp(sink - lse))", "1.0 / (1.0 + tl.exp(lse - sink))"),
    (EXACT, "factor * WIDENED", "factor * 128.0"),
    (EXACT, "mask=of_head & of_latent & (column < D_V)", "mask=of_head & of_latent"),
    (EXACT, "scale_ptr + at[None, :] + first // SCALED", "scale_ptr + at[None, :]"),
    (
        PLAN,
        "gapless = cache.pages.stride(0) == cache.page_size * size and not p.paged",
        "gapless = not p.paged",
    ),
]
