"""One-line bugs of the norms' kernel."""

KERNEL = "ops/norm/kernel.py"
MUTANTS = [
    (KERNEL, "tl.sqrt(tl.sum(x * x) / d + eps)", "tl.sqrt(tl.sum(x * x) / d)"),
    (KERNEL, "tl.sqrt(tl.sum(x * x) / d + eps)", "tl.sqrt(tl.sum(x * x) / BLOCK + eps)"),
    (KERNEL, "x = tl.where(mask, x - tl.sum(x) / d, 0.0)", "x = x - tl.sum(x) / d"),
    (KERNEL, "mask = cols < d", "mask = cols < d + 1"),
    (KERNEL, "x_ptr + row * stride_x + cols", "x_ptr + row * d + cols"),
    (KERNEL, "weight_ptr + cols * stride_weight", "weight_ptr + cols"),
    (KERNEL, "bias_ptr + cols * stride_bias", "bias_ptr + cols"),
    (KERNEL, "delta_ptr + row * stride_delta", "delta_ptr + row * d"),
    (KERNEL, "x = total.to(tl.float32)", "x = x + 0.0"),
    (KERNEL, "total = (x + delta.to(tl.float32))", "total = (x - delta.to(tl.float32))"),
    (KERNEL, "        y += tl.load(", "        y = tl.load("),
]
