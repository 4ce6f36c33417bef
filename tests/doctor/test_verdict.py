"""Verdicts: what the driver takes of a fatbin, stubs, links, marks, families."""

import pytest

from doctor.made import file, image, judged, kernel, one
from sparkwell.doctor.rules import Verdict
from sparkwell.doctor.verdict import (
    EMULATED,
    MARKS,
    MULTICAST,
    NO_NAME,
    OLD_PTX,
    SUFFIX,
    families,
    judge,
)
from sparkwell.hardware import target

V = Verdict


# ---------------------------------------------------------------- one fatbin


@pytest.mark.parametrize(
    ("gpu", "verdict", "code"),
    [
        ("sm_80", V.NATIVE, "sm_80"),
        ("sm_86", V.OLDER, "sm_80"),
        ("sm_90", V.NATIVE, "sm_90a"),
        ("sm_100", V.JIT, "compute_90 PTX"),
        ("sm_120", V.NATIVE, "sm_120f"),
        ("sm_121", V.NATIVE, "sm_120f"),
        ("sm_75", V.REFUSED, None),
        ("sm_87", V.JIT, "compute_80 PTX"),
    ],
)
def test_the_best_image_that_loads(gpu: str, verdict: Verdict, code: str | None) -> None:
    images = [image("sass", t, "k") for t in ("80", "90", "90a", "120f")]
    found = one(gpu, *images, image("ptx", "90", "k"), image("ptx", "80", "k"))
    assert (found.verdict, found.code) == (verdict, code)
    assert found.have == (
        "compute_80 PTX", "compute_90 PTX", "sm_80", "sm_90", "sm_90a", "sm_120f",
    )  # fmt: skip


def test_one_image_is_taken_for_all_kernels_of_a_fatbin() -> None:
    """The driver does not look for a kernel in what it did not take."""
    found = judged("sm_90", image("sass", "90", "a"), image("ptx", "80", "a", "b"))
    assert found["a"].verdict is V.NATIVE
    assert found["b"].verdict is V.REFUSED and found["b"].rule == "chosen-lacks-it"
    wanted = "the driver takes the sm_90 code, and only compute_80 PTX has the kernel"
    assert found["b"].reason == wanted


def test_cubins_that_lie_by_themselves_are_taken_one_by_one() -> None:
    alone = [image("sass", "90", "a", container=None), image("sass", "90a", "b", container=None)]
    older = image("sass", "80", "a", "b", container=None)
    found = judged("sm_90", *alone, older)
    assert {name: k.code for name, k in found.items()} == {"a": "sm_90", "b": "sm_90a"}
    assert {name: k.code for name, k in judged("sm_86", *alone, older).items()} == {
        "a": "sm_80",
        "b": "sm_80",
    }


def test_a_kernel_in_several_fatbins_is_judged_by_its_best() -> None:
    lost, found = image("sass", "90a", "k", container=0), image("sass", "80", "k", container=1)
    assert one("sm_89", lost, found).verdict is V.OLDER
    assert one("sm_89", found, lost).verdict is V.OLDER
    assert one("sm_90", lost, found).verdict is V.NATIVE


def test_the_newest_ptx_that_compiles() -> None:
    ptx = [image("ptx", t, "k", isa=(8, 8)) for t in ("80", "90", "100f", "121")]
    assert one("sm_120", *ptx).code == "compute_90 PTX"
    assert one("sm_121", *ptx).code == "compute_121 PTX"
    assert one("sm_103", *ptx).code == "compute_100f PTX"
    assert one("sm_103", *ptx).isa == (8, 8)


def test_reasons_of_a_refusal() -> None:
    assert one("sm_121", image("sass", "120a", "k")).reason == (
        "its sm_120a code loads on sm_120 alone"
    )
    two = one("sm_121", image("sass", "90a", "k"), image("ptx", "100a", "k"))
    assert two.reason == "it has compute_100a PTX, sm_90a, and none of them loads"
    assert two.code is None and two.verdict is V.REFUSED


# ---------------------------------------------------------------- stubs, objects, unread


def test_a_stub_beside_a_body() -> None:
    guarded = [image("sass", "80", kernel(stub=True)), image("sass", "90a", kernel())]
    found = one("sm_89", *guarded)
    assert (found.verdict, found.rule, found.code) == (V.STUB, "stub", "sm_80")
    assert found.reason == "its sm_80 body is empty; only sm_90a has one"
    assert one("sm_90", *guarded).verdict is V.NATIVE


def test_a_kernel_that_is_empty_everywhere_is_so_by_design() -> None:
    empty = [image("sass", t, kernel(stub=True)) for t in ("80", "90")]
    assert one("sm_90", *empty).verdict is V.NATIVE


