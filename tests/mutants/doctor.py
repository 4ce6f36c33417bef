"""One-line bugs of the doctor's verdicts, sources, gates and reports."""

TESTS = [
    *("-k", "not document_says and not published"),  # docs are not copied
    *(
        f"tests/doctor/test_{name}.py"
        for name in (
            "rules",
            "names",
            "verdict",
            "advice",
            "sources",
            "wheels",
            "gates",
            "jit",
            "report",
            "download",
        )
    ),
    "tests/cli/test_doctor.py",
]
INTERPRET = False
D = "doctor/"
MUTANTS = [
    (
        D + "rules.py",
        'lambda code, gpu: code.suffix == "a" and code.sm == gpu.sm,\n        V.NATIVE',
        'lambda code, gpu: code.suffix == "a",\n        V.NATIVE',
    ),
    (D + "rules.py", "    return ORIN in (code.sm, gpu.sm) and", "    return ORIN == gpu.sm and"),
    (D + "rules.py", "return code.sm // 10 == gpu.major", "return code.sm // 10 <= gpu.major"),
    (D + "rules.py", "    return code.sm > gpu.sm", "    return code.sm >= gpu.sm"),
    (D + "rules.py", 'return code.kind == "sass", code.sm,', 'return code.kind == "ptx", code.sm,'),
    (D + "rules.py", '("", "f", "a").index(code.suffix)', '("a", "f", "").index(code.suffix)'),
    (D + "rules.py", "return 13, isa[1]", "return 13, 0"),
    (D + "rules.py", "(8, 6): (12, 7)", "(8, 6): (12, 6)"),
    (
        D + "rules.py",
        "return self in (Verdict.NATIVE, Verdict.OLDER, Verdict.JIT, Verdict.LINK)",
        "return self in (Verdict.NATIVE, Verdict.OLDER, Verdict.JIT)",
    ),
    (
        D + "verdict.py",
        "    chosen = max(loads, key=_rank, default=None)",
        "    chosen = min(loads, key=_rank, default=None)",
    ),
    (
        D + "verdict.py",
        "        return []\n    if not names or any",
        "        pass\n    if not names or any",
    ),
    (
        D + "verdict.py",
        "if host is not None and file.host is not None and file.host != host:",
        "if host is not None and file.host != host:",
    ),
    (D + "verdict.py", "    if kernel.stub and full:", "    if kernel.stub:"),
    (D + "verdict.py", "one.code.sm >= TURING", "one.code.sm >= 0"),
    (D + "verdict.py", "if image.relocatable and how.verdict.runs:", "if image.relocatable:"),
    (
        D + "verdict.py",
        "return (one.loading.verdict is not Verdict.LINK, ",
        "return (one.loading.verdict is Verdict.LINK, ",
    ),
    (D + "verdict.py", 'and one.code.kind == "sass"\n', "and True\n"),
    (
        D + "verdict.py",
        "before = _FEATURES.get(one.code.sm, Feature(0))",
        "before = Feature(0)",
    ),
    (
        D + "verdict.py",
        "return min(copies, key=lambda one: (one.verdict.badness, one.reason))",
        "return copies[0]",
    ),
    (
        D + "verdict.py",
        "(-one.verdict.badness, one.instead, one.name)",
        "(one.verdict.badness, one.instead, one.name)",
    ),
    (D + "verdict.py", "        return self.verdict.runs and any(", "        return any("),
    (D + "verdict.py", "    best = max(counts.values())", "    best = min(counts.values())"),
    (
        D + "names.py",
        "index = int(match[1], 36) + 1 if match[1] else 0",
        "index = int(match[1], 36) if match[1] else 0",
    ),
    (D + "names.py", "        if index >= len(self.seen):", "        if index > len(self.seen):"),
    (
        D + "names.py",
        "while (found in WRAPPERS or _ENABLERS.search(found)) and",
        "while (found in WRAPPERS) and",
    ),
    (D + "names.py", 'return _SHAPE.sub("", _ARCH', 'return _SHAPE.sub("x", _ARCH'),
    (
        D + "advice.py",
        "sorted(u for u in uses if u in NEEDS and gpu.missing(NEEDS[u]))",
        "sorted(u for u in uses if u in NEEDS)",
    ),
    (
        D + "advice.py",
        "running = [one for one in judged if one.verdict.runs]",
        "running = list(judged)",
    ),
    (
        D + "advice.py",
        "    ordered = sorted(toolkits, key=_version)",
        "    ordered = sorted(toolkits)",
    ),
    (
        D + "asked.py",
        'return "aarch64" if row.name in ARM_ONLY else this_host()',
        "return this_host()",
    ),
    (D + "sources.py", "if stat.S_ISREG(found.st_mode) else None", "if True else None"),
    (D + "sources.py", "found = path.lstat()", "found = path.stat()"),
    (D + "sources.py", 'c if c.isprintable() else "?" for c in name', "c for c in name"),
    (
        D + "sources.py",
        "    if version and distribution.version != version.strip():",
        "    if False:",
    ),
    (
        D + "sources.py",
        "                if seen > MOST_FILES:",
        "                if seen > MOST_FILES + 1:",
    ),
    (D + "wheels.py", "        self.left -= count", "        self.left -= 0"),
    (
        D + "wheels.py",
        "                    if done > limit:",
        "                    if done > limit + BLOCK:",
    ),
    (
        D + "wheels.py",
        "            if done != self.info.file_size:",
        "            if done > self.info.file_size:",
    ),
    (D + "wheels.py", "if not info.is_dir() and not _is_link(info):", "if not info.is_dir():"),
    (D + "wheels.py", "if self.info.compress_type not in PACKINGS:", "if False:"),
    (D + "wheels.py", "if self.info.flag_bits & ENCRYPTED:", "if False:"),
    (
        D + "wheels.py",
        "            if len(infos) > MOST_MEMBERS:",
        "            if len(infos) >= MOST_MEMBERS:",
    ),
    (
        D + "gates/evaluate.py",
        "every = isinstance(test.op, ast.And) != negated",
        "every = isinstance(test.op, ast.And)",
    ),
    (D + "gates/evaluate.py", "_MOST_STEPS = 5000", "_MOST_STEPS = 5"),
    (
        D + "gates/evaluate.py",
        "return self._by_name(node.id) if found is OTHER else found",
        "return found",
    ),
    (D + "gates/evaluate.py", "            return sm * 10\n", "            return sm\n"),
    (
        D + "gates/evaluate.py",
        "return compare(right, flipped.get(op, op), left)",
        "return compare(right, op, left)",
    ),
    (D + "gates/evaluate.py", 'if not device or "version" in text:', "if not device:"),
    (D + "gates/evaluate.py", "        right = _unsuffixed(right)", "        pass"),
    (D + "gates/vocabulary.py", "return True if gpu.sm == number else UNKNOWN", "return True"),
    (D + "gates/vocabulary.py", "return gpu.sm >= _OLDEST[word]", "return gpu.sm > _OLDEST[word]"),
    (
        D + "gates/find.py",
        "        if not conditions or not conditions[-1].about:",
        "        if not any(one.about for one in conditions):",
    ),
    (
        D + "gates/find.py",
        "return not (isinstance(last.value, ast.Constant) and last.value.value is False)",
        "return True",
    ),
    (D + "gates/find.py", "found[one] = None if one in own else part", "found[one] = part"),
    (D + "gates/find.py", "(gpu.major if majors else gpu.sm) not in", "gpu.sm not in"),
    (
        D + "gates/find.py",
        "                inside = _and(conditions, _SOMETHING_ELSE, False, scope)",
        "                inside = conditions",
    ),
    (D + "jit.py", 'rb"(?<![A-Za-z0-9_])sm_', 'rb"sm_'),
    (
        D + "jit.py",
        "pattern = way.cuda if cuda else way.python",
        "pattern = way.cuda or way.python",
    ),
    (
        D + "download.py",
        "        os.replace(wheels[0], folder / wheels[0].name)",
        '        shutil.copy(wheels[0], folder / "x.whl")',
    ),
    (D + "download.py", "            shutil.rmtree(part)", "            pass"),
    (
        D + "download.py",
        "plain(parts[0]) == name and parts[1] == version",
        "plain(parts[0]) == name",
    ),
    (
        D + "report.py",
        "    return OTHER_FILE if family.name in running else None",
        "    return OTHER_FILE",
    ),
    (D + "report.py", "if unreadable or any(one.problems for one in found):", "if unreadable:"),
    (
        D + "report.py",
        "if not shown.verdict.runs and not replaced_by(family, shown, verdicts, one):",
        "if not shown.verdict.runs:",
    ),
    (
        D + "report.py",
        "sorted(counts, key=lambda key: (key[0], _number(key[1]), key[1]))",
        "counts",
    ),
    (
        D + "report.py",
        "lost = 0 if self.verdict.runs else 2 if self.instead is None else 1",
        "lost = 0",
    ),
    (
        D + "examine.py",
        "level = Level.HEADERS if _licensed(entry.name) else self.level",
        "level = self.level",
    ),
    (
        D + "examine.py",
        "and PYTHON_FILE.search(name) and not _is_test(name)",
        "and PYTHON_FILE.search(name)",
    ),
    (
        D + "table.py",
        "made = rows(one, gpu) if why else _brief(rows(one, gpu))",
        "made = rows(one, gpu)",
    ),
    (
        D + "own.py",
        "    words += [word for one in targets",
        "    words += [word for one in targets[:1]",
    ),
    (
        "cli/doctor.py",
        "        groups.setdefault(gpu.host, []).append(gpu)",
        "        groups.setdefault(None, []).append(gpu)",
    ),
    (
        "cli/doctor.py",
        "if code := max(exit_code(found, bool(errors)), int(broken)):",
        "if code := exit_code(found, bool(errors)):",
    ),
]
