"""Bytes of each format are those that the tensors take."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from families import checkpoint
from plan.test_kernels import FORMATS, weight
from sparkwell.checkpoints.config import parse_config, read_config
from sparkwell.errors import BadInput
from sparkwell.formats import Quantized, quantize_nvfp4
from sparkwell.models import schemes as engine
from sparkwell.models.load import load_model, weight_bytes
from sparkwell.plan.parts import parts
from sparkwell.plan.schemes import BF16, FP8, NVFP4, SCHEMES, Scheme, find


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("n", "k"), [(64, 128), (257, 384), (576, 6144)])
def test_a_weight(form: str, n: int, k: int) -> None:
    held: Any = weight(FORMATS[form], n, k)
    size = held.nbytes if isinstance(held, Quantized | torch.Tensor) else -1
    assert FORMATS[form].nbytes(n, k) == size


def test_made_for() -> None:
    words = {form: kind.made_for for form, kind in FORMATS.items()}
    assert words == {
        "bf16": "w16a16", "fp8": "w8a8", "fp8-rows": "w8a8", "nvfp4": "w4a16", "nvfp4-a8": "w4a8",
        "nvfp4-a4": "w4a4", "mxfp4": "w4a16", "int4": "w4a16",
    }  # fmt: skip


def test_schemes_of_the_engine_are_here_by_the_same_names() -> None:
    assert {name for name, scheme in SCHEMES.items() if scheme.loads} == set(engine.SCHEMES)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("glm-5.2", "bf16"), ("glm-5.2", "fp8"), ("glm-5.2", "nvfp4"), ("llama", "nvfp4"),
        ("deepseek-v3.2", "fp8"), ("qwen3-moe", "nvfp4-w4a4"),
    ],
)  # fmt: skip
def test_a_model_takes_the_bytes_that_are_planned(
    family: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = engine.SCHEMES[name]
    if scheme.quantize is engine.SEARCHED:  # its search is for values, and slow
        monkeypatch.setitem(engine.SCHEMES, name, replace(scheme, quantize=quantize_nvfp4))
    folder = checkpoint(family)
    config = parse_config(read_config(folder))
    model = load_model(folder, dtype="bfloat16", scheme=name)
    planned = sum(SCHEMES[name].nbytes(part) for part in parts(config))
    held = weight_bytes(model)
    # FP8 blocks of weights that are joined in memory may be fewer than those of each by itself.
    assert held == pytest.approx(planned, rel=2e-3), (held, planned)
    if name == "bf16":
        assert abs(held - planned) <= 64 * len(parts(config))


def test_rows_that_do_not_divide_into_groups_stay_plain() -> None:
    part = next(p for p in parts(_llama()) if p.name.endswith("o_proj.weight"))
    odd = part.__class__(part.name, part.group, 64, 40, part.layers)
    assert SCHEMES["nvfp4"].format(part) is NVFP4
    assert SCHEMES["nvfp4"].format(odd) is BF16 and SCHEMES["fp8"].format(odd) is FP8
    assert SCHEMES["nvfp4"].nbytes(odd) == 2 * 64 * 40 * len(part.layers)


def test_what_stays_plain() -> None:
    from sparkwell.plan.models import MODELS

    config = parse_config(MODELS["glm-5.2"])
    for name, scheme in SCHEMES.items():
        kinds = {part.group: scheme.format(part) for part in parts(config)}
        for group in ("embedding", "head", "absorbed", "router", "weights_proj", "vectors"):
            assert kinds[group] is BF16, (name, group)
        assert (kinds["indexer"] is BF16) == (name not in ("fp8", "nvfp4-fp8")), name
        assert (kinds["experts"] is BF16) == (name == "bf16")
    only = SCHEMES["nvfp4-experts"]
    assert {p.group for p in parts(config) if only.format(p) is not BF16} == {"experts"}


def test_measured_bytes_come_before_the_formula() -> None:
    part = parts(_llama())[0]
    assert Scheme("x", "", measured={part.name: 17}).nbytes(part) == 17


def test_an_unknown_scheme() -> None:
    assert find("int4") is SCHEMES["int4"]
    with pytest.raises(BadInput, match=r"scheme is 'int8', want one of bf16, fp8, nvfp4,"):
        find("int8")


def _llama() -> Any:
    from sparkwell.plan.models import MODELS

    return parse_config(MODELS["llama-3.1-8b"])
