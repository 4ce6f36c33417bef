"""Plans name the kernels that the ops launch: recorded on meta tensors, target by target."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparkwell.formats import (
    Fp8Block,
    Fp8Rows,
    Int4Group,
    Mxfp4,
    Nvfp4,
    PagedCache,
    gqa_record,
    index_key_record,
    latent_record,
)
from sparkwell.formats.kv import Record
from sparkwell.hardware.gpus import GPUS, Gpu, gpu
from sparkwell.ops.attention import attention_paged, attention_prefill
from sparkwell.ops.device import Device, as_target
from sparkwell.ops.indexer import index_select
from sparkwell.ops.launch import Launch, recording
from sparkwell.ops.linear import linear, linear_decision
from sparkwell.ops.linear.arithmetic import decide
from sparkwell.ops.mla import mla_paged, mla_sparse
from sparkwell.ops.moe import experts
from sparkwell.plan import kernels
from sparkwell.plan.schemes import (
    BF16,
    FP8,
    FP8_ROWS,
    INT4,
    MXFP4,
    NVFP4,
    NVFP4_A4,
    NVFP4_A8,
    Format,
)

META = torch.device("meta")
PRODUCTS = ("a100-sxm-80", "rtx-3090", "rtx-4090", "h200", "b200", "b300", "rtx-5090", "dgx-spark")
SHAPES = ((6144, 4096), (576, 6144), (2048, 6144))
FORMATS = {
    "bf16": BF16, "fp8": FP8, "fp8-rows": FP8_ROWS, "nvfp4": NVFP4, "nvfp4-a8": NVFP4_A8,
    "nvfp4-a4": NVFP4_A4, "mxfp4": MXFP4, "int4": INT4,
}  # fmt: skip


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


def weight(kind: Format, *shape: int) -> Any:
    """A meta weight of a format, [..., n, k]."""
    *lead, n, k = shape
    made: Any = kind.activations
    u8, e4m3, fp32 = torch.uint8, torch.float8_e4m3fn, torch.float32
    if kind.kind == "Fp8Block":
        blocks = (-(-n // 128), -(-k // 128))
        return Fp8Block(
            meta(*shape, dtype=e4m3), meta(*lead, *blocks, dtype=fp32), (128, 128), made
        )
    if kind.kind == "Fp8Rows":
        return Fp8Rows(meta(*shape, dtype=e4m3), meta(*lead, n, dtype=fp32), made)
    codes = meta(*lead, n, k // 2, dtype=u8)
    if kind.kind == "Nvfp4":
        scales = meta(*lead, n, k // 16, dtype=e4m3)
        return Nvfp4(codes, scales, meta(*lead, n, dtype=fp32), made)
    if kind.kind == "Mxfp4":
        return Mxfp4(codes, meta(*lead, n, k // 32, dtype=u8))
    if kind.kind == "Int4Group":
        groups = (*lead, n, k // kind.group)
        return Int4Group(codes, meta(*groups), meta(*groups, dtype=u8), kind.group)
    return meta(*shape)


def recorded(product: Gpu, call: Callable[[], object]) -> list[Launch]:
    with as_target(product.target.sm, sms=int(product.sms.value)), recording() as launches:
        call()
    return launches


def here(product: Gpu) -> Device:
    """As `as_target` has it: without the product's name."""
    return Device(product.target, int(product.sms.value))


def rows_of(launches: list[Launch], op: str) -> list[str]:
    return [x.choice.row.name for x in launches if x.choice.op == op]


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("form", FORMATS)
def test_linear(name: str, form: str) -> None:
    product, kind, seen = gpu(name), FORMATS[form], set()
    for n, k in SHAPES:
        w = weight(kind, n, k)
        for m in (1, 8, 9, 40, 64, 200, 300, 1500, 4096):
            x = meta(m, k)
            launches = recorded(product, lambda x=x, w=w: linear(x, w))
            decision, kernel = kernels.linear_kernel(m, n, k, kind, here(product))
            with as_target(product.target.sm, sms=int(product.sms.value)):
                assert decision == linear_decision(x, w)
            launched = [row for row in rows_of(launches, "linear") if row not in ("reduce", "turn")]
            assert (launched or [kernels.LIBRARY]) == [kernel.row], (n, k, m)
            seen.add(kernel.row)
    assert len(seen) > (0 if form == "bf16" else 1)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("form", ["bf16", "fp8", "nvfp4", "nvfp4-a4", "mxfp4", "int4"])
def test_experts(name: str, form: str) -> None:
    product, kind, seen = gpu(name), FORMATS[form], set()
    for num, hidden, width in ((256, 6144, 2048), (64, 2048, 1536)):
        gate_up, down = weight(kind, num, 2 * width, hidden), weight(kind, num, hidden, width)
        for tokens in (1, 8, 64, 512, 8192, 32768):
            x, ids = meta(tokens, hidden), meta(tokens, 8, dtype=torch.int64)
            shares = meta(tokens, 8, dtype=torch.float32)
            launches = recorded(product, lambda: experts(x, ids, shares, gate_up, down))  # noqa: B023
            products = [
                x.choice
                for x in launches
                if x.choice.op == "experts" and hasattr(x.choice.problem, "gated")
            ]
            arithmetic, kernel = kernels.experts_kernel(
                tokens, 8, num, hidden, width, kind, here(product)
            )
            assert kernel.row == products[0].row.name, (num, tokens)
            narrow = {"fp8": "w8a8", "fp4": "w4a4"}.get(products[0].problem.type)  # type: ignore[attr-defined]
            plain = kind.made_for.partition("a")[0] + "a16"
            assert arithmetic == (narrow or plain)
            seen.add((kernel.row, arithmetic))
    assert len(seen) > 2


