"""What fits: cached bytes by the records, shares of several GPUs, why some numbers do not work."""

import pytest

from plan.published import case
from sparkwell.checkpoints.config import parse_config
from sparkwell.errors import BadInput
from sparkwell.hardware.gpus import gpu
from sparkwell.plan.memory import (
    HOST_AND_SYSTEM,
    SCORES,
    cache_dtype,
    memory,
    step_bytes,
    token_bytes,
    usable,
)
from sparkwell.plan.model import find_model
from sparkwell.plan.models import MODELS
from sparkwell.plan.parts import parts
from sparkwell.plan.schemes import SCHEMES
from sparkwell.plan.share import ENGINE, Share, divisors, share

ONE = Share(1, "")
# Bytes of a token in all layers, as the published formats have them: BF16, FP8, indexer's of both.
CACHED = {
    "deepseek-v2-lite": (31104, 17712, 0),
    "glm-4.7-flash": (54144, 30832, 0),
    "deepseek-v3": (70272, 40016, 0),
    "deepseek-v3.2": (78324, 48068, 8052),
    "glm-5": (100152, 61464, 10296),
    "glm-5.2": (92628, 53940, 2772),
    "llama-3.1-8b": (131072, 65536 + 32 * 64, 0),
    "qwen3-32b": (262144, 131072 + 64 * 64, 0),
}


def config(name: str):  # type: ignore[no-untyped-def]
    return parse_config(MODELS[name])


@pytest.mark.parametrize("name", CACHED)
def test_cached_bytes(name: str) -> None:
    bf16, fp8, index = CACHED[name]
    assert token_bytes(config(name), "bf16", ONE) == (bf16, index)
    assert token_bytes(config(name), "fp8", ONE) == (fp8, index)


def test_several_gpus_share_key_heads_and_repeat_latents() -> None:
    llama, glm = config("llama-3.1-8b"), config("glm-5.2")
    sizes = {n: token_bytes(llama, "bf16", Share(n, ""))[0] for n in (1, 2, 8, 16)}
    assert sizes == {1: 131072, 2: 65536, 8: 16384, 16: 16384}
    assert token_bytes(glm, "fp8", Share(8, "tp")) == token_bytes(glm, "fp8", ONE)


def test_the_cache_by_default() -> None:
    assert cache_dtype(config("glm-5.2"), "auto") == "fp8"
    assert cache_dtype(config("deepseek-v3"), "auto") == "bf16"
    assert cache_dtype(config("llama-3.1-8b"), "auto") == "bf16"
    assert cache_dtype(config("glm-5.2"), "bf16") == "bf16"


def test_what_a_gpu_has_to_give() -> None:
    """Within a few percent of what is known to be usable."""
    known = {"dgx-spark": 118e9, "h200": 143e9, "rtx-pro-6000": 97e9, "rtx-5090": 31.5e9}
    for name, nbytes in known.items():
        assert usable(gpu(name)) == pytest.approx(nbytes, rel=0.025), name
    spark = gpu("dgx-spark")
    assert usable(spark) == int(spark.memory.value) - HOST_AND_SYSTEM  # whatever the share


@pytest.mark.parametrize(
    ("name", "scheme", "published"),
    [
        ("glm-5.2", "bf16", 1486.8), ("glm-5.2", "fp8", 745.6), ("glm-5.2", "nvfp4-experts", 444.9),
        ("deepseek-v3.2", "bf16", 1344), ("deepseek-v3.2", "fp8", 674.0),
        ("deepseek-v3.2", "nvfp4-experts", 403.8), ("glm-4.7-flash", "fp8", 30.6),
        ("glm-4.7-flash", "nvfp4-experts", 19.9), ("llama-3.1-8b", "fp8", 9.1),
        ("llama-3.1-70b", "nvfp4", 42.7), ("qwen3-32b", "int4", 19.3),
    ],
)  # fmt: skip
def test_weights_of_published_checkpoints(name: str, scheme: str, published: float) -> None:
    """Decimal gigabytes, without multi-token-prediction layers."""
    found = parts(config(name))
    planned = sum(SCHEMES[scheme].nbytes(part) for part in found)
    assert planned / 1e9 == pytest.approx(published, rel=0.02)


def test_a_share_of_the_weights() -> None:
    """(W - R) / n + R, where R is replicated: projections into latents, indexers, routers."""
    model = find_model("glm-5.2")
    scheme = SCHEMES["bf16"]
    whole = sum(scheme.nbytes(part) for part in model.parts)
    held = {}
    for gpus in (1, 4, 8):
        mine = share(model.config, model.parts, scheme, gpus)
        held[gpus] = sum(mine.nbytes(part, scheme) for part in model.parts)
    assert held[1] == whole
    replicated = [(n * held[n] - whole) / (n - 1) for n in (4, 8)]
    per_layer = 6144 * (2048 + 576)
    indexers = 21 * (32 * 128 * 2048 + 128 * 6144 + 32 * 6144)
    by_hand = 2 * (78 * per_layer + indexers + 75 * 256 * 6144)
    assert replicated == [pytest.approx(by_hand, rel=1e-3)] * 2


