"""What is said of a model on a GPU: which scheme, how many GPUs, and the JSON object."""

import json
from dataclasses import replace
from typing import Any

import pytest

from sparkwell.errors import BadInput
from sparkwell.hardware.gpus import gpu
from sparkwell.plan.efficiency import error
from sparkwell.plan.figures import Time
from sparkwell.plan.model import find_model
from sparkwell.plan.report import (
    BATCHES,
    GRID_LENGTHS,
    LENGTHS,
    MOST_GPUS,
    Asked,
    OnGpu,
    _best,
    as_json,
    grid,
    max_context,
    number,
    over_batch,
    over_input,
    plan,
)
from sparkwell.plan.schemes import SCHEMES


def planned(model: str, product: str, **asked: Any) -> OnGpu:
    return plan(find_model(model), gpu(product), Asked(**asked))


def test_which_gpus_for_glm_5_2() -> None:
    """The question this verb began with."""
    fewest = {
        name: planned("glm-5.2", name, context=65536, gpus=None).gpus
        for name in ("dgx-spark", "rtx-pro-6000", "h200", "b200")
    }
    assert fewest == {"dgx-spark": 4, "rtx-pro-6000": 8, "h200": 4, "b200": 4}
    fp8 = planned("glm-5.2", "dgx-spark", context=65536, gpus=None, scheme="fp8")
    assert fp8.gpus == 8 and fp8.fits


def test_what_fits_on_one() -> None:
    assert planned("llama-3.1-8b", "rtx-4090", context=8192).fits
    assert planned("glm-4.7-flash", "rtx-5090").fits
    one = planned("glm-5.2", "h200")
    assert not one.fits and one.best is None and one.fewest == 4
    assert one.chosen.scheme.name == "int4"  # the smallest
    (why,) = one.chosen.why
    assert why.startswith("lacks 2") and why.endswith(" GB a GPU")


def test_more_gpus_than_there_are() -> None:
    one = planned("llama-3.1-405b", "rtx-5070", gpus=None, scheme="bf16")
    assert one.fewest is None and one.gpus == MOST_GPUS and not one.fits


def test_a_number_that_does_not_divide() -> None:
    one = planned("glm-4.7-flash", "h200", gpus=8, scheme="bf16")
    assert not one.fits and one.chosen.why == ("20 heads do not divide by 8",) and one.fewest == 1


def row(tpot: float, ttft: float, name: str = "bf16", why: tuple[str, ...] = ()) -> Any:
    base = planned("llama-3.1-8b", "h200", scheme=name).chosen
    times = [Time(0, 0, 0, t, {"memory": t}) for t in (tpot, ttft)]
    return replace(base, tpot=times[0], ttft=times[1], why=why)


def test_the_best_is_the_fastest_that_can_be_told() -> None:
    alike = 1 + error()[0]
    slow, fast = row(1.0, 1.0), row(0.5, 9.0, "nvfp4")
    assert _best([slow, fast]) is fast
    near = row(0.5 * alike * 0.99, 1.0, "fp8")
    assert _best([slow, fast, near]) is near  # as fast to decode, and faster to read
    beyond = row(0.5 * alike * 1.01, 1.0, "fp8")
    assert _best([slow, fast, beyond]) is fast
    assert _best([fast, near, row(0.5, 1.0, "int4")]) is near  # the first of equals
    assert _best([row(0.1, 0.1, why=("no",)), slow]) is slow
    assert _best([row(0.1, 0.1, why=("no",))]) is None


def test_units_of_fp4_decide_where_there_are_any() -> None:
    chosen = {
        name: planned("llama-3.1-8b", name, context=4096, input_len=4096).best.scheme.name  # type: ignore[union-attr]
        for name in ("rtx-pro-6000", "dgx-spark", "a100-sxm-80")
    }
    assert chosen["rtx-pro-6000"] == chosen["dgx-spark"] == "nvfp4-w4a4"
    assert chosen["a100-sxm-80"] in ("nvfp4", "int4", "fp8")


