"""Which image loads on which GPU: every rule where it applies and where it does not."""

import pytest

from doctor.made import image
from sparkwell.doctor.rules import (
    RULES,
    Code,
    Verdict,
    arch_list,
    code_of,
    cuda_of_ptx,
    driver_branch,
    first_toolkit,
    loading,
    preference,
)
from sparkwell.errors import BadInput
from sparkwell.hardware import TARGETS, target

V = Verdict
# rule: (kind, image, GPU, verdict) where it decides, and (kind, image, GPU) where another does.
CASES = {
    "lto": (("lto", "90", "sm_90", V.UNKNOWN), ("sass", "90", "sm_90")),
    "tile-old-gpu": (("tile", "80", "sm_75", V.REFUSED), ("tile", "80", "sm_80")),
    "tile": (("tile", "80", "sm_80", V.UNKNOWN), ("tile", "80", "sm_75")),
    "former-thor": (("sass", "101a", "sm_110", V.UNKNOWN), ("sass", "101", "sm_120")),
    "sass-a-exact": (("sass", "120a", "sm_120", V.NATIVE), ("sass", "120a", "sm_121")),
    "sass-a-other": (("sass", "120a", "sm_121", V.REFUSED), ("sass", "120a", "sm_120")),
    "sass-exact": (("sass", "121f", "sm_121", V.NATIVE), ("sass", "120", "sm_121")),
    "sass-orin": (("sass", "80", "sm_87", V.REFUSED), ("sass", "75", "sm_87")),
    "sass-other-major": (("sass", "90", "sm_100", V.REFUSED), ("sass", "90", "sm_90")),
    "sass-newer-minor": (("sass", "89", "sm_86", V.REFUSED), ("sass", "86", "sm_89")),
    "sass-family": (("sass", "120f", "sm_121", V.NATIVE), ("sass", "120", "sm_121")),
    "sass-older-minor": (("sass", "120", "sm_121", V.OLDER), ("sass", "120f", "sm_121")),
    "ptx-a-exact": (("ptx", "90a", "sm_90", V.JIT), ("ptx", "90a", "sm_100")),
    "ptx-a-other": (("ptx", "90a", "sm_100", V.REFUSED), ("ptx", "90a", "sm_90")),
    "ptx-newer": (("ptx", "121", "sm_120", V.REFUSED), ("ptx", "120", "sm_120")),
    "ptx-other-family": (("ptx", "100f", "sm_110", V.REFUSED), ("ptx", "100f", "sm_107")),
    "ptx": (("ptx", "80", "sm_121", V.JIT), ("ptx", "121", "sm_120")),
}


def at(kind: str, name: str, gpu: str):  # type: ignore[no-untyped-def]
    return loading(code_of(image(kind, name)), target(gpu))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_rule_decides_where_it_should_and_only_there(rule) -> None:  # type: ignore[no-untyped-def]
    (kind, name, gpu, verdict), other = CASES[rule.name]
    found = at(kind, name, gpu)
    assert (found.rule, found.verdict) == (rule.name, verdict)
    assert "{" not in found.reason and found.reason == found.reason.strip()
    assert at(*other).rule != rule.name
    assert rule.source


def test_every_rule_has_a_case() -> None:
    assert list(CASES) == [rule.name for rule in RULES]


@pytest.mark.parametrize("gpu", TARGETS, ids=lambda gpu: gpu.name)
def test_the_rules_agree_with_the_targets(gpu) -> None:  # type: ignore[no-untyped-def]
    """On every pair that is established, `Target` and the rules say the same."""
    seen = 0
    for sm in (52, 60, 70, 75, 80, 86, 87, 88, 89, 90, 100, 103, 107, 110, 120, 121):
        for suffix in ("", "f", "a") if sm >= 100 else ("", "a") if sm == 90 else ("",):
            sass, ptx = Code("sass", sm, suffix), Code("ptx", sm, suffix)
            assert loading(sass, gpu).verdict.runs == gpu.loads_cubin(f"sm_{sm}{suffix}"), sass
            assert loading(ptx, gpu).verdict.runs == gpu.compiles_ptx(f"compute_{sm}{suffix}"), ptx
            seen += 1
    assert seen == 29


def test_reasons_name_the_code_and_the_gpu() -> None:
    assert at("sass", "120a", "sm_121").reason == "its sm_120a code loads on sm_120 alone"
    assert at("sass", "90", "sm_121").reason == "its sm_90 code is for another major than 12.1"
    assert at("ptx", "80", "sm_121").reason == "the driver compiles its compute_80 PTX"
    assert "8.7" in at("sass", "87", "sm_89").reason and "sm_89" in at("sass", "87", "sm_89").reason


@pytest.mark.parametrize("text", ["", "sm_90", "90x", "12345", "9 0", "90af"])
def test_a_target_of_another_form_is_named(text: str) -> None:
    with pytest.raises(BadInput, match=r"image at offset 64: target is .* want a form like '120f'"):
        code_of(image("sass", text))


def test_the_driver_prefers_machine_code_then_the_newest() -> None:
    codes = [
        Code("ptx", 121, "a"),
        Code("sass", 80, ""),
        Code("sass", 90, "a"),
        Code("sass", 90, ""),
    ]
    ordered = [code.name for code in sorted(codes, key=preference, reverse=True)]
    assert ordered == ["sm_90a", "sm_90", "sm_80", "compute_121a PTX"]


def test_verdicts_from_best_to_worst() -> None:
    assert [v.value for v in Verdict] == [
        "native", "older", "jit", "jit-link", "unknown", "stub", "refused",
    ]  # fmt: skip
    assert [v.badness for v in Verdict] == list(range(7))
    assert [v.runs for v in Verdict] == [True] * 4 + [False] * 3


@pytest.mark.parametrize(
    ("isa", "cuda"),
    [((7, 8), (11, 8)), ((8, 0), (12, 0)), ((8, 5), (12, 5)), ((8, 6), (12, 7)), ((8, 7), (12, 8)),
     ((8, 8), (12, 9)), ((9, 0), (13, 0)), ((9, 4), (13, 4)), ((8, 9), None), ((1, 0), None)],
)  # fmt: skip
def test_ptx_versions_and_their_cuda(isa: tuple[int, int], cuda: tuple[int, int] | None) -> None:
    assert cuda_of_ptx(isa) == cuda


def test_toolkits_drivers_and_arch_lists() -> None:
    assert [driver_branch(major) for major in (10, 11, 12, 13)] == [None, 450, 525, 580]
    assert first_toolkit(target(121)) == (12, 9) and first_toolkit(target(120)) == (12, 8)
    assert first_toolkit(target(80)) is None and first_toolkit(target(107)) == (13, 4)
    assert [arch_list(target(sm)) for sm in (89, 90, 121)] == ["8.9", "9.0a", "12.1a"]
