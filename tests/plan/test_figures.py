"""Formulas by hand, bounds that nothing beats, records and published figures within the error."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from plan.published import ROWS, case, speed_ratio
from sparkwell.hardware.gpus import gpu
from sparkwell.plan import derive
from sparkwell.plan.crossover import MOST, crossovers, seconds
from sparkwell.plan.efficiency import (
    ASSUMED,
    FACTS,
    LIKE,
    Efficiency,
    efficiency,
    error,
    facts,
    rung,
)
from sparkwell.plan.figures import bounds, decode_time, predict, prefill_time, scaled, time_of
from sparkwell.plan.links import NVLINK4, PCIE4, ROCE, link
from sparkwell.plan.schemes import BF16, NVFP4, NVFP4_A4
from sparkwell.plan.step import Op, Step, expand_from, operations, prefill_steps

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "bench" / "records"


# ---------------------------------------------------------------- against records


def test_facts_are_those_of_the_records() -> None:
    wanted = derive.as_text(derive.derive(RECORDS))
    assert FACTS.read_text() == wanted, "run python -m sparkwell.plan.derive"


def test_the_stated_error_is_what_records_show() -> None:
    """Each timed case on the H200 against `efficiency`, as plans use it."""
    ratios = []
    for one in derive.read(RECORDS):
        known = efficiency(one.of)
        got = 1e6 * known.seconds(one.bytes_us * 1e-6, one.math_us * 1e-6)
        ratios.append(got / one.us)
    assert len(ratios) >= 47
    typical, worst = derive.errors(ratios)
    assert error() == (pytest.approx(typical, abs=2e-3), pytest.approx(worst, abs=2e-3))
    # What documents and the command line promise.
    assert typical < 0.25 and worst < 0.8


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.what}, {row.where}")
def test_published_figures_are_near(row) -> None:  # type: ignore[no-untyped-def]
    # Above 1: our kernels of few rows are faster than those of the engines that were measured.
    assert 0.55 < speed_ratio(row) < 1.85


def test_published_figures_are_near_on_average() -> None:
    logs = [math.log(speed_ratio(row)) for row in ROWS]
    typical = math.exp(math.sqrt(sum(x * x for x in logs) / len(logs))) - 1
    assert typical < 0.4 and abs(sum(logs) / len(logs)) < 0.2


def test_bounds_are_not_beaten_by_published_models() -> None:
    """Whole models, whose bound counts everything that has to be read."""
    of = case("glm-5.1", "rtx-pro-6000", "nvfp4-experts", 8)
    assert 1 / decode_time(of, 1, 4096).bound > 50.0
    of = case("qwen3-8b", "rtx-5090", "nvfp4")
    assert 1e3 * decode_time(of, 1, 1024).bound < 4.6


# ---------------------------------------------------------------- the fit


def timed(us: float, read: float, made: float, of: str = "mla_paged") -> derive.Timed:
    return derive.Timed(of, of, "case", us, read, made)


def test_a_fit_finds_what_made_the_times() -> None:
    true = Efficiency("x", 7.0, derive.SHARES[10], derive.SHARES[20])
    rows = [
        timed(1e6 * true.seconds(r * 1e-6, m * 1e-6), r, m)
        for r, m in ((1, 0.1), (50, 1), (500, 3), (3, 60), (10, 700), (0.1, 0.1))
    ]
    found = derive.fit(rows)
    assert found["start"] == 7.0 and found["records"] == 6
    assert found["memory"] == pytest.approx(true.memory, rel=0.06)
    assert found["math"] == pytest.approx(true.math, rel=0.06)
    assert found["worst"] < 0.02


def test_two_records_do_not_decide_three_factors() -> None:
    found = derive.fit([timed(104, 1, 50), timed(204, 1, 100)])
    assert (found["start"], found["memory"]) == (derive.FIXED, derive.USUAL[0])
    assert found["math"] == pytest.approx(0.5, rel=0.03)


def test_only_keys_from_the_l2_come_faster_than_memory() -> None:
    found = {}
    for of in ("mla_paged", derive.FROM_L2):
        rows = [timed(read / 1.25 + 5, read, 1, of) for read in (100, 200, 400, 800, 1600)]
        found[of] = derive.fit(rows)["memory"]
    assert found["mla_paged"] == 1.0 and found[derive.FROM_L2] == pytest.approx(1.25, rel=0.06)


def test_errors_count_both_ways_alike() -> None:
    assert derive.errors([2.0, 0.5]) == (1.0, 1.0)
    assert derive.errors([1.0, 1.25]) == (pytest.approx(0.171, abs=1e-3), 0.25)
    assert derive.errors([]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("op", "name", "kind"),
    [
        ("mla_sparse", "decode-656B-2048-b1-h8", "mla_sparse decode"),
        ("mla_sparse", "prefill-bf16-4096x2048-h16", "mla_sparse prefill"),
        ("linear", "nvfp4-w4a16-16x6144x4096", "linear w4a16 few"),
        ("linear", "nvfp4-w4a16-17x6144x4096", "linear w4a16 some"),
        ("linear", "nvfp4-w4a16-1024x6144x4096", "linear w4a16 some"),
        ("linear", "nvfp4-w4a16-1025x6144x4096", "linear w4a16 many"),
        ("linear", "fp8-w8a8-4096x7168x2048", "linear w8a8 many"),
        ("linear", "int4-w4a16-1x6144x4096", None),
        ("grouped_linear", "fp8-v3-up-prefill-4096", "experts w8a8 many"),
        ("grouped_linear", "fp8-v3-up-decode-8", "experts w8a8 few"),
        ("experts", "nvfp4-w4a16-glm5-b64", "experts w4a16 few"),
        ("topk_select", "2048-of-32768-b64", "topk_select"),
        ("rms_norm", "x", None),
        ("linear", "something-new", None),
        ("experts", "new-b1", None),
    ],
)
def test_kinds_of_timed_cases(op: str, name: str, kind: str | None) -> None:
    assert derive.kind_of(op, name) == kind
    assert kind is None or kind in ASSUMED


def test_peaks_of_kinds() -> None:
    peaks = {of: derive.peak_of(of) for of in ASSUMED}
    assert peaks["linear w8a8 few"] == peaks["index_logits"] == peaks["linear w4a8 many"] == "fp8"
    assert peaks["linear w4a16 few"] == peaks["linear w8a16 many"] == peaks["mla_paged"] == "bf16"
    assert peaks["linear w4a4 many"] == "fp4"


def record(**changed: object) -> dict[str, object]:
    return {
        "op": "mla_paged", "case": "decode-bf16-b64-s4096-h16", "target": None, "us": 100.0,
        "gbs": 2400.0, "tflops": 98.9, "gpu": "NVIDIA H200", **changed,
    }  # fmt: skip


def test_a_record_becomes_bounds() -> None:
    one = derive.timed(record())
    assert one is not None
    assert one.bytes_us == pytest.approx(50.0) and one.math_us == pytest.approx(10.0)
    assert derive.timed(record(target="sm_121")) is None  # another target's code
    assert derive.timed(record(gpu="a GPU of no table")) is None
    assert derive.timed({"op": "mla_paged", "rung": "ran"}) is None
    fp4 = record(op="linear", case="nvfp4-w4a4-1x64x64")
    assert derive.timed(fp4) is None  # an H200 has no such peak
    assert derive.timed(fp4 | {"gpu": "NVIDIA B200"}) is not None
    assert derive.timed(record(op="linear", case="x-w2a2-1x64x64")) is None
    gathered = derive.timed(record(op="mla_sparse", case="prefill-bf16-4096x2048-h16"))
    assert gathered is not None
    assert gathered.bytes_us == pytest.approx(1e6 * 4096 * 2048 * 1152 / 4800e9)


def test_the_newest_record_of_a_case_counts(tmp_path: Path) -> None:
    lines = [record(us=1.0), record(us=2.0), record(case="decode-x", us=3.0)]
    lines.append(record(us=4.0, gpu="NVIDIA B200"))
    (tmp_path / "kernels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [one.us for one in derive.read(tmp_path)] == [2.0, 3.0, 4.0]


def test_efficiencies() -> None:
    assert efficiency("mla_paged").records == 12
    unknown = "linear w4a16 few"
    if unknown not in facts()["efficiency"]:
        assert efficiency(unknown) == ASSUMED[unknown] and efficiency(unknown).records == 0
    assert {of for pair in LIKE.items() for of in (pair[0], *pair[1])} <= ASSUMED.keys()
    with pytest.raises(KeyError):
        efficiency("nothing")


def test_what_was_never_timed_is_like_what_was(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {"records": 9, "typical": 0.1, "worst": 0.2}
    eight = {"start": 1.0, "memory": 0.5, "math": 0.25, **errors}
    four = {"start": 2.0, "memory": 0.625, "math": 0.125, **errors}
    rows = facts()["efficiency"]
    monkeypatch.setitem(rows, "linear w8a8 some", eight)
    monkeypatch.delitem(rows, "linear w4a16 some", raising=False)
    assert efficiency("linear w8a8 some") == Efficiency("linear w8a8 some", **eight)  # type: ignore[arg-type]
    assert efficiency("linear w4a4 some") == ASSUMED["linear w4a4 some"]  # one of two is not enough
    monkeypatch.setitem(rows, "linear w4a16 some", four)
    assert efficiency("linear w4a4 some") == Efficiency("linear w4a4 some", 1.0, 0.625, 0.25)


def test_rungs() -> None:
    assert rung("mla_sparse", "sm_90") == "timed" and rung("rope", "sm_121") == "retargeted"
    assert rung("rope", "sm_75") is None and rung("nothing", "sm_90") is None


# ---------------------------------------------------------------- formulas


def test_time_of_an_op_by_hand() -> None:
    """1.8 GB at 1792 GB/s is 1.0045 ms; 210 GFLOP at 210 TFLOP/s 1 ms."""
    one, known = gpu("rtx-5090"), ASSUMED["attention_paged"]
    op = Op("a", "attention_paged", 3, 1.8e9, 2.1e11)
    read, made = bounds(op, one)
    assert read == pytest.approx(1.8e9 / 1792e9) and made == pytest.approx(2.1e11 / 210e12)
    got, binds = predict(op, one)
    assert got == pytest.approx(known.start * 1e-6 + max(read / known.memory, made / known.math))
    assert binds == ("memory" if read / known.memory > made / known.math else "math")
    time = time_of([op], one)
    assert time.predicted == pytest.approx(3 * got) and time.bound == pytest.approx(3 * read)
    assert (time.memory, time.math) == (pytest.approx(3 * read), pytest.approx(3 * made))
    assert sum(time.shares.values()) == pytest.approx(time.predicted)
    assert time.shares["start"] == pytest.approx(3e-6 * known.start)


def test_waits_of_links_are_no_bounds() -> None:
    time = time_of([Op("sums", "link", 10, 0.0, wait=2e-5)], gpu("h200"))
    assert time.bound == 0 and time.predicted == pytest.approx(2e-4)
    assert time.shares == {"link": pytest.approx(2e-4)} and time.binds == "sums over GPUs"


def test_links() -> None:
    assert link(gpu("h200")) is NVLINK4 and link(gpu("dgx-spark")) is ROCE
    assert link(gpu("rtx-4090")) is PCIE4
    assert NVLINK4.seconds(1e9, 1) == 0.0
    assert NVLINK4.seconds(1e9, 8) == pytest.approx(NVLINK4.wait + 2 * 7 / 8 * 1e9 / NVLINK4.rate)


def test_scaled() -> None:
    one = time_of([Op("a", "small", 1, 1e6)], gpu("h200"))
    two = scaled([(one, 2.0), (one, 0.5)])
    assert two.predicted == pytest.approx(2.5 * one.predicted)
    assert two.shares["start"] == pytest.approx(2.5 * one.shares["start"])
    assert (two.bound, two.memory, two.math) == (
        pytest.approx(2.5 * one.bound), pytest.approx(2.5 * one.memory), 0.0,
    )  # fmt: skip


def by_layer(of, step: Step) -> dict[str, Op]:  # type: ignore[no-untyped-def]
    return {op.layer: op for op in operations(of, step)}


def test_one_token_reads_the_active_weights_once() -> None:
    """Published estimates of GB read a token: GLM-5.2 48.0 in NVFP4 experts, 80.6 in 16 bits."""
    for model, scheme, published in (
        ("glm-5.2", "nvfp4-experts", 48.0), ("glm-5.2", "bf16", 80.6),
        ("deepseek-v3", "bf16", 73.0), ("glm-4.7-flash", "bf16", 7.16),
        ("deepseek-v2-lite", "bf16", 4.90),
    ):  # fmt: skip
        ops = operations(case(model, "b200", scheme), Step(1, 1, 128, 1))
        kinds = ("linear", "experts")
        read = sum(op.count * op.nbytes for op in ops if op.of.startswith(kinds))
        assert read / 1e9 == pytest.approx(published, rel=0.04), (model, scheme)


def test_a_dense_model_reads_all_but_its_embedding() -> None:
    of = case("llama-3.1-8b", "h200", "bf16")
    ops = operations(of, Step(1, 1, 1, 1))
    read = sum(op.count * op.nbytes for op in ops if op.of.startswith("linear"))
    embedding = 128256 * 4096
    assert read == pytest.approx(2 * (of.model.parameters - embedding), rel=0.002)
    flops = sum(op.count * op.flops for op in ops if op.of.startswith("linear"))
    assert flops == pytest.approx(2 * (of.model.parameters - embedding), rel=1e-3)


def test_only_rows_that_get_logits_meet_the_head() -> None:
    ops = by_layer(case("llama-3.1-8b", "h200", "bf16"), Step(2048, 1, 2048, 1))
    assert ops["lm_head"].flops == 2 * 128256 * 4096
    assert ops["o"].flops == 2 * 2048 * 4096 * 4096


def test_a_tied_head_is_read_too() -> None:
    ops = by_layer(case("qwen3-0.6b", "h200", "bf16"), Step(4, 4, 64, 4))
    assert ops["lm_head"].flops == 2 * 4 * 151936 * 1024


def test_sparse_attention_is_constant_and_its_indexer_is_not() -> None:
    of = case("glm-5.2", "h200", "nvfp4", 4)
    short, long = (by_layer(of, Step(1, 1, context, 1)) for context in (8192, 131072))
    assert short["attention"] == long["attention"]
    assert short["attention"].nbytes == 2048 * (656 + 4) and short["attention"].count == 78
    assert short["attention"].flops == 2 * 2048 * 16 * (576 + 512)  # 64 heads over 4 GPUs
    scores = long["indexer scores"]
    assert scores.count == 21 and scores.of == "index_logits_paged"
    assert scores.flops == 2 * 131072 * 32 * 128
    assert scores.nbytes == 131072 * 132 + 131072 * 4 + 32 * 132
    assert long["indexer top-k"].nbytes == 4 * (131072 + 2048)


def test_short_contexts_need_no_indexer() -> None:
    """Up to index_topk keys sparse attention is dense attention exactly."""
    of = case("glm-5.2", "h200", "nvfp4", 4)
    at, beyond = (by_layer(of, Step(1, 1, context, 1)) for context in (2048, 2049))
    assert "indexer scores" not in at and at["attention"].of == "mla_paged"
    assert at["attention"].nbytes == 2048 * 656
    assert "indexer scores" in beyond and beyond["attention"].of == "mla_sparse decode"


def test_long_chunks_expand_their_heads_as_the_model_does() -> None:
    from sparkwell.models.deepseek import DeepseekModel
    from sparkwell.models.weights import Recorder

    of = case("glm-4.7-flash", "h200", "bf16")
    small = of.model.config.__class__(**{**vars(of.model.config), "num_layers": 1})
    edge = expand_from(of.model.config)  # type: ignore[arg-type]
    model = DeepseekModel(small, Recorder())  # type: ignore[arg-type]
    assert model.expand_from == edge
    few, many = (by_layer(of, Step(n, 1, 4096, 1)) for n in (edge - 1, edge))
    assert few["attention"].of == "mla_paged" and "expand" not in few
    assert many["attention"].of == "attention_prefill" and many["expand"].count == 47
    seen = 4096 - (edge - 1) / 2
    assert many["attention"].flops == pytest.approx(2 * edge * seen * 20 * (256 + 256))


def test_grouped_attention_by_hand() -> None:
    ops = by_layer(case("llama-3.1-8b", "h200", "bf16"), Step(4, 4, 1000, 4))
    assert ops["attention"].nbytes == 4 * 1000 * 4096 and ops["attention"].count == 32
    assert ops["attention"].flops == 4 * 4 * 1000 * 32 * 128


def test_windows_bound_what_is_read() -> None:
    of = case("llama-3.1-8b", "h200", "bf16")
    windowed = replace(of.model.config, windows=(100,) * 16 + (None,) * 16)
    narrow = replace(of, model=replace(of.model, config=windowed))
    got = by_layer(narrow, Step(1, 1, 1000, 1))["attention"].nbytes
    assert got == (100 * 16 + 1000 * 16) / 32 * 4096


def test_experts_named_by_few_tokens_are_read_alone() -> None:
    of = case("glm-5.2", "b200", "nvfp4", 8)
    one, many = (by_layer(of, Step(n, n, 4096, n))["experts"] for n in (1, 4096))
    each = 2 * NVFP4.nbytes(256, 6144) + NVFP4.nbytes(6144, 256)
    assert one.nbytes == pytest.approx(8 * each, rel=0.03)
    rows = 4096 * 8 * (10 * 6144 + 4 * 256)  # read, between the products, and their sums
    assert many.nbytes == pytest.approx(256 * each + rows, rel=1e-6)
    assert one.flops == 6 * 8 * 256 * 6144 and one.count == 75
    assert (one.of, many.of) == ("experts w4a16 few", "experts w4a16 many")


def test_whole_experts_take_their_share_of_the_rows() -> None:
    from sparkwell.plan.share import share

    of = case("glm-5.2", "b200", "nvfp4", 8)
    whole = share(of.model.config, of.model.parts, of.scheme, 8, "ep")
    cut, here = (
        by_layer(replace(of, share=how), Step(64, 64, 4096, 64))["experts"]
        for how in (of.share, whole)
    )
    assert here.flops == pytest.approx(cut.flops)


def test_several_gpus_wait_for_each_other() -> None:
    ops = by_layer(case("llama-3.1-8b", "h200", "bf16", 4), Step(8, 8, 64, 8))
    sums = ops["sums over GPUs"]
    assert sums.count == 64 and sums.wait == NVLINK4.seconds(2 * 8 * 4096, 4)
    assert "sums over GPUs" not in by_layer(case("llama-3.1-8b", "h200", "bf16"), Step(8, 8, 64, 8))


def test_prompts_are_read_in_steps() -> None:
    steps = prefill_steps(5000, 3, 2048)
    assert [(s.rows, s.context, times) for s, times in steps] == [
        (2048, 2048, 3), (2048, 4096, 3), (904, 5000, 3),
    ]  # fmt: skip
    (short,) = prefill_steps(100, 64, 2048)
    assert (short[0].rows, short[0].requests, short[0].context) == (2000, 20, 100)
    assert short[1] == 64 / 20
    long = prefill_steps(1 << 20, 1, 2048)
    assert len(long) == 12 and sum(times for _, times in long) == pytest.approx(512)
    assert long[0][0].context == 2048 and long[-1][0].context == 1 << 20
    assert prefill_steps(1, 1, 2048)[0][0] == Step(1, 1, 1, 1)


def test_sampled_chunks_are_like_all_of_them() -> None:
    of = case("deepseek-v3.2", "h200", "fp8", 8)
    every = scaled(
        (time_of(operations(of, step), of.gpu), times)
        for step, times in prefill_steps(65536, 1, 2048, most=1000)
    )
    assert prefill_time(of, 1, 65536).predicted == pytest.approx(every.predicted, rel=0.02)


def test_more_work_takes_longer() -> None:
    of = case("glm-5.2", "h200", "fp8", 8)
    by_batch = [decode_time(of, batch, 8192).predicted for batch in (1, 2, 8, 64)]
    by_context = [decode_time(of, 1, context).predicted for context in (4096, 32768, 262144)]
    by_input = [prefill_time(of, 1, length).predicted for length in (100, 2048, 4096, 65536)]
    for times in (by_batch, by_context, by_input):
        assert times == sorted(times) and times[0] < times[-1]
    assert prefill_time(of, 4, 4096).predicted == pytest.approx(4 * by_input[2])


def test_bounds_are_below_predictions() -> None:
    for model, product, scheme, gpus in (
        ("glm-5.2", "dgx-spark", "nvfp4", 4), ("llama-3.1-8b", "a100-sxm-80", "bf16", 1),
        ("glm-4.7-flash", "rtx-4090", "int4", 1), ("deepseek-v3.2", "b200", "nvfp4-fp8", 8),
    ):  # fmt: skip
        of = case(model, product, scheme, gpus)
        for time in (decode_time(of, 4, 4096), prefill_time(of, 1, 2048)):
            assert max(time.memory, time.math) <= time.bound * (1 + 1e-9)
            assert time.bound < time.predicted


# ---------------------------------------------------------------- crossovers


def test_ridges_by_hand() -> None:
    """Rows of x that take as long as the weight's bytes: bytes / 2 x peak / bandwidth."""
    one = gpu("rtx-pro-6000")
    found = {x.arithmetic: x for x in crossovers(one, 8192, 8192)}
    per_byte = {key: one.peaks[key].value / one.bandwidth.value for key in ("bf16", "fp8", "fp4")}
    assert found["w16a16"].ridge == int(per_byte["bf16"])
    assert found["w4a16"].ridge == pytest.approx(per_byte["bf16"] * 9 / 32, abs=1)
    assert found["w4a8"].ridge == pytest.approx(per_byte["fp8"] * 9 / 32, abs=1)
    assert found["w4a4"].ridge == pytest.approx(per_byte["fp4"] * 9 / 32, abs=1)
    assert found["w8a8"].ridge == pytest.approx(per_byte["fp8"] / 2, abs=1)


