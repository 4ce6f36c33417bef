"""One-line bugs of the functions that stand in for FlashMLA's and DeepGEMM's."""

TESTS = ["tests/compat"]
MAPPING, INTERFACE = (
    "compat/flash_mla/mapping.py",
    "compat/flash_mla/flash_mla_interface.py",
)
LOGITS, LATER, UTILS, GEMM, LAYOUT = (
    f"compat/deep_gemm/{name}.py" for name in ("logits", "v2_8", "utils", "gemm", "layout")
)
MUTANTS = [
    (MAPPING, "(1, s_q * group[3])", "group[2:]"),
    (MAPPING, "None] * (page * h_k)", "None] * page"),
    (MAPPING, "unflatten(0, (page, h_k)).T", "unflatten(0, (h_k, page))"),
    (MAPPING, "dtype=torch.int32) * rows", "dtype=torch.int32)"),
    (MAPPING, "transpose(2, 3).flatten(1, 2)", "flatten(1, 2)"),
    (MAPPING, "topk_length[:, None].expand(b, s_q).flatten()", "topk_length.repeat(s_q)"),
    (MAPPING, " or (page > 1 and strides[1] != last)", ""),
    (MAPPING, "sink=sink,", "sink=None,"),
    (MAPPING, "return result if out is None else out.copy_(result)", "return result"),
    (INTERFACE, "scale = d**-0.5", "scale = 512**-0.5"),
    (INTERFACE, "return into(out, result), max_logits, lse", "return into(out, result), lse, lse"),
    (INTERFACE, "if self.config != config:", "if False:"),
    (INTERFACE, "causal=causal, scale=scale, d_v=", "causal=False, scale=scale, d_v="),
    (INTERFACE, "(head_dim_qk, 2 * head_dim_qk), dim=-1", "3, dim=-1"),
    (LOGITS, "key_scales=kv[1]", "key_scales=None"),
    (LOGITS, "width=max_seqlen_k or None", "width=None"),
    (LOGITS, "if max_seqlen_k and clean_logits:", "if False:"),
    (
        LATER,
        "context_len,\n        logits_dtype=weights.dtype",
        "context_len,\n        logits_dtype=None",
    ),
    (UTILS, "x * (1.0 / scales)", "x / scales"),
    (UTILS, "torch.where(codes == 8, 0, codes)", "codes"),
    (UTILS, "floor=AMAX_FLOOR", "floor=0.0"),
    (GEMM, "1 if b[1].dtype == torch.int32 else 128, 128)", "128, 128)"),
    (GEMM, "return pair[0].mT, pair[1].mT", "return pair[0].mT, pair[1]"),
    (GEMM, "ceil_div(start, gran_k) : ceil_div(start + k, gran_k)", ": ceil_div(k, gran_k)"),
    (GEMM, "    if not plain:", "    if plain:"),
    (LAYOUT, "return align(x, 16 // element_size)", "return x"),
    (LAYOUT, "recipe[0 if is_sfa else 1], recipe[2]", "recipe[0], recipe[2]"),
    (LAYOUT, "if gran_mn == 1 else sf", "if gran_mn > 1 else sf"),
    (LATER, "given.pop(name, None) is not None", "given.pop(name, None) is None"),
]
