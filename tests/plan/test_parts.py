"""The weights a plan counts are those that a model of the config asks for, name by name."""

from typing import Any

import pytest

from sparkwell.checkpoints.config import parse_config
from sparkwell.errors import BadCheckpoint, BadInput
from sparkwell.models.load import expected_tensors
from sparkwell.plan.models import ALIASES, MODELS, builtin, known, need_builtin
from sparkwell.plan.parts import parts

UNSUPPORTED = {"glm-5.3-flash", "deepseek-v4-flash"}
# Parameters of the published models without their multi-token-prediction layers, in billions.
PUBLISHED = {
    "deepseek-v2-lite": 15.706, "glm-4.7-flash": 29.943, "deepseek-v3": 671.026,
    "deepseek-v3.2": 671.878, "glm-5": 743.911, "glm-5.2": 743.377, "llama-3.1-8b": 8.030,
    "llama-3.1-70b": 70.554, "llama-3.1-405b": 405.853, "qwen3-0.6b": 0.596, "qwen3-1.7b": 1.721,
    "qwen3-8b": 8.191, "qwen3-32b": 32.762, "qwen3-30b-a3b": 30.532, "qwen3-235b-a22b": 235.094,
}  # fmt: skip
SMALL: dict[str, Any] = {  # few experts and layers; every kind of layer stays
    "glm-5.2": {"num_hidden_layers": 9, "n_routed_experts": 8},
    "deepseek-v3.2": {"num_hidden_layers": 5, "n_routed_experts": 32},
    "deepseek-v2-lite": {"num_hidden_layers": 4},
    "glm-4.7-flash": {"num_hidden_layers": 4},
    "qwen3-30b-a3b": {"num_hidden_layers": 4, "decoder_sparse_step": 2},
    "llama-3.1-8b": {"num_hidden_layers": 3},
    "qwen3-0.6b": {"num_hidden_layers": 3},
}


def check(config: dict[str, Any]) -> None:
    parsed = parse_config(config)
    wanted = expected_tensors(parsed)
    found = {
        name: (part.n, part.k) if part.k else (part.n,)
        for part in parts(parsed)
        for name in part.names()
    }
    assert found == dict(wanted)
    assert sum(part.count for part in parts(parsed)) == len(wanted)
    for part in parts(parsed):
        assert all(part.pattern.fullmatch(name) for name in part.names())


@pytest.mark.parametrize("name", SMALL)
def test_shapes_are_those_that_the_models_ask_for(name: str) -> None:
    check(MODELS[name] | SMALL[name])


def test_biases_of_qwen2() -> None:
    check(MODELS["qwen3-0.6b"] | {"model_type": "qwen2", "num_hidden_layers": 2})


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_published_models(name: str) -> None:
    config = parse_config(MODELS[name])
    count = sum(part.parameters for part in parts(config))
    assert count / 1e9 == pytest.approx(PUBLISHED[name], abs=6e-4)


def test_every_built_in_model_is_planned_for_or_refused_with_its_reason() -> None:
    assert PUBLISHED.keys() | UNSUPPORTED == MODELS.keys()
    for name in UNSUPPORTED:
        with pytest.raises(BadCheckpoint, match="known but not supported yet: hyper-connections"):
            parse_config(MODELS[name])


def test_indexers_are_shared_as_glm_5_2_says() -> None:
    config = parse_config(MODELS["glm-5.2"])
    full = [i for i, owns in enumerate(config.indexer.full_layers) if owns]  # type: ignore[union-attr]
    assert full == [0, 1, 2, *range(6, 75, 4)] and len(full) == 21
    indexer = next(part for part in parts(config) if part.name.endswith("indexer.wq_b.weight"))
    assert list(indexer.layers) == full


def test_names() -> None:
    assert builtin("GLM-5.2") == ("glm-5.2", MODELS["glm-5.2"])
    assert builtin("Llama 3.1 8B") == builtin("meta-llama-3.1-8b-instruct") == (
        "llama-3.1-8b", MODELS["llama-3.1-8b"],
    )  # fmt: skip
    for alias, name in ALIASES.items():
        assert builtin(alias) == (name, MODELS[name])
    assert builtin("glm-6") is None
    assert "glm-5.1" in known() and "qwen3-8b" in known()
    assert need_builtin("deepseek-r1")[0] == "deepseek-v3"
    with pytest.raises(BadInput, match=r"model 'glm-6' is not known; want one of deepseek-v2-lite"):
        need_builtin("glm-6")