def test_schemes_compared() -> None:
    names = [row.scheme.name for row in planned("glm-5.2", "h200").rows]
    assert names == [name for name in SCHEMES if name != "nvfp4-w4a8"]
    dense = [row.scheme.name for row in planned("llama-3.1-8b", "h200").rows]
    assert "nvfp4-experts" not in dense
    assert [row.scheme.name for row in planned("glm-5.2", "h200", scheme="nvfp4-w4a8").rows] == [
        "nvfp4-w4a8"
    ]


def test_a_quantized_model_has_one_scheme() -> None:
    model = replace(find_model("llama-3.1-8b"), stored=replace(SCHEMES["fp8"], name="as stored"))
    one = plan(model, gpu("h200"), Asked())
    assert [row.scheme.name for row in one.rows] == ["as stored"]
    with pytest.raises(BadInput, match=r"scheme is 'nvfp4', but llama-3.1-8b is quantized already"):
        plan(model, gpu("h200"), Asked(scheme="nvfp4"))


def test_contexts() -> None:
    one = planned("llama-3.1-8b", "rtx-5090", scheme="bf16", context=8192, batch=2)
    held = one.chosen.memory
    assert max_context(one.chosen) == min(131072, held.tokens // 2)
    assert max_context(planned("llama-3.1-8b", "h200", scheme="nvfp4").chosen) == 131072
    with pytest.raises(BadInput, match="context is 131073, but llama-3.1-8b was made for 131072"):
        planned("llama-3.1-8b", "h200", context=131073)


def test_bad_requests() -> None:
    for name in ("context", "batch", "input_len", "step_tokens"):
        with pytest.raises(BadInput, match=f"{name} is 0, want 1 to 1073741824"):
            Asked(**{name: 0})
    with pytest.raises(BadInput, match="batch is 1073741825, want 1 to"):
        Asked(batch=(1 << 30) + 1)
    with pytest.raises(BadInput, match=r"cache is 'fp4', want one of auto, bf16, fp8"):
        Asked(cache="fp4")
    with pytest.raises(BadInput, match="scheme is 'int8'"):
        planned("llama-3.1-8b", "h200", scheme="int8")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("8192", 8192), ("128k", 131072), ("1M", 1 << 20), ("1.5k", 1536), (" 4 K ", 4096)],
)
def test_numbers(text: str, value: int) -> None:
    assert number(text, "context") == value


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "k", "8 thousand", "0.3", "1e3", "١k", "0.1k", "9" * 5000, "2000m"]
)
def test_no_numbers(text: str) -> None:
    with pytest.raises(BadInput, match=r"context is .*, want a number of tokens such as 8192"):
        number(text, "context")


def test_over_batch_and_input() -> None:
    one = planned("llama-3.1-8b", "rtx-5090", scheme="bf16", context=32768)
    rows = over_batch(one.chosen)
    assert [x["batch"] for x in rows] == list(BATCHES)
    for x in rows:
        assert x["fits"] == (x["batch"] * 32768 <= one.chosen.memory.tokens)
        assert x["tokens_per_s"] == pytest.approx(x["batch"] / x["tpot_s"], rel=1e-3)
        assert x["tpot_bound_s"] < x["tpot_s"]
    assert any(x["fits"] for x in rows) and not all(x["fits"] for x in rows)
    assert rows[0]["tpot_s"] == pytest.approx(one.chosen.tpot.predicted, rel=1e-3)
    inputs = over_input(one.chosen)
    assert [x["input"] for x in inputs] == list(LENGTHS)
    assert inputs[0]["tokens_per_s"] == pytest.approx(1024 / inputs[0]["ttft_s"], rel=1e-3)
    few = over_input(planned("bard", "rtx-5090", context=256).chosen)
    assert [x["input"] for x in few] == [1024, 2048]  # what it was made for


