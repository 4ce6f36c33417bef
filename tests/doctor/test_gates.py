"""Python code that refuses GPUs, found and judged without running it."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkwell.doctor.gates import UNKNOWN, Gate, find_gates
from sparkwell.doctor.gates.vocabulary import helper, is_capability_name
from sparkwell.hardware import TARGETS, target

ALL = {row.sm for row in TARGETS}


def found(source: str) -> list[Gate]:
    gates, problem = find_gates(source.encode(), "x.py")
    assert not problem
    return gates


def refused(gate: Gate) -> set[int]:
    """The GPUs a gate refuses; it decides for every one."""
    answers = {row.sm: gate.refuses(row) for row in TARGETS}
    assert all(isinstance(answer, bool) for answer in answers.values()), answers
    return {sm for sm, answer in answers.items() if answer}


def refused_by(condition: str) -> set[int]:
    """The GPUs for which `if condition: raise` refuses."""
    (gate,) = found(f"def f(major, minor, capability, arch, x):\n if {condition}: raise ValueError")
    return refused(gate)


def only(*sms: int) -> set[int]:
    """All but these."""
    return ALL - set(sms)


BLACKWELL, SMALL = {100, 103, 107}, {120, 121}


# ---------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("condition", "gpus"),
    [
        ("major < 8", {75}),
        ("major != 9", only(90)),
        ("major not in (9, 10)", only(90, *BLACKWELL)),
        ("major == 12 and minor == 1", {121}),
        ("major * 10 + minor < 89", {75, 80, 86, 87}),
        ("not major >= 9", {75, 80, 86, 87, 89}),
        ("9 <= major < 12", {90, *BLACKWELL, 110}),
        ("not (9 <= major < 12)", {75, 80, 86, 87, 89, *SMALL}),
        ("not (major >= 8 and minor == 0)", {75, 86, 87, 89, 103, 107, 121}),
        ("not (major == 9 or minor == 0)", {75, 86, 87, 89, 103, 107, 121}),
        ("capability < (8, 0)", {75}),
        ("capability[0] < 8", {75}),
        ("capability[0] == 12 and capability[1] == 0", {120}),
        ("capability not in [(9, 0), (10, 0)]", only(90, 100)),
        ("(8, 0) > capability", {75}),
        ("capability == (12, 1)", {121}),
        ("capability < 89", {75, 80, 86, 87}),
        ("capability < 9", {75, 80, 86, 87, 89}),
        ("capability < 8.9", {75, 80, 86, 87}),
        ("capability >= 1000", {100, 103, 107, 110, 120, 121}),
        ("arch // 10 == 12", SMALL),
        ("arch % 10 != 0", {75, 86, 87, 89, 103, 107, 121}),
        ("arch not in ('sm_90', 'sm_120')", only(90, 120)),
        ("arch != 'sm_90a'", only(90)),
        ("arch == '12.1'", {121}),
        ("arch in ['89', '90']", {89, 90}),
        ("self.arch >= Arch.sm_90 and self.arch <= Arch.sm_90a", {90}),
        ("props.major < 8", {75}),
        ("torch.cuda.get_device_properties(0).major < 8", {75}),
        ("torch.cuda.get_device_capability()[0] != 10", only(*BLACKWELL)),
        ("torch.cuda.get_device_capability(x.device) < (9, 0)", {75, 80, 86, 87, 89}),
        ("get_device_capability().major < 8", {75}),
        ("current_platform.get_device_capability().to_int() < 89", {75, 80, 86, 87}),
        ("not current_platform.has_device_capability(89)", {75, 80, 86, 87}),
        ("not current_platform.has_device_capability((8, 9))", {75, 80, 86, 87}),
        ("not platform.has_device_capability(12, 0)", only(*SMALL)),
        ("current_platform.is_device_capability(90)", {90}),
        ("not p.is_device_capability_family(100, device_id=0)", only(*BLACKWELL)),
        ("not is_sm90()", only(90)),
        ("is_sm12x_supported()", SMALL),
        ("is_sm120x()", SMALL),
        ("is_sm80_or_higher()", only(75)),
        ("is_hopper_or_newer()", {90, *BLACKWELL, 110, *SMALL}),
        ("is_ada()", {89}),
        ("is_turing()", {75}),
        ("int(capability) < 89", {75, 80, 86, 87}),
        ("capability not in frozenset({90, 100})", only(90, 100)),
        # What is about something else does not decide.
        ("x.dtype == torch.float16 and major < 8", {75}),
        ("x is None or major < 8", {75}),
        ("not (x.dtype == torch.float16 or major >= 8)", {75}),
        ("is_hip() or major < 8", {75}),
        ("is_cuda() and major < 8", {75}),
        ("(major if x else major) < 8", {75}),
    ],
)
def test_conditions(condition: str, gpus: set[int]) -> None:
    if "if x else" in condition:
        assert found(f"def f(major, x):\n if {condition}: raise ValueError") == []
        return
    assert refused_by(condition) == gpus


@pytest.mark.parametrize(
    "condition",
    [
        "x > 3",
        "torch.version.cuda.major < 12",
        "version.major < 12",
        "cuda_version.minor < 8",
        "device_driver_version.major < 9",
        "arch == 'llama'",
        "arch in MODELS",
        "model_arch in ('a', 'b')",
        "arch in {'LlamaForCausalLM': 1}",
        "arch == 'gfx942'",
        "layout == 'k_major'",
        "WARP_SIZE != 32",
        "major is None",
        "is_cuda()",
        "is_hip() and x",
        "cap > 1000000",
        "min_capability > 3",
    ],
)
def test_questions_about_something_else_are_no_gates(condition: str) -> None:
    source = f"MODELS = {{'a': 1}}\ndef f(arch, x, cap):\n if {condition}: raise ValueError"
    assert found(source) == []


@pytest.mark.parametrize(
    ("condition", "undecided"),
    [
        ("capability < quant.get_min_capability()", ALL),
        ("is_blackwell()", {110, 120, 121}),
        ("is_ampere()", {89}),
        ("is_sm100_supported()", {103, 107}),
        ("capability in SOME", ALL),
    ],
)
def test_what_is_not_decided(condition: str, undecided: set[int]) -> None:
    (gate,) = found(f"def f(capability):\n if not {condition}: raise ValueError")
    assert {row.sm for row in TARGETS if gate.refuses(row) is UNKNOWN} == undecided


def test_names_of_helpers() -> None:
    assert helper("is_sm_100a_supported", target(100)) is True
    assert helper("is_sm9", target(90)) is UNKNOWN
    assert helper("is_rocm_platform", target(90)) is False
    assert helper("launch", target(90)) is None
    assert is_capability_name("device_capability") and is_capability_name("_arch")
    assert not is_capability_name("min_capability") and not is_capability_name("search")


# ---------------------------------------------------------------- statements


def test_kinds_lines_functions_and_messages() -> None:
    gates = found(
        "class A:\n"
        "    def supports_fp8(self, cc):\n"
        "        if cc < 89:\n"
        "            return False\n"
        "        assert cc != 100, 'not on B200'\n"
        "        if cc == 90:\n"
        "            raise RuntimeError(f'FlashAttention only supports {x} GPUs  or\\n newer')\n"
    )
    assert [(g.kind, g.line, g.function, g.condition, g.message) for g in gates] == [
        ("answer", 4, "A.supports_fp8", "cc < 89", ""),
        ("assert", 5, "A.supports_fp8", "not (cc != 100)", "not on B200"),
        ("raise", 7, "A.supports_fp8", "cc == 90", "FlashAttention only supports"),
    ]
    assert [refused(g) for g in gates] == [{75, 80, 86, 87}, {100}, {90}]
    assert gates[0].file == "x.py"


def test_a_false_that_answers_no_question_is_no_gate() -> None:
    assert found("def run(cc):\n if cc < 89: return False") == []
    assert found("def supports(cc):\n if cc < 89: return True") == []
    assert found("def should_pad(cc):\n if cc < 89: return False") == []
    assert len(found("def can_pad(cc):\n if cc < 89: return False")) == 1


def test_an_else_and_what_comes_after_those_that_are_served() -> None:
    source = (
        "def f(major, x):\n"
        "    if major == 9:\n"
        "        return a()\n"
        "    elif major == 10:\n"
        "        return b()\n"
        "    else:\n"
        "        raise NotImplementedError\n"
    )
    (gate,) = found(source)
    assert refused(gate) == only(90, *BLACKWELL)
    (after,) = found(source.replace("    else:\n        raise", "    raise"))
    assert refused(after) == only(90, *BLACKWELL)
    served = found("def f(major, x):\n if major == 9: return a()\n raise TypeError")
    assert refused(served[0]) == only(90)


def test_a_branch_that_goes_on_serves_nobody() -> None:
    source = "def f(major):\n if major == 9: x()\n elif major == 10: return b()\n raise E"
    assert found(source) == []
    refusing = "def f(major):\n if major == 9: raise E\n elif major == 10: return b()\n raise E"
    assert [refused(gate) for gate in found(refusing)] == [{90}, only(*BLACKWELL)]


def test_what_follows_a_refusal_is_no_gate_of_its_own() -> None:
    """Whoever gets past the first check is not refused by the second for its generation."""
    source = "def f(major, x):\n if major < 8: raise A\n if x: raise B\n raise C"
    assert [gate.line for gate in found(source)] == [2]


def test_an_error_inside_a_branch_for_a_gpu_is_no_refusal() -> None:
    source = (
        "def f(major, x):\n"
        "    if major >= 9:\n"
        "        try:\n"
        "            import flash\n"
        "        except ImportError:\n"
        "            raise RuntimeError('install flash')\n"
        "        for i in x:\n"
        "            raise ValueError\n"
        "        if x is None:\n"
        "            raise ValueError\n"
        "        match x:\n"
        "            case 1:\n"
        "                raise ValueError\n"
    )
    assert found(source) == []


def test_conditions_around_a_gate_are_told() -> None:
    (gate,) = found(
        "def f(arch, qv, x):\n"
        "    if qv is not None:\n"
        "        with torch.no_grad():\n"
        "            assert arch // 10 in [10, 11], 'only Blackwell with qv'\n"
    )
    assert gate.when == "qv is not None"
    assert refused(gate) == only(*BLACKWELL, 110)


def test_branches_within_branches() -> None:
    (gate,) = found("def f(major, minor):\n if major == 12:\n  if minor == 1:\n   raise ValueError")
    assert refused(gate) == {121}


@pytest.mark.parametrize(
    "lines",
    [
        "major, minor = torch.cuda.get_device_capability()\n    if major * 10 + minor == 121:",
        "cap = torch.cuda.get_device_capability()\n    if cap == (12, 1):",
        "cc = get_device_capability()\n    number = cc[0] * 10 + cc[1]\n    if number == 121:",
        "ok = torch.cuda.get_device_capability() != (12, 1)\n    if not ok:",
        "arch = get_device_arch() if given is None else given\n    if arch == 121:",
        "if get_sm_version(x) in LIST:",
        "if not device_capability != CONSTANT:",
        "a = b = get_device_capability()\n    if a and b == (12, 1):",
    ],
)
def test_names_are_followed(lines: str) -> None:
    source = f"LIST = [121]\nCONSTANT: int = 121\ndef f(x, given):\n    {lines}\n        raise E"
    (gate,) = found(source)
    assert refused(gate) == {121}


def test_names_that_stand_for_several_things_or_are_arguments_are_not() -> None:
    source = "def f(x):\n a = get_device_capability()\n a = 3\n if a == (12, 1): raise E"
    assert found(source) == []
    last = "def f(x):\n a = 3\n a = get_device_capability()\n if a == (12, 1): raise E"
    assert found(last) == []
    outer = "capability = (9, 0)\ndef f(capability):\n if capability == (12, 1): raise E"
    assert refused(found(outer)[0]) == {121}
    summed = "def f(x):\n n = get_device_capability()\n n += 1\n if n == (12, 1): raise E"
    assert found(summed) == []
    again = "def f(x):\n capability = capability or x\n if capability == (12, 1): raise E"
    assert refused(found(again)[0]) == {121}
    looped = "def f(x):\n for y in x:\n  if y == (12, 1): raise E"
    assert found(looped) == []


# ---------------------------------------------------------------- lists


@pytest.mark.parametrize(
    ("source", "kind", "gpus", "where"),
    [
        (
            "@supported_compute_capability([90, 100])\ndef f(): pass",
            "decorator",
            only(90, 100),
            "f",
        ),
        ("@x.supported_compute_capability(CCS)\ndef f(): pass", "decorator", only(90), "f"),
        ("@requires_capability((90,))\ndef f(): pass", "decorator", only(90), "f"),
        ("build(supported_major_versions=[9, 12])", "list", only(90, *SMALL), "(module)"),
        ("class A:\n supported_archs = (90, 121)", "list", only(90, 121), "A"),
        ("class A:\n supported_capabilities = [(9, 0)]", "list", only(90), "A"),
        ("SUPPORTED_MAJORS = [9]", "list", only(90), "(module)"),
    ],
)
def test_lists(source: str, kind: str, gpus: set[int], where: str) -> None:
    (gate,) = found(f"CCS = [90]\n{source}")
    assert (gate.kind, gate.function) == (kind, where)
    assert refused(gate) == gpus


@pytest.mark.parametrize(
    "source",
    [
        "class A:\n supported_archs = ['gfx942']",
        "SUPPORTED_CC = [90]",  # a constant that somebody asks for elsewhere
        "@cached([90])\ndef f(): pass",
        "build(supported_majors=compute())",
    ],
)
def test_lists_of_something_else(source: str) -> None:
    assert found(source) == []


def test_a_list_that_cannot_be_read() -> None:
    (gate,) = found("@supported_compute_capability(make())\ndef f(): pass\n@y\nclass B: pass") or [
        None
    ]
    assert gate is None
    (gate,) = found("@supported_compute_capability(NAMES)\ndef f(): pass")
    assert gate.refuses(target(90)) is UNKNOWN


# ---------------------------------------------------------------- hostile sources


@pytest.mark.parametrize(
    "source",
    [
        b"def f(:\n # arch",
        b"arch = \x00",
        b"\xff\xfe arch",
        b"arch = " + b"(" * 5000 + b")" * 5000,
        b"arch = " + b"-" * 200_000 + b"1",
        b"# -*- coding: nonsense -*-\narch = 1",
    ],
)
def test_what_is_no_python_is_said(source: bytes) -> None:
    gates, problem = find_gates(source, "bad.py")
    assert gates == [] and problem.startswith("bad.py: not understood as Python: ")
    assert problem.isprintable() and len(problem) < 300


def test_sources_that_could_take_forever() -> None:
    doubling = "a0 = capability\n" + "".join(f"a{i + 1} = a{i} + a{i}\n" for i in range(60))
    nested = "".join("    " * i + f"if arch == {i}:\n" for i in range(90)) + "    " * 90 + "raise E"
    flat = "def f(arch, x):\n" + "".join(f" if arch == {i + 50}: return x\n" for i in range(1500))
    powers = "def f(arch):\n if arch * 99999999999999999999 ** 999999 < 90: raise E\n"
    loop = "def f():\n a = b\n b = c\n c = a\n if a < capability: raise E\n"
    began = time.monotonic()
    for source in (f"{doubling}\nif a60 < 90: raise E", nested, flat + " raise E", powers, loop):
        gates, _ = find_gates(source.encode(), "x.py")
        for gate in gates:
            gate.refuses(target(90))
    assert time.monotonic() - began < 20


def test_nothing_is_run(tmp_path) -> None:  # type: ignore[no-untyped-def]
    trap = tmp_path / "ran"
    source = f"import os\nos.mkdir({str(trap)!r})\nassert get_device_capability() >= (8, 0)\n"
    assert len(found(source)) == 1 and not trap.exists()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["if arch == 90:", " raise E", "assert major", "return False", "def f(cc):", "  ", "\n",
             "else:", "try:", "cc[0]", "not", "(", ")", "9", "in [90, 100]", "@supported_cc([9])",
             "lambda arch: arch", ":=", "and", "{**a}", "*b", "f'{arch}'", "class A:", "\n "]
        ),
        max_size=30,
    )
)  # fmt: skip
def test_any_text_is_taken(parts: list[str]) -> None:
    gates, _ = find_gates(" ".join(parts).encode(), "x.py")
    for gate in gates:
        gate.refuses(target(121))


ODD = ["1e999", "-1e999", "True", "None", "1j", "b'x'", "'sm_90'", "''", "...", "(9, 'x')", "(9,)",
       "(9, 0, 0)", "[]", "[(9, 0), 'x']", "{9: 1}", "0x" + "f" * 5000, "-5", "9.5", "((9, 0), 8)",
       "(True, 0)", "f'{x}'", "[None, 9]", "(9, 0) + (1,)", "~9", "x.major", "9 if x else 8",
]  # fmt: skip
PLACES = [
    "if arch < {}: raise E", "if {} >= arch: raise E", "if arch in ({}, 90): raise E",
    "if capability == {}: raise E", "if capability[{}] < 9: raise E", "if major * {} > 9: raise E",
    "if major % {} == 0: raise E", "assert p.has_device_capability({})",
    "assert p.has_device_capability({}, 0)", "f(supported_archs=[90, {}])",
    "f(supported_majors=({}, 9))", "@supported_cc({})\n def g(): pass",
    "if int({}) < arch: raise E", "if capability < ({}, 0): raise E", "if arch // {} == 9: raise E",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("odd", ODD)
def test_odd_values_anywhere(place: str, odd: str) -> None:
    source = f"def f(arch, capability, major, p, x):\n {place.format(odd)}"
    gates, _ = find_gates(source.encode(), "x.py")
    for gate in gates:
        assert gate.refuses(target(90)) in (True, False, UNKNOWN)
