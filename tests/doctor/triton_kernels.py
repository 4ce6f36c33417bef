"""Triton kernels that are compiled for several GPUs, on a machine with none."""

import triton
import triton.language as tl


@triton.jit
def product(a, b, c, n: tl.constexpr, k: tl.constexpr):
    """c = a @ b.T, one block."""
    rows, cols, inner = tl.arange(0, n), tl.arange(0, n), tl.arange(0, k)
    left = tl.load(a + rows[:, None] * k + inner[None, :])
    right = tl.load(b + cols[None, :] * k + inner[:, None])
    tl.store(c + rows[:, None] * n + cols[None, :], tl.dot(left, right))


@triton.jit
def scaled(a, sa, b, sb, c, n: tl.constexpr, k: tl.constexpr):
    """The same of e2m1 pairs with a scale for each 32 values."""
    rows, inner, groups = tl.arange(0, n), tl.arange(0, k // 2), tl.arange(0, k // 32)
    left = tl.load(a + rows[:, None] * (k // 2) + inner[None, :])
    right = tl.load(b + rows[None, :] * (k // 2) + inner[:, None])
    left_scale = tl.load(sa + rows[:, None] * (k // 32) + groups[None, :])
    right_scale = tl.load(sb + rows[:, None] * (k // 32) + groups[None, :])
    total = tl.dot_scaled(left, left_scale, "e2m1", right, right_scale, "e2m1")
    tl.store(c + rows[:, None] * n + rows[None, :], total)
