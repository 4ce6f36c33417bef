"""One-line bugs of MLA's kernels whose warps have roles: no interpreter runs those."""

RECORDS = "ops/mla/kernels/records.py"
GATHERED = "ops/mla/kernels/gathered.py"
TURNED = "ops/mla/kernels/turned.py"
CONTEXTS = "ops/mla/kernels/contexts.py"
SPECIALIZED = "ops/mla/kernels/specialized.py"
NARROW = "ops/mla/kernels/narrow.py"
GPU = True
TESTS = ["tests/gpu/test_cases.py", "tests/gpu/test_holes.py", "-k", "mla"]
MUTANTS = [
    (RECORDS, "ok = (slot >= 0) & (slot < limit)", "ok = slot >= 0"),
    (RECORDS, "ok = (slot >= 0) & (slot < limit)", "ok = slot < limit"),
    (RECORDS, "(slot // PAGE) * page_stride + (slot % PAGE)", "slot"),
    (RECORDS, "last = gl.minimum(first + share, keys)", "last = keys"),
    (RECORDS, "gl.minimum(width, gl.load(length_ptr + t).to(gl.int32))", "width"),
    (RECORDS, "f0, f2 = gl.split(even)", "f2, f0 = gl.split(even)"),
    (RECORDS, "f1, f3 = gl.split(odd)", "f3, f1 = gl.split(odd)"),
    (RECORDS, "_group(k, x3, f3, 3)", "_group(k, x3, f2, 3)"),
    (RECORDS, "rs.index(n % rs.shape[0])", "rs.index(n % STAGES)"),
    (RECORDS, "c = RANK // 4 + GROUPS + gl.arange", "c = RANK // 4 + gl.arange"),
    (
        RECORDS,
        "later = _slots(names, first + (i + 3) * KEYS",
        "later = _slots(names, first + (i + 2) * KEYS",
    ),
    (
        RECORDS,
        "        async_copy.commit_group()\n        masks.index(stage).store(gl.where(ok, 0.0,",
        "        async_copy.commit_group()\n        masks.index(stage).store("
        "gl.where(slot < limit, 0.0,",
    ),
    (GATHERED, "m_new = gl.maximum(m_new, _other_group", "m_new = 0.0 * m_new + (_other_group"),
    (GATHERED, "l += _other_group", "l += 0.0 * _other_group"),
    (GATHERED, "l = l * fade + gl.sum(p, 1)", "l = l + gl.sum(p, 1)"),
    (GATHERED, "o = o * gl.convert_layout(fade, of_o)[:, None]", "o = o * 1.0"),
    (GATHERED, "sink_ptr, h, heads, SPLITS)\n    row", "None, h, heads, SPLITS)\n    row"),
    (TURNED, "l = l * fade[None, :] + p", "l = l + p"),
    (TURNED, "ps, o * fade[None, :], is_async", "ps, o, is_async"),
    (TURNED, "rs.index(j % rs.shape[0]), qrs", "rs.index(stage), qrs"),
    (CONTEXTS, "before + last_row + 1, width", "before + last_row, width"),
    (CONTEXTS, "page * page_rows + key % PAGE", "page * page_rows"),
    (SPECIALIZED, "gl.where((row < valid)[:, None], x, gl.zeros_like(x))", "x"),
    (NARROW, "gl.where((row < valid)[:, None], x, gl.zeros_like(x))", "x"),
    (SPECIALIZED, "stop = gl.where(known, seen, 0)", "stop = seen"),
    (SPECIALIZED, "seen = gl.minimum(before + i + 1, last)", "seen = gl.minimum(before + 1, last)"),
    (SPECIALIZED, "fade = gl.exp2(top - gl.where(m ==", "fade = gl.exp2(0.0 * gl.where(m =="),
    (
        SPECIALIZED,
        "            l = l * fade + sums  # noqa: E741\n            o = o *",
        "            l = l + sums\n            o = o *",
    ),
    (
        SPECIALIZED,
        "            l = l * fade  # noqa: E741\n            o = o *",
        "            o = o *",
    ),
    (SPECIALIZED, "fade = gl.exp2(top - shift)", "fade = gl.exp2(0.0 * shift)"),
    (SPECIALIZED, "l = l + tops.index(1 - G).load(of_s)", "l = l + l"),
    (SPECIALIZED, "tops.index(0).store(l)", "tops.index(0).store(m)"),
    (SPECIALIZED, "top = gl.maximum(m, gl.max(s, 1))", "top = gl.max(s, 1)"),
    (SPECIALIZED, "_clean(ks, G, last - key)", "_clean(ks, G, last - key + 1)"),
    (NARROW, "stop = gl.where(known, seen, 0)", "stop = seen"),
    (NARROW, "seen = gl.minimum(before + i + 1, last)", "seen = gl.minimum(before + 1, last)"),
    (NARROW, "l = l * fade[None, :] + p", "l = l + p"),
    (NARROW, "ps, o * fade[None, :], is_async", "ps, o, is_async"),
    (NARROW, "            _clean(k, last - key)\n", "            pass\n"),
]
