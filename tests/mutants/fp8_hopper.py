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
    (FEW, "            sums += shelf.load(matrix)\n", "            shelf.load(matrix)\n"),
    (FEW, "            sums += part\n", "            sums = part\n"),
    (FEW, "row = gl.minimum(i % ROWS, m - 1)", "row = gl.minimum(i % ROWS, m - 1) * 0"),
    (FEW, "part = part * scale[:, None]", "part = part * 1.0"),
    (FEW, "sums += gl.load(bias_ptr", "sums += 0 * gl.load(bias_ptr"),
]
