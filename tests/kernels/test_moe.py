"""Experts' kernels beyond the case table: extreme scales, every code, experts that nobody names,
ids that name nobody, the same result twice, the targets that convert FP8 by integer steps."""

import pytest
import torch

from sparkwell.errors import Unsupported
from sparkwell.formats.fp8 import Fp8Block, Fp8Rows
from sparkwell.formats.int4 import Int4Group
from sparkwell.formats.mxfp4 import Mxfp4
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.formats.weights import Weight
from sparkwell.ops.device import as_target
from sparkwell.ops.launch import recording
from sparkwell.ops.moe import experts, experts_reference, grouped_linear
from sparkwell.testing import assert_matches
from sparkwell.verify.case import Maker
from sparkwell.verify.weights import FORMATS, weight

CPU = torch.device("cpu")
TARGETS = ("sm_80", "sm_90", "sm_121")


def columns(w: Weight, dtype: torch.dtype, target: str) -> torch.Tensor:
    """Every column of a [1, n, k] weight by itself, as the kernel sees it.  -> [n, k] fp32"""
    x = torch.eye(w.shape[2], dtype=dtype)
    with as_target(target):
        y = grouped_linear(x, w, None, out_dtype=torch.float32, backend="kernel")
    return y.T


def every_e4m3() -> torch.Tensor:
    """All codes but NaN, as two rows of 128."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes[[0x7F, 0xFF]] = 0
    return codes.view(torch.float8_e4m3fn).reshape(1, 2, 128)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_code_of_fp8_is_exact(dtype: torch.dtype, target: str) -> None:
    scales = torch.tensor([[3.0, 0.125]])
    w = Fp8Rows(every_e4m3(), scales)
    assert torch.equal(columns(w, dtype, target), w.dequantize()[0])
    blocks = Fp8Block(every_e4m3(), scales[..., None], (1, 128))
    assert torch.equal(columns(blocks, dtype, target), blocks.dequantize()[0])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_code_and_scale_of_nvfp4_is_exact(dtype: torch.dtype, target: str) -> None:
    """127 scales from 0 to 448, each with all 16 codes."""
    nibbles = torch.arange(8, dtype=torch.uint8)
    codes = (2 * nibbles | (2 * nibbles + 1) << 4).repeat(4, 32)  # [4, 32 groups of 8 bytes]
    scales = torch.arange(128, dtype=torch.uint8)
    scales[127] = 0
    scales = scales.view(torch.float8_e4m3fn).reshape(1, 4, 32)
    w = Nvfp4(codes[None], scales, torch.tensor([[1.0, 0.5, 3.0, 2.0**-20]]))
    assert torch.equal(columns(w, dtype, target), w.dequantize()[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["nvfp4", "mxfp4", "fp8-block", "fp8-rows"])
def test_codes_that_threads_hold_in_words_meet_their_columns(form: str, dtype: torch.dtype) -> None:
    """Hopper, few rows: x comes in another order of columns."""
    make = Maker(CPU)
    w = weight(make, form, 1, 80, 256)
    x = torch.eye(256, dtype=dtype)
    with as_target("sm_90"):
        parts = [
            grouped_linear(some, w, None, out_dtype=torch.float32, backend="kernel")
            for some in x.split(16)
        ]
        with recording() as launches:
            grouped_linear(x[:16], w, None, backend="kernel")
    assert not isinstance(w, torch.Tensor)
    assert torch.equal(torch.cat(parts).T, w.dequantize()[0])
    assert launches[1].choice.row.name == f"fp{8 if form.startswith('fp8') else 4}-turned-wgmma"


@pytest.mark.parametrize("form", ["nvfp4", "mxfp4", "fp8-block", "fp8-rows"])
@pytest.mark.parametrize("width", [128, 192])
def test_turned_columns_between_the_products(form: str, width: int) -> None:
    """192 columns are no whole steps: the second product takes them as they are."""
    make = Maker(CPU)
    up, down = weight(make, form, 3, 2 * width, 128), weight(make, form, 3, 128, width)
    x, factors = make.randn(4, 128, dtype=torch.float16), make.randn(4, 2)
    ids = make.randint(0, 3, 4, 2, dtype=torch.int64)
    with as_target("sm_90"):
        got = experts(x, ids, factors, up, down, backend="kernel")
    assert_matches(got, experts(x, ids, factors, up, down), "experts", "fp16")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scales_of_mxfp4_from_end_to_end(dtype: torch.dtype) -> None:
    """Every scale in a row of its own, with all codes."""
    nibbles = torch.arange(8, dtype=torch.uint8)
    codes = (2 * nibbles | (2 * nibbles + 1) << 4).repeat(1, 256, 2)  # [1, 256, 16]
    w = Mxfp4(codes, torch.arange(256, dtype=torch.uint8).reshape(1, 256, 1))
    got, want = columns(w, dtype, "sm_90"), w.dequantize()[0]
    assert want[253].isinf().any() and torch.equal(got[:253], want[:253])
    assert got[255].isnan().all()


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_code_and_zero_point_of_int4(dtype: torch.dtype, zeros: bool) -> None:
    nibbles = torch.arange(8, dtype=torch.uint8)
    codes = (2 * nibbles | (2 * nibbles + 1) << 4).repeat(4, 16)[None]  # [1, 4, 128]
    points = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4) * 17 if zeros else None
    scales = (1.0 + torch.arange(16) / 16).reshape(1, 4, 4).to(torch.float16)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0)).int()
    for one in (None, order):
        w = Int4Group(codes, scales, points, 64, one)
        assert torch.equal(columns(w, dtype, "sm_90"), w.dequantize()[0])


def spoiled(w: Weight, expert: int) -> Weight:
    """The same weight with NaN wherever one expert can hold it."""

    def spoil(name: str, t: torch.Tensor) -> torch.Tensor:
        if name == "order" or t.dtype == torch.uint8 and name != "scales":
            return t
        t = t.clone()
        bytes_ = t.view(torch.uint8)
        if t.element_size() == 1:
            bytes_[expert] = 0xFF
        else:
            t[expert] = float("nan")
        return t

    return spoil("", w) if isinstance(w, torch.Tensor) else w.changed(spoil)


@pytest.mark.parametrize("form", [form for form in FORMATS if form not in ("int4", "int4-32")])
@pytest.mark.parametrize("rows", [1, 6])
def test_experts_nobody_names_are_not_read(form: str, rows: int) -> None:
    make = Maker(CPU)
    up, down = weight(make, form, 4, 128, 128), weight(make, form, 4, 128, 64)
    x = make.randn(rows, 128, dtype=torch.bfloat16)
    ids = torch.tensor([[0, 3], [2**40, 1], [-1, 0], [-(2**33), 4], [3, 3], [1, 2**31]])[:rows]
    factors = make.randn(rows, 2)
    with as_target("sm_90"):
        clean = experts(x, ids, factors, up, down, backend="kernel")
        got = experts(x, ids, factors, spoiled(up, 2), spoiled(down, 2), backend="kernel")
    assert torch.equal(got, clean) and clean.isfinite().all()
    inside = torch.where((ids >= 0) & (ids < 4), ids, 4)
    want = experts_reference(x, inside, factors, up, down, first_expert=0)
    assert torch.allclose(got.float(), want, atol=5e-2, rtol=2e-2)


@pytest.mark.parametrize("form", ["bf16", "fp8-block", "nvfp4", "mxfp4"])
def test_a_named_experts_nan_shows(form: str) -> None:
    make = Maker(CPU)
    up, down = weight(make, form, 3, 128, 128), weight(make, form, 3, 128, 64)
    x, ids = make.randn(3, 128, dtype=torch.bfloat16), torch.tensor([[0], [2], [1]])
    with as_target("sm_121"):
        y = experts(x, ids, torch.ones(3, 1), up, spoiled(down, 2), backend="kernel")
    assert y[1].isnan().all() and y[[0, 2]].isfinite().all()


def test_a_token_is_the_same_alone_and_among_others() -> None:
    make = Maker(CPU)
    up, down = weight(make, "nvfp4", 4, 128, 128), weight(make, "nvfp4", 4, 128, 64)
    x, ids = make.randn(9, 128, dtype=torch.bfloat16), make.randint(0, 4, 9, 3, dtype=torch.int64)
    factors = make.randn(9, 3)
    with as_target("sm_90"):
        alone = [
            experts(x[i : i + 1], ids[i : i + 1], factors[i : i + 1], up, down, backend="kernel")
            for i in range(9)
        ]
        among = experts(x, ids.int(), factors, up, down, backend="kernel")
        again = experts(x, ids, factors, up, down, backend="kernel")
    assert torch.equal(among, torch.cat(alone)) and torch.equal(among, again)


def test_two_halves_of_the_experts_make_the_whole() -> None:
    make = Maker(CPU)
    up, down = weight(make, "fp32", 6, 32, 32), weight(make, "fp32", 6, 32, 16)
    assert isinstance(up, torch.Tensor) and isinstance(down, torch.Tensor)
    x, ids = make.randn(7, 32), make.randint(0, 6, 7, 3, dtype=torch.int64)
    factors = make.randn(7, 3)
    with as_target("sm_90"):
        parts = [
            experts(x, ids, factors, up[s], down[s], first_expert=s.start, backend="kernel")
            for s in (slice(0, 2), slice(2, 6))
        ]
        whole = experts(x, ids, factors, up, down, backend="kernel")
    assert torch.allclose(parts[0] + parts[1], whole, atol=1e-5)


def test_fp8_operands_are_taken_where_the_checkpoint_was_made_for_them() -> None:
    make = Maker(CPU)
    made = [weight(make, "fp8-block", 1, 256, 128), weight(make, "fp8-block", 1, 128, 128)]
    asked = [
        Fp8Block(w.values, w.scales, w.block, "fp8-group") for w in made if isinstance(w, Fp8Block)
    ]
    x, factors = make.randn(160, 128, dtype=torch.bfloat16), make.randn(160, 1)
    ids = torch.zeros(160, 1, dtype=torch.int64)
    for rows, eight in ((160, True), (130, False)):  # a weight is read in the time of 147
        some = (x[:rows], ids[:rows], factors[:rows])
        with as_target("sm_90", sms=132):
            auto = experts(*some, *asked, backend="kernel")
            plain = experts(*some, *asked, arithmetic="w8a16", backend="kernel")
            forced = experts(*some, *made, arithmetic="w8a8", backend="kernel")
            other = experts(*some, *made, backend="kernel")
        assert torch.equal(other, plain) and not torch.equal(plain, forced)
        assert torch.equal(auto, forced if eight else plain)
        with as_target("sm_86"):  # no FP8 units: x is left as it is
            left = experts(*some, *asked, backend="kernel")
            assert torch.equal(left, experts(*some, *made, backend="kernel"))


def test_nvfp4_operands_need_their_units() -> None:
    make = Maker(CPU)
    up, down = weight(make, "nvfp4", 2, 256, 256), weight(make, "nvfp4", 2, 256, 128)
    some = (make.randn(2, 256), torch.zeros(2, 1, dtype=torch.int64), make.randn(2, 1))
    with as_target("sm_90"), pytest.raises(Unsupported, match="no matrix units that take block"):
        experts(*some, up, down, arithmetic="w4a4", backend="kernel")
    half = (some[0].to(torch.bfloat16), *some[1:])
    short = [weight(make, "fp8-block-64", 2, 256, n) for n in (256, 128)]
    refusals = (
        (some, up, down, "w4a4", "gate_up: wants bf16 or fp16 x and rows at multiples of 16"),
        (half, up, down, "w4a4", "row of down has 128 columns, wants a multiple of 256"),
        (half, *short, "w8a8", "scale of gate_up serves 64 columns, wants a multiple of 128"),
    )
    for rows, lift, drop, asked, why in refusals:
        with as_target("sm_121"), pytest.raises(Unsupported, match=why):
            experts(*rows, lift, drop, arithmetic=asked, backend="kernel")
    blocks = weight(make, "fp8-block-64", 1, 64, 128)
    assert isinstance(blocks, Fp8Block)
    rows = Fp8Block(blocks.values[0], torch.ones(64, 1), (1, 128))
    with as_target("sm_90"), pytest.raises(Unsupported, match="wants fp8-block weights in blocks"):
        grouped_linear(rows, blocks, None, backend="kernel")
    with as_target("sm_90"), pytest.raises(Unsupported, match="k and groups of 64 n"):
        odd = Fp8Block(blocks.values[..., :72], torch.ones(1, 8, 9), (8, 8))
        grouped_linear(make.randn(3, 72), odd, None, backend="kernel")


def test_sums_of_no_columns_are_what_is_added() -> None:
    x = Fp8Block(torch.empty(3, 0).to(torch.float8_e4m3fn), torch.empty(3, 0), (1, 128))
    w = Fp8Block(torch.empty(1, 2, 0).to(torch.float8_e4m3fn), torch.empty(1, 1, 0), (128, 128))
    with as_target("sm_121"):
        one = grouped_linear(x, w, None, add=torch.ones(3, 2), backend="kernel")
        none = grouped_linear(x, w, None, out_dtype=torch.float32, backend="kernel")
    assert one.eq(1).all() and none.eq(0).all()
