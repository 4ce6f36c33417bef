"""Plain weights quantized while they are loaded, and products in the arithmetic of their scheme."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import checkpoint
from oracle import Feeder
from sparkwell.checkpoints.locate import locate
from sparkwell.engine.runner import build_runner
from sparkwell.errors import BadCheckpoint, BadInput
from sparkwell.formats import Fp8Block, Nvfp4, Weight
from sparkwell.formats.fp8 import quantize_fp8_block
from sparkwell.formats.nvfp4 import quantize_nvfp4
from sparkwell.models import products as module
from sparkwell.models import weights as loading
from sparkwell.models.deepseek import DeepseekModel
from sparkwell.models.layers import Moe
from sparkwell.models.load import load_model, weight_bytes
from sparkwell.models.products import products
from sparkwell.models.schemes import SCHEMES, find_scheme
from sparkwell.models.weights import CheckpointWeights
from sparkwell.ops.linear import quantized_linear_reference
from sparkwell.ops.linear.arithmetic import made_for
from sparkwell.ops.moe import experts_reference
from weights import fp8_block, fp8_rows, int4, mxfp4, nvfp4

pytestmark = pytest.mark.xdist_group("oracle")
BARD = load_file(locate("bard") / "model.safetensors")
QUANTIZERS = {
    "fp8": (Fp8Block, "fp8-group", quantize_fp8_block),
    "nvfp4": (Nvfp4, "none", lambda w: quantize_nvfp4(w, search=True)),
    "nvfp4-w4a4": (Nvfp4, "nvfp4", lambda w: quantize_nvfp4(w, search=True)),
}
quantizing = pytest.mark.parametrize("scheme", QUANTIZERS)


def bard(scheme: str | None) -> DeepseekModel:
    model = load_model(locate("bard"), scheme=scheme)
    assert isinstance(model, DeepseekModel)
    return model


def same(got: Weight, want: Weight) -> bool:
    if isinstance(got, torch.Tensor) or isinstance(want, torch.Tensor):
        return False
    mine, theirs = got.tensors(), want.tensors()
    assert mine.keys() == theirs.keys()
    return all(
        torch.equal(t.view(torch.uint8), theirs[n].view(torch.uint8)) for n, t in mine.items()
    )


# ---------------------------------------------------------------- what becomes what


@quantizing
def test_layers_and_experts_are_quantized_from_the_stored_values(scheme: str) -> None:
    kind, activations, quantize = QUANTIZERS[scheme]
    model, prefix = bard(scheme), "model.layers.2"
    layer = model.layers[2]
    o = layer.attention.o
    assert isinstance(o, kind) and o.activations == activations
    assert same(o, quantize(BARD[f"{prefix}.self_attn.o_proj.weight"].float()))
    moe = layer.mlp
    assert isinstance(moe, Moe) and moe.shared is not None
    for weight in (moe.gate_up, moe.down, moe.shared.down, layer.attention.q):
        assert isinstance(weight, kind) and weight.activations == activations
    # Gate and up of an expert share what is one for a tensor, and blocks of 128 rows.
    parts = [BARD[f"{prefix}.mlp.experts.5.{part}_proj.weight"].float() for part in ("gate", "up")]
    assert isinstance(moe.gate_up, kind) and moe.gate_up.shape == (8, 128, 256)
    assert same(moe.gate_up.select(5), quantize(torch.cat(parts)))


@quantizing
def test_what_decides_stays_plain(scheme: str) -> None:
    model = bard(scheme)
    layer, indexer = model.layers[2], model.layers[2].attention.indexer
    assert isinstance(layer.mlp, Moe) and indexer is not None
    exact = {
        "model.embed_tokens.weight": model.embed,
        "model.norm.weight": model.norm,
        "model.layers.2.mlp.gate.weight": layer.mlp.router,
        "model.layers.2.self_attn.indexer.weights_proj.weight": indexer.weights_proj,
        "model.layers.2.self_attn.kv_a_layernorm.weight": layer.attention.kv_norm,
    }
    for name, weight in exact.items():
        assert torch.equal(weight, BARD[name].float()), name
    kv_b = torch.cat([layer.attention.w_uk, layer.attention.w_uv], 1).flatten(0, 1)
    assert torch.equal(kv_b, BARD["model.layers.2.self_attn.kv_b_proj.weight"].float())
    assert model.lm_head is model.embed
    # FP8 models are published with an FP8 indexer; NVFP4 ones leave it alone.
    assert isinstance(indexer.wq_b, torch.Tensor) == (scheme != "fp8")


def test_bf16_changes_nothing() -> None:
    plain, named = bard(None), bard("bf16")
    assert torch.equal(Feeder(plain).prefill([5, 6, 7]), Feeder(named).prefill([5, 6, 7]))
    assert isinstance(named.layers[2].attention.o, torch.Tensor)


def test_bytes_of_weights() -> None:
    stored = sum(4 * t.numel() for t in BARD.values())
    tables = 3000  # frequencies of rotations
    assert 0 <= weight_bytes(bard(None)) - stored < tables
    kept = stored - weight_bytes(bard("nvfp4"))
    moe = 3 * 3 * 64 * 256 * 8  # values of three layers' experts
    dense = 3 * 512 * 256 + 3 * 3 * 64 * 256
    attention = 4 * (128 + 576 + 256) * 256 + 4 * 768 * 128
    assert kept == pytest.approx((moe + dense + attention) * (4 - 9 / 16), rel=0.01)


# ---------------------------------------------------------------- refusals


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(BadInput, match="scheme is 'int3', want one of bf16, fp8, nvfp4, nvfp4-w4"):
        load_model(locate("bard"), scheme="int3")
    assert find_scheme("fp8") is SCHEMES["fp8"]


@pytest.mark.parametrize("scheme", ["bf16", "nvfp4"])
def test_a_quantized_checkpoint_is_refused(scheme: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from checkpoints.dialects import BY_NAME, write_model

    stored, _ = write_model(checkpoint("llama"), tmp_path, BY_NAME["ct-nvfp4"])
    want = rf"scheme is '{scheme}', but .* is quantized already: \d+ weights, nvfp4 of compressed"
    with pytest.raises(BadInput, match=want):
        load_model(stored, scheme=scheme)
    load_model(stored)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("layers.1.self_attn.o_proj", r"tensor  model\.layers\.1\.self_attn\.o_proj\.weight\n"),
        ("layers.2.mlp.experts.3.up_proj", r"experts\.3\.gate_proj\.weight, .*experts\.3\.up_proj"),
    ],
)
@quantizing
def test_values_that_are_not_finite_are_named(
    scheme: str, part: str, named: str, tmp_path: Path
) -> None:
    folder = tmp_path / "bard"
    shutil.copytree(locate("bard"), folder)
    broken = {name: t.clone() for name, t in BARD.items()}
    broken[f"model.{part}.weight"][1, 2] = torch.nan
    save_file(broken, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=rf"(?s)weights that {scheme} cannot hold.*{named}"):
        load_model(folder, scheme=scheme)


class Held:
    """A checkpoint of plain tensors."""

    folder = Path("held")

    def __init__(self, held: dict[str, torch.Tensor]) -> None:
        self.tensors = {f"{name}.weight": t for name, t in held.items()}

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(loading, "read_weight", lambda _, name, shape: self.tensors[name])
        patch.setattr(loading, "stored_weights", lambda _: {})
        patch.setattr(loading, "stored_bytes", lambda _, name: self.tensors[name].nbytes)


def held(patch: pytest.MonkeyPatch, scheme: str, k: int, **options: object) -> CheckpointWeights:
    names = ("a", "e0.g", "e0.u", "e1.g", "e1.u")
    make = torch.Generator().manual_seed(3)
    checkpoint_ = Held({name: torch.randn(6, k, generator=make).bfloat16() for name in names})
    checkpoint_.patch(patch)
    settings = {"dtype": torch.float32, "device": "cpu", "scheme": SCHEMES[scheme]} | options
    return CheckpointWeights(checkpoint_, **settings)  # type: ignore[arg-type]


PAIRS = [("e0.g", "e0.u"), ("e1.g", "e1.u")]


def test_rows_that_end_inside_a_group_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = held(monkeypatch, "nvfp4", 24)
    assert isinstance(weights.linear("a", 6, 24), torch.Tensor)
    assert isinstance(weights.stack(PAIRS, 6, 24), torch.Tensor)
    assert weights.remarks == {"weights stay plain: nvfp4 wants rows of a multiple of 16": 5}
    eight = held(monkeypatch, "fp8", 24)
    assert isinstance(eight.linear("a", 6, 24), Fp8Block) and not eight.remarks
    assert isinstance(eight.stack(PAIRS, 6, 24), Fp8Block)


def test_formats_that_no_kernel_multiplies_are_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: dict[str, object] = {"linear": frozenset(), "experts": frozenset()}
    wide, kept = held(monkeypatch, "nvfp4", 32, **nothing), held(monkeypatch, "nvfp4", 32)
    for ask in (lambda w: w.linear("a", 6, 32), lambda w: w.stack(PAIRS, 6, 32)):
        got, want = ask(wide), ask(kept)
        assert isinstance(got, torch.Tensor) and isinstance(want, Nvfp4)
        assert torch.equal(got, want.dequantize())
    assert "Nvfp4 weights become float32: no kernel multiplies them as they are" in wide.remarks


# ---------------------------------------------------------------- arithmetic


def test_products_of_a_scheme_quantize_activations() -> None:
    make = torch.Generator().manual_seed(1)
    x = torch.randn(5, 64, generator=make)
    for weight in (nvfp4(6, 64), fp8_block(6, 64), fp8_rows(6, 64)):
        meant = {"Nvfp4": "nvfp4", "Fp8Block": "fp8-group", "Fp8Rows": "fp8-token"}
        weight = replace(weight, activations=meant[type(weight).__name__], **_unscaled(weight))
        plain = module.linear(x, weight)
        with products("scheme"):
            got = module.linear(x, weight)
            assert torch.equal(module.linear(x, weight.dequantize()), plain)
        assert torch.equal(got, quantized_linear_reference(x, weight))
        assert not torch.equal(got, plain) and torch.equal(module.linear(x, weight), plain)


def _eight_bits(weight: Weight) -> Weight:
    """Made for W8A8, as an Fp8Block of "fp8-group" is."""
    changed = replace(weight, activations="fp8-token", input_scale=None)  # type: ignore[type-var]
    assert made_for(changed) == "w8a8"  # type: ignore[arg-type]
    return changed


def _unscaled(weight: Weight) -> dict[str, None]:
    return {} if isinstance(weight, Fp8Block) else {"input_scale": None}


@pytest.mark.parametrize(
    ("kind", "activations", "arithmetic"),
    [("nvfp4", "nvfp4", "w4a4"), ("fp8", "fp8-group", "w8a8"), ("nvfp4", "none", "auto")],
)
def test_experts_of_a_scheme(kind: str, activations: str, arithmetic: str) -> None:
    make = torch.Generator().manual_seed(1)
    x, weights = torch.randn(5, 64, generator=make), torch.rand(5, 2, generator=make)
    ids = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0]])
    pair = [torch.randn(3, n, k, generator=make) for n, k in ((64, 64), (64, 32))]
    quantize = QUANTIZERS[kind][2]
    up, down = (replace(quantize(w), activations=activations) for w in pair)
    with products("scheme"):
        got = module.experts(x, ids, weights, up, down)
    want = experts_reference(x, ids, weights, up, down, arithmetic=arithmetic)
    assert torch.equal(got, want)
    plain = module.experts(x, ids, weights, up, down)
    assert torch.equal(got, plain) == (arithmetic == "auto")


def test_what_experts_were_made_for() -> None:
    four, eight = replace(nvfp4(6, 64), input_scale=None), fp8_block(6, 64)
    for a, b, want in (
        (replace(four, activations="nvfp4"), replace(four, activations="nvfp4"), "w4a4"),
        (replace(four, activations="nvfp4"), replace(four, activations="none"), "auto"),
        (replace(four, activations="fp8-token"), replace(four, activations="fp8-token"), "auto"),
        (replace(eight, activations="fp8-group"), replace(eight, activations="fp8-group"), "w8a8"),
        (replace(eight, activations="fp8-group"), replace(four, activations="nvfp4"), "auto"),
        (fp8_rows(6, 64), fp8_rows(6, 64), "auto"),
        (_eight_bits(fp8_rows(6, 64)), replace(eight, activations="fp8-group"), "auto"),
        (torch.ones(6, 64), torch.ones(6, 64), "auto"),
    ):
        assert module._both(a, b) == want


def test_what_weights_were_made_for() -> None:
    four, eight = replace(nvfp4(6, 64), input_scale=None), fp8_block(6, 64)
    assert made_for(replace(four, activations="nvfp4")) == "w4a4"
    assert made_for(replace(four, activations="fp8-token")) == "w4a8"
    assert made_for(replace(four, activations="none")) == made_for(int4(6, 64)) == "w4a16"
    assert made_for(replace(mxfp4(6, 64), activations="mxfp4")) == "w4a16"
    assert made_for(replace(eight, activations="none")) == "w8a16"


def test_the_arithmetic_ends_with_its_block() -> None:
    with (
        pytest.raises(BadInput, match="arithmetic is 'w4a4', want one of auto, scheme"),
        products("w4a4"),
    ):
        pass
    with pytest.raises(KeyError), products("scheme"):
        assert module._ARITHMETIC.get() == "scheme"
        raise KeyError
    assert module._ARITHMETIC.get() == "auto"


def test_a_runner_on_a_cpu_takes_the_schemes_arithmetic() -> None:
    """Asked for by name, activations are quantized; a checkpoint's own are left as they are."""
    runners = {
        scheme: build_runner(locate("bard"), device="cpu", num_pages=4, scheme=scheme)
        for scheme in (None, "nvfp4", "nvfp4-w4a4")
    }
    assert [runner.arithmetic for runner in runners.values()] == ["auto", "scheme", "scheme"]
    a, b = (runners[scheme].model for scheme in ("nvfp4", "nvfp4-w4a4"))
    ids = [11, 12, 13, 14]
    assert torch.equal(Feeder(a).prefill(ids), Feeder(b).prefill(ids))
    with products("scheme"):
        assert not torch.equal(Feeder(a).prefill(ids), Feeder(b).prefill(ids))
