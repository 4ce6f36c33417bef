"""SamplingParams checks every range; Request keeps its token lists together."""

import dataclasses
import math
from typing import Any

import pytest

from sparkwell.engine.request import Request, SamplingParams
from sparkwell.errors import BadInput

BAD: list[tuple[str, Any, str]] = [
    ("max_tokens", 0, ">= 1, or None"),
    ("max_tokens", -1, ">= 1, or None"),
    ("max_tokens", 1.5, ">= 1, or None"),
    ("max_tokens", True, ">= 1, or None"),
    ("min_tokens", -1, "an integer >= 0"),
    ("min_tokens", 129, "at most max_tokens = 128"),
    ("temperature", -0.1, "finite and >= 0"),
    ("temperature", math.nan, "finite and >= 0"),
    ("temperature", math.inf, "finite and >= 0"),
    ("temperature", "1", "finite and >= 0"),
    ("top_k", -1, "an integer >= 0"),
    ("top_k", 2.0, "an integer >= 0"),
    ("top_p", 0.0, "0 < top_p <= 1"),
    ("top_p", 1.01, "0 < top_p <= 1"),
    ("top_p", math.nan, "0 < top_p <= 1"),
    ("min_p", -0.01, "0 <= min_p <= 1"),
    ("min_p", 1.01, "0 <= min_p <= 1"),
    ("repetition_penalty", 0.0, "finite and > 0"),
    ("repetition_penalty", math.inf, "finite and > 0"),
    ("presence_penalty", 2.1, "between -2 and 2"),
    ("presence_penalty", -2.1, "between -2 and 2"),
    ("frequency_penalty", math.nan, "between -2 and 2"),
    ("frequency_penalty", -2.1, "between -2 and 2"),
    ("seed", 2**64, "an integer of 64 bits"),
    ("seed", -(2**63) - 1, "an integer of 64 bits"),
    ("seed", 1.0, "an integer of 64 bits"),
    ("stop", "END", "a tuple of texts"),
    ("stop", ("END", ""), "texts that are not empty"),
    ("stop", (3,), "texts that are not empty"),
    ("stop_token_ids", (-1,), "token ids >= 0"),
    ("stop_token_ids", ("a",), "token ids >= 0"),
    ("logprobs", -1, ">= 0, or None"),
    ("logprobs", True, ">= 0, or None"),
    ("logit_bias", {-1: 1.0}, "token id >= 0 -> finite number"),
    ("logit_bias", {"5": 1.0}, "token id >= 0 -> finite number"),
    ("logit_bias", {5: math.inf}, "token id >= 0 -> finite number"),
]


@pytest.mark.parametrize(("name", "value", "wanted"), BAD)
def test_values_out_of_range_are_refused(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(BadInput, match=f"SamplingParams: {name} is .*, want .*{wanted}"):
        SamplingParams(**{name: value})


def test_values_at_the_edge_are_taken() -> None:
    params = SamplingParams(
        max_tokens=1, min_tokens=1, temperature=0, top_k=0, top_p=1, min_p=1,
        repetition_penalty=0.01, presence_penalty=-2, frequency_penalty=2, seed=2**64 - 1,
        stop=("x",), stop_token_ids=(0,), logprobs=0, logit_bias={0: -100},
    )  # fmt: skip
    assert params.seed == 2**64 - 1
    assert SamplingParams(seed=-(2**63)).seed == -(2**63)
    assert SamplingParams(max_tokens=None, min_tokens=10**6).min_tokens == 10**6


def test_params_do_not_follow_their_callers_containers() -> None:
    stop, ids, bias = ["a"], [1], {1: 1.0}
    params = SamplingParams(stop=stop, stop_token_ids=ids, logit_bias=bias)  # type: ignore[arg-type]
    stop.append("b"), ids.append(2), bias.update({2: 2.0})
    assert (params.stop, params.stop_token_ids, params.logit_bias) == (("a",), (1,), {1: 1.0})
    assert hash(params) == hash(dataclasses.replace(params))
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.seed = 3  # type: ignore[misc]


def test_a_request_keeps_prompt_and_output_apart_and_together() -> None:
    params = SamplingParams(min_tokens=2, stop_token_ids=(9,))
    request = Request(1, [5, 6], params, limit=10, seed=-1, stop_ids=frozenset({9}))
    assert request.seed == 2**64 - 1
    assert request.suppressed == {9} and request.remaining == 2
    request.append(7)
    assert request.suppressed == {9}
    request.num_computed = 2
    request.append(8)
    assert request.suppressed == frozenset() and request.remaining == 2
    assert request.prompt_ids == (5, 6)
    assert request.output_ids == [7, 8] and request.all_ids == [5, 6, 7, 8]