def test_four_bits_win_with_few_rows_and_faster_units_with_many() -> None:
    found = {x.arithmetic: x for x in crossovers(gpu("rtx-pro-6000"), 8192, 8192)}
    assert found["w4a16"].fastest is not None and found["w4a16"].fastest[0] == 1
    assert found["w4a4"].fastest is not None and found["w4a4"].fastest[1] > MOST * 0.9
    assert found["w16a16"].fastest is None


def test_what_a_gpu_lacks() -> None:
    found = {x.arithmetic: x for x in crossovers(gpu("a100"), 4096, 4096)}
    assert found["w4a4"].lacks == "sm_80 has no FP4_BLOCK_MMA" and found["w4a4"].ridge is None
    assert found["w8a8"].lacks == "sm_80 has no FP8_MMA"
    assert found["w16a16"].fastest is not None and found["w16a16"].fastest[1] >= MOST
    hopper = {x.arithmetic: x for x in crossovers(gpu("h200"), 4096, 4096)}
    assert hopper["w4a4"].lacks == "sm_90 has no FP4_BLOCK_MMA" and hopper["w8a8"].lacks is None


def test_seconds_by_hand() -> None:
    one, known = gpu("h200"), efficiency("linear w16a16 many")
    got = seconds("w16a16", BF16, one.peaks["bf16"].value, one, 4096, 4096, 4096)
    assert got == pytest.approx(known.start * 1e-6 + 2 * 4096**3 / 989e12 / known.math, rel=1e-6)
    few, small = efficiency("linear w4a4 few"), efficiency("small")
    got = seconds("w4a4", NVFP4_A4, 1e9, one, 16, 4096, 4096)
    product = few.start * 1e-6 + 2 * 16 * 4096**2 / 1e9 / few.math
    quantizing = small.start * 1e-6 + 3 * 16 * 4096 / one.bandwidth.value / small.memory
    assert got == pytest.approx(product + quantizing, rel=1e-12)


