"""Bugs in how times are taken, compared and written down."""

INTERPRET = False
TESTS = ["tests/bench"]
MUTANTS = [
    ("bench/protocol.py", "COLD * l2_bytes /", "l2_bytes /"),
    ("bench/protocol.py", "[:: 1 if i % 2 == 0 else -1]", "[::1]"),
    ("bench/protocol.py", "/ times[name] / len(variants[name])", "/ times[name]"),
    ("bench/protocol.py", "deciles[0], deciles[-1]", "deciles[-1], deciles[0]"),
    ("bench/kernels.py", 'case.call(inputs, "reference"))', "got)"),
    ("bench/kernels.py", "    if not agrees:", "    if False:"),
    ("bench/kernels.py", "first | redraw(make, first) if redraw", "first if redraw"),
    ("bench/kernels.py", "round(best / ours.us, 3)", "round(ours.us / best, 3)"),
    ("bench/cases.py", '"h32": 1.1', '"h32": 1.0'),
    ("bench/peers.py", "q[:, 0, :heads] = x", "q[:, 0, -heads:] = x"),
    ("bench/peers.py", "y.contiguous() for", "y for"),
    ("bench/soak.py", "wrong.add_(total != expected)", "wrong.add_(total == expected)"),
    ("bench/soak.py", "* w).sum() for", ").sum() for"),
    ("bench/soaked_attention.py", "own = request + number * n", "own = request"),
    ("bench/soaked_layers.py", "got[name].equal(want)", "True"),
    ("bench/soaked_layers.py", '"linear_layers", [draw(i)', '"linear_layers", [draw(0)'),
    ("bench/soaked_layers.py", 'want[name], "matmul"', 'got[name], "matmul"'),
    (
        "bench/soaked_layers.py",
        'assert_matches(got[name], want, "exp',
        'assert_matches(want, want, "exp',
    ),
    ("bench/soak.py", "work.check(static, work.run(static))", "work.run(static)"),
    ("bench/cases.py", 'entry["ratio"] >= entry["want"]', 'entry["ratio"] > 0'),
    ("bench/modelled.py", "-(-problem.m // tall) * tall", "problem.m"),
    ("bench/modelled.py", "flops / work * sum(loop.values())", "flops / work"),
    ("bench/modelled.py", "1e6 * case.timing.nbytes / gpu", "1e3 * case.timing.nbytes / gpu"),
    ("bench/modelled.py", "min(gpu.peaks[kind].value for", "max(gpu.peaks[kind].value for"),
    ("verify/compile.py", "a[0] <= b[0] and b[1] <= a[1]", "b[0] <= a[0] and a[1] <= b[1]"),
]
