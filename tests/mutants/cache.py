"""One-line bugs of cache writes and gathers, the rotary embedding, SwiGLU and the experts."""

CACHE = "ops/cache/kernel.py"
E4M3 = "ops/kernels/e4m3.py"
FUSED = "ops/cache/kernels/fused.py"
ROPE = "ops/rope/kernel.py"
TURN = "ops/kernels/rotation.py"
SWIGLU = "ops/activation/kernel.py"
TESTS = ["tests/kernels/test_cases.py", "-k", "cache_ or _write or rope or swiglu"]
MUTANTS = [
    (E4M3, "magnitude + 0x7FFFF + ((magnitude >> 20) & 1)", "magnitude + 0x7FFFF"),
    (E4M3, "tl.where(y < 0.015625, steps,", "tl.where(y < 0.0, steps,"),
    (E4M3, "code = tl.where(magnitude > 0x7F800000, 0x7F, code)", "code = code + 0"),
    (
        E4M3,
        "largest = tl.maximum(tl.max(tl.abs(x), AXIS), floor)",
        "largest = tl.max(tl.abs(x), AXIS)",
    ),
    (CACHE, "if (slot >= 0) & (slot < num_slots):", "if slot < num_slots:"),
    (E4M3, "(code | ((bits >> 24) & 0x80)).to(tl.uint8)", "code.to(tl.uint8)"),
    (
        CACHE,
        "start = page_size * PLANE if PLANAR else PLANE\n        out",
        "start = PLANE\n        out",
    ),
    (CACHE, "POW2=part.pow2", "POW2=False"),
    (CACHE, "position = s - tl.load(key_start_ptr + request)", "position = s"),
    (
        E4M3,
        "widen(code).to(tl.float32) * WIDENED",
        "widen(code).to(tl.float32)",
    ),
    (FUSED, "tl.sum(x * x) / rank + eps)", "tl.sum(x * x) / rank)"),
    (FUSED, "y = y.to(x_ptr.dtype.element_ty).to(tl.float32)", "y = y.to(tl.float32)"),
    (FUSED, "x.to(kind).to(rope_ptr", "x.to(rope_ptr"),
    (
        FUSED,
        "scale = group_scale(grouped, floor, POW2, 1)",
        "scale = group_scale(grouped, 0.0, POW2, 1)",
    ),
    (FUSED, "mask=g * GROUP < rank", "mask=g >= 0"),
    (FUSED, "mask=column < rank)\n        else", "mask=column >= 0)\n        else"),
    (FUSED, "x, y = turn(a, b, cos, sin)", "y, x = turn(a, b, cos, sin)"),
    (FUSED, "first = 2 * i if INTERLEAVED else i", "first = i"),
    (FUSED, "return tl.cos(angle) * factor, tl.sin", "return tl.cos(angle), tl.sin"),
    (FUSED, "start = page_size * PLANE if PLANAR else PLANE", "start = PLANE"),
    (FUSED, "x = tl.where(mask, x - mean, 0.0)", "x = x - mean"),
    (FUSED, "((other - mean) / deviation", "(other / deviation"),
    (FUSED, "tl.where(second, b, a).to(kind)", "b.to(kind)"),
    (FUSED, "y = tl.where(turned, tl", "y = tl.where(n >= 0, tl"),
    (FUSED, "y = (x / deviation * weight + bias).to(kind)", "y = x / deviation * weight + bias"),
    (FUSED, "tl.where(n < half, n + half, n - half), n % half", "n ^ 1, n % half"),
    (TURN, "-(b * sin)", "b * sin"),
    (TURN, "tl.fma(a, sin, b * cos)", "tl.fma(b, sin, a * cos)"),
    (ROPE, "first, apart = i[None, :], half", "first, apart = 2 * i[None, :], 1"),
    (ROPE, "sin = (tl.sin(angle) * factor)[None, :]", "sin = tl.sin(angle)[None, :]"),
    (SWIGLU, "gate / (1.0 + tl.exp(-gate)) * up", "gate / (1.0 + tl.exp(gate)) * up"),
    (SWIGLU, "mask = cols < width", "mask = cols < width - 1"),
]