def test_code_before_turing_is_no_sign_of_a_body() -> None:
    older = [image("sass", "80", kernel(stub=True)), image("sass", "70", kernel())]
    assert one("sm_80", *older).verdict is V.NATIVE
    turing = [image("sass", "80", kernel(stub=True)), image("sass", "75", kernel())]
    assert one("sm_80", *turing).verdict is V.STUB
    text = [image("sass", "80", kernel(stub=True)), image("ptx", "70", kernel())]
    assert one("sm_80", *text).verdict is V.STUB


def test_a_stub_in_ptx_counts_too() -> None:
    guarded = [image("ptx", "80", kernel(stub=True)), image("sass", "75", kernel())]
    assert one("sm_121", *guarded).verdict is V.STUB


def test_objects_are_linked_only_where_nothing_else_loads() -> None:
    objects = image("ptx", "80", "k", container=0, relocatable=True)
    linked = image("sass", "80", "k", container=1)
    assert one("sm_80", objects, linked).verdict is V.NATIVE
    found = one("sm_121", objects, linked)
    assert (found.verdict, found.rule) == (V.LINK, "relocatable")
    assert found.reason == "the driver links its compute_80 PTX objects when the library is loaded"
    assert one("sm_75", objects, linked).verdict is V.REFUSED
    # In one fatbin, too.
    both = [image("sass", "90", "k", relocatable=True), image("ptx", "80", "k")]
    assert one("sm_90", *both).verdict is V.JIT


@pytest.mark.parametrize(("kind", "rule"), [("lto", "lto"), ("tile", "tile")])
def test_intermediate_code_is_not_decided(kind, rule: str) -> None:  # type: ignore[no-untyped-def]
    found = one("sm_121", image(kind, "120", listed=False, identifier="gemm.cu"))
    assert (found.verdict, found.rule, found.name) == (V.UNKNOWN, rule, "gemm.cu")
    beside = judged("sm_121", image(kind, "120", listed=False), image("sass", "120", "k"))
    assert [k.verdict for k in beside.values()] == [V.OLDER]


def test_images_whose_kernels_were_not_read() -> None:
    """At the level of headers a fatbin is judged as one."""
    unread = [image("sass", t, listed=False) for t in ("80", "90a")]
    found = one("sm_90", *unread)
    assert (found.name, found.family, found.verdict) == ("fatbin 0", NO_NAME, V.NATIVE)
    assert one("sm_120", *unread).verdict is V.REFUSED
    ptx = [image("ptx", "80", listed=False)]
    assert one("sm_121", *ptx).marks == {OLD_PTX} and not one("sm_80", *ptx).marks
    assert SUFFIX in one("sm_121", image("sass", "120a", listed=False)).marks


def test_loose_cubins_without_names_are_alternatives() -> None:
    loose = [image("sass", t, listed=False, container=None) for t in ("80", "90", "120")]
    assert [k.verdict for k in judge(file(*loose), target(90))] == [V.NATIVE]
    assert [k.verdict for k in judge(file(*loose), target(75))] == [V.REFUSED]


def test_a_damaged_image_that_would_be_taken_is_unknown() -> None:
    broken = image("sass", "90", listed=False, problems=["at offset 0x40: size"])
    found = judged("sm_90", broken, image("ptx", "80", "k"))
    assert [k.verdict for k in found.values()] == [V.UNKNOWN]
    assert found["fatbin 0"].reason == "cannot be read: at offset 0x40: size"
    # One that is not taken matters to nobody.
    assert one("sm_89", broken, image("ptx", "80", "k")).verdict is V.JIT


def test_a_target_of_no_known_form_is_unknown() -> None:
    (found,) = judge(file(image("sass", "banana", "k")), target(90))
    assert found.verdict is V.UNKNOWN and "banana" in found.reason
    (found,) = judge(file(image("sass", "banana", "k", container=None)), target(90))
    assert found.verdict is V.UNKNOWN and "banana" in found.reason


def test_a_module_without_kernels_says_nothing() -> None:
    assert judge(file(image("sass", "90"), image("sass", "80")), target(90)) == ()
    assert judge(file(image("sass", "90", container=None)), target(90)) == ()
    assert judge(file(), target(90)) == ()


# ---------------------------------------------------------------- hosts


def test_a_library_for_another_host_does_not_load() -> None:
    library = file(image("sass", "121", "a", "b"), host="x86_64")
    found = judge(library, target(121), "aarch64")
    assert [(k.name, k.verdict, k.rule) for k in found] == [
        ("a", V.REFUSED, "host"),
        ("b", V.REFUSED, "host"),
    ]
    assert found[0].reason == "the library is for x86_64 hosts, and this GPU's is aarch64"
    for same in (None, "x86_64"):
        assert judge(library, target(121), same)[0].verdict is V.NATIVE  # type: ignore[arg-type]
    loose = file(image("sass", "121", "a"), host=None)
    assert judge(loose, target(121), "aarch64")[0].verdict is V.NATIVE
    unread = file(image("sass", "121", listed=False))
    assert judge(unread, target(121), "aarch64")[0].family == NO_NAME


