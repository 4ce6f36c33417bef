"""Rotary embedding against complex multiplication and Transformers; frequencies of every kind."""

import math
from typing import Any

import pytest
import torch

from sparkwell.errors import BadInput
from sparkwell.ops.rope import rope, rope_frequencies, rope_reference
from sparkwell.testing import assert_matches, in_poison

YARN_V3 = {
    "theta": 1e4,
    "kind": "yarn",
    "factor": 40.0,
    "original_max_position": 4096,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
KINDS: dict[str, dict[str, Any]] = {
    "default": {"theta": 8e6},
    "linear": {"theta": 1e4, "kind": "linear", "factor": 2.5},
    "yarn V3": YARN_V3,
    "yarn V2-Lite": YARN_V3 | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "yarn mscales differ": YARN_V3 | {"mscale": 1.0, "mscale_all_dim": 0.5},
    "yarn no mscale": {"theta": 1e6, "kind": "yarn", "factor": 4.0, "original_max_position": 32768},
    "yarn betas": YARN_V3 | {"beta_fast": 16.0, "beta_slow": 2.0},
    "yarn attention factor": YARN_V3 | {"attention_factor": 1.25},
    "yarn other theta": YARN_V3 | {"theta": 5e5, "original_max_position": 8192},
    "yarn low clamped": YARN_V3 | {"original_max_position": 150, "factor": 3.0},
    "yarn high clamped": YARN_V3 | {"original_max_position": 10**6, "theta": 20.0},
    "yarn shrinks": YARN_V3 | {"factor": 0.5, "mscale_all_dim": 0.5},
    "llama3": {
        "theta": 5e5,
        "kind": "llama3",
        "factor": 8.0,
        "original_max_position": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "llama3 other ends": {
        "theta": 5e5,
        "kind": "llama3",
        "factor": 32.0,
        "original_max_position": 4096,
        "low_freq_factor": 1.5,
        "high_freq_factor": 6.0,
    },
}
THEIR_NAMES = {"theta": "rope_theta", "original_max_position": "original_max_position_embeddings"}


def transformers_frequencies(dim: int, options: dict[str, Any]) -> tuple[torch.Tensor, float]:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    kind = options.get("kind", "default")
    theirs = {THEIR_NAMES.get(name, name): value for name, value in options.items()}
    theirs.pop("kind", None)
    config = LlamaConfig(
        hidden_size=4 * dim,
        num_attention_heads=4,
        max_position_embeddings=int(
            options.get("original_max_position", 4096) * options.get("factor", 1.0)
        ),
        rope_parameters={"rope_type": kind} | theirs,
    )
    if kind == "default":
        return LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))


