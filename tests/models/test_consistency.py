"""However a prompt reaches the model - whole, in chunks, token by token, beside others, or partly
from another request's pages - its logits are the same."""

from functools import cache

import pytest
import torch

from families import FAMILIES, VOCAB
from oracle import Feeder, holds_for_two_prompts_in_three, load_ours
from sparkwell.formats.paged import PagedCache
from sparkwell.models.batch import Batch, Span
from sparkwell.models.deepseek import DeepseekModel
from sparkwell.models.load import Model
from sparkwell.testing import assert_matches, cosine_gap

pytestmark = pytest.mark.xdist_group("oracle")
NAMES = [family.name for family in FAMILIES]
MLA = [n for n in NAMES if n.startswith(("deepseek", "glm"))]


@cache
def model(name: str) -> Model:
    return load_ours(name)


def ids(length: int, seed: int = 11) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB, (length,), generator=generator).tolist()


@cache
def whole(name: str, length: int = 300, seed: int = 11) -> torch.Tensor:
    return Feeder(model(name)).prefill(ids(length, seed))


@pytest.mark.parametrize("name", NAMES)
def test_chunked_prefill_equals_whole(name: str) -> None:
    def check(seed: int) -> None:
        feeder, tokens, parts = Feeder(model(name)), ids(300, seed), []
        for start, end in ((0, 100), (100, 101), (101, 228), (228, 300)):
            parts.append(feeder.run(feeder.span("a", tokens[start:end], start)))
        assert_matches(torch.cat(parts), whole(name, seed=seed), "logits", label=name)

    holds_for_two_prompts_in_three(check)


@pytest.mark.parametrize("name", NAMES)
def test_token_by_token_equals_whole(name: str) -> None:
    def check(seed: int) -> None:
        feeder, tokens = Feeder(model(name)), ids(300, seed)
        feeder.prefill(tokens[:120])
        rows = [feeder.run(feeder.span("a", tokens[i : i + 1], i)) for i in range(120, 170)]
        assert_matches(torch.cat(rows), whole(name, seed=seed)[120:170], "logits", label=name)

    holds_for_two_prompts_in_three(check)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_batch_equals_one_by_one(name: str) -> None:
    """A long and a short prefill, a decode step past index_topk, one below it, an empty span."""

    def check(seed: int) -> None:
        feeder = Feeder(model(name))
        long, short, old, young = (ids(n, seed + n) for n in (200, 7, 180, 40))
        feeder.run(feeder.span("old", old[:-1], 0), feeder.span("young", young[:-1], 0))
        got = feeder.run(
            feeder.span("long", long, 0),
            feeder.span("old", old[-1:], 179),
            feeder.span("empty", [], 0),
            feeder.span("short", short, 0),
            feeder.span("young", young[-1:], 39),
        )
        alone = [Feeder(model(name)).prefill(t) for t in (long, old, short, young)]
        want = torch.cat([alone[0], alone[1][-1:], alone[2], alone[3][-1:]])
        assert_matches(got, want, "logits", label=name)

    holds_for_two_prompts_in_three(check)


@pytest.mark.parametrize("name", NAMES)
def test_prefix_reuse_equals_none(name: str) -> None:
    def check(seed: int) -> None:
        feeder, tokens = Feeder(model(name)), ids(300, seed)
        feeder.prefill(tokens[:160], "first")
        feeder.pages["second"] = feeder.pages["first"][:9]  # 144 tokens of 16 a page, shared
        got = feeder.run(feeder.span("second", tokens[144:], 144))
        assert_matches(got, whole(name, seed=seed)[144:], "logits", label=name)

    holds_for_two_prompts_in_three(check)


@pytest.mark.parametrize("page_size", [1, 5, 64])
def test_any_page_size(page_size: int) -> None:
    feeder = Feeder(model("glm-5"), page_size=page_size, pages=-(-300 // page_size) + 2)
    assert_matches(feeder.prefill(ids(300)), whole("glm-5"), "logits")


@pytest.mark.parametrize("name", MLA)
def test_expanded_equals_absorbed(name: str) -> None:
    it, tokens = model(name), ids(120)
    assert isinstance(it, DeepseekModel)
    was, got = it.expand_from, {}
    assert was is not None and was > 120, "the default must leave this prompt absorbed"
    for form, it.expand_from in (("expanded", 2), ("absorbed", None)):
        batch = Batch.build([Span(tokens, 0, list(range(8)))], page_size=16)
        assert (getattr(it.split(batch), form) is None) is False
        feeder = Feeder(it)
        head = feeder.prefill(tokens[:50])
        got[form] = torch.cat([head, feeder.run(feeder.span("a", tokens[50:], 50))])
    it.expand_from = was
    assert_matches(got["expanded"], got["absorbed"], "logits", label=name)


@pytest.mark.parametrize("name", NAMES)
def test_unwritten_pages_are_never_read(name: str) -> None:
    feeder = Feeder(model(name))
    for layer in feeder.caches:
        for pages in (layer,) if isinstance(layer, PagedCache) else (layer.latent, layer.index):
            if pages is not None:
                pages.pages.fill_(0xFF)  # NaN as fp32, bf16 and e4m3 alike
    assert_matches(feeder.prefill(ids(300)), whole(name), "logits", label=name)


class Quantized(PagedCache):
    """An fp32 cache that holds what an FP8 record would give back."""

    fp8: PagedCache

    def write(self, slots: torch.Tensor, values: torch.Tensor) -> None:
        super().write(slots, self.fp8.record.unpack(self.fp8.record.pack(values.float())))


@pytest.mark.parametrize("name", NAMES)
def test_fp8_cache_is_off_by_its_format_alone(name: str) -> None:
    """FP8 pages give the logits that fp32 pages give when they hold the same rounded values."""
    it, tokens = model(name), ids(120)  # below index_topk: no selection to flip
    fp8, exact = Feeder(it, dtype="fp8"), Feeder(it)
    for small, large in zip(fp8.caches, exact.caches, strict=True):
        pair = (small, large) if isinstance(large, PagedCache) else (small.latent, large.latent)
        pair[1].__class__ = Quantized
        pair[1].fp8 = pair[0]
    got, want = fp8.prefill(tokens), exact.prefill(tokens)
    assert_matches(got, want, "logits", label=name)
    plain = whole(name)[:120]
    gap = cosine_gap(got, plain)
    assert 1e-7 < gap < 1e-2, f"{name}: rounding moved the logits by {gap:.1e}"


def test_bf16_runs_and_stays_near_fp32() -> None:
    for name in ("deepseek-v3", "qwen3"):
        low = Feeder(load_ours(name, dtype="bfloat16"), dtype="bf16").prefill(ids(100))
        assert low.dtype == torch.float32
        assert cosine_gap(low, whole(name)[:100]) < 1e-2


def test_a_span_without_pages_is_refused() -> None:
    from sparkwell.errors import BadInput

    with pytest.raises(BadInput, match="span 0 has 1 pages of 16 tokens for 17 tokens; want 2"):
        Batch.build([Span(list(range(17)), 0, [3])], page_size=16)
