"""Sampling: the stream of uniforms, every parameter, the distribution drawn, log probabilities."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sparkwell.errors import BadInput
from sparkwell.ops.sampling import (
    NOTHING,
    SamplingRow,
    adjusted_logits_reference,
    greedy,
    logprobs,
    logprobs_reference,
    sample,
    sample_reference,
    uniform,
)
from sparkwell.ops.sampling.batched import draw_reference, logprobs_batched, sample_batched
from sparkwell.testing import in_poison

INF = math.inf
GREEDY = SamplingRow(temperature=0.0)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3.0 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adjusted(
    logits: list[float] | torch.Tensor,
    prompt: tuple[int, ...] = (),
    output: tuple[int, ...] = (),
    **options: Any,
) -> list[float]:
    x = in_poison(torch.as_tensor(logits, dtype=torch.float32))
    row = SamplingRow(**({"temperature": 0.0} | options))
    return adjusted_logits_reference(x, row, prompt, output).tolist()


def kept(logits: list[float] | torch.Tensor, **options: Any) -> list[int]:
    """Ids that the masks leave."""
    out = adjusted(logits, **({"temperature": 1.0} | options))
    return [i for i, value in enumerate(out) if value > -INF]


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


# ---------------------------------------------------------------- uniforms


def splitmix64(state: int) -> Iterator[int]:
    """The published sequential generator."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield z ^ (z >> 31)


