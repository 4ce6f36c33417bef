"""Every family against Transformers on random tiny checkpoints, and the table made of it."""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from families import BY_NAME, FAMILIES, VOCAB, Family
from oracle import (
    Feeder,
    Trace,
    holds_for_two_prompts_in_three,
    injected,
    load_oracle,
    load_ours,
    own_scores,
    trace_oracle,
)
from sparkwell.models.load import Model
from sparkwell.testing import assert_matches

pytestmark = pytest.mark.xdist_group("oracle")  # one process makes each checkpoint once
DOC = Path(__file__).resolve().parents[2] / "docs" / "transformers.md"
TOKENS = 384
LOGIT_LIMIT, SCORE_LIMIT = 1e-4, 1e-5
NAMES = [family.name for family in FAMILIES]
SPARSE = [family.name for family in FAMILIES if family.sparse]


@dataclass(frozen=True)
class Comparison:
    """One family, one 384-token prompt, fp32."""

    ours: Model
    trace: Trace
    logits: torch.Tensor
    scores: dict[int, torch.Tensor]
    indices: dict[int, torch.Tensor]
    routes: dict[int, tuple[torch.Tensor, torch.Tensor]]


def prompt(family: Family, length: int = TOKENS, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(family.seed + seed)
    return torch.randint(2, VOCAB, (length,), generator=generator).tolist()


@cache
def compared(name: str) -> Comparison:
    ids = prompt(BY_NAME[name])
    trace, ours = trace_oracle(load_oracle(name), ids), load_ours(name)
    with injected(ours, trace) as own:
        logits = Feeder(ours).prefill(ids)
    scores = {layer: own_scores(ours, trace, layer) for layer in trace.scores}
    return Comparison(ours, trace, logits, scores, own["indices"], own["routes"])


def unlike(comparison: Comparison) -> tuple[int, float]:
    """Keys we keep and the oracle does not, and how far the worst scores below its k-th."""
    count, worst = 0, 0.0
    for layer, theirs in comparison.trace.indices.items():
        scores = comparison.trace.scores[layer]
        for row, ours in enumerate(comparison.indices[layer]):
            kept = {i for i in theirs[row].tolist() if i <= row}
            extra = [i for i in ours.tolist() if i >= 0 and i not in kept]
            assert len([i for i in ours.tolist() if i >= 0]) == len(kept)
            if extra:
                kth = scores[row, sorted(kept)].min()
                count += len(extra)
                worst = max(worst, float(kth - scores[row, extra].min()))
    return count, worst


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_with_the_oracles_choices(name: str) -> None:
    c = compared(name)
    assert c.trace.logits.abs().max() > 1, "logits too small to tell anything"
    assert_matches(c.logits, c.trace.logits, "logits", label=name)


@pytest.mark.parametrize("name", SPARSE)
def test_index_scores_equal(name: str) -> None:
    c = compared(name)
    layers = [i for i, layer in enumerate(c.ours.layers) if layer.attention.indexer is not None]
    assert sorted(c.indices) == sorted(c.trace.scores) == layers
    visible = torch.ones(TOKENS, TOKENS).tril().bool()
    for layer in layers:
        got = torch.where(visible, c.scores[layer], 0)
        want = torch.where(visible, c.trace.scores[layer], 0)
        assert want.abs().max() > 1, "scores too small to tell anything"
        assert float((got - want).abs().max()) <= SCORE_LIMIT


@pytest.mark.parametrize("name", SPARSE)
def test_selected_sets_equal_up_to_ties(name: str) -> None:
    c = compared(name)
    assert all(indices.shape[1] == 128 < TOKENS for indices in c.trace.indices.values())
    count, worst = unlike(c)
    assert worst <= 2 * SCORE_LIMIT, f"{count} keys differ, the worst by {worst}"


@pytest.mark.parametrize("name", [n for n in NAMES if "llama" not in n and n[:5] not in ("qwen2",)])
def test_routes_equal_up_to_ties(name: str) -> None:
    c = compared(name)
    if not c.trace.routes:
        pytest.skip("no experts in this family")
    for layer, (weights, ids) in c.trace.routes.items():
        own_weights, own_ids = c.routes[layer]
        dense = torch.zeros(TOKENS, 32).scatter_(1, ids, weights)
        own = torch.zeros(TOKENS, 32).scatter_(1, own_ids.long(), own_weights)
        rows = ((dense - own).abs() > 1e-4).any(1)
        assert int(rows.sum()) <= 1, f"layer {layer}: {int(rows.sum())} rows routed differently"


@pytest.mark.parametrize("name", NAMES)
def test_greedy_generation_equals(name: str) -> None:
    def check(seed: int) -> None:
        ours, theirs = greedy(name, seed)
        assert ours == theirs

    holds_for_two_prompts_in_three(check)


@cache
def greedy(name: str, seed: int) -> tuple[list[int], list[int]]:
    """64 tokens after a prompt of 200, ours and the oracle's, both running free."""
    ids = prompt(BY_NAME[name], 200, seed)  # past index_topk from the first token on
    oracle = load_oracle(name)
    config = oracle.generation_config
    config.eos_token_id, config.pad_token_id = None, 0
    theirs = oracle.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)
    feeder, ours = Feeder(compared(name).ours), list(ids)
    logits = feeder.prefill(ids)[-1:]
    while len(ours) < 264:
        ours.append(int(logits.argmax(-1)))
        logits = feeder.run(feeder.span("a", ours[-1:], len(ours) - 1))
    return ours[200:], theirs[0, 200:].tolist()