def test_rows_of_x_are_quantized_before_they_are_multiplied() -> None:
    of = case("llama-3.1-8b", "h200", "fp8")
    layers = by_layer(of, Step(2048, 1, 4096, 1))
    many, few = layers["o"], by_layer(of, Step(1, 1, 4096, 1))["o"]
    made = {name: op.launches for name, op in layers.items() if op.arithmetic == "w8a8"}
    assert made == {"k + q + v": 0, "o": 1, "dense gate + up": 0, "dense down": 0}
    assert (many.arithmetic, many.launches, many.quantized) == ("w8a8", 1, 2048 * 4096)
    assert (few.arithmetic, few.launches, few.quantized) == ("w8a16", 0, 0)
    alone = time_of([replace(many, launches=0)], of.gpu)
    whole, small = time_of([many], of.gpu), efficiency("small")
    more = small.start * 1e-6 + 3 * 2048 * 4096 / of.gpu.bandwidth.value / small.memory
    assert whole.predicted - alone.predicted == pytest.approx(many.count * more, rel=1e-6)
    assert whole.bound == alone.bound
    started = whole.shares["start"] - alone.shares["start"]
    assert started == pytest.approx(many.count * small.start * 1e-6)
    layers = by_layer(case("deepseek-v3.2", "h200", "fp8", 8), Step(4096, 1, 4096, 1))
    assert layers["shared gate + up"].launches == 1 and layers["shared down"].launches == 0
    assert layers["dense gate + up"].launches == 0 and layers["q_b"].launches == 1
    experts = layers["experts"]
    wide = 7168 * 4096 + 8 * 4096 * 256
    assert (experts.arithmetic, experts.launches, experts.quantized) == ("w8a8", 2, wide)
    h200, small = gpu("h200"), efficiency("small")
    more = 2 * small.start * 1e-6 + 3 * wide / h200.bandwidth.value / small.memory
    alone = replace(experts, launches=0)
    assert predict(experts, h200)[0] - predict(alone, h200)[0] == pytest.approx(more)
    lite = by_layer(case("deepseek-v2-lite", "h200", "fp8"), Step(4096, 1, 4096, 1))
    (query,) = [op for name, op in lite.items() if "q" in name.split(" + ") and op.launches]
    assert query.arithmetic == "w8a8"  # what q reads, kv_a does, too
