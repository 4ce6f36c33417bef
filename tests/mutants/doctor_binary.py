"""One-line bugs of the doctor's readers: libraries, fatbins, cubins, PTX, packing, opcodes."""

VIEW = "doctor/binary/view.py"
ELF = "doctor/binary/elf.py"
PE = "doctor/binary/pe.py"
FATBIN = "doctor/binary/fatbin.py"
UNPACK = "doctor/binary/unpack.py"
CUBIN = "doctor/binary/cubin.py"
MEMO = "doctor/binary/memo.py"
CODE = "doctor/binary/code.py"
SASS = "doctor/binary/sass.py"
FP8 = "doctor/binary/fp8.py"
PTX = "doctor/binary/ptx.py"
SEARCH = "doctor/binary/search.py"
SCAN = "doctor/scan.py"
INTERPRET = False
TESTS = ["tests/doctor/test_binary_files.py", "tests/doctor/test_binary_damage.py", "-x"]
MUTANTS = [
    (VIEW, "if at < 0 or size < 0 or at + size > len(self.data):",
     "if at + size > len(self.data):"),
    (VIEW, "return View(self.data[at : at + size], self.base + at)",
     "return View(self.data[at : at + size], at)"),
    (ELF, "count, names = count or first.size, first.link if names == 0xFFFF else names",
     "count, names = count or first.size, names"),
    (ELF, "if count * SECTION.size > len(view):", "if count > len(view):"),
    (ELF, "NAME_LIMIT = 1 << 16", "NAME_LIMIT = 1 << 20"),
    (ELF, "            if raw[1] != NOBITS:\n                end",
     "            if raw[1]:\n                end"),
    (ELF, "        spend(count)\n", ""),
    (ELF, "end = max(end, header.sections_at + count * SECTION.size)", "pass"),
    (PE, "PeSection(text(raw[0].rstrip(b\"\\0\")), raw[4], raw[3])",
     "PeSection(text(raw[0].rstrip(b\"\\0\")), raw[3], raw[4])"),
    (PE, "at + COFF.size + optional", "at + COFF.size"),
    (FATBIN, "ARCHITECTURE, FAMILY = 1 << 20, 1 << 21", "ARCHITECTURE, FAMILY = 1 << 21, 1 << 20"),
    (FATBIN, "LZ4, ZSTD = 1 << 13, 1 << 15", "LZ4, ZSTD = 1 << 15, 1 << 13"),
    (FATBIN, "        at += header + payload\n", "        at += payload + ENTRY.size\n"),
    (FATBIN, "if version != 1 or header != HEADER.size or not size:", "if version != 1:"),
    (FATBIN, "if not 0 < sm <= SM_LIMIT:", "if not 0 < sm <= SM_LIMIT + 1:"),
    (FATBIN, "    if stored > payload:", "    if stored > payload + (1 << 30):"),
    (FATBIN, "ENTRY.size <= name_at and name_at + name_size <= header",
     "name_at + name_size <= header"),
    (FATBIN, "        if header < ENTRY.size:", "        if header < ENTRY.size - 1:"),
    (UNPACK, "        self.left -= size\n", ""),
    (UNPACK, "        if size > IMAGE_LIMIT:", "        if size > IMAGE_LIMIT << 40:"),
    (UNPACK, "        if reader.read(1):", "        if not filled:"),
    (UNPACK, "            count = (token & 15) + 4", "            count = (token & 15) + 3"),
    (UNPACK, "            if back == 0 or start < 0:", "            if back == 0:"),
    (UNPACK, "                out += (out[start:] * (count // back + 1))[:count]",
     "                out += out[start : start + count]"),
    (UNPACK, "            if len(out) + count > size:\n                break\n", ""),
    (CUBIN, "return flags >> 8 & 0xFF, \"a\" if flags & 0x8 else \"\"",
     "return flags >> 8 & 0xFF, \"a\" if flags & 0x800 else \"\""),
    (CUBIN, "return flags & 0xFF, \"a\" if flags & 0x800 else \"\"",
     "return flags & 0xFF, \"a\" if flags & 0x8 else \"\""),
    (CUBIN, "suffix = suffix or accelerated(whole) or said", "suffix = suffix or said"),
    (CUBIN, "suffix = suffix or accelerated(whole) or said",
     "suffix = suffix or accelerated(whole)"),
    (CUBIN, "is_kernel = info & 15 == FUNCTION and other & ENTRY",
     "is_kernel = info & 15 == FUNCTION"),
    (CUBIN, "    left = 2 * len(strings)", "    left = 1000 * len(strings)"),
    (CUBIN, "\"multicast-syscall\" if \"multicast\" in name", "\"multicast-syscall\" if name"),
    (CUBIN, "outside <= PRINTS", "True"),
    (CUBIN, "facts.widens and \"qmma\" not in facts.families", "facts.widens"),
    (MEMO, "            found = self.names[raw] = text(raw)", "            found = text(raw)"),
    (MEMO, "        self.calls_left -= count\n", ""),
    (MEMO, "        self.kernels_left -= 1\n", ""),
    (CODE, "ahead += calls.inside - sections", "ahead += calls.inside - calls.inside"),
    (CODE, "all(facts.idle for facts in every)", "any(facts.idle for facts in every)"),
    (CODE, "self.anywhere = frozenset() if self.calls else frozenset(outside.values())",
     "self.anywhere: frozenset[str] = frozenset()"),
    (CODE, "        self.left -= len(body)\n", ""),
    (CODE, "if callee in outside:", "if callee in ():"),
    (SASS, "families[name] += count", "families[name.upper()] += count"),
    (SASS, "found[word & 0xFFF] += count", "found[word] += count"),
    (SASS, "FAMILY_OF.get(opcode & 0x1FF)", "FAMILY_OF.get(opcode & 0x3FF)"),
    (SASS, "FIRST_SM = 75", "FIRST_SM = 70"),
    (SASS, "bases <= IDLE and bool(bases & {EXIT, TRAP})", "bases <= IDLE"),
    (SASS, "0x1E3, 0x1E7, 0x1E9, 0x1EA", "0x1E3, 0x1E7, 0x1EA"),
    (FP8, "high >> 8 & 0xF in (4, 6)", "high >> 8 & 0xF in (4, 5, 6)"),
    (FP8, "bool(high >> 25 & 1)", "True"),
    (FP8, "            widened.discard(written)", "            pass"),
    (FP8, "A_REGISTERS, B_REGISTERS = 4, 2", "A_REGISTERS, B_REGISTERS = 3, 2"),
    (FP8, "A_REGISTERS, B_REGISTERS = 4, 2", "A_REGISTERS, B_REGISTERS = 4, 1"),
    (PTX, "at == 0 or body[at - 1] in BEFORE", "True"),
    (PTX, "    if len(body) > STUB_BYTES or", "    if"),
    (PTX, "            waiting.extend(calls)", "            pass"),
    (PTX, "set(CALLED.findall(text)) <= PRINTS", "True"),
    (PTX, "([\\w$%]{1,65536})\")", "([\\w$%]{1,200})\")"),
    (PTX, "            seen.add(name)\n", ""),
    (SEARCH, "problems=(where + str(damage),)", "problems=(str(damage),)"),
    (SEARCH, "relocatable=plain.relocatable or code.relocatable", "relocatable=plain.relocatable"),
    (SEARCH, "any(low <= at < high for low, high in self.relocatable)", "bool(self.relocatable)"),
    (SEARCH, "        return max(end, min(found.end, len(self.view)))",
     "        return found.at + 4"),
    (SEARCH, "        return at + len(whole)", "        return at + 4"),
    (SCAN, "        if not status.st_size:", "        if status.st_size < 0:"),
    (SCAN, "RELOCATABLE = {\"__nv_relfatbin\", \"__nv_rel\"}",
     "RELOCATABLE = {\"__nv_relfatbin\"}"),
]  # fmt: skip
