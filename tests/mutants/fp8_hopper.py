"""One-line bugs of the FP8 products whose warps have roles: no interpreter runs them."""

PRODUCTS = "ops/kernels/fp8_products.py"
FEW = "ops/linear/kernels/fp8_few.py"
GPU = True
TESTS = ["tests/gpu/test_cases.py", "-k", "w8a8 or fp8-block-fp8"]
MUTANTS = [
    (PRODUCTS, "part = warpgroup_mma(x, w, part, use_acc=never", "part = warpgroup_mma(x, w, part"),
    (PRODUCTS, "            product = part * scale\n", "            product = part\n"),
    (PRODUCTS, "block = gl.minimum(column + half * COLS, n - 1)", "block = column + half * 0"),
    (PRODUCTS, "of_row = gl.load(of_x + at * stride_xk)", "of_row = gl.load(of_x)"),
    (PRODUCTS, "return part * chunk, gl.max", "return part * 0, gl.max"),
    (PRODUCTS, "[mine * n + column, step * STEP]", "[column, step * STEP]"),
    (PRODUCTS, "y = gl.where((held & (group >= 0))", "y = gl.where((held | True)"),
    (PRODUCTS, "y = gl.where((r < end - row)", "y = gl.where((r < m - row)"),
    (PRODUCTS, "<= row).to(gl.int32), 0)", "< row).to(gl.int32), 0)"),
    (PRODUCTS, "gl.max((named == group)", "gl.min((named == group)"),
    (PRODUCTS, "sums += gl.load(bias_ptr", "sums += 0 * gl.load(bias_ptr"),
    (PRODUCTS, "stored = r < m - row\n", "stored = r < m - row - 1\n"),
    (FEW, "        sums = zeros\n", "        sums = zeros + 1\n"),
    (FEW, "                sums += part\n", "                sums = part\n"),
    (FEW, "gl.SliceLayout(0, layout)), m - 1)", "gl.SliceLayout(0, layout)), 0)"),
    (FEW, "gl.where(own, scale, 0.0)", "gl.where(own, scale, scale)"),
    (FEW, "part = gl.where(own, part, 0.0)", "part = gl.where(own, part, part)"),
    (FEW, "(at // (EACH * STEP) + i)", "(at // (EACH * STEP))"),
    (FEW, "[row, at + slab * STEP]", "[row, at]"),
    (FEW, "column // group_n * stride_ws", "column // group_n * 0"),
    (FEW, "y += gl.load(bias_ptr", "y += 0 * gl.load(bias_ptr"),
    (FEW, "col = column + gl.arange", "col = gl.program_id(0) * TALL + gl.arange"),
]
