"""One-line bugs of the search for the largest logit."""

KERNEL = "ops/sampling/kernel.py"
TESTS = ["tests/kernels", "-k", "greedy"]
MUTANTS = [
    (KERNEL, "at = tl.where(x > best, column, at)", "at = tl.where(x >= best, column, at)"),
    (KERNEL, "mask=column < vocab, other", "mask=column < vocab + 1, other"),
    (KERNEL, "column = first + cols", "column = cols"),
    (KERNEL, 'x = tl.where(x != x, float("inf"), x)', "x = x + 0.0"),
    (KERNEL, '(largest < float("inf")) & ', ""),
    (KERNEL, ' & (largest > float("-inf"))', ""),
    (KERNEL, "found = tl.min(", "found = tl.max("),
    (KERNEL, "x_ptr + row * stride_x", "x_ptr + row * vocab"),
]
