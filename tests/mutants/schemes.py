"""One-line bugs of weights quantized while loaded, of their arithmetic, of perplexities."""

TESTS = ["tests/models/test_schemes.py", "tests/models/test_products.py"]
TESTS += ["tests/bench/test_perplexity.py", "tests/cli/test_demo.py"]
INTERPRET = False
SCHEMES, PRODUCTS, WEIGHTS = (f"models/{n}.py" for n in ("schemes", "products", "weights"))
LOAD, RUNNER, BENCH = "models/load.py", "engine/runner.py", "bench/perplexity.py"
MUTANTS = [
    (PRODUCTS, "set(rest) != {first}", "set(rest) == {first}"),
    (PRODUCTS, "(first.input_scale is not None or set", "(set"),
    (PRODUCTS, "if first is None or rest and", "if first is None or"),
    (PRODUCTS, "out_dtype=out_dtype or x.dtype", "out_dtype=out_dtype"),
    (PRODUCTS, "how = _quantizer(gate_up, [reader])", "how = None"),
    (PRODUCTS, "how = _quantizer(x, readers)", "how = None"),
    (
        "models/layers.py",
        "swiglu_for(self.down, multiplied",
        "swiglu_for(self.gate_up[0], multiplied",
    ),
    ("ops/linear/api.py", "quantizer(activations_of(arithmetic, weight), weight)", "None"),
    (SCHEMES, "activations=self.activations)", 'activations="none")'),
    (SCHEMES, "partial(quantize_nvfp4, search=True)", "partial(quantize_nvfp4, search=False)"),
    (SCHEMES, 'INDEXER = (".indexer.",)', "INDEXER = ()"),
    (SCHEMES, "any(part in name for part in self.spares)", "any(self.spares)"),
    (WEIGHTS, "if k % scheme.step:", "if k % 8:"),
    (WEIGHTS, "self.remarks[stays] += len(names)", "self.remarks[stays] += 1"),
    (WEIGHTS, "if kind(whole) in self.kept_experts:", "if whole is not None:"),
    (WEIGHTS, "pile.put([self._in_scheme(row,", "pile.put([self._in_scheme(row[:1],"),
    (LOAD, "if stored := survey(checkpoint).weights:", "if stored := {}:"),
    (LOAD, "held[storage.data_ptr()] =", "held[id(thing)] ="),
    (RUNNER, '"scheme" if place.type == "cpu" and scheme is not None else', '"scheme" if 0 else'),
    (RUNNER, "with products(self.arithmetic):", 'with products("auto"):'),
    (RUNNER, 'place.type == "cpu" and scheme is not None', 'place.type == "cpu"'),
    (PRODUCTS, "_ARITHMETIC.reset(token)", "pass"),
    (PRODUCTS, "isinstance(gate_up, kind) and isinstance(down, kind)", "isinstance(down, kind)"),
    (PRODUCTS, "if len(wanted) == 1 and", "if"),
    (PRODUCTS, 'not wanted & {"w4a8"}', "True"),
    (BENCH, "range(0, max(1, len(ids) - window + 1), window)", "range(0, len(ids), window)"),
    (BENCH, "max(1, len(ids) - window + 1)", "max(1, len(ids) - window)"),
    (BENCH, "windows[:most]", "windows"),
    (BENCH, "model.forward(batch, caches)[:-1]", "model.forward(batch, caches)[1:]"),
    (BENCH, "(sums - mean * sizes)", "(sums - mean)"),
    (BENCH, "math.sqrt(count * spread)", "math.sqrt(spread)"),
    (BENCH, "/ (count - 1)", "/ count"),
    (BENCH, "base = base or found", "base = found"),
    (BENCH, "[a - b for a, b in zip(found, base, strict=True)]", "found"),
]