def cache(record: Record, pages: int = 4) -> PagedCache:
    return PagedCache.allocate(record, pages, kernels.PAGE, META)


def ints(*shape: int) -> torch.Tensor:
    return meta(*shape, dtype=torch.int32)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_latent_attention(name: str, kind: str) -> None:
    product = gpu(name)
    held = cache(latent_record(kind))
    for rows, heads in ((1, 8), (1, 64), (16, 16), (64, 20), (64, 128), (2048, 16)):
        q = meta(rows, heads, 576)
        launches = recorded(product, lambda: mla_sparse(q, held, ints(rows, 2048), scale=1.0))  # noqa: B023
        kernel = kernels.mla_kernel(rows, heads, 2048, kind, (512, 64), 0, here(product))
        assert kernel.row == rows_of(launches, "mla_sparse")[0], (rows, heads)
        assert kernel.op == "mla_sparse" and kernel.emits
        launches = recorded(
            product,
            lambda: mla_paged(
                q, held, ints(rows + 1), ints(rows), ints(rows, 128), scale=1.0, max_query_len=1,  # noqa: B023
                max_context_len=8192,
            ),
        )  # fmt: skip
        kernel = kernels.mla_kernel(rows, heads, 8192, kind, (512, 64), rows, here(product))
        assert kernel.row == rows_of(launches, "mla_paged")[0], (rows, heads)


@pytest.mark.parametrize("name", PRODUCTS)
def test_indexer(name: str) -> None:
    product, held = gpu(name), cache(index_key_record("fp8"))
    for each, requests, heads, context in (
        (1, 1, 64, 8192),
        (1, 64, 32, 131072),
        (512, 1, 32, 4096),
    ):
        rows = each * requests
        q, w = meta(rows, heads, 128), meta(rows, heads, dtype=torch.float32)
        launches = recorded(
            product,
            lambda: index_select(
                q, w, held, ints(requests + 1), ints(requests), ints(requests, context // 64),  # noqa: B023
                topk=2048, fp8_query=True, max_query_len=each, max_context_len=context,  # noqa: B023
            ),
        )  # fmt: skip
        score, chosen = kernels.indexer_kernels(each, heads, 128, context, 2048, here(product))
        launched = rows_of(launches, "index_select")
        assert score.row in launched and chosen.row in launched, (each, requests, launched)
        assert set(launched) == {"queries", score.row, chosen.row}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_grouped_attention(name: str, kind: str) -> None:
    product = gpu(name)
    for heads, kv, d in ((32, 8, 128), (64, 4, 128), (16, 8, 64), (16, 16, 192)):
        held = cache(gqa_record(kv, d, kind))
        for each, requests in ((1, 1), (1, 64), (512, 2)):
            q = meta(each * requests, heads, d)
            launches = recorded(
                product,
                lambda: attention_paged(
                    q, held, ints(requests + 1), ints(requests), ints(requests, 64),  # noqa: B023
                    num_kv_heads=kv, scale=1.0, max_query_len=each, max_context_len=4096,  # noqa: B023
                ),
            )  # fmt: skip
            kernel = kernels.paged_kernel(each, heads // kv, d, kind, here(product))
            assert kernel.row == rows_of(launches, "attention_paged")[0], (heads, d, each)


@pytest.mark.parametrize("name", PRODUCTS)
def test_expanded_attention(name: str) -> None:
    product = gpu(name)
    for d_qk, d_v, heads in ((192, 128, 16), (256, 256, 20), (128, 128, 8)):
        for rows in (64, 2048):
            q, k, v = meta(rows, heads, d_qk), meta(4096, heads, d_qk), meta(4096, heads, d_v)
            launches = recorded(
                product,
                lambda: attention_prefill(q, k, v, ints(2), ints(2), scale=0.1),  # noqa: B023
            )
            kernel = kernels.prefill_kernel(rows, d_qk, d_v, here(product))
            assert kernel.row == rows_of(launches, "attention_prefill")[0], (d_qk, rows)


def test_what_was_passed_over_has_reasons() -> None:
    product = gpu("dgx-spark")
    kernel = kernels.mla_kernel(1, 16, 2048, "fp8", (512, 64), 0, here(product))
    assert kernel.row == "fp8-grouped-s" and kernel.proven is not None
    reasons = dict(kernel.refused)
    assert reasons["turned-16"] == "written for sm 90" and "fp8-grouped-s" not in reasons
    assert "bf16-grouped" not in reasons  # after the one that serves


def test_a_target_without_kernels_says_so() -> None:
    thor = gpu("jetson-thor")
    _, kernel = kernels.linear_kernel(1, 4096, 4096, NVFP4, kernels.device_of(thor))
    assert kernel.row == "" and kernel.proven is None
    assert dict(kernel.refused)["nvfp4-8"].startswith("written for sm 80, 86")


def test_a_device_is_the_product_itself() -> None:
    """The figures that decide are the product's own, not those of one with as many SMs."""
    for product in GPUS:
        device = kernels.device_of(product)
        known = decide(1, weight(NVFP4_A4, 256, 256), device)
        assert known.arithmetic == "w4a16"
        from sparkwell.ops.linear.arithmetic import product_like

        assert product_like(device) is product, product.name