# ---------------------------------------------------------------- marks


def test_marks_of_the_code_that_runs() -> None:
    noted = kernel(notes=["emulated-fp8", "multicast-syscall"])
    images = [image("sass", "90", noted), image("sass", "89", kernel())]
    assert one("sm_90", *images).marks == {EMULATED, MULTICAST}
    assert not one("sm_89", *images).marks
    assert {EMULATED, MULTICAST, OLD_PTX, SUFFIX} == set(MARKS)


@pytest.mark.parametrize(
    ("ptx", "gpu", "old"),
    [("80", "sm_90", True), ("80", "sm_89", True), ("75", "sm_80", False), ("90", "sm_121", False),
     ("90", "sm_90", False), ("52", "sm_90", True), ("89", "sm_120", True)],
)  # fmt: skip
def test_old_ptx(ptx: str, gpu: str, old: bool) -> None:
    assert one(gpu, image("ptx", ptx, "k")).marks == ({OLD_PTX} if old else set())


@pytest.mark.parametrize(
    ("gpu", "emulated"), [("sm_90", True), ("sm_100", True), ("sm_120", False)]
)
def test_fp8_in_ptx_is_emulated_where_the_instruction_is_missing(gpu: str, emulated: bool) -> None:
    found = one(gpu, image("ptx", "89", kernel(families=["qmma"])))
    assert (EMULATED in found.marks) == emulated
    assert EMULATED not in one(gpu, image("ptx", "89", kernel(families=["hmma"]))).marks


def test_the_a_suffix_trap() -> None:
    assert one("sm_121", image("sass", "120a", "k")).marks == {SUFFIX}
    assert not one("sm_120", image("sass", "121a", "k")).marks
    assert not one("sm_121", image("sass", "90a", "k")).marks
    assert not one("sm_121", image("ptx", "120a", "k")).marks
    both = [image("sass", "120a", "k"), image("sass", "120f", "k")]
    assert not one("sm_121", *both).marks


def test_instruction_families_of_what_runs_or_of_all_there_is() -> None:
    images = [
        image("sass", "80", kernel(families=["hmma"])),
        image("sass", "90a", kernel(families=["wgmma"])),
    ]
    assert one("sm_80", *images).uses == {"hmma"}
    assert one("sm_120", *images).uses == {"hmma", "wgmma"}
    assert one("sm_120", image("sass", "90a", "k")).uses is None


# ---------------------------------------------------------------- families


def test_siblings_stand_in_for_each_other() -> None:
    images = [image("sass", "80", "gemm_sm80"), image("sass", "90a", "gemm_sm90", container=1)]
    (family,) = families(judge(file(*images), target(89)))
    assert family.name == "gemm_Sm*" and family.verdict is V.OLDER and family.instead
    assert family.counts == {V.OLDER: 1, V.REFUSED: 1}
    assert family.shown.name == "gemm_sm80"
    assert family.left_out is not None and family.left_out.name == "gemm_sm90"
    (family,) = families(judge(file(*images), target(75)))
    assert family.verdict is V.REFUSED and not family.instead
    (family,) = families(judge(file(images[0]), target(80)))
    assert family.left_out is None and not family.instead


def test_families_worst_first_then_by_name() -> None:
    images = [
        image("sass", "120", "b_native", "a_native"),
        image("sass", "90", "lost", container=1),
        image("ptx", "80", "compiled", container=2),
        image("sass", "120", "x_sm120", container=3),
        image("sass", "90", "x_sm90", container=4),
    ]
    found = families(judge(file(*images), target(120)))
    assert [f.name for f in found] == ["lost", "compiled", "a_native", "b_native", "x_Sm*"]


def test_the_commonest_reason_speaks() -> None:
    images = [
        image("sass", "90", "k_sm1000", container=0),
        image("sass", "100", "k_sm101", container=1),
        image("sass", "100", "k_sm102", container=2),
    ]
    (family,) = families(judge(file(*images), target(120)))
    assert "sm_100" in family.shown.reason


def test_marks_of_a_family() -> None:
    images = [
        image("sass", "120", kernel("a_sm90", notes=["multicast-syscall"])),
        image("sass", "120a", kernel("a_sm80"), container=1),
    ]
    (family,) = families(judge(file(*images), target(121)))
    assert family.marks == (SUFFIX, MULTICAST)
