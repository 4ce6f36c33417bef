"""One-line bugs of the search for the largest logit, and of draws."""

KERNEL = "ops/sampling/kernels/largest.py"
DRAW = "ops/sampling/kernels/draw.py"
TESTS = ["tests/kernels", "-k", "greedy or draw"]
MUTANTS = [
    (KERNEL, "at = tl.where(x > best, column, at)", "at = tl.where(x >= best, column, at)"),
    (KERNEL, "mask=column < vocab, other", "mask=column < vocab + 1, other"),
    (KERNEL, "column = first + cols", "column = cols"),
    (KERNEL, 'x = tl.where(x != x, float("inf"), x)', "x = x + 0.0"),
    (KERNEL, '(largest < float("inf")) & ', ""),
    (KERNEL, ' & (largest > float("-inf"))', ""),
    (KERNEL, "found = tl.min(", "found = tl.max("),
    (KERNEL, "x_ptr + row * stride_x", "x_ptr + row * vocab"),
    (DRAW, "few = tl.minimum(few, tl.where(shift > 0, 7, 1))", "few = tl.minimum(few, 7)"),
    (DRAW, "room = (k - above).to(tl.int32)", "room = k.to(tl.int32)"),
    (DRAW, "total += room * _weight(bound)", "total += _weight(bound)"),
    (DRAW, "need = (goal - above)", "need = (goal)"),
    (DRAW, "tl.where(bound == by_k, tl.minimum(need, room), need)", "need"),
    (DRAW, "(magnitude == bound) & (column <= last))", "(magnitude == bound))"),
    (DRAW, "inside & (y >= least)", "inside & (y > least)"),
    (DRAW, "sum_before + here > target", "sum_before + here >= target"),
    (DRAW, "(sums >= goal) * wraps", "0"),
    (DRAW, "sums = base + tl.cumsum(weight, 0)", "sums = tl.cumsum(weight, 0)"),
    (DRAW, "x_ptr += row * stride_x", "x_ptr += row * vocab"),
    (DRAW, "table_ptr += row * stride_table", "table_ptr += row * 5"),
]
