"""One-line bugs of the routers, of the sorting, the grouped products and the sum over experts."""

ROUTE = "ops/moe/kernels/route.py"
COMBINE = "ops/moe/kernels/combine.py"
SORT = "ops/moe/kernels/sort.py"
GROUPED = "ops/moe/kernels/grouped.py"
WEIGHTS = "ops/moe/kernels/weights.py"
STREAMED = "ops/kernels/nvfp4_stream.py"
TURNED = "ops/moe/kernels/turned.py"
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
    (COMBINE, "total + part * weight", "total + part"),
    (COMBINE, "part_ptr + ((t * K + j)", "part_ptr + ((t * K)"),
    (COMBINE, "weight_ptr + t * stride_t + j * stride_k", "weight_ptr + t * K + j"),
    (COMBINE, "(expert >= 0) & (expert < num_experts)", "expert < num_experts"),
    (COMBINE, "- first_expert", "- 0"),
    (SORT, "(place[None, :] < place[:, None])", "(place[None, :] <= place[:, None])"),
    (SORT, "before += tl.sum(tl.where(other < chunk, counts, 0), 0)", "before += 0"),
    (
        SORT,
        "opening = (along % BLOCK_M == 0) & (again < num_experts)",
        "opening = again < num_experts",
    ),
    (SORT, "tl.sum((less & opening[None, :])", "tl.sum((less | opening[None, :])"),
    (SORT, "(totals + BLOCK_M - 1) // BLOCK_M", "tl.minimum(totals, 1)"),
    (SORT, "rank += tl.gather(before, expert, 0)", "rank += 0"),
    (SORT, "tile_ptr + tile + rank // BLOCK_M", "tile_ptr + tile"),
    (SORT, "tl.minimum(total - rank, BLOCK_M)", "tl.minimum(total, BLOCK_M)"),
    (SORT, "opens = known & (rank % BLOCK_M == 0)", "opens = rank % BLOCK_M == 0"),
    (SORT, "tl.store(tile_ptr + spare, -1,", "tl.store(tile_ptr + spare, 0,"),
    (STREAMED, 'pair, half = "ab"[scale % 2]', 'pair, half = "ab"[scale // 2]'),
    (STREAMED, "shl.b32 s, {word}, 8;", "shl.b32 s, {word}, 7;"),
    (STREAMED, "{4 - 4 * odd};", "{4 * odd};"),
    (STREAMED, '"0x1040"), ("0x00F000F0", "0x0104")', '"0x0104"), ("0x00F000F0", "0x1040")'),
    (STREAMED, "word if pair < 2 else 's'", "word if pair < 1 else 's'"),
    (STREAMED, "p{odd + 2}, m, 0xFF00FF00", "p{odd + 2}, m, 0xFFFFFFFF"),
    (STREAMED, "32 * (row // 2) + 8 * (2 * j", "32 * (row % 2) + 8 * (2 * j"),
    (TURNED, "tl.maximum(largest, 15) - 14", "tl.maximum(largest, 15) - 15"),
    (TURNED, "tl.where(bits < 0x7F800000, bits, 0)", "tl.where(bits < 0x7F80, bits, 0)"),
    (TURNED, "place += column % 4 // 2 * 16", "place += column % 4 // 2 * 32"),
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
    ("ops/moe/decision.py", " or each <= few()):", "):"),
]
