"""Kernels compiled without a GPU; every planted defect is found and told apart."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparkwell.errors import BadInput
from sparkwell.hardware.targets import target
from sparkwell.ops.launch import interpreting
from sparkwell.ops.schedule import HGMMA, HMMA, NO_MMA
from sparkwell.verify import compile as compiler
from sparkwell.verify.case import Case
from sparkwell.verify.check import Failure, check, check_reach, in_lines
from sparkwell.verify.command import Options, lines, verify_compiled
from sparkwell.verify.compile import Built, Function, build, build_all, specialise
from sparkwell.verify.matrix import (
    USUAL,
    Matrix,
    Refusal,
    Table,
    Use,
    cases_of,
    one_a_row,
    record,
    tables,
    targets_named,
)
from verify import planted

pytestmark = pytest.mark.skipif(interpreting(), reason="kernels are interpreted here")


def failures(*uses: Use) -> list[Failure]:
    return check(uses, build_all([use.unit for use in uses], jobs=1))


def test_a_sound_kernel_passes_on_every_kind_of_target() -> None:
    uses = [planted.use(HMMA, 80), planted.use(HGMMA, 90), planted.use(HMMA, 121)]
    assert failures(*uses) == []


@pytest.mark.parametrize(("formula", "found"), [(1024, 0), (1025, 1), (-1025, 1)])
def test_a_wrong_formula_fails(formula: int, found: int) -> None:
    wrong = failures(planted.use(HMMA, 121, formula=formula))
    assert len(wrong) == found
    if found:
        size = planted.shared(planted.Schedule(), 121)
        assert wrong[0].wanted.endswith(f"shared memory, by the row's formula {size + formula}")
        assert (wrong[0].op, wrong[0].row, wrong[0].target) == ("linear", "planted", "sm_121")
        assert wrong[0].came == str(size) and "linear planted" in str(wrong[0])


@pytest.mark.parametrize(
    ("formula", "found"), [(34818, 1), (34816, 0), (-8192, 0), (-8193, 1)]
)  # of 32768 bytes
def test_small_cases_may_take_half_or_what_odd_strides_cost(formula: int, found: int) -> None:
    one = planted.use(HMMA, 121, formula=formula)
    small = replace(one, case=replace(one.case, size="small"))
    assert len(failures(small)) == found and len(failures(one)) == 1


def test_a_missing_instruction_fails_and_the_found_one_is_named() -> None:
    (wrong,) = failures(planted.use(HGMMA, 121))
    assert "HGMMA" in wrong.wanted and wrong.came == "tensor-core instructions HMMA"


def test_a_lost_pipeline_fails() -> None:
    # 251 is odd: rows of bf16 start anywhere, so nothing can be copied 4 bytes at a time
    wrong = failures(planted.use(HMMA, 121, stride=251))
    assert any("copies in flight, as num_stages is 3" in failure.wanted for failure in wrong)


def test_a_kernel_without_a_loop_needs_no_pipeline() -> None:
    schedule = planted.Schedule(num_stages=1)
    wrong = failures(planted.use(HMMA, 121, schedule))
    assert not any("copies" in failure.wanted for failure in wrong)


def test_spills_and_too_much_shared_memory_fail() -> None:
    schedule = planted.Schedule(128, 256, 64, num_warps=1, num_stages=4)
    wrong = failures(planted.use(HMMA, 121, schedule))
    texts = [str(failure) for failure in wrong]
    assert any("no register spilled" in t and "matmul" in t and "255 registers" in t for t in texts)
    assert any("at most 101376 bytes of shared memory" in t for t in texts)


def test_a_compiler_error_is_a_failure_with_its_words() -> None:
    schedule = planted.Schedule(block_k=48)  # no power of two
    (wrong,) = failures(planted.use(HMMA, 121, schedule))
    assert wrong.wanted == "machine code" and "power of 2" in wrong.came


def test_a_failure_of_several_targets_is_said_once() -> None:
    one = Failure("rope", "any", "sm_80", "rope case", "kernel", "a", "b")
    lines_ = in_lines([one, replace(one, target="sm_86"), replace(one, came="c")])
    assert lines_[0] == "rope row any on sm_80, sm_86 (rope case kernel): want a; got b"
    assert len(lines_) == 2


def test_kernels_with_explicit_layouts_compile() -> None:
    one = planted.launched(NO_MMA, 121, planted.Schedule(num_stages=1))
    args = (torch.empty(128, dtype=torch.int32, device="meta"),)
    unit = specialise(replace(one, kernel=planted.explicit, args=args, constants={"BLOCK": 128}))
    assert build(unit).error is None


def handed_back(settled: bool) -> Use:
    """A kernel that reads a buffer and hands it back."""
    one = planted.launched(NO_MMA, 90, planted.Schedule(num_stages=1))
    args = (torch.empty(1024, device="meta"),)
    constants = {"BLOCK": 512, "SETTLED": settled}
    small = replace(one, kernel=planted.handed_back, args=args, constants=constants)
    choice = replace(one.choice, shared_bytes=None)
    return Use(planted.CASE, one.choice.target, choice, specialise(small))


def test_a_barrier_that_is_told_before_reads_are_over_fails() -> None:
    (wrong,) = failures(handed_back(settled=False))
    assert wrong.wanted == "reads of shared memory settled before a barrier is told"
    assert wrong.came.startswith("SYNCS.ARRIVE") and "LDS.128" in wrong.came
    assert failures(handed_back(settled=True)) == []


def test_reads_of_what_warps_store_may_be_under_way() -> None:
    one = planted.use(NO_MMA, 121, planted.Schedule(num_stages=1))
    one = replace(one, choice=replace(one.choice, shared_bytes=None))
    built = {one.unit.key: Built(early=("SYNCS.ARRIVE at 10, LDS at 00 under way",))}
    assert [failure.kernel for failure in check([one], built)] == ["matmul"]
    scales = replace(one.unit, kernel=Function(one.unit.kernel.module, "fp8_products_kernel"))
    assert check([replace(one, unit=scales)], built) == []


def test_what_does_not_assemble_leaves_the_output_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = planted.launched(NO_MMA, 121, planted.Schedule(num_stages=1))
    args = (torch.empty(128, dtype=torch.int32, device="meta"),)
    unit = specialise(replace(one, kernel=planted.no_instruction, args=args, constants={}))
    assert "PTXASError" in (build(unit).error or "")
    assert capsys.readouterr().out == ""  # Triton would print all of the PTX, into the JSON too


def test_several_kernels_of_one_choice_are_judged_together() -> None:
    main = planted.use(HMMA, 121)
    small = planted.launched(HMMA, 121, planted.Schedule(16, 16, 64, num_stages=1))
    combine = Use(main.case, main.target, main.choice, specialise(small))
    assert failures(main, combine) == []


def test_shared_memory_without_a_formula_may_be_a_few_bytes_only() -> None:
    use = planted.use(NO_MMA, 121)
    free = type(use.choice)("linear", use.choice.row, None, use.target, None)
    (wrong,) = failures(Use(use.case, use.target, free, use.unit))
    assert "a formula" in wrong.wanted


def test_rows_nobody_reaches_and_cases_nobody_serves_fail() -> None:
    used = planted.use(HMMA, 121)
    other = planted.row(planted.Schedule(), HMMA, "idle")
    table = Table("ops.linear.schedule.TABLE", (used.choice.row, other))
    both = [target(80), target(121)]
    refusals = tuple(Refusal(planted.CASE, one, "too wide") for one in both)
    wrong = check_reach(Matrix((used,), refusals), [table], both)
    assert [(f.row, f.target) for f in wrong] == [
        ("planted", "sm_80"),
        ("idle", "sm_80"),
        ("idle", "sm_121"),
        ("-", "any"),
    ]
    assert wrong[-1].came == "too wide"


def test_an_op_that_breaks_while_it_is_recorded_is_a_failure() -> None:
    matrix = record([Case("rms_norm", "bad", lambda maker: {"x": 1})], [target(121)])
    (wrong,) = check_reach(matrix, [], [target(121)])
    assert wrong.wanted == "launches recorded from meta tensors" and "TypeError" in wrong.came


def test_specialisation_follows_the_launcher() -> None:
    plain, odd = (specialise(planted.launched(HMMA, 121, stride=n)) for n in (256, 251))
    divisible = dict(plain.attributes)
    assert all(divisible[i,] == [["tt.divisibility", 16]] for i in range(5))
    assert not dict(odd.attributes)[4,] and plain.key != odd.key
    one = specialise(planted.launched(HMMA, 121, stride=1))
    assert one.signature[4] == ("stride", "constexpr")


def test_an_offset_view_is_not_taken_for_aligned() -> None:
    one = planted.launched(HMMA, 121)
    moved = torch.empty(65 * 256, dtype=torch.bfloat16, device="meta")[1:]
    args = (one.args[0], moved, *one.args[2:])
    unit = specialise(type(one)(one.kernel, one.choice, one.grid, args, one.constants, one.options))
    assert not dict(unit.attributes)[1,] and dict(unit.attributes)[2,]


def test_the_key_knows_the_source_the_target_and_the_constants() -> None:
    launches = [
        planted.launched(HMMA, 121),
        planted.launched(HMMA, 120),
        planted.launched(HMMA, 121, planted.Schedule(block_n=32)),
        planted.launched(HMMA, 121, planted.Schedule(num_warps=8)),
    ]
    assert len({specialise(one).key for one in launches}) == len(launches)
    assert specialise(launches[0]).key == specialise(planted.launched(HMMA, 121)).key


def test_results_are_kept_and_damaged_ones_made_anew(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = planted.use(HMMA, 121).unit
    first = build_all([unit], jobs=1)[unit.key]
    monkeypatch.setattr(compiler, "build", lambda unit: Built(error="compiled again"))
    assert build_all([unit], jobs=1)[unit.key] == first
    assert build_all([unit], jobs=1, cache=False)[unit.key].error == "compiled again"
    (kept,) = (own_cache / "verify").glob("*.json")
    kept.write_text("{")
    assert build_all([unit], jobs=1)[unit.key].error == "compiled again"
    assert kept.read_text() == "{"  # failures are not kept


def test_processes_compile_what_one_process_does() -> None:
    units = [use.unit for use in record(cases_of(["rms_norm"]), targets_named(["sm_86"])).uses]
    units = list({unit.key: unit for unit in units}.values())[:2]
    seen: list[tuple[int, int]] = []
    together = build_all(units, jobs=2, progress=lambda *step: seen.append(step))
    assert seen[0] == (0, 2) and seen[-1] == (2, 2)
    for unit in units:
        alone = build(unit)
        assert together[unit.key].instructions == alone.instructions and alone.error is None


def test_one_case_a_row_prefers_published_shapes() -> None:
    matrix = record(cases_of(["norm"]), targets_named(["sm_121"]))
    few = one_a_row(matrix.uses)
    rows = [(use.case.op, use.choice.row.name) for use in few]
    assert len(rows) == len(set(rows)) == 17
    assert {use.case.size for use in few if use.choice.row.name == "short"} == {"model"}


def test_forms_of_a_row_are_compiled_on_each_target_or_on_one() -> None:
    uses = record(cases_of(["experts"]), targets_named(["sm_80", "sm_121"])).uses

    def met(every: bool) -> dict[tuple[str, str], set[str]]:
        found: dict[tuple[str, str], set[str]] = {}
        for use in one_a_row(uses, every_form=every):
            form = getattr(use.choice.problem, "form", "")
            found.setdefault((use.choice.row.name, form), set()).add(use.target.name)
        return found

    both, one = met(True), met(False)
    assert both.keys() == one.keys() and all(one[key] <= both[key] for key in one)
    form = ("bytes-16", "int4 by bf16")
    assert both[form] == {"sm_80", "sm_121"} and one[form] == {"sm_121"}
    for row in {row for row, _ in both}:  # each row still on each of its targets
        targets = [set().union(*(m[key] for key in m if key[0] == row)) for m in (both, one)]
        assert targets[0] == targets[1]


def test_names() -> None:
    assert [one.name for one in targets_named(None)] == list(USUAL)
    assert len(targets_named(["all"])) == 8 and targets_named(["121"])[0].name == "sm_121"
    with pytest.raises(BadInput, match="no kernel is written for it"):
        targets_named(["sm_75"])
    with pytest.raises(BadInput, match="not known"):
        targets_named(["sm_12"])
    with pytest.raises(BadInput, match="'rms' has no case"):
        cases_of(["rms"])
    norms = {"rms_norm", "layer_norm", "add_rms_norm"}
    quantized = {"rms_norm_quantized", "add_rms_norm_quantized"}
    assert {case.op for case in cases_of(["norm"])} == norms | quantized


def test_tables_are_found_once() -> None:
    (table,) = tables({"norm"})
    assert table.name == "ops.norm.schedule.TABLE" and len(table.rows) == 3


def test_the_report() -> None:
    report = verify_compiled(Options(("sm_121",), ("layer_norm",), jobs=1))
    (cell,) = report.cells
    assert (cell.op, cell.target, len(cell.rows), cell.kernels) == ("layer_norm", "sm_121", 3, 3)
    assert not report.failures and lines(report)[-1] == "3 kernels compiled: all hold"