def test_memory_adds_up() -> None:
    of = case("glm-5.2", "dgx-spark", "nvfp4-experts", 4)
    held = memory(of.model, of.scheme, of.gpu, of.share, "fp8", 65536, 1)
    free = held.usable - held.weights - held.step
    assert held.tokens == free // held.token and held.token == 53940
    assert held.missing == max(0, 65536 * held.token - free) > 0  # tight, as its owners say
    fits = memory(of.model, of.scheme, of.gpu, of.share, "fp8", held.tokens, 1)
    assert fits.missing == 0
    more = memory(of.model, of.scheme, of.gpu, of.share, "fp8", held.tokens + 1, 1)
    assert 0 < more.missing <= held.token
    two = memory(of.model, of.scheme, of.gpu, of.share, "fp8", held.tokens // 2, 2)
    assert two.missing <= 8 * of.model.config.vocab_size  # another row of logits
    both = memory(of.model, of.scheme, of.gpu, of.share, "fp8", held.tokens, 2)
    assert both.missing == pytest.approx(held.tokens * held.token, rel=0.01)


def test_weights_that_do_not_fit_leave_no_tokens() -> None:
    of = case("glm-5.2", "rtx-5090", "fp8")
    held = memory(of.model, of.scheme, of.gpu, of.share, "fp8", 1, 1)
    assert held.tokens == 0 and held.missing > held.weights - held.usable


def test_steps_take_memory() -> None:
    model = find_model("glm-5.2")
    few, many = (step_bytes(model, ONE, 1, rows) for rows in (2048, 8192))
    assert few > SCORES and many - few > 6144 * 2 * 4 * 6144
    assert step_bytes(model, ONE, 64, 2048) - few == 8 * 63 * model.config.vocab_size
    llama = find_model("llama-3.1-8b")
    assert step_bytes(llama, ONE, 1, 2048) < SCORES  # no indexer


# ---------------------------------------------------------------- several GPUs


def shared(name: str, scheme: str, gpus: int, experts: str = "auto") -> Share:
    model = find_model(name)
    return share(model.config, model.parts, SCHEMES[scheme], gpus, experts)


def test_heads_divide_or_say_why() -> None:
    assert shared("glm-4.7-flash", "bf16", 8).refused == ("20 heads do not divide by 8",)
    assert not shared("glm-4.7-flash", "bf16", 4).refused
    assert not shared("llama-3.1-8b", "bf16", 16).refused  # key heads are repeated
    assert shared("llama-3.1-8b", "bf16", 12).refused == (
        "32 heads do not divide by 12",
        "8 key heads neither divide by 12 nor divide it",
    )


def test_blocks_are_not_cut() -> None:
    """1408 = 11 x 128: no number of GPUs divides DeepSeek-V2-Lite's experts."""
    refused = shared("deepseek-v2-lite", "fp8", 2, "tp").refused
    assert any(
        "1408 rows do not divide into 2 x blocks of 128 (704 a GPU, Fp8Block)" in r for r in refused
    )
    auto = shared("deepseek-v2-lite", "fp8", 2)
    assert auto.experts == "ep" and not shared("deepseek-v2-lite", "bf16", 2).refused
    assert any(note.startswith("experts by EP, since gate_proj's 1408 rows") for note in auto.notes)
    assert not shared("deepseek-v2-lite", "nvfp4", 2, "tp").refused  # groups of 16


def test_experts_divide_or_say_why() -> None:
    assert "64 experts do not divide by 5" in shared("glm-4.7-flash", "nvfp4", 5, "ep").refused
    assert shared("glm-5.2", "fp8", 8, "ep").experts == "ep"
    assert shared("glm-5.2", "fp8", 8).experts == "tp"
    assert shared("llama-3.1-8b", "fp8", 2).experts == ""


def test_what_is_replicated_is_said() -> None:
    assert shared("glm-5.2", "fp8", 8).notes == (
        ENGINE,
        "each GPU holds the whole latent cache and indexer: more GPUs hold no more context",
    )
    assert shared("llama-3.1-8b", "fp8", 8).notes == (ENGINE,)
    assert shared("glm-5.2", "fp8", 1).notes == ()


def test_shares_of_a_part() -> None:
    model = find_model("glm-5.2")
    by_name = {part.name.split(".")[-2]: part for part in model.parts if part.group == "experts"}
    tp, ep = shared("glm-5.2", "fp8", 8, "tp"), shared("glm-5.2", "fp8", 8, "ep")
    up, down = by_name["up_proj"], by_name["down_proj"]
    assert (tp.part_of(up).n, tp.part_of(up).k, tp.part_of(up).experts) == (256, 6144, 256)
    assert (tp.part_of(down).n, tp.part_of(down).k) == (6144, 256)
    assert (ep.part_of(up).n, ep.part_of(up).experts) == (2048, 32)
    index = next(part for part in model.parts if part.group == "indexer")
    assert tp.part_of(index) == index


def test_numbers_of_gpus() -> None:
    model = find_model("glm-4.7-flash")
    assert divisors(model.config, model.parts, SCHEMES["bf16"], 20) == (1, 2, 4, 5, 10, 20)


def test_bad_numbers() -> None:
    with pytest.raises(BadInput, match="gpus is 0, want at least 1"):
        shared("glm-5.2", "fp8", 0)
    with pytest.raises(BadInput, match="experts is 'dp', want one of auto, tp, ep"):
        shared("glm-5.2", "fp8", 2, "dp")
