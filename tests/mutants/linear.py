"""One-line bugs of the linear layers' kernels and of the quantizers of activations."""

FEW = "ops/linear/kernels/few.py"
STREAMED = "ops/linear/kernels/streamed.py"
WIDEN = "ops/linear/kernels/widen.py"
SCALED = "ops/linear/kernels/scaled.py"
BLOCKS = "ops/linear/kernels/blockscaled.py"
EXPANDED = "ops/linear/kernels/expanded.py"
NIBBLES = "ops/kernels/nibbles.py"
QUANTIZE = "ops/kernels/quantize.py"
ROWS = "ops/quantize/kernel.py"
RING = "ops/linear/kernels/ring.py"
RUN = "ops/linear/run.py"
BOTH = "ops/linear/both.py"
TESTS = [
    "tests/kernels/test_linear.py",
    "tests/kernels/test_cases.py",
    "-k",
    "linear or quantize or packed or scratch or fp8_as or before",
]
MUTANTS = [
    (FEW, "share = part * SHARES + tl.arange(0, SHARES)", "share = part + tl.arange(0, SHARES)"),
    (FEW, "count = tl.minimum(chunk, width - low)", "count = low * 0 + chunk"),
    (FEW, "n_at = tl.minimum(col, n - 1)", "n_at = tl.minimum(col, n - 2)"),
    (FEW, "of_x = (row < m)", "of_x = (row < m - 1)"),
    (FEW, "stride_scale, share * groups, s_at", "stride_scale, share * 0, s_at"),
    (FEW, "at = tl.minimum(low, width - 1)", "at = tl.minimum(low * 0, width - 1)"),
    (FEW, "at = tl.minimum(low + first + BK, width", "at = tl.minimum(low + first, width"),
    (FEW, "acc = tl.dot(wide_high * factor", "acc = tl.dot(wide_high"),
    (FEW, "s_row = (n_at // group_n * stride_scale)", "s_row = (n_at * stride_scale)"),
    (FEW, "                    zero = tl.load(zero_ptr + s_row + at)", "                    pass"),
    (FEW, "y *= E2M1_E4M3_LEFT", "pass"),
    (FEW, "y *= E4M3_F16_LEFT", "pass"),
    (FEW, "y *= tl.load(factor_ptr + n_at)", "y *= tl.load(factor_ptr)"),
    (FEW, "part.to(tl.int64) * m * n", "part.to(tl.int64) * 0"),
    (STREAMED, "n_at = tl.minimum(col, n - 1)", "n_at = tl.minimum(col, n - 2)"),
    (STREAMED, "m_at = tl.minimum(row, m - 1)", "m_at = tl.minimum(row, m - 2)"),
    (STREAMED, "inside = (k_at < count - first)[None, :]", "inside = (k_at < count)[None, :]"),
    (STREAMED, "ahead = tl.minimum(low + first + BK", "ahead = tl.minimum(low + first"),
    (STREAMED, "zero = tl.load(zero_ptr + s_row + ahead)", "pass"),
    (STREAMED, "s_row = n_at // group_n", "s_row = n_at"),
    (STREAMED, "acc = tl.dot(wide_high * factor", "acc = tl.dot(wide_high"),
    (STREAMED, "acc *= E2M1_E4M3_LEFT", "pass"),
    (STREAMED, "acc *= WIDENED", "pass"),
    (STREAMED, "acc *= tl.load(factor_ptr + n_at)", "acc *= tl.load(factor_ptr)"),
    (STREAMED, "part[:, None].to(tl.int64) * m) * n", "part[:, None].to(tl.int64)) * n"),
    (STREAMED, "total *= tl.load(factor_ptr + col", "total += tl.load(factor_ptr + col"),
    (WIDEN, "+ first // group_k", "+ first * 0"),
    (WIDEN, "GROUP)[None, :] * EACH", "GROUP)[None, :]"),
    (WIDEN, "row * stride_w + byte", "row * tl.cdiv(k, EACH) + byte"),
    (WIDEN, "w *= tl.load(factor_ptr + row", "w += 0 * tl.load(factor_ptr + row"),
    (WIDEN, "zero = 8.0", "zero = 7.0"),
    (WIDEN, "tl.join(low * scale, high * scale)", "tl.join(high * scale, low * scale)"),
    (SCALED, "group = (low + first) // GROUP", "group = first // GROUP"),
    (SCALED, "group * stride_x_group", "group"),
    (SCALED, "(at_n * BN // group_n)", "at_n"),
    (SCALED, "acc *= WIDENED * WIDENED", "acc *= WIDENED"),
    (SCALED, "_both(of_w, of_x, UNIFORM, BY_X)\n", "_both(of_w, of_w, UNIFORM, BY_X)\n"),
    (SCALED, "first + inside % height", "inside % height"),
    (BLOCKS, "held = (block < count - s_at)", "held = (block < count)"),
    (BLOCKS, "low * 8 + byte[None, :]\n    x_ptrs", "byte[None, :]\n    x_ptrs"),
    (BLOCKS, "+ low + block[None, :]\n    xs_ptrs", "+ block[None, :]\n    xs_ptrs"),
    (BLOCKS, "acc *= tl.load(x_factor_ptr + m_at)", "acc *= tl.load(x_factor_ptr)"),
    (EXPANDED, "LEFT: tl.constexpr = 8.0", "LEFT: tl.constexpr = 4.0"),
    (EXPANDED, "largest[:, None] + 30, 0)", "largest[:, None] + 29, 0)"),
    (EXPANDED, "sums * _power(largest)[:, None]", "sums * _power(largest + 1)[:, None]"),
    (EXPANDED, "odd = ((x >> 8) & 0xFF)", "odd = (x & 0xFF)"),
    (EXPANDED, "mask=(block * GROUP < count - b_at)", "mask=(block * GROUP < count)"),
    (NIBBLES, "shl.b32 s, u, 8; shl.b32 m, u, 2;", "shl.b32 s, u, 8; shl.b32 m, u, 3;"),
    (NIBBLES, "lop3.b32 $1, m, 0x000F000F", "lop3.b32 $3, m, 0x000F000F"),
    (NIBBLES, '"prmt.b32 u, $2, 0, 0x3424;"', '"prmt.b32 u, $2, 0, 0x2434;"'),
    (NIBBLES, "less = (value - _constant(OFFSET, BF16)) - zero", "less = value - (zero + 128)"),
    (NIBBLES, "odd = (x >> 16)", "odd = (x >> 15)"),
    (RING, "return ((step + 1) * blocks - 1) // total", "return (step * blocks) // total"),
    (RING, "parts = _owner((tile + 1) * steps - 1,", "parts = _owner((tile + 1) * steps,"),
    (RING, "    if parts > 1:\n", "    if parts > 0:\n"),
    (RING, "row = tl.program_id(1) * ROWS +", "row = tl.program_id(1) +"),
    (RING, "part = first + tl.arange(0, AT_ONCE)", "part = tl.arange(0, AT_ONCE)"),
    (RING, "mask[None, :, :] & (part < parts)", "mask[None, :, :] & (part < parts + 1)"),
    (RING, "y *= factor[None, :]", "pass"),
    (QUANTIZE, "(a >= 0.75)", "(a > 0.75)"),
    (QUANTIZE, "(a > 2.5)", "(a >= 2.5)"),
    (QUANTIZE, "divided(largest, factor * E2M1_MAX)", "largest * (1.0 / (factor * E2M1_MAX))"),
    (QUANTIZE, "(even | (odd << 4))", "(odd | (even << 4))"),
    (QUANTIZE, "tl.maximum(tl.math.div_rn(largest, most), floor)", "tl.math.div_rn(largest, most)"),
    (QUANTIZE, 'tl.where(any_nan > 0, float("nan"), scale)', "scale"),
    (QUANTIZE, "scale = tl.where(any_nan, 0x7F,", "scale = tl.where(any_nan, 0x38,"),
    (ROWS, "mask = (inside < GROUP) & (col < k)", "mask = col < k"),
    (ROWS, "= tl.maximum(largest, most), tl.maximum(any_nan, bad)", "= most, bad"),
    (ROWS, "group.to(tl.int64) * rows + row", "row * tl.cdiv(k, GROUP) + group"),
    (RUN, "if rows.stride(0) % 2 or rows.storage_offset() % 2:", "if rows.stride(0) % 2:"),
    (RUN, "rows = rows.index_select(1, weight.order)", "pass"),
    (BOTH, "stride_group = x.scales.stride(1)", "stride_group = x.scales.stride(0)"),
]  # fmt: skip
