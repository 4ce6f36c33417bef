"""What a user can do, and what the machine needs."""

import pytest

from doctor.made import file, image, judged, kernel, one
from sparkwell.doctor.advice import NEEDS, Needs, advice, needs
from sparkwell.doctor.binary.sass import NAMES
from sparkwell.doctor.verdict import judge
from sparkwell.hardware import target

SPARK = target(121)


def test_nothing_to_do_where_machine_code_runs() -> None:
    assert advice(one("sm_121", image("sass", "121", "k")), SPARK) == ""
    assert advice(one("sm_121", image("sass", "120", "k")), SPARK) == ""


def test_ptx_needs_a_driver_that_knows_its_version() -> None:
    found = one("sm_121", image("ptx", "80", "k", isa=(8, 7)))
    assert advice(found, SPARK) == "needs a driver for CUDA 12.8 or newer; the first start compiles"
    found = one("sm_121", image("ptx", "80", "k", isa=(5, 0)))
    assert advice(found, SPARK).startswith("needs a recent driver or newer")


def test_objects() -> None:
    found = one("sm_121", image("ptx", "80", "k", relocatable=True))
    assert advice(found, SPARK) == "try it on the GPU; the first start links"


def test_another_host() -> None:
    found = judged("sm_121", image("sass", "121", "k"), host="aarch64")["k"]
    assert advice(found, SPARK) == (
        "take the wheel for that host, or say --host for the one you have"
    )


def test_build_from_source() -> None:
    found = one("sm_121", image("sass", "80", "k"))
    built = "build from source with TORCH_CUDA_ARCH_LIST=12.1a and CUDA 12.9 or newer"
    assert advice(found, SPARK) == built
    assert advice(one("sm_80", image("sass", "90", "k")), target(80)) == (
        "build from source with TORCH_CUDA_ARCH_LIST=8.0"
    )
    written = one("sm_121", image("sass", "90a", "k"))
    assert advice(written, SPARK) == f"{built}; code written for sm_90a may not compile for it"
    for kind, code in (("sass", "sm_100f"), ("ptx", "compute_100f PTX")):
        family = one("sm_121", image(kind, "100f", "k"))  # type: ignore[arg-type]
        assert advice(family, SPARK) == f"{built}; code written for {code} may not compile for it"
    trap = one("sm_121", image("sass", "120a", "k"))
    assert advice(trap, SPARK) == (
        f"{built}; its authors could use an f target, which runs in the whole family"
    )


def test_no_build_helps_where_the_instruction_is_missing() -> None:
    found = one("sm_121", image("sass", "90a", kernel(families=["wgmma", "tma", "hmma"])))
    assert advice(found, SPARK) == "no build helps: it uses wgmma, which sm_121 does not have"
    assert advice(found, target(89)) == (
        "no build helps: it uses tma, wgmma, which sm_89 does not have"
    )
    plain = one("sm_121", image("sass", "90", kernel(families=["hmma"])))
    assert advice(plain, SPARK).startswith("build from source")


def test_stubs_and_what_is_unknown() -> None:
    stub = one("sm_121", image("sass", "120", kernel(stub=True)), image("sass", "90a", kernel()))
    assert advice(stub, SPARK) == (
        "use another kernel of the package: the source leaves this one out on this GPU"
    )
    assert advice(one("sm_121", image("lto", "120", listed=False)), SPARK) == "try it on the GPU"
    broken = one("sm_121", image("sass", "120", listed=False, problems=["cut short"]))
    assert advice(broken, SPARK) == "get the file again"


def test_a_sibling_leaves_nothing_to_do() -> None:
    found = one("sm_121", image("sass", "90a", "k"))
    assert advice(found, SPARK, instead=True) == ""


def test_instruction_families_are_those_that_are_read() -> None:
    assert set(NEEDS) <= NAMES


@pytest.mark.parametrize(
    ("images", "wanted"),
    [
        ([image("sass", "90", "k", toolkit="12.8.93")], Needs(525, None, ("12.8.93",))),
        (
            [image("sass", "90", "k", toolkit="12.8.93"),
             image("sass", "90", "j", toolkit="13.0.88", container=1),
             image("sass", "90", "i", toolkit="12.10.1", container=2)],
            Needs(580, None, ("12.8.93", "12.10.1", "13.0.88")),
        ),
        ([image("ptx", "80", "k", isa=(8, 7)), image("sass", "75", "k", toolkit="13.0")],
         Needs(None, (12, 8), ())),
        ([image("ptx", "80", "k", isa=(8, 7)), image("ptx", "80", "j", isa=(7, 8), container=1)],
         Needs(None, (12, 8), ())),
        ([image("sass", "80", "k", toolkit="13.0")], Needs(None, None, ())),
        ([image("sass", "90", "k", toolkit="odd")], Needs(None, None, ("odd",))),
    ],
)  # fmt: skip
def test_needs(images, wanted: Needs) -> None:  # type: ignore[no-untyped-def]
    """Only what runs needs anything."""
    assert needs(judge(file(*images), target(90))) == wanted


def test_a_stub_needs_nothing() -> None:
    stub = image("sass", "90", kernel("s", stub=True), toolkit="13.0.88", container=1)
    images = [
        image("sass", "90", "k", toolkit="12.8.93"),
        stub,
        image("sass", "80", "s", container=1),
    ]
    assert needs(judge(file(*images), target(90))) == Needs(525, None, ("12.8.93",))