@pytest.mark.parametrize("dim", [64, 128, 2, 34])
@pytest.mark.parametrize("name", KINDS)
def test_frequencies_are_those_of_transformers(name: str, dim: int) -> None:
    inv_freq, factor = rope_frequencies(dim, **KINDS[name])
    want, want_factor = transformers_frequencies(dim, KINDS[name])
    assert inv_freq.shape == (dim // 2,)
    assert inv_freq.dtype == torch.float32
    torch.testing.assert_close(inv_freq, want, rtol=3e-7, atol=0.0)
    assert factor == pytest.approx(want_factor, rel=1e-12)


def test_the_cases_reach_what_they_are_named_for() -> None:
    factors = {name: rope_frequencies(64, **options)[1] for name, options in KINDS.items()}
    assert factors["yarn V3"] == factors["yarn V2-Lite"] == factors["default"] == 1.0
    assert factors["yarn no mscale"] == pytest.approx(0.1 * math.log(4.0) + 1.0)
    assert factors["yarn mscales differ"] == pytest.approx(1.3688879 / 1.1844440)
    assert factors["yarn attention factor"] == 1.25
    assert factors["llama3"] == factors["linear"] == factors["yarn shrinks"] == 1.0


def test_the_ramp_of_deepseek_v3_runs_from_10_to_23() -> None:
    plain, _ = rope_frequencies(64, theta=1e4)
    yarn, _ = rope_frequencies(64, **YARN_V3)
    kept = (yarn / plain - 1 / 40) / (1 - 1 / 40)
    want = 1.0 - ((torch.arange(32) - 10) / 13.0).clamp(0.0, 1.0)
    torch.testing.assert_close(kept, want, rtol=0.0, atol=1e-6)
    assert torch.equal(yarn[:11], plain[:11])


def test_a_ramp_of_no_length_is_a_step() -> None:
    one_turn_per_radian = 1.0 / (2.0 * math.pi)
    ends = {"beta_fast": one_turn_per_radian, "beta_slow": one_turn_per_radian}
    options = YARN_V3 | ends | {"original_max_position": 1}  # both ends on dim 0 exactly
    step, _ = rope_frequencies(8, **options)
    plain, _ = rope_frequencies(8, theta=1e4)
    assert torch.equal(step[0], plain[0])
    torch.testing.assert_close(step[1:], plain[1:] / 40.0)
    torch.testing.assert_close(step, transformers_frequencies(8, options)[0], rtol=3e-7, atol=0.0)


def test_one_mscale_alone_uses_the_formula() -> None:
    options = {k: v for k, v in YARN_V3.items() if k not in ("mscale", "mscale_all_dim")}
    only = rope_frequencies(64, **options, mscale=0.707)[1]
    assert only == pytest.approx(0.1 * 0.707 * math.log(40.0) + 1.0)
    assert rope_frequencies(64, **options, mscale_all_dim=1.0)[1] == 1.0


@pytest.mark.parametrize(
    ("dim", "change", "text"),
    [
        (64, {"kind": "ntk"}, "kind is 'ntk', want one of default, linear, yarn, llama3"),
        (63, {}, "dim is 63, want a positive even number"),
        (0, {}, "dim is 0, want a positive even number"),
        (64, {"theta": 1.0}, "theta is 1.0 and factor 40.0, want theta > 1 and factor > 0"),
        (64, {"factor": 0.0}, "theta is 10000.0 and factor 0.0, want theta > 1"),
        (64, {"theta": math.nan}, "theta is nan"),
        (64, {"original_max_position": None}, "original_max_position is None, and yarn needs"),
        (64, {"kind": "llama3", "original_max_position": 0}, "is 0, and llama3 needs"),
    ],
)
def test_wrong_constants_are_named(dim: int, change: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=f"rope_frequencies: .*{text}"):
        rope_frequencies(dim, **(YARN_V3 | change))


def complex_rotation(
    x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor, *, interleaved: bool
) -> torch.Tensor:
    """x as complex numbers times exp(i * angle), in fp64 from the fp32 angle."""
    half = x.shape[-1] // 2
    x = x.double()
    pairs = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    angle = (positions.to(torch.float32)[:, None] * inv_freq).double()
    turn = torch.polar(torch.ones_like(angle), angle)
    out = torch.complex(*pairs) * (turn if x.ndim == 2 else turn[:, None])
    if interleaved:
        return torch.view_as_real(out).flatten(-2)
    return torch.cat((out.real, out.imag), -1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shape", [(5, 3, 64), (5, 64), (1, 1, 2), (0, 4, 8), (3, 0, 8)], ids=str)
def test_rope_multiplies_by_a_unit_complex_number(
    shape: tuple[int, ...], interleaved: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    x = in_poison(torch.randn(shape, generator=g))
    positions = in_poison(torch.randint(0, 5000, shape[:1], generator=g))
    inv_freq = in_poison(rope_frequencies(shape[-1], theta=1e4)[0])
    before = x.clone()
    got = rope(x, positions, inv_freq, interleaved=interleaved)
    want = complex_rotation(x, positions, inv_freq, interleaved=interleaved)
    assert_matches(got, want, "elementwise")
    assert torch.equal(x, before)
    assert torch.equal(rope(x, positions.int(), inv_freq, interleaved=interleaved), got)


def test_every_row_has_its_own_position() -> None:
    x = torch.ones(4, 2, 8)
    inv_freq, _ = rope_frequencies(8, theta=100.0)
    got = rope(x, torch.tensor([7, 0, 7, 3]), inv_freq, interleaved=True)
    assert torch.equal(got[0], got[2])
    assert torch.equal(got[1], x[1])
    assert torch.equal(got[:, 0], got[:, 1])
    assert not torch.allclose(got[0], got[3])


@pytest.mark.parametrize("interleaved", [False, True])
def test_dot_products_depend_on_the_distance_alone(interleaved: bool) -> None:
    g = torch.Generator().manual_seed(1)
    q, k = torch.randn(1, 64, generator=g), torch.randn(1, 64, generator=g)
    inv_freq, _ = rope_frequencies(64, theta=1e4)

    def dot(m: int, n: int) -> float:
        turned = (
            rope(x, torch.tensor([p]), inv_freq, interleaved=interleaved)
            for x, p in ((q, m), (k, n))
        )
        a, b = turned
        return float((a * b).sum())

    assert dot(13, 4) == pytest.approx(dot(109, 100), abs=1e-4)
    assert abs(dot(13, 4) - dot(4, 13)) > 0.1


def test_transformers_agrees() -> None:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
        apply_rotary_pos_emb_interleave,
    )
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    g = torch.Generator().manual_seed(2)
    x, positions = torch.randn(9, 3, 64, generator=g), torch.arange(9) * 37
    inv_freq, _ = rope_frequencies(64, **YARN_V3)
    angles = positions.float()[:, None] * inv_freq
    cos, sin = (torch.cat((t, t), -1)[None] for t in (angles.cos(), angles.sin()))
    theirs = x.transpose(0, 1)[None]  # [1, h, T, d]
    half, _ = apply_rotary_pos_emb(theirs, theirs, cos, sin)
    got = rope(x, positions, inv_freq, interleaved=False)
    assert_matches(got, half[0].transpose(0, 1), "elementwise")
    paired, _ = apply_rotary_pos_emb_interleave(theirs, theirs, cos, sin)
    got = rope(x, positions, inv_freq, interleaved=True)
    # theirs leaves the evens in the first half and the odds in the second
    assert_matches(
        torch.cat((got[..., 0::2], got[..., 1::2]), -1), paired[0].transpose(0, 1), "elementwise"
    )


def test_attention_factor_scales_both_parts() -> None:
    x, positions = torch.randn(3, 8, generator=torch.Generator().manual_seed(3)), torch.arange(3)
    inv_freq, _ = rope_frequencies(8, theta=1e4)
    for interleaved in (False, True):
        plain = rope(x, positions, inv_freq, interleaved=interleaved)
        got = rope(x, positions, inv_freq, attention_factor=1.25, interleaved=interleaved)
        assert_matches(got, 1.25 * plain, "elementwise")


def test_far_positions_use_the_fp32_angle() -> None:
    positions = torch.tensor([1_048_575, 999_983, 2**24 + 1])
    inv_freq, _ = rope_frequencies(64, theta=8e6)
    x = torch.ones(3, 64)
    got = rope(x, positions, inv_freq, interleaved=True)
    want = complex_rotation(x, positions, inv_freq, interleaved=True)
    assert_matches(got, want, "elementwise")
    exact = torch.polar(torch.ones(3, 32).double(), positions.double()[:, None] * inv_freq.double())
    drift = (exact.real - exact.imag - got[:, 0::2]).abs().max()
    assert drift > 1e-3  # an fp64 angle is another function


def test_half_precision_is_rounded_once_at_the_end() -> None:
    x = torch.randn(5, 2, 64, generator=torch.Generator().manual_seed(4)).bfloat16()
    inv_freq, _ = rope_frequencies(64, theta=1e4)
    for interleaved in (False, True):
        options = {"attention_factor": 1.1, "interleaved": interleaved}
        reference = rope_reference(x, torch.arange(5) + 300, inv_freq, **options)
        assert reference.dtype == torch.float32
        want = 1.1 * complex_rotation(x, torch.arange(5) + 300, inv_freq, interleaved=interleaved)
        assert_matches(reference, want, "elementwise")
        got = rope(x, torch.arange(5) + 300, inv_freq, **options)
        assert torch.equal(got, reference.bfloat16())


def test_wrong_operands_are_named() -> None:
    x, at, inv_freq = torch.ones(3, 2, 8), torch.arange(3), torch.ones(4)
    with pytest.raises(BadInput, match=r"rope: x is \(8,\) torch.float32, want \[T, h, d\] or"):
        rope(torch.ones(8), at, inv_freq, interleaved=True)
    with pytest.raises(BadInput, match=r"rope: x is \(3, 2, 8\) torch.int64, want"):
        rope(x.long(), at, inv_freq, interleaved=True)
    with pytest.raises(BadInput, match=r"positions is \(2,\) torch.int64 for x .* want \(3,\) int"):
        rope(x, at[:2], inv_freq, interleaved=True)
    with pytest.raises(BadInput, match=r"positions is \(3,\) torch.float32 for x"):
        rope(x, at.float(), inv_freq, interleaved=True)
    with pytest.raises(BadInput, match=r"inv_freq is \(3,\) for x \(3, 2, 8\), want d/2 values"):
        rope(x, at, inv_freq[:3], interleaved=False)
    with pytest.raises(BadInput, match=r"inv_freq is \(4,\) for x \(3, 9\), want d/2 values"):
        rope(torch.ones(3, 9), at, inv_freq, interleaved=False)
