"""Rotary embedding's keys: `rope_parameters`, or the older `rope_theta` with `rope_scaling`."""

from typing import Any, cast

from sparkwell.checkpoints.architectures import RopeConfig, RopeKind
from sparkwell.checkpoints.keys import REQUIRED, Keys

KINDS = ("default", "linear", "yarn", "llama3")
SCALED = ("yarn", "llama3")  # the kinds that need the original context length


def parse_rope(keys: Keys, default_theta: float | None) -> RopeConfig:
    """One rope for all layers; a kind, a partial rotation or an option we lack is refused.

    Raises BadCheckpoint.
    """
    merged = _merged(keys)
    _whole_head(keys)
    _whole_head(merged)
    kind = cast(RopeKind, _kind(merged))
    theta = _theta(keys, merged, default_theta)
    if kind == "default":
        return RopeConfig(theta)
    if not merged.flag("truncate", True):
        problem = "yarn with truncate = false is not supported"
        raise merged.wrong("truncate", "true or absent", problem=problem)
    factor = merged.real("factor")
    if factor < 1.0:
        raise merged.wrong("factor", "a number of at least 1")
    original = "original_max_position_embeddings"
    rope = RopeConfig(
        theta,
        kind,
        factor=factor,
        original_max_position=merged.integer(original) if kind in SCALED else None,
        beta_fast=merged.real("beta_fast", 32.0),
        beta_slow=merged.real("beta_slow", 1.0),
        mscale=merged.real("mscale", None),
        mscale_all_dim=merged.real("mscale_all_dim", 0.0, or_zero=True),
        low_freq_factor=merged.real("low_freq_factor", REQUIRED if kind == "llama3" else 1.0),
        high_freq_factor=merged.real("high_freq_factor", REQUIRED if kind == "llama3" else 4.0),
        attention_factor=merged.real("attention_factor", None),
    )
    if rope.high_freq_factor <= rope.low_freq_factor:
        raise merged.wrong("high_freq_factor", f"above low_freq_factor = {rope.low_freq_factor:g}")
    if kind == "yarn" and rope.attention_factor is None:
        _check_magnitude(merged, rope)
    return rope


def _check_magnitude(merged: Keys, rope: RopeConfig) -> None:
    """The factor on cos and sin is M(mscale) / M(mscale_all_dim), or M(1) with neither.

    With one of them only, DeepSeek's code takes a default for the other, Transformers drops both.
    """
    alone = rope.mscale not in (None, 1.0) and not rope.mscale_all_dim
    if alone or (rope.mscale is None and rope.mscale_all_dim):
        problem = "yarn with one of mscale and mscale_all_dim has no agreed meaning"
        raise merged.wrong("mscale" if alone else "mscale_all_dim", "both or none", problem=problem)


def _merged(keys: Keys) -> Keys:
    """Both spellings as one object; where both give a key, they must agree."""
    old, new = keys.object("rope_scaling"), keys.object("rope_parameters")
    given = [part for part in (old, new) if part is not None]
    values: dict[str, Any] = {}
    for part in given:
        for key in part.values:
            if isinstance(part.values[key], dict):
                problem = "a rope of its own for each kind of layer is not supported"
                raise part.wrong(key, "one set of parameters for all layers", problem=problem)
            if key in values and values[key] != part.values[key]:
                problem = f"rope_scaling and rope_parameters contradict each other in {key}"
                raise part.wrong(key, f"{values[key]!r}, as in rope_scaling", problem=problem)
            values[key] = part.values[key]
    return Keys(values, keys.file, given[-1].prefix if given else "rope_parameters.")


def _kind(merged: Keys) -> str:
    old = merged.text("type", "default", choices=KINDS)
    kind = merged.text("rope_type", old, choices=KINDS)
    if merged.has("type") and kind != old:
        problem = "rope_type and type contradict each other"
        raise merged.wrong("rope_type", f"{old!r}, as type", problem=problem)
    return kind


def _theta(keys: Keys, merged: Keys, default: float | None) -> float:
    outer = keys.real("rope_theta", None)
    inner = merged.real("rope_theta", None)
    if outer is not None and inner is not None and outer != inner:
        problem = "rope_theta stands twice, with two values"
        raise merged.wrong("rope_theta", f"{outer:g}, as the outer rope_theta", problem=problem)
    theta = inner if outer is None else outer
    if theta is not None:
        return float(theta)
    if default is None:
        raise keys.wrong("rope_theta", "rope's base, here or in rope_parameters")
    return default


def _whole_head(keys: Keys) -> None:
    if keys.real("partial_rotary_factor", 1.0) != 1.0:
        problem = "rope on a part of the head only is not supported"
        raise keys.wrong("partial_rotary_factor", "1.0 or absent", problem=problem)
