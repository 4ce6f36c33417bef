"""One-line bugs of the quantized weights, their quantizers, stacks and joins."""

BASE, WEIGHTS = "formats/quantized.py", "formats/weights.py"
FP8, FP4, MX, INT4 = (f"formats/{name}.py" for name in ("fp8", "nvfp4", "mxfp4", "int4"))
LOADER, LAYERS, REFERENCE = "models/weights.py", "models/layers.py", "ops/linear/reference.py"
TESTS = ["tests/formats", "tests/models/test_weights.py", "tests/ops/test_quantized_references.py"]
INTERPRET = False
MUTANTS = [
    (BASE, 't if name == "order" else t[expert]', "t[expert]"),
    (BASE, "if group < 1 or k % group:", "if group < 1:"),
    (BASE, "if len(set(places.values())) > 1:", "if len(set(places.values())) > 2:"),
    (
        FP8,
        "return (self.values.float() * self.scales[..., None]).to(dtype)",
        "return self.values.float().to(dtype) * self.scales[..., None].to(dtype)",
    ),
    (
        FP8,
        "fp8_scales(_amax(x), floor=AMAX_FLOOR, pow2=False)",
        "fp8_scales(_amax(x), floor=AMAX_TINY, pow2=False)",
    ),
    (
        FP4,
        "return (exact * self.row_scales[..., None]).to(dtype)",
        "return (exact * self.row_scales[..., :1, None]).to(dtype)",
    ),
    (
        FP4,
        "g = amax.clamp(min=torch.finfo(torch.float32).tiny).reciprocal() * RANGE",
        "g = amax.new_full((), RANGE) / amax.clamp(min=torch.finfo(torch.float32).tiny)",
    ),
    (
        FP4,
        "g = torch.where(torch.isfinite(g), g, 1.0)",
        "g = torch.where(torch.isfinite(g), g, 0.0)",
    ),
    (
        FP4,
        "scales = torch.where(scales == 0, ZERO_BLOCK, scales)",
        "scales = scales.clamp(min=SMALLEST_SCALE)",
    ),
    (FP4, "(scales / g)[..., None] + 0.0)", "(scales / g)[..., None])"),
    (FP4, "blocks / (scales / g)[..., None]", "blocks * g[..., None] / scales[..., None]"),
    (FP4, "w.abs().flatten(-2).amax(-1)", "w.abs().amax()"),
    (FP4, "SEARCHED = range(-3, 8)", "SEARCHED = range(-1, 8)"),
    (FP4, "SEARCHED = range(-3, 8)", "SEARCHED = range(-3, 6)"),
    (FP4, "best, least = torch.where(error < least", "best, least = torch.where(error <= least"),
    (FP4, "(codes + step).clamp(1, 0x7E)", "(codes + step).clamp(1, 0x7F)"),
    (FP4, ".clamp(min=FACTOR_FLOOR)", ".clamp(min=2.0**-126)"),
    (FP4, "wanted.clamp(SMALLEST_SCALE, E4M3_MAX)", "wanted.clamp(max=E4M3_MAX)"),
    (
        FP4,
        "wanted = largest / (factor * E2M1_MAX)[..., None]",
        "wanted = largest / factor[..., None]",
    ),
    (FP4, "(0, -columns % 4, 0, -n % 128)", "(-columns % 4, 0, 0, -n % 128)"),
    (MX, '(1 << 21 if rule == "nearest" else 0)', '(1 << 22 if rule == "nearest" else 0)'),
    (MX, ".clamp(0, 254)", ".clamp(1, 254)"),
    (MX, "ue8m0_encode(divided(largest, E2M1_MAX))", "ue8m0_encode(divided(largest, 4.0))"),
    (INT4, "values = codes - MIDDLE", "values = codes - 7"),
    (
        INT4,
        "torch.empty_like(w).index_copy_(-1, self.order.long(), w)",
        "w.index_select(-1, self.order.long())",
    ),
    (INT4, "divided(torch.maximum(high, -low), 7.5)", "divided(torch.maximum(high, -low), 7.0)"),
    (
        INT4,
        "low / factor[..., 0]).clamp(-MIDDLE, 7).round()",
        "low / factor[..., 0]).clamp(-MIDDLE, 7).floor()",
    ),
    (INT4, "scaled = groups / factor", "scaled = groups / wanted[..., None]"),
    (INT4, "groups.amin(-1).clamp(max=0)", "groups.amin(-1)"),
    (WEIGHTS, 'if reason := _unequal("input_scale", quantized):', "if reason := None:"),
    (WEIGHTS, 'return _unequal("order", quantized)', "return None"),
    (WEIGHTS, "for weight in weights[:-1]:", "for weight in weights[:-2]:"),
    (WEIGHTS, "if name in held else t", 'if name != "row_scales" and name in held else t'),
    (LOADER, "if name not in self._counted:", "if True:"),
    (LOADER, "self._differ |= not same and bool(known)", "self._differ |= not same"),
    (LOADER, "if len(scales) < self.experts:", "if not scales:"),
    (LOADER, "if kind(weight) in self.kept_linear:", "if kind(weight) in self.kept_experts:"),
    (LOADER, "bare = [part.scaled(None) for part in parts]", "bare = list(parts)"),
    (LAYERS, "return weights if unjoinable(weights) else (join(weights),)", "return weights"),
    (
        REFERENCE,
        "scale = weight.input_scale if kind == weight.activations else None",
        "scale = None",
    ),
    (REFERENCE, "group = weight.block[1] if isinstance(weight, Fp8Block) else 128", "group = 128"),
]
