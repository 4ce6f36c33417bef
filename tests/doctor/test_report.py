"""Rows, exit codes, JSON and tables of what was found."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from doctor.made import file, image, kernel
from sparkwell.doctor.asked import Asked
from sparkwell.doctor.examine import Examined, Looked, Verdicts, decided
from sparkwell.doctor.examine import _elsewhere as elsewhere
from sparkwell.doctor.gates import find_gates
from sparkwell.doctor.images import File, Level
from sparkwell.doctor.jit import Assembler, Evidence
from sparkwell.doctor.own import Compiled
from sparkwell.doctor.report import (
    OTHER_FILE,
    SIBLING,
    as_json,
    exit_code,
    place_of,
    rows,
    running,
)
from sparkwell.doctor.rules import Verdict
from sparkwell.doctor.table import MEANINGS, STYLES, show, show_matrix, show_own
from sparkwell.doctor.verdict import families, judge
from sparkwell.hardware import target

SPARK = Asked("dgx-spark", "DGX Spark", target(121), None)
H200 = Asked("h200", "H200", target(90), None)
V = Verdict


def looked(one: File, *gpus: Asked) -> Looked:
    made = []
    for gpu in gpus:
        judged = judge(one, gpu.target, gpu.host)
        made.append(Verdicts(gpu, judged, families(judged)))
    return Looked(one, Level.KERNELS, tuple(made))


def examined(*files: File, gpus: tuple[Asked, ...] = (SPARK,), **more: Any) -> Examined:
    every = tuple(looked(one, *gpus) for one in files)
    return Examined("pkg 1", "wheel", gpus, every, elsewhere=elsewhere(every), **more)


GOOD = file(image("sass", "120f", "good"), image("sass", "90", "good"), path="a/good.so")
LOST = file(image("sass", "90a", "lost"), path="a/lost.so")
PAIR = file(
    image("sass", "120", "gemm_sm80"), image("sass", "90a", "gemm_sm90", container=1), path="p.so"
)


# ---------------------------------------------------------------- exit codes


def test_exit_codes() -> None:
    assert exit_code([]) == 0
    assert exit_code([examined(GOOD)]) == 0
    assert exit_code([examined(PAIR)]) == 0  # a sibling runs
    assert exit_code([examined(LOST)]) == 1
    assert exit_code([examined(GOOD), examined(LOST)]) == 1
    assert exit_code([examined(GOOD, gpus=(SPARK, H200))]) == 0
    assert exit_code([examined(LOST, gpus=(H200, SPARK))]) == 1
    assert exit_code([examined(LOST, problems=("broken",))]) == 2
    assert exit_code([examined(GOOD)], unreadable=True) == 2
    assert exit_code([examined(GOOD, notes=("left out",))]) == 0


def test_the_same_family_from_another_file_counts() -> None:
    other = file(image("ptx", "80", "lost"), path="b.so")
    assert exit_code([examined(LOST, other)]) == 0
    found = examined(LOST, other)
    assert [(row.verdict, row.instead) for row in rows(found, SPARK)] == [
        (V.REFUSED, OTHER_FILE),
        (V.JIT, None),
    ]
    # In another package it does not.
    assert exit_code([examined(LOST), examined(other)]) == 1


@pytest.mark.parametrize("verdict", [image("lto", "121", listed=False), image("sass", "x", "k")])
def test_what_is_unknown_is_not_said_to_run(verdict) -> None:  # type: ignore[no-untyped-def]
    assert exit_code([examined(file(verdict))]) == 1


# ---------------------------------------------------------------- rows


def test_rows_worst_first() -> None:
    found = examined(
        GOOD,
        PAIR,
        LOST,
        file(image("ptx", "80", "compiled"), path="c.so"),
        file(image("lto", "121", listed=False, identifier="x.cu"), path="d.so"),
        file(image("sass", "120", kernel("s", stub=True)), image("sass", "90", "s"), path="e.so"),
    )
    made = rows(found, SPARK)
    assert [(row.verdict, row.instead) for row in made] == [
        (V.REFUSED, None), (V.STUB, None), (V.UNKNOWN, None), (V.REFUSED, SIBLING), (V.JIT, None),
        (V.OLDER, None), (V.NATIVE, None),
    ]  # fmt: skip
    assert made[0].reason == "its sm_90a code loads on sm_90 alone" and made[0].kernels == 1
    assert made[0].places == ("a/lost.so",) and made[0].names == ("lost",)
    assert made[4].marks == (("old-ptx", 1),)
    assert running(found, SPARK) == (3, 7, V.REFUSED)
    assert running(examined(GOOD, PAIR), SPARK) == (2, 3, V.OLDER)
    assert running(examined(), SPARK) == (0, 0, None)


def test_one_row_for_one_reason_over_files_and_families() -> None:
    one = file(image("sass", "90a", "b1_sm90", "a", "a_sm80"), path="x/one.so")
    two = file(image("sass", "90a", "b2"), path="two.so")
    (row,) = rows(examined(one, two), SPARK)
    assert (row.kernels, row.places) == (4, ("x/one.so", "two.so"))
    assert row.names == ("a", "a_Sm*", "b1_Sm*", "b2")


def test_loose_cubins_stand_together() -> None:
    cubins = [
        looked(file(image("sass", "90", "k", container=None), path=p, format="cubin"), SPARK)
        for p in ("d/a.cubin", "d/b.cubin", "c.cubin")
    ]
    assert [place_of(one) for one in cubins] == ["d/*.cubin", "d/*.cubin", "c.cubin"]
    assert place_of(looked(GOOD, SPARK)) == "a/good.so"


# ---------------------------------------------------------------- JSON

DOCS = Path(__file__).resolve().parents[2] / "docs" / "doctor.md"
MAPS = {"kernels"}  # whose keys are verdicts


def paths(value: Any, prefix: str = "") -> set[str]:
    """Every key of a JSON value as `a[].b`."""
    if isinstance(value, dict):
        found = set()
        for key, part in value.items():
            name = f"{prefix}.{key}" if prefix else key
            if key in MAPS and isinstance(part, dict):
                found.add(name + "{}")
            else:
                found |= paths(part, name)
        return found
    if isinstance(value, list):
        if prefix.endswith("undecided"):
            return {prefix + "[]"}
        gates = {prefix + "[]"} if prefix.endswith("refusing") else set()
        return gates | {p for part in value for p in paths(part, prefix + "[]")}
    return {prefix}


def full() -> dict[str, Any]:
    """An answer in which nothing is empty."""
    source = b"def f(cc, q):\n if cc != 90: raise E\n if cc < q.min_capability(): raise E"
    gates, _ = find_gates(source, "f.py")
    used = file(
        image("sass", "121", kernel("k_sm1", families=["hmma"], notes=["emulated-fp8"]),
              toolkit="13.0.88", problems=["odd"]),
        image("sass", "90", kernel("k_sm22", families=["fp64"]), container=1),
        problems=["cut short"],
    )  # fmt: skip
    found = examined(
        used,
        gates=tuple(gates),
        evidence=(Evidence("Triton", "kernels", 1, ("a.py",), ("wgmma",)),),
        assemblers=(Assembler("bin/ptxas", ("sm_90",)),),
        problems=("bad",),
        notes=("left",),
    )
    own = [{"op": "norm", "target": "sm_121", "kernels": 1, "failures": 0, "refused": 0}]
    answer = as_json([found], [SPARK], Level.KERNELS, ["missing"]) | {"own": own}
    return json.loads(json.dumps(answer))  # type: ignore[no-any-return]


def test_the_json_is_what_the_document_says() -> None:
    documented = set(
        re.findall(r"^\| `([\w.\[\]{}]+)` \|", DOCS.read_text().split("## JSON")[1], re.M)
    )
    assert paths(full()) == documented


def test_the_json_of_a_file() -> None:
    answer = as_json([examined(GOOD, LOST)], [SPARK], Level.KERNELS, [])
    assert (answer["schema"], answer["level"], answer["exit"], answer["errors"]) == (
        1, "kernels", 1, [],
    )  # fmt: skip
    assert answer["gpus"] == [
        {"name": "dgx-spark", "title": "DGX Spark", "target": "sm_121", "host": None}
    ]
    first, second = answer["inputs"][0]["files"]
    assert first["path"] == "a/good.so" and first["kernels"] == 1
    assert first["images"] == [
        {"kind": "sass", "target": "90", "count": 1},
        {"kind": "sass", "target": "120f", "count": 1},
    ]
    (verdict,) = second["verdicts"]
    assert verdict["kernels"] == {"refused": 1}
    assert verdict["families"] == [
        {
            "name": "lost", "verdict": "refused", "kernels": {"refused": 1}, "instead": None,
            "reason": "its sm_90a code loads on sm_90 alone", "left_out": None,
            "do": "build from source with TORCH_CUDA_ARCH_LIST=12.1a and CUDA 12.9 or newer; code "
            "written for sm_90a may not compile for it",
            "code": None, "have": ["sm_90a"], "uses": None, "marks": [],
        }
    ]  # fmt: skip


def test_families_whose_kernels_differ() -> None:
    (answer,) = as_json([examined(PAIR)], [SPARK], Level.KERNELS, [])["inputs"]
    (family,) = answer["files"][0]["verdicts"][0]["families"]
    assert family["verdict"] == "older" and family["instead"] == "sibling"
    assert family["kernels"] == {"older": 1, "refused": 1}
    assert family["left_out"] == "its sm_90a code loads on sm_90 alone"
    other = file(image("ptx", "80", "lost"), path="b.so")
    (answer,) = as_json([examined(LOST, other)], [SPARK], Level.KERNELS, [])["inputs"]
    (family,) = answer["files"][0]["verdicts"][0]["families"]
    assert (family["instead"], family["do"], family["left_out"]) == ("other file", "", None)


def test_the_order_of_images_is_by_kind_and_number() -> None:
    made = file(*(image("sass", t, "k") for t in ("120", "90a", "90", "100f")), image("ptx", "80"))
    (one,) = as_json([examined(made)], [SPARK], Level.KERNELS, [])["inputs"][0]["files"]
    assert [i["target"] for i in one["images"]] == ["80", "90", "90a", "100f", "120"]


def test_the_json_does_not_depend_on_the_order_of_images() -> None:
    images = [image("sass", t, "a", "b_sm90", "b_sm80") for t in ("80", "90a", "120a")]
    answers = {
        json.dumps(as_json([examined(file(*some))], [SPARK], Level.KERNELS, []))
        for some in (images, images[::-1], [images[1], images[0], images[2]])
    }
    assert len(answers) == 1


def test_gates_in_the_json() -> None:
    made = full()["inputs"][0]["gates"][0]
    assert made["gpu"] == "dgx-spark" and made["passing"] == 0
    assert [gate["line"] for gate in made["refusing"]] == [2]
    assert [gate["line"] for gate in made["undecided"]] == [3]
    gates, _ = find_gates(b"def f(cc):\n if cc != 90: raise E", "f.py")
    assert decided(gates, H200) == ([], [], 1)


# ---------------------------------------------------------------- tables


def printed(*found: Examined, gpus: tuple[Asked, ...] = (SPARK,), why: bool = False) -> str:
    out = io.StringIO()
    show(found, gpus, Level.KERNELS, Console(file=out, width=200), why)
    return out.getvalue()


def test_the_table() -> None:
    text = printed(examined(GOOD, LOST, PAIR))
    assert "pkg 1 on DGX Spark (sm_121)" in text
    assert "2 of 4 kernels run; some families do not" in text
    lines = [line.split()[0] for line in text.splitlines() if line.startswith(" ") and line.split()]
    order = [line for line in lines if line in {v.value for v in V}]
    assert order == ["refused", "refused", "older", "native"]
    assert "its sm_90a code loads on sm_90 alone; a sibling runs instead" in text
    assert "-> build from source with TORCH_CUDA_ARCH_LIST=12.1a" in text
    assert "in lost.so" in text and "in a/lost.so" in printed(examined(GOOD, LOST), why=True)
    legend = [line for line in text.splitlines() if line.split(" ")[0] in {v.value for v in V}]
    assert [line.split()[0] for line in legend] == ["refused", "older", "native"]


def test_summaries() -> None:
    assert "every kernel family runs: 1 of 1 kernels\n" in printed(examined(GOOD))
    both = printed(examined(PAIR))
    assert "every kernel family runs: 1 of 2 kernels; the other 1 have replacements" in both
    assert "nothing runs: 0 of 1 kernels" in printed(examined(LOST))
    assert "no library with GPU code in it" in printed(examined())


def test_rows_with_replacements_are_put_together_unless_asked() -> None:
    many = file(
        image("sass", "120", "k_sm1000"),
        *(image("sass", t, f"k_sm{i + 10}", container=i + 1) for i, t in enumerate(("80", "90"))),
        image("sass", "90", "k_sm99", container=9),
    )
    text = printed(examined(many))
    assert "its sm_90 code is for another major than 12.1 (and 1 like it); a sibling runs" in text
    whole = printed(examined(many), why=True)
    assert "like it" not in whole and "its sm_80 code" in whole


def test_an_overview_where_there_are_several() -> None:
    text = printed(examined(LOST, gpus=(SPARK, H200)), gpus=(SPARK, H200))
    head, line = text.splitlines()[:2]
    assert head.split("  ")[-1].strip() == "H200"
    assert "0 of 1, refused" in line and line.endswith("1 of 1")
    assert "kernels that run" not in printed(examined(LOST))


def test_needs_gates_evidence_and_problems_are_told() -> None:
    made = file(
        image("sass", "121", "k", toolkit="12.8.93"), image("ptx", "80", "j", container=1),
        problems=["cut short"],
    )  # fmt: skip
    gates, _ = find_gates(b"def f(cc, x):\n if x:\n  if cc != 90: raise E('no')", "f.py")
    text = printed(
        examined(
            made,
            gates=tuple(gates) * 7,
            evidence=(Evidence("Triton", "kernels by Triton", 9, ("a.py", "b.py"), ("wgmma",)),),
            assemblers=(Assembler("bin/ptxas", ("sm_90", "sm_121")), Assembler("old", ())),
            problems=("bad.so: gone",),
            notes=("big.py left",),
        )
    )
    assert (
        "needs driver 525 or newer (newest code is by CUDA 12.8.93), a driver for CUDA 12.8 or "
        "newer to compile the PTX" in text
    )
    assert "refuses 7, undecided 0, passes 0" in text
    assert 'refuses    f.py:3 f: raise if cc != 90, when x: "no"' in text and "and 2 more" in text
    assert "kernels by Triton, 9 files such as a.py; written for wgmma in places" in text
    assert "bin/ptxas knows targets up to sm_121" in text and "old names no target" in text
    assert "cannot be read: bad.so: gone" in text and "damaged: lib.so: cut short" in text
    assert "big.py left" not in text
    assert "[old-ptx] its PTX is of an older generation" in text


def test_long_tables_are_cut_unless_asked() -> None:
    files = [file(image("sass", str(80 + i), f"k{i}"), path=f"{i}.so") for i in range(20)]
    text = printed(examined(*files))
    assert text.count("refused") == 12 + 1 and "and 8 better ones; --why shows all" in text
    assert printed(examined(*files), why=True).count("refused") == 20 + 1


def test_markup_and_control_characters_are_text() -> None:
    text = printed(examined(file(image("sass", "120", "[red]x[/]", "[/broken]"), path="[b].so")))
    assert "[red]x[/]" in text and "[/broken]" in text


def test_the_matrix() -> None:
    out = io.StringIO()
    gpus = (SPARK, H200)
    part = file(*(image("sass", "90", f"k{i}", container=i) for i in range(2)),
                image("ptx", "100", "j", container=7), path="x/part.so")  # fmt: skip
    show_matrix([examined(GOOD, part, LOST, gpus=gpus)], gpus, Console(file=out, width=100))
    lines = [line.split() for line in out.getvalue().splitlines()]
    sibling = io.StringIO()
    show_matrix([examined(PAIR)], (SPARK,), Console(file=sibling, width=100))
    assert sibling.getvalue().splitlines()[2].split() == ["p.so", "50%"]
    assert lines[0][-2:] == ["121", "90"] and lines[1] == ["pkg", "1"]
    assert lines[2:5] == [
        ["good.so", "all", "all"], ["part.so", "33%!", "66%!"], ["lost.so", "0", "all"],
    ]  # fmt: skip


def test_our_own_kernels() -> None:
    out = io.StringIO()
    show_own(
        [Compiled("norm", "sm_90", 4, 0, 0), Compiled("norm", "sm_121", 4, 2, 0),
         Compiled("moe", "sm_90", 0, 0, 3)],
        Console(file=out, width=100),
    )  # fmt: skip
    lines = [line.split() for line in out.getvalue().splitlines() if line.strip()]
    assert lines[0][-2:] == ["sm_90", "sm_121"]
    assert lines[2:] == [["norm", "4", "2", "fail"], ["moe", "0", "-"]]


def test_every_verdict_has_a_style_and_a_meaning() -> None:
    assert list(STYLES) == list(MEANINGS) == list(Verdict)