def test_the_grid() -> None:
    one = planned("llama-3.1-8b", "h200", scheme="bf16", context=8192)
    rows = {(x["input"], x["batch"]): x for x in grid(one.chosen)}
    assert len(rows) == len(BATCHES) * len(GRID_LENGTHS)
    at, line = rows[8192, 16], {x["batch"]: x for x in over_batch(one.chosen)}[16]
    assert (at["tpot_s"], at["fits"]) == (line["tpot_s"], line["fits"])
    alone = {x["input"]: x for x in over_input(one.chosen)}
    assert rows[8192, 1]["ttft_s"] == alone[8192]["ttft_s"]
    assert rows[8192, 16]["ttft_s"] == pytest.approx(16 * alone[8192]["ttft_s"], rel=1e-3)
    assert rows[1024, 2]["ttft_s"] < 2 * alone[1024]["ttft_s"]  # both in one step
    assert {x["input"] for x in grid(planned("bard", "h200", context=256).chosen)} == {1024}


def test_step_tokens_reach_the_steps() -> None:
    small, large = (
        planned("glm-5.2", "h200", gpus=8, scheme="fp8", input_len=16384, step_tokens=n).chosen
        for n in (1024, 8192)
    )
    assert large.ttft.predicted < small.ttft.predicted  # experts are read less often
    assert large.memory.step > small.memory.step and large.memory.tokens < small.memory.tokens


def test_the_json_object() -> None:
    model, asked = find_model("glm-5.2"), Asked(context=65536, batch=2, gpus=None, input_len=4096)
    plans = [plan(model, gpu(name), asked) for name in ("dgx-spark", "jetson-thor")]
    found = json.loads(json.dumps(as_json(model, plans, asked)))
    assert list(found) == ["model", "asked", "figures", "error", "plans"]
    assert found["figures"] == "predictions"
    assert found["asked"] == {
        "context": 65536, "batch": 2, "input": 4096, "step_tokens": 2048, "cache": "fp8",
    }  # fmt: skip
    assert found["error"] == dict(zip(("typical", "worst"), error(), strict=True))
    spark, thor = found["plans"]
    assert (spark["gpu"], spark["target"], spark["gpus"], spark["fits"]) == (
        "dgx-spark", "sm_121", 4, True,
    )  # fmt: skip
    assert spark["scheme"] == spark["best"]
    best = next(row for row in spark["schemes"] if row["scheme"] == spark["best"])
    assert best["fits"] and best["why"] == [] and best["experts"] == "tp"
    assert best["token_bytes"] == 53940 and best["index_token_bytes"] == 2772
    assert best["tokens_per_s"] == pytest.approx(2 / best["tpot"]["predicted_s"], rel=1e-3)
    assert sum(best["tpot"]["shares"].values()) == pytest.approx(1, abs=0.01)
    assert best["tpot"]["bandwidth_s"] <= best["tpot"]["bound_s"] < best["tpot"]["predicted_s"]
    assert best["max_context"] == best["tokens"] // 2
    assert best["concurrency"] == best["tokens"] // 65536 >= 2
    layers = {row["layer"]: row for row in spark["kernels"]}
    assert layers["attention"]["kernel"] == "fp8-grouped-s"
    assert layers["attention"]["instruction"] == "mma.sync, 16-bit"
    assert layers["attention"]["proven"] == "retargeted" and layers["attention"]["calls"] == 78
    assert layers["attention"]["refused"]["gathered"] == "written for sm 90"
    assert layers["lm_head"]["kernel"] == "torch" and layers["lm_head"]["arithmetic"] == "w16a16"
    arithmetics = {row["arithmetic"]: row for row in spark["crossovers"]["arithmetics"]}
    assert list(arithmetics) == ["w16a16", "w8a8", "w4a16", "w4a8", "w4a4"]
    missing = {row["layer"]: row for row in thor["kernels"]}["attention"]
    assert missing["kernel"] is None and missing["refused"]


def test_each_kind_of_layer_once() -> None:
    one = planned("glm-5.2", "h200", gpus=4)
    layers = [op.layer for op in one.kernels]
    assert len(layers) == len(set(layers)) and "attention" in layers and "experts" in layers
    assert "norms" not in layers  # no choice of kernels is planned there
    assert one.layer == (6144, 4096) and one.layer[0] * one.layer[1] > 2048 * 6144
