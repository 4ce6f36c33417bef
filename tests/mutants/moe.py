"""One-line bugs of the routers, of the sorting, the grouped products and the sum over experts."""

ROUTE = "ops/moe/kernels/route.py"
COMBINE = "ops/moe/kernels/combine.py"
SORT = "ops/moe/kernels/sort.py"
GROUPED = "ops/moe/kernels/grouped.py"
WEIGHTS = "ops/moe/kernels/weights.py"
PLACES = "ops/moe/kernels/places.py"
RUN = "ops/moe/run.py"
TESTS = ["tests/kernels", "-k", "route or experts or grouped or moe"]
MUTANTS = [
    (ROUTE, "name = tl.min(tl.where(values == largest", "name = tl.max(tl.where(values == largest"),
    (ROUTE, "(group < GROUPS)[:, None] & (inside < size)", "(group < GROUPS)[:, None]"),
    (ROUTE, "tl.where(found, score, 0.0)", "tl.where(found, choice, 0.0)"),
    (ROUTE, "best += tl.where(size > 1, tl.max(ranked, 1), 0.0)", "best += 0.0"),
    (ROUTE, "tl.where(size > 1, tl.max(ranked, 1), 0.0)", "tl.max(ranked, 1)"),
    (ROUTE, 'float("-inf") if SIGMOID else 0.0', "0.0"),
    (ROUTE, 'float("-inf") if SIGMOID else 0.0', 'float("-inf")'),
    (ROUTE, "tl.sum(weights) + (FLOOR if SIGMOID else 0.0)", "1.0"),
    (ROUTE, "x_ptr + row * stride_x", "x_ptr + row * GROUPS * size"),
    (ROUTE, "weights * scale", "weights"),
    (ROUTE, "taken = taken | found", "taken = found"),
    (ROUTE, "names = tl.where(found, GROUPS * size, names)", "names = names + 0"),
    (COMBINE, "total += part * weight", "total += part"),
    (COMBINE, "part_ptr + (t * k + j) * width", "part_ptr + (t * k) * width"),
    (COMBINE, "weight_ptr + t * stride_t + j * stride_k", "weight_ptr + t * k + j"),
    (COMBINE, "(expert >= 0) & (expert < num_experts)", "expert < num_experts"),
    (COMBINE, "- first_expert", "- 0"),
    (SORT, "(place[None, :] < place[:, None])", "(place[None, :] <= place[:, None])"),
    (SORT, "before += tl.sum(tl.where(other < chunk, counts, 0), 0)", "before += 0"),
    (SORT, "used = owner < num_experts", "used = owner <= num_experts"),
    (SORT, "(total + BLOCK_M - 1) // BLOCK_M", "tl.minimum(total, 1)"),
    (SORT, "last - count, 0), 1)) * BLOCK_M", "last - count, 0), 1))"),
    (GROUPED, "source = first + tl.where(row < count, row, 0)  #", "source = first + row  #"),
    (GROUPED, "source = source // per_row", "source += 0"),
    (GROUPED, "if SCATTER and pair_ptr is not None", "if SCATTER and pair_ptr is None"),
    (GROUPED, "zero_ptr += expert * stride_ze", "zero_ptr += 0"),
    (GROUPED, "row_scale_ptr += expert * stride_re", "row_scale_ptr += 0"),
    (GROUPED, "(x.to(tl.float32) - upper.to(tl.float32))", "(0.0 * x.to(tl.float32))"),
    (GROUPED, "total / (1.0 + tl.exp(-total)) * lifted", "total * lifted"),
    (WEIGHTS, "tl.where(bits == 0, 0x00400000, ", "tl.where(bits == 256, 0, "),
    (WEIGHTS, "tl.join(halves[0], halves[1])", "tl.join(halves[1], halves[0])"),
    (
        WEIGHTS,
        "scale_ptr + (rows // BLOCK_ROWS) * stride_s",
        "scale_ptr + (rows // 128) * stride_s",
    ),
    (WEIGHTS, "zero_ptr + rows * stride_z + first // GROUP", "zero_ptr + rows * stride_z"),
    (RUN, "hidden = hidden.index_select(1, back.order)", "hidden = hidden + 0"),
    (RUN, "min(pairs, pairs // tall + num_experts)", "min(pairs, pairs // tall + 1)"),
    (PLACES, "(end + ALIGN - 1) // ALIGN * ALIGN <= begin", "end <= begin"),
    (PLACES, "count = tl.minimum(count, end - first)", "count += 0 * end"),
    (PLACES, "count = tl.max(tl.where(named == expert, row + 1, 0), 0)", "count += 0"),
    (GROUPED, "total = tl.where((row < count)[None, :], total, 0.0)", "total += 0.0"),
    (GROUPED, "rows, rows + n, source, k, stride_w", "rows, rows, source, k, stride_w"),
    (GROUPED, "tl.load(x_factor_ptr + source)", "tl.load(x_factor_ptr + 0 * source)"),
    (GROUPED, "begin // GROUP * stride_xk", "begin // GROUP"),
    (GROUPED, "total += tl.load(added, mask=mask, other=0.0)", "total += 0.0 * tl.load(added)"),
    (GROUPED, "first = group * height + begin", "first = group * 16 + begin"),
    (GROUPED, "blank = tl.where(expert < 0, stored, 0)", "blank = 0"),
    (
        "ops/moe/kernels/fp4.py",
        "x_scale_ptr, source, stride_xs, block",
        "x_scale_ptr, source, stride_xs, half",
    ),
    ("ops/moe/products.py", "return 256 * 256 if both else 256", "return 256"),
    ("ops/moe/decision.py", " or each <= few():", ":"),
]
