"""What makes operands of products quantizes them in its own pass: the same bits, a pass less."""

from dataclasses import replace

import pytest
import torch

from families import checkpoint
from oracle import Feeder
from sparkwell.checkpoints.locate import locate
from sparkwell.formats import Fp8Block, Weight
from sparkwell.models import products as module
from sparkwell.models.layers import Mlp, multiplied
from sparkwell.models.load import load_model
from sparkwell.models.products import QuantizedRows, add_rms_norm_for, linear, products, swiglu_for
from sparkwell.ops.activation import swiglu
from sparkwell.ops.device import as_target
from sparkwell.ops.linear import (
    linear_decision,
    linear_quantizer,
    quantized_linear_reference,
)
from sparkwell.ops.norm import add_rms_norm
from sparkwell.ops.quantize import quantize_activations
from sparkwell.verify.case import Maker
from sparkwell.verify.weights import weight
from weights import fp8_block, fp8_rows, nvfp4

META = torch.device("meta")


def made_for(activations: str, w: Weight, **changes: object) -> Weight:
    return replace(w, activations=activations, **changes)  # type: ignore[type-var]


EIGHT = made_for("fp8-group", fp8_block(96, 64))
FOUR = made_for("nvfp4", nvfp4(96, 64), input_scale=None)


@pytest.mark.parametrize(
    ("model", "scheme", "norms", "gates"),
    [("bard", "fp8", 1, 4), ("bard", "nvfp4-w4a4", 1, 4), ("llama", "fp8", 8, 4)],
)
def test_a_model_quantizes_where_rows_are_made(
    model: str, scheme: str, norms: int, gates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """norms: those with one reader, of layers with dense attention or without experts."""
    folder = locate("bard") if model == "bard" else checkpoint(model)
    calls = {"add_rms_norm_quantized": 0, "swiglu_quantized": 0}

    def counted(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> object:
            calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(module.norm, "add_rms_norm_quantized")
    counted(module.activation, "swiglu_quantized")
    ids = list(range(2, 42))
    with products("scheme"):
        got = Feeder(load_model(folder, scheme=scheme)).prefill(ids)
        assert calls == {"add_rms_norm_quantized": norms, "swiglu_quantized": gates}
        monkeypatch.setattr(module, "_quantizer", lambda x, readers: None)
        want = Feeder(load_model(folder, scheme=scheme)).prefill(ids)
    assert torch.equal(got, want)
    plain = Feeder(load_model(folder, scheme=scheme)).prefill(ids)
    assert not torch.equal(got, plain)


@pytest.mark.parametrize(("reader", "dtype"), [(EIGHT, torch.float16), (FOUR, torch.float32)])
def test_products_have_the_type_of_what_was_quantized(reader: Weight, dtype: torch.dtype) -> None:
    make = torch.Generator().manual_seed(2)
    gate_up = torch.randn(5, 128, generator=make).to(dtype)
    x, delta = (torch.randn(5, 64, generator=make).to(dtype) for _ in range(2))
    with products("scheme"):
        gated = swiglu_for(reader, gate_up)
        total, rows = add_rms_norm_for([reader], x, delta, torch.ones(64), eps=1e-6)
        assert isinstance(gated, QuantizedRows) and isinstance(rows, QuantizedRows)
        assert linear(gated, reader).dtype == linear(rows, reader).dtype == dtype
        assert linear(rows, reader, out_dtype=torch.bfloat16).dtype == torch.bfloat16
        want = linear(add_rms_norm(x, delta, torch.ones(64), eps=1e-6)[1], reader)
        assert torch.equal(linear(rows, reader), want) and torch.equal(total, x + delta)
    assert isinstance(swiglu_for(reader, gate_up), torch.Tensor)  # as it is, on a CPU


def test_gates_are_quantized_for_what_reads_them() -> None:
    """Mixed precision: another format behind SwiGLU than before it."""
    wide = made_for("fp8-group", fp8_block(64, 96))

    class Held:
        def linear(self, name: str, n: int, k: int) -> Weight:
            return wide if name.endswith("down_proj") else FOUR

    mlp = Mlp(Held(), "mlp", 64, 96)  # type: ignore[arg-type]
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(6)) * 0.1
    with products("scheme"):
        want = quantized_linear_reference(swiglu(multiplied(x, mlp.gate_up)), wide)
        assert torch.equal(mlp(x), want)
    assert not torch.equal(mlp(x), want)


def test_rows_that_are_read_in_two_ways_stay() -> None:
    x = torch.ones(3, 64)
    other = made_for("fp8-token", fp8_rows(32, 64), input_scale=None)
    fixed = made_for("fp8-tensor", fp8_rows(32, 64), input_scale=torch.tensor(0.5))
    plain = torch.ones(32, 64)
    with products("scheme"):
        for readers in (
            (),
            (plain,),
            (EIGHT, plain),
            (plain, EIGHT),
            (EIGHT, other),
            (fixed, fixed),
        ):
            assert module._quantizer(x, readers) is None, readers
        found = module._quantizer(x, (EIGHT, EIGHT))
        assert found is not None and found.activations == "fp8-group"
        alone = module._quantizer(x, (fixed,))
        assert alone is not None and alone.input_scale is fixed.input_scale  # type: ignore[union-attr]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_121"])
@pytest.mark.parametrize("rows", [1, 4096])
def test_the_quantizer_is_the_decisions(target: str, rows: int) -> None:
    make = Maker(META)
    for form, activations in (("fp8-block", "fp8-group"), ("nvfp4", "nvfp4"), ("nvfp4", "none")):
        w = weight(make, form, 4096, 4096)
        assert not isinstance(w, torch.Tensor)
        asked = made_for(activations, w)
        with as_target(target):
            found = linear_quantizer(rows, asked, META)
            decision = linear_decision(torch.empty(rows, 4096, device=META), asked)
        assert (found.activations if found else "none") == decision.activations
        assert found is None or found.group == 128
    assert linear_quantizer(rows, torch.empty(8, 8), META) is None


def test_what_linear_quantizes_itself_is_the_same() -> None:
    make = torch.Generator().manual_seed(4)
    x = torch.randn(7, 64, generator=make)
    for w, arithmetic in ((EIGHT, "w8a8"), (FOUR, "w4a4"), (FOUR, "w4a8")):
        how = linear_quantizer(7, w, x.device, arithmetic)
        assert how is not None and linear_quantizer(7, w, x.device) is None
        rows = QuantizedRows(quantize_activations(x, **how._asdict()), x.dtype)
        want = module.op_linear.linear(x, w, arithmetic=arithmetic)
        assert torch.equal(linear(rows, w), want)
    assert isinstance(EIGHT, Fp8Block)