def test_uniform_is_splitmix64_seeded_by_splitmix64() -> None:
    known = splitmix64(0)
    assert [next(known) for _ in range(2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    for seed in (0, 1, 42, 2**63 - 1, -7):
        stream = splitmix64(next(splitmix64(seed)))
        for step in range(5):
            assert uniform(seed, step) == (next(stream) >> 11) / 2**53


def test_uniforms_are_pinned() -> None:
    """A seed keeps its text from version to version."""
    assert [uniform(0, 0), uniform(0, 1), uniform(1, 0)] == [
        0.6524484863740322,
        0.7012121095215252,
        0.36818951565166946,
    ]


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((counts - expected).square() / expected).sum())


@pytest.mark.parametrize("along", ["steps", "seeds"])
def test_uniforms_are_uniform_and_unrelated(along: str) -> None:
    n = 8192
    u = [uniform(3, i) if along == "steps" else uniform(i, 3) for i in range(n)]
    assert all(0.0 <= x < 1.0 for x in u)
    assert len(set(u)) == n
    bins = (torch.tensor(u, dtype=torch.float64) * 16).long()
    expected = torch.full((16,), n / 16)
    assert chi_square(torch.bincount(bins, minlength=16), expected) < 37.7  # 15 degrees, p = 0.001
    pairs = bins[:-1] * 16 + bins[1:]
    expected = torch.full((256,), (n - 1) / 256)
    assert chi_square(torch.bincount(pairs, minlength=256), expected) < 330.5  # 255, p = 0.001


# ---------------------------------------------------------------- adjustments


def test_nothing_asked_changes_nothing() -> None:
    x = randn(50)
    before = x.clone()
    got = adjusted_logits_reference(x, SamplingRow(), (1, 2), (3,))
    torch.testing.assert_close(got, x - x.max())
    assert torch.equal(adjusted_logits_reference(x, GREEDY, (1, 2), (3,)), x)
    adjusted_logits_reference(
        x, SamplingRow(top_k=2, logit_bias={0: 1.0}, suppressed=frozenset({1})), (), ()
    )
    assert torch.equal(x, before)
    assert adjusted_logits_reference(x.bfloat16(), GREEDY, (), ()).dtype == torch.float32


def test_logit_bias_is_added() -> None:
    assert adjusted([1.0, 2.0, 3.0], logit_bias={2: -5.0, 0: 0.5}) == [1.5, 2.0, -2.0]


def test_suppressed_ids_cannot_be_drawn() -> None:
    got = adjusted([1.0, 2.0, 3.0], suppressed=frozenset({2, 7, -2}))
    assert got == [1.0, 2.0, -INF]  # -2 is no id, and not the second last either


def test_suppression_outlasts_a_bias() -> None:
    assert adjusted([1.0, 2.0], logit_bias={1: 100.0}, suppressed=frozenset({1}))[1] == -INF


def test_repetition_penalty_covers_prompt_and_output_once() -> None:
    got = adjusted(
        [4.0, -4.0, 4.0, -4.0, 4.0, 0.0], (0, 1, 1, 5), (2, 2, 1), repetition_penalty=2.0
    )
    assert got == [2.0, -8.0, 2.0, -4.0, 4.0, 0.0]


def test_presence_and_frequency_count_the_output_alone() -> None:
    x, prompt, output = [1.0] * 4, (0, 0, 1), (1, 2, 2, 2)
    assert adjusted(x, prompt, output, presence_penalty=0.5) == [1.0, 0.5, 0.5, 1.0]
    assert adjusted(x, prompt, output, frequency_penalty=0.5) == [1.0, 0.5, -0.5, 1.0]
    both = adjusted(x, prompt, output, presence_penalty=-1.0, frequency_penalty=0.25)
    assert both == [1.0, 1.75, 1.25, 1.0]
    assert adjusted(x, prompt, (), presence_penalty=0.5, frequency_penalty=1.0) == x


def test_temperature_divides() -> None:
    assert adjusted([1.0, 3.0, 2.0], temperature=0.5) == [-4.0, 0.0, -2.0]
    assert adjusted([1.0, 3.0, 2.0], temperature=4.0) == [-0.5, 0.0, -0.25]
    tiny = adjusted([1e4, 1e4, 9999.0], temperature=1e-40)  # 1e4 / 1e-40 has no fp32
    assert tiny[:2] == [0.0, 0.0]
    assert tiny[2] < -1e30


def test_the_order_of_the_adjustments() -> None:
    # bias before repetition: (4 + 2) / 2, and (-4 + 6) / 2 because its sign has changed
    got = adjusted([4.0, -4.0], (0, 1), repetition_penalty=2.0, logit_bias={0: 2.0, 1: 6.0})
    assert got == [3.0, 1.0]
    # repetition before presence: 4 / 2 - 1
    assert adjusted([4.0], (), (0,), repetition_penalty=2.0, presence_penalty=1.0) == [1.0]
    # penalties before temperature: 4 - 1 - 3 is nothing at any temperature
    got = adjusted([4.0, 3.0], (), (0,), presence_penalty=1.0, temperature=0.1)
    assert got == [0.0, 0.0]
    # temperature before top-p: hot, four tokens are needed for 0.75; cold, one
    x = logs(0.6, 0.2, 0.1, 0.1)
    assert kept(x, top_p=0.75, temperature=100.0) == [0, 1, 2]
    assert kept(x, top_p=0.75, temperature=0.1) == [0]
    # top-k before top-p: of the two that stay the first has 0.75
    assert kept(x, top_k=2, top_p=0.7) == [0]
    assert kept(x, top_p=0.7) == [0, 1]


def test_top_k_keeps_exactly_k() -> None:
    x = [1.0, 5.0, 3.0, 5.0, 3.0, 0.0]
    assert kept(x, top_k=1) == [1]
    assert kept(x, top_k=2) == [1, 3]
    assert kept(x, top_k=3) == [1, 2, 3]  # of the tied 3.0s the lower id
    assert kept(x, top_k=6) == kept(x, top_k=99) == kept(x, top_k=0) == list(range(6))
    values = adjusted(x, temperature=1.0, top_k=3)
    assert [values[i] for i in (1, 2, 3)] == [0.0, -2.0, 0.0]
    assert kept([1.0, -INF, 2.0], top_k=3) == [0, 2]


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    x = [0.0, 0.0, 0.0, 0.0]  # a quarter each, exactly
    assert kept(x, top_p=0.25) == [0]
    assert kept(x, top_p=0.2500001) == [0, 1]
    assert kept(x, top_p=0.5) == [0, 1]
    assert kept(x, top_p=0.75) == [0, 1, 2]
    assert kept(x, top_p=1.0) == kept(x, top_p=0.9999) == [0, 1, 2, 3]
    assert kept(x, top_p=1e-9) == kept(x, top_p=0.0) == [0]
    y = logs(0.1, 0.5, 0.1, 0.3)
    assert kept(y, top_p=0.4) == [1]
    assert kept(y, top_p=0.6) == [1, 3]
    assert kept(y, top_p=0.85) == [0, 1, 3]
    assert kept([*y, -INF], top_p=0.99999999) == [0, 1, 2, 3]
    assert kept([3.0], top_p=0.1) == [0]
    assert kept([0.0] * 7, top_p=0.142857146) == [0, 1]  # fp32's 1/7 is already above it


def test_top_p_sums_more_tokens_than_fp32_could() -> None:
    x = torch.zeros(100_000)
    assert len(kept(x, top_p=0.900005)) == 90_001


def test_min_p_is_relative_to_the_likeliest() -> None:
    x = logs(0.5, 0.3, 0.15, 0.05)
    assert kept(x, min_p=0.05) == [0, 1, 2, 3]
    assert kept(x, min_p=0.2) == [0, 1, 2]
    assert kept(x, min_p=0.5) == [0, 1]
    assert kept(x, min_p=0.9) == [0]
    assert kept([2.0, 1.0, 2.0], min_p=1.0) == [0, 2]
    assert kept(x, min_p=0.2, temperature=3.0) == [0, 1, 2, 3]


def processors(row: SamplingRow) -> list[Any]:
    from transformers.generation import logits_process as theirs

    out: list[Any] = []
    if row.repetition_penalty != 1.0:
        out.append(theirs.RepetitionPenaltyLogitsProcessor(row.repetition_penalty))
    if row.temperature != 1.0:
        out.append(theirs.TemperatureLogitsWarper(row.temperature))
    if row.top_k:
        out.append(theirs.TopKLogitsWarper(row.top_k))
    if row.top_p < 1.0:
        out.append(theirs.TopPLogitsWarper(row.top_p))
    if row.min_p:
        out.append(theirs.MinPLogitsWarper(row.min_p))
    return out


@pytest.mark.parametrize(
    "row",
    [
        SamplingRow(top_k=7),
        SamplingRow(top_p=0.8),
        SamplingRow(top_p=0.05),
        SamplingRow(min_p=0.03),
        SamplingRow(repetition_penalty=1.7),
        SamplingRow(repetition_penalty=0.6, temperature=0.7),
        SamplingRow(temperature=0.6, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2),
        SamplingRow(temperature=1.8, top_k=30, top_p=0.7, min_p=0.1),
    ],
    ids=str,
)
def test_transformers_warps_alike(row: SamplingRow) -> None:
    for seed in range(10):
        logits, prompt, output = randn(200, seed=seed), (3, 9, 3, 150), (5, 9, 199)
        want = logits[None].clone()
        for processor in processors(row):
            want = processor(torch.tensor([[*prompt, *output]]), want)
        got = adjusted_logits_reference(logits, row, prompt, output)
        torch.testing.assert_close(
            got.log_softmax(-1), want[0].log_softmax(-1), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("logits", "options", "text"),
    [
        ([1.0, math.nan, 2.0], {}, "largest logit is nan, want a finite one: the model gave NaN"),
        ([-INF, -INF], {}, "largest logit is -inf"),
        ([1.0, INF], {}, "largest logit is inf"),
        ([], {}, "largest logit is -inf"),
        ([1.0, 2.0], {"suppressed": frozenset({0, 1})}, "suppressed ids leave no token to draw"),
        (
            [1.0, 2.0],
            {"logit_bias": {5: 1.0, 0: 1.0}},
            "logit_bias holds ids from 0 to 5, want 0 to 1",
        ),
        ([1.0, 2.0], {"logit_bias": {-1: 1.0}}, "logit_bias holds ids from -1 to -1, want 0 to 1"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_cannot_be_sampled_is_named(
    logits: list[float], options: dict[str, Any], text: str, temperature: float
) -> None:
    with pytest.raises(BadInput, match=f"^sampling: .*{text}"):
        adjusted(logits, temperature=temperature, **options)


def test_history_outside_the_vocabulary_is_named() -> None:
    with pytest.raises(BadInput, match="history holds ids from 1 to 9, want 0 to 1, the model's"):
        adjusted([1.0, 2.0], (9,), (1,), repetition_penalty=2.0)
    with pytest.raises(BadInput, match="output holds ids from 4 to 4, want 0 to 1"):
        adjusted([1.0, 2.0], (), (4,), presence_penalty=2.0)
    assert adjusted([1.0, 2.0], (9,), (4,)) == [1.0, 2.0]  # no penalty asks for it


# ---------------------------------------------------------------- drawing


def draw(logits: torch.Tensor, row: SamplingRow, u: torch.Tensor) -> torch.Tensor:
    n = len(u)
    return sample(logits.expand(n, -1), [row] * n, [((), ())] * n, u)


@pytest.mark.parametrize(
    "row",
    [SamplingRow(), SamplingRow(temperature=2.0), SamplingRow(top_k=4, min_p=0.05, top_p=0.95)],
    ids=str,
)
def test_a_grid_of_uniforms_reproduces_the_probabilities(row: SamplingRow) -> None:
    logits, n = randn(9, seed=5) / 2, 4000
    ids = draw(logits, row, (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    p = adjusted_logits_reference(logits, row, (), ()).double().softmax(0)
    counts = torch.bincount(ids, minlength=9)
    assert ((counts - n * p).abs() <= 1.0).all()
    assert (counts[p == 0] == 0).all()
    assert torch.equal(ids, ids.sort().values)  # the CDF runs in id order


def test_seeded_draws_follow_the_distribution() -> None:
    logits, n = torch.tensor(logs(0.5, 0.25, 0.125, 0.125)), 3000
    u = torch.tensor([uniform(17, step) for step in range(n)], dtype=torch.float64)
    counts = torch.bincount(draw(logits, SamplingRow(), u), minlength=4)
    expected = n * torch.tensor([0.5, 0.25, 0.125, 0.125])
    assert chi_square(counts, expected) < 16.3  # 3 degrees of freedom, p = 0.001


def test_a_token_starts_where_the_sum_before_it_ends() -> None:
    quarters = torch.zeros(4)
    below = math.nextafter(0.5, 0.0)
    u = torch.tensor([0.0, 0.25, below, 0.5, 0.75, 1.0 - 2.0**-53], dtype=torch.float64)
    assert draw(quarters, SamplingRow(), u).tolist() == [0, 1, 1, 2, 3, 3]


def test_masked_ids_at_either_end_are_never_drawn() -> None:
    x = torch.tensor([-INF, -INF, 0.0, -INF, 0.0, -INF, -200.0, -INF])
    u = torch.tensor([0.0, 0.4999, 0.5, 1.0 - 2.0**-53, 1.0], dtype=torch.float64)
    # 1.0 is what 1 - 2^-53 becomes in fp32
    assert draw(x, SamplingRow(), u).tolist() == [2, 2, 4, 4, 4]
    assert draw(x, SamplingRow(), u.float()).tolist() == [2, 2, 4, 4, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_takes_the_lowest_of_the_largest(dtype: torch.dtype) -> None:
    x = torch.zeros(5000, dtype=dtype)
    x[[4001, 1234, 4999]] = 2.0
    assert sample(x[None], [GREEDY], [((), ())], torch.tensor([0.99])).tolist() == [1234]
    masked = SamplingRow(temperature=0.0, top_k=1, top_p=0.01, min_p=1.0)
    assert sample(x[None], [masked], [((), ())], torch.tensor([0.99])).tolist() == [1234]
    same = SamplingRow(top_k=1)  # what the masks keep is what greedy takes
    assert sample(x[None], [same], [((), ())], torch.tensor([0.99])).tolist() == [1234]
    assert draw(x, SamplingRow(top_p=1e-6), torch.tensor([0.0, 0.99])).tolist() == [1234, 1234]


def test_rows_of_a_batch_do_not_touch_each_other() -> None:
    logits = in_poison(randn(4, 60))
    rows = [
        GREEDY,
        SamplingRow(top_k=3),
        SamplingRow(temperature=0.0, logit_bias={7: 100.0}),
        SamplingRow(temperature=5.0, repetition_penalty=3.0),
    ]
    histories = [((1,), ()), ((), (2, 3)), ((), ()), (tuple(range(60)), ())]
    u = in_poison(torch.tensor([0.9, 0.1, 0.5, 0.37], dtype=torch.float64))
    together = sample(logits, rows, histories, u)
    assert together.dtype == torch.int64
    assert together[0] == logits[0].argmax()
    assert together[2] == 7
    alone = [
        sample(logits[i : i + 1], rows[i : i + 1], histories[i : i + 1], u[i : i + 1])
        for i in range(4)
    ]
    assert together.tolist() == [int(ids) for ids in alone]
    assert sample_reference(logits, rows, histories, u).tolist() == together.tolist()


def test_no_rows() -> None:
    assert sample(torch.zeros(0, 5), [], [], torch.zeros(0)).shape == (0,)


def test_wrong_counts_and_uniforms_are_named() -> None:
    x, row, none = torch.zeros(2, 5), SamplingRow(), ((), ())
    counts = r"sample: logits is .* with . rows, . histories and uniforms .*, want \[B, V\] and B"
    for logits, rows, histories, u in (
        (x, [row], [none] * 2, torch.zeros(2)),
        (x, [row] * 2, [none], torch.zeros(2)),
        (x, [row] * 2, [none] * 2, torch.zeros(1)),
        (x, [row] * 2, [none] * 2, torch.zeros(2, 2)),
        (x[0], [row] * 5, [none] * 5, torch.zeros(5)),
    ):
        with pytest.raises(BadInput, match=counts):
            sample(logits, rows, histories, u)
    for bad in (-0.1, 1.5, math.nan):
        with pytest.raises(BadInput, match=r"sample: uniforms range from .*, want \[0, 1\)"):
            sample(x, [row] * 2, [none] * 2, torch.tensor([0.5, bad]))


# ---------------------------------------------------------------- log probabilities


def test_logprobs_are_log_softmax() -> None:
    logits, ids = in_poison(randn(3, 40)), in_poison(torch.tensor([5, 0, 39]))
    chosen, top_ids, top = logprobs(logits, ids, top=4)
    want = logits.double() - logits.double().logsumexp(-1, keepdim=True)
    assert chosen.dtype == top.dtype == torch.float32
    assert top_ids.dtype == torch.int64
    torch.testing.assert_close(chosen.double(), want[torch.arange(3), ids], rtol=0.0, atol=1e-5)
    values, order = want.sort(-1, descending=True)
    assert torch.equal(top_ids, order[:, :4])
    torch.testing.assert_close(top.double(), values[:, :4], rtol=0.0, atol=1e-5)
    reference = logprobs_reference(logits, ids, 4)
    assert all(torch.equal(a, b) for a, b in zip(reference, (chosen, top_ids, top), strict=True))


def test_tied_alternatives_come_in_id_order() -> None:
    x = torch.zeros(1, 3000)
    x[0, [2999, 7, 1500]] = 1.0
    assert logprobs(x, torch.tensor([0]), top=5)[1].tolist() == [[7, 1500, 2999, 0, 1]]


def test_half_precision_logits_are_normalized_in_fp32() -> None:
    x = randn(2, 500).bfloat16()
    chosen, _, _ = logprobs(x, torch.tensor([3, 4]), top=0)
    want = x.double().log_softmax(-1)[[0, 1], [3, 4]]
    torch.testing.assert_close(chosen.double(), want, rtol=0.0, atol=1e-5)


def test_the_edges_of_logprobs() -> None:
    x = torch.tensor([[0.0, -INF, 0.0]])
    chosen, top_ids, top = logprobs(x, torch.tensor([1], dtype=torch.int32), top=3)
    assert chosen.tolist() == [-INF]
    assert top_ids.tolist() == [[0, 2, 1]]
    assert top[0].tolist() == pytest.approx([-math.log(2), -math.log(2), -INF])
    chosen, top_ids, top = logprobs(x, torch.tensor([0]), top=0)
    assert top_ids.shape == top.shape == (1, 0)
    chosen, top_ids, top = logprobs(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), top=2)
    assert chosen.shape == (0,)
    assert top_ids.shape == top.shape == (0, 2)


def test_wrong_arguments_of_logprobs_are_named() -> None:
    x, ids = torch.zeros(2, 5), torch.tensor([0, 1])
    wanted = r"logprobs: logits is .*, ids .* and top .*, want \[B, V\], \[B\] and 0 <= top <= V"
    for logits, chosen, top in ((x[0], ids, 1), (x, ids[:1], 1), (x, ids, 6), (x, ids, -1)):
        with pytest.raises(BadInput, match=wanted):
            logprobs(logits, chosen, top=top)
    with pytest.raises(BadInput, match="ids holds ids from -1 to 5, want 0 to 4"):
        logprobs(x, torch.tensor([-1, 5]), top=0)
    with pytest.raises(BadInput, match="largest logit is nan"):
        logprobs(torch.tensor([[0.0, math.nan]]), torch.tensor([0]), top=1)


# ---------------------------------------------------------------- all rows at once


def random_row(generator: torch.Generator) -> SamplingRow:
    def pick(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (1,), generator=generator))]

    return SamplingRow(
        temperature=pick(0.0, 0.3, 1.0, 1.7),
        top_k=pick(0, 0, 1, 5, 40, 400),
        top_p=pick(1.0, 1.0, 0.9, 0.2, 0.0),
        min_p=pick(0.0, 0.0, 0.05, 1.0),
        repetition_penalty=pick(1.0, 1.0, 1.3, 0.7),
        presence_penalty=pick(0.0, 0.0, 0.6),
        frequency_penalty=pick(0.0, 0.0, -0.3, 0.7),
        logit_bias=pick({}, {}, {3: 1.5, 17: -INF}),
        suppressed=pick(frozenset(), frozenset({0, 5, 9999})),
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("round_to", [0.0, 0.5])
def test_all_rows_at_once_draw_what_each_draws_alone(seed: int, round_to: float) -> None:
    """Bit for bit: the same operations in the same order, ties included."""
    generator = torch.Generator().manual_seed(seed)
    n, vocab = 40, 200
    logits = in_poison(randn(n, vocab, seed=seed))
    if round_to:
        logits.copy_((logits / round_to).round() * round_to)
    rows = [random_row(generator) for _ in range(n)]
    ids = torch.randint(vocab, (n, 2, 9), generator=generator).tolist()
    histories = [(tuple(prompt), tuple(output)) for prompt, output in ids]
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    u[:3] = torch.tensor([0.0, 1.0 - 2.0**-53, 1.0])
    want = sample_reference(logits, rows, histories, u)
    got = sample_batched(logits, rows, histories, u, draw_reference)
    assert got.tolist() == want.tolist()


@pytest.mark.parametrize(
    "row", [SamplingRow(top_k=3), SamplingRow(top_p=0.3), SamplingRow(min_p=0.5), GREEDY], ids=str
)
def test_a_row_that_masks_leaves_the_others_whole(row: SamplingRow) -> None:
    u = torch.full((2,), 1.0 - 2.0**-53, dtype=torch.float64)
    x = torch.zeros(2, 50)
    assert sample_batched(x, [row, SamplingRow()], [((), ())] * 2, u, draw_reference)[1] == 49


def test_what_cannot_be_sampled_is_no_token_and_no_wait() -> None:
    x = torch.zeros(5, 6)
    x[0, 2], x[1, 3], x[2] = math.nan, INF, -INF
    rows = [SamplingRow(), GREEDY, SamplingRow(top_p=0.5), GREEDY, SamplingRow()]
    rows[3] = SamplingRow(temperature=0.0, suppressed=frozenset(range(6)))
    got = sample_batched(x, rows, [((), ())] * 5, torch.full((5,), 0.9), draw_reference)
    assert got.tolist() == [NOTHING] * 4 + [5]
    assert greedy(x).tolist() == [NOTHING, NOTHING, NOTHING, 0, 0]
    assert greedy(torch.zeros(2, 0)).tolist() == [NOTHING] * 2
    with pytest.raises(BadInput, match=r"greedy: logits is int64 \[3\], want float \[B, V\]"):
        greedy(torch.tensor([1, 2, 3]))


def test_ids_outside_the_vocabulary_are_named_for_all_rows_at_once() -> None:
    x, u, none = torch.zeros(2, 5), torch.zeros(2), ((), ())
    for row, text in (
        (SamplingRow(logit_bias={5: 1.0}), "logit_bias"),
        (SamplingRow(repetition_penalty=2.0), "history"),
        (SamplingRow(presence_penalty=2.0), "output"),
    ):
        with pytest.raises(BadInput, match=f"sampling: {text} holds ids from . to 5, want 0 to 4"):
            sample_batched(x, [SamplingRow(), row], [none, ((1,), (5,))], u, draw_reference)


@pytest.mark.parametrize("top", [0, 3, 40])
def test_log_probabilities_of_all_rows_at_once(top: int) -> None:
    logits, ids = (2 * randn(5, 40)).round() / 2, torch.tensor([5, 0, 39, 7, 7])
    want = logprobs_reference(logits, ids, top)
    got = logprobs_batched(in_poison(logits), ids, top)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
