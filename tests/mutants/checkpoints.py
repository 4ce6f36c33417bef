"""One-line bugs of the readers of quantized checkpoints, and of what is found wrong with them."""

TESTS = ["tests/checkpoints/test_dialects.py", "tests/checkpoints/test_schemes.py", "tests/cli"]
TESTS += ["-k", "dialects or schemes or inspect"]
INTERPRET = False
D = "checkpoints/dialects/"
CT, AWQ, GPTQ, OSS = (f"{D}{name}.py" for name in ("compressed_tensors", "awq", "gptq", "gpt_oss"))
OPT, FP8, BITS = f"{D}modelopt.py", f"{D}fp8.py", f"{D}nibbles.py"
SURVEY, VALUES = "checkpoints/survey.py", "checkpoints/values.py"
SCHEMES, LOOK, TABLES = (f"checkpoints/{n}.py" for n in ("schemes", "inspection", "holdings"))
MUTANTS = [
    (BITS, "torch.stack((raw & 15, raw >> 4), -1)", "torch.stack((raw >> 4, raw & 15), -1)"),
    (BITS, "codes[:, 0::2] | (codes[:, 1::2] << 4)", "codes[:, 1::2] | (codes[:, 0::2] << 4)"),
    (BITS, "return order.int()", "return order.argsort().int()"),
    (BITS, "if groups != k // said.group:", "if groups > k // said.group:"),
    (AWQ, "PLACES = (0, 4, 1, 5, 2, 6, 3, 7)", "PLACES = (0, 2, 4, 6, 1, 3, 5, 7)"),
    (
        GPTQ,
        "return ((words + offset) & 15).T.contiguous()",
        "return (words + offset).T.contiguous()",
    ),
    (GPTQ, "codes = codes[:, order.long()]", "codes = codes[:, order.argsort().long()]"),
    (GPTQ, 'read = _read_v2 if version == "gptq_v2" else _read_v1', "read = _read_v1"),
    (GPTQ, "if not bool((words == MIDDLE - 1).all() | (words == MIDDLE).all()):", "if False:"),
    (GPTQ, "if found + offset == MIDDLE:", "if True:"),
    (
        CT,
        "return read_nvfp4(stored, checkpoint, inverse=True)",
        "return read_nvfp4(stored, checkpoint, inverse=False)",
    ),
    (
        CT,
        'given = read_input_scale(checkpoint, parts.get("input"), inverse=inverse)',
        'given = read_input_scale(checkpoint, parts.get("input"), inverse=False)',
    ),
    (CT, "if target == module:", "if target == module and False:"),
    (CT, 'return "fp8-token"', 'return "fp8-tensor"'),
    (CT, "if info is not None and shape != list(stored.shape):", "if False:"),
    (CT, "[:, :n].T.contiguous()", "[:, :n].T.contiguous() - 1"),
    (
        OPT,
        "return read_nvfp4(stored, checkpoint, inverse=False)",
        "return read_nvfp4(stored, checkpoint, inverse=True)",
    ),
    (OPT, 'if "pre_quant_scale" in module:', "if False:"),
    (OPT, 'if "*" in key and fnmatchcase(module, key)', "if False"),
    (FP8, "if scales.ndim == 4:", "if scales.ndim == 5:"),
    (
        FP8,
        "scales = scales.expand(stored.shape[0]).contiguous()",
        "scales = scales[:1].expand(stored.shape[0]).contiguous()",
    ),
    (FP8, 'if scales.dtype in ("U8", "F8_E8M0") and', "if False and"),
    (
        OSS,
        'codes = checkpoint.read_one(stored.parts["codes"].name, expert)[first::step]',
        'codes = checkpoint.read_one(stored.parts["codes"].name, 0)[first::step]',
    ),
    (
        OSS,
        "scales = scales[first::step].contiguous()",
        "scales = scales.unflatten(0, (step, -1))[first].contiguous()",
    ),
    (OSS, '(("gate_proj", 0), ("up_proj", 1))', '(("gate_proj", 1), ("up_proj", 0))'),
    (VALUES, "bad = (raw > 0x80) | (raw == 0x7F)", "bad = (raw == 0xFF) | (raw == 0x7F)"),
    (VALUES, "bad = (raw > 0x80) | (raw == 0x7F)", "bad = raw > 0x80"),
    (VALUES, "NAN_E8M0 = 255", "NAN_E8M0 = 256"),
    (
        VALUES,
        "if not (math.isfinite(value) and value >= SMALLEST):",
        "if not math.isfinite(value):",
    ),
    (
        SURVEY,
        "if promise is not None and promise.kind is not None and promise.kind != stored.kind:",
        "if False:",
    ),
    (SURVEY, "if declared.method not in (None, UNKNOWN, stored.dialect):", "if False:"),
    (SURVEY, "if inside.version != beside.version:", "if False:"),
    (SURVEY, 'if not ignored(f"{module}.weight"):', "if True:"),
    (SURVEY, "elif rest:", "elif False:"),
    (SCHEMES, "return not bool(torch.any(checkpoint.read(name)))", "return True"),
    (LOOK, "if error.problem != CUT_OFF or str(error.file) not in damaged:", "if True:"),
    (LOOK, "if problem == MISSING and name.startswith(broken):", "if False:"),
    (
        LOOK,
        "static = promise is not None and promise.static and not ignored(name)",
        "static = False",
    ),
    (LOOK, 'if role == "global" and stored.kind == "fp8-rows":', 'if role == "global":'),
    (LOOK, "if len(set(values)) > 1:", "if len(set(values)) > 2:"),
    (LOOK, "for shard in shards}) > 1:", "for shard in shards}) > 2:"),
    (TABLES, "if spans and number == spans[-1][1] + 1:", "if spans:"),
    (TABLES, "if name not in attached", "if name not in found.parts"),
]