def test_the_limits_can_fail() -> None:
    """The same comparison with one layer's norm off by 1 % must not pass."""
    name = "glm-5"
    c = compared(name)
    norm = c.ours.layers[1].mlp_norm
    norm *= 1.01
    with injected(c.ours, c.trace), pytest.raises(AssertionError, match="elements over tolerance"):
        logits = Feeder(c.ours).prefill(prompt(BY_NAME[name]))
        assert_matches(logits, c.trace.logits, "logits")
    norm /= 1.01


def table() -> str:
    lines = [
        "| family | models | max logit | logits differ by | index scores differ by | keys kept "
        "differently | greedy tokens equal |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        c = compared(family.name)
        logits = f"{float((c.logits - c.trace.logits).abs().max()):.0e}"
        scores = kept = "-"
        if family.sparse:
            visible = torch.ones(TOKENS, TOKENS).tril().bool()
            gaps = [(c.scores[i] - s)[visible].abs().max() for i, s in c.trace.scores.items()]
            largest = max(s[visible].abs().max() for s in c.trace.scores.values())
            count, worst = unlike(c)
            total = sum(
                int((i <= torch.arange(TOKENS)[:, None]).sum()) for i in c.trace.indices.values()
            )
            scores = f"{float(max(gaps)):.0e} (largest {float(largest):.0f})"
            kept = f"{count} of {total}" + (f" (scores within {worst:.0e})" if count else "")
        top = f"{float(c.trace.logits.abs().max()):.1f}"
        equal = sum(a == b for a, b in zip(*greedy(family.name, 11), strict=True))
        row = [family.name, family.models, top, logits, scores, kept, f"{equal} of 64"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


INTRO = f"""# Checked against Transformers

Random tiny checkpoints of each family, written by Transformers' `save_pretrained`, loaded by both.
One prompt of {TOKENS} tokens, fp32, on a CPU. Logits are compared with the oracle's selected keys
and routes injected (limit {LOGIT_LIMIT:.0e}), because two correct implementations may keep
different keys where two scores differ in the last bit. The choices are compared by their scores:
index scores of the same inputs (limit {SCORE_LIMIT:.0e}), and for each key kept differently how far
it lies below the oracle's last. Greedy generation runs free: 64 tokens after a 200-token prompt.
`tests/models/test_transformers.py` makes and checks this table; `--update-docs` rewrites it.
"""


def test_the_table_in_docs_is_current(request: pytest.FixtureRequest) -> None:
    made = (
        f"{INTRO}\nTransformers {version('transformers')}, torch {version('torch')}.\n\n{table()}\n"
    )
    if request.config.getoption("--update-docs"):
        DOC.write_text(made)

    def stable(text: str) -> list[list[str]]:  # figures may move with the processor
        rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
        return [row[1:3] for row in rows]

    assert stable(DOC.read_text()) == stable(made)
    assert DOC.read_text().startswith(INTRO)
