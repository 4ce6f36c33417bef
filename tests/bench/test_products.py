"""Linear layers and experts of the speed table, and their peers as our references see them."""

from pathlib import Path

import pytest
import torch

from bench.fakes import bench, reference_as_kernel
from sparkwell.bench.cases import Line
from sparkwell.bench.kernels import _input_sets, run_line
from sparkwell.bench.marlin import E2M1, pack
from sparkwell.bench.peers import PEERS, Peers, _close_product, _close_rows
from sparkwell.formats.fp8 import Fp8Block
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.verify.case import Case, Maker
from sparkwell.verify.cases import speed_products as speed

CPU = torch.device("cpu")

LOADERS = '''
import torch
from sparkwell.formats.fp8 import Fp8Block
from sparkwell.formats.int4 import Int4Group
from sparkwell.formats.nvfp4 import Nvfp4

TILE = [i + 8 * j for i in range(8) for j in range(8)]
OFF = 0


def undo(columns, scales):
    """Columns of scales back in their places."""
    back = torch.tensor(columns).argsort()
    return scales.reshape(-1, len(columns))[:, back].reshape(scales.shape)


def unpacked(words, scales, factor, kind, n, k):
    assert words.shape == (k // 8, n) and words.dtype == torch.int32
    codes = words.t().contiguous().view(torch.uint8)
    if kind == 1125899907892224:
        assert scales.dtype == torch.bfloat16 and factor is None
        return Int4Group(codes, undo(TILE, scales).t().contiguous(), None, 128).dequantize()
    assert kind == 562949953487106 and scales.dtype == torch.float8_e4m3fn
    halves = (scales.view(torch.uint8).to(torch.int16) << 7).view(torch.half)
    assert 448 * 64 < halves.max() <= 448 * 128  # as large as they may be
    plain = undo(TILE, undo([0, 2, 1, 3], halves)).t().float() * (factor * 2.0**-119)
    ones = torch.ones(n, k // 16).to(torch.float8_e4m3fn)
    unit = Nvfp4(codes, ones, torch.ones(n)).dequantize()
    return unit * (plain / 128).repeat_interleave(16, 1)


class ops:
    @staticmethod
    def gptq_marlin_repack(words, k, n, bits, wide):
        assert bits == 4 and not wide and words.is_contiguous()
        return words

    @staticmethod
    def marlin_gemm(a, c, w, bias, s, a_s, g, zeros, room, kind, m, n, k, atomic, fp32, floats):
        assert c is bias is a_s is zeros is None and fp32 and not atomic and not floats
        assert m == len(a) and not room.any()
        return (a.float() @ unpacked(w, s, g, kind, n, k).t() + OFF).to(a.dtype)

    @staticmethod
    def silu_and_mul(out, both):
        gate, up = both.float().chunk(2, -1)
        out.copy_(torch.nn.functional.silu(gate) * up)


class moe:
    @staticmethod
    def moe_align_block_size(ids, experts, tall, order, owners, used, around):
        assert ids.dtype == torch.int32 and around is None
        assert tall == (8 if ids.numel() / experts < 7.2 else 16)
        order.fill_(ids.numel())
        at = 0
        for expert in range(experts):
            mine = (ids.flatten() == expert).nonzero()[:, 0].int()
            for tile in mine.split(tall) if len(mine) else ():
                order[at * tall : at * tall + len(tile)] = tile
                owners[at] = expert
                at += 1
        used.fill_(at * tall)

    @staticmethod
    def moe_wna16_marlin_gemm(a, c, w, bias, s, a_s, g, zeros, room, order, owners, used, weights,
                              tall, topk, weigh, kind, m, n, k, atomic, fp32, floats, *threads):
        assert threads == (-1, -1, -1) and m == len(a) and weights.is_contiguous()
        c.fill_(float("nan"))
        for i in range(int(used) // tall):
            expert = int(owners[i])
            pairs = order[i * tall : (i + 1) * tall]
            pairs = pairs[pairs < len(c)].long()
            y = a[pairs // topk].float() @ unpacked(w[expert], s[expert], g[expert], kind, n, k).t()
            c[pairs] = (y * weights.flatten()[pairs][:, None] if weigh else y).to(c.dtype)

    @staticmethod
    def moe_sum(parts, out):
        out.copy_(parts.float().sum(1))


def vllm_c():
    return ops


def vllm_moe():
    return ops, moe


class gemms:
    @staticmethod
    def get_mn_major_tma_aligned_tensor(scales):
        return scales.transpose(-1, -2).contiguous().transpose(-1, -2)

    @staticmethod
    def fp8_gemm_nt(a, b, out, disable_ue8m0_cast):
        assert disable_ue8m0_cast
        x, w = Fp8Block(*a, (1, 128)).dequantize(), Fp8Block(*b).dequantize()
        out.copy_(x @ w.t())

    @staticmethod
    def m_grouped_fp8_gemm_nt_contiguous(a, b, out, groups, disable_ue8m0_cast):
        x, w = Fp8Block(*a, (1, 128)).dequantize(), Fp8Block(*b).dequantize()
        assert len(x) % 128 == 0
        for tile in range(0, len(x), 128):
            rows = slice(tile, tile + 128)
            assert len(set(groups[rows].tolist()) - {-1}) == 1
            out[rows] = (x[rows] @ w[int(groups[tile])].t()).to(out.dtype)

    @staticmethod
    def m_grouped_fp8_gemm_nt_masked(a, b, out, counts, expected, disable_ue8m0_cast):
        x, w = Fp8Block(*a, (1, 128)).dequantize(), Fp8Block(*b).dequantize()
        assert expected == 1 and counts.dtype == torch.int32
        out.fill_(3e4)
        for group, count in enumerate(counts.tolist()):
            out[group, :count] = (x[group, :count] @ w[group].t()).to(out.dtype)


def deep_gemm():
    return gemms
'''


@pytest.fixture
def loaders(tmp_path: Path) -> Path:
    path = tmp_path / "peers.py"
    path.write_text(LOADERS)
    return path


@pytest.fixture
def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Case, "call", reference_as_kernel)


GROUPS = {"experts": 16, "room": 8}
CASES: list[tuple[str, Case]] = [
    ("marlin", speed.linear_case("nvfp4", "w4a16", 3, 64, 256)),
    ("marlin", speed.linear_case("int4", "w4a16", 1, 128, 256)),
    ("marlin_experts", speed._experts_case("tiny", 3, (16, 128, 64))),
    ("marlin_experts", speed._experts_case("tiny", 15, (16, 128, 64))),
    ("deep_gemm_linear", speed.linear_case("fp8-block", "w8a8", 5, 256, 384)),
    ("deep_gemm_linear", speed.linear_case("fp8-block", "w8a16", 5, 256, 384)),
    ("deep_gemm_grouped", speed._grouped_case("tiny", "up", 256, 128, 256, experts=16)),
    ("deep_gemm_grouped", speed._grouped_case("tiny", "up", 2, 128, 256, **GROUPS)),
]


@pytest.mark.usefixtures("_no_kernels")
@pytest.mark.parametrize(("peer", "case"), CASES, ids=lambda x: getattr(x, "name", x))
def test_a_peer_is_called_with_what_our_op_gets(peer: str, case: Case, loaders: Path) -> None:
    entry = run_line(Line(case, (peer,), 1.0), bench(Peers(loaders)))
    assert entry["missing"] == {} and set(entry["peers"]) == {peer}
    assert entry["ratio"] == pytest.approx(1.0)


@pytest.mark.usefixtures("_no_kernels")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("OFF = 0", "OFF = 0.1"),
        ("[0, 2, 1, 3]", "[0, 1, 2, 3]"),
        ("i + 8 * j", "8 * i + j"),
        ("2.0**-119", "2.0**-118"),
    ],
)
def test_other_layouts_are_noticed(old: str, new: str, loaders: Path) -> None:
    assert old in LOADERS
    loaders.write_text(LOADERS.replace(old, new))
    entry = run_line(Line(CASES[0][1], ("marlin",), 1.0), bench(Peers(loaders)))
    assert "its result is not ours" in entry["missing"]["marlin"]


def test_no_adapter_is_left_out() -> None:
    from bench.test_kernels import CASES as OTHERS

    assert {peer for peer, _ in CASES} | set(OTHERS) == set(PEERS)
    assert not {peer for peer, _ in CASES} & set(OTHERS)


def test_a_packed_weight_keeps_every_scale_but_the_smallest() -> None:
    codes = torch.zeros(64, 8 * 16, dtype=torch.uint8)
    scales = torch.arange(64 * 16, dtype=torch.int32).remainder(0x7F).to(torch.uint8)
    scales = scales.view(64, 16).view(torch.float8_e4m3fn)

    class Ops:
        gptq_marlin_repack = staticmethod(lambda words, *sizes: words)

    packed = pack(Ops, Nvfp4(codes, scales, torch.full((64,), 0.5)))
    bits = packed.scales.view(torch.uint8).to(torch.int16) << 7
    got = bits.view(torch.half).double().flatten().sort().values
    lifted = scales.double() * 128  # no more, since the largest is 448 already
    want = torch.where(lifted < 2, 0, lifted).flatten().sort().values  # its eight bits end there
    assert got.equal(want) and want[200] > 0 and packed.kind == E2M1
    assert packed.factor is not None and packed.factor.tolist() == [0.5 * 2.0**119]


def test_x_that_only_the_peer_rounds_may_be_less_close() -> None:
    got = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    plain = {"x": got}
    rounded = {"x": Fp8Block(got.to(torch.float8_e4m3fn), torch.ones(64, 1), (1, 128))}
    assert _close_product(plain, got, got + 0.026 * noise)
    assert not _close_product(rounded, got, got + 0.026 * noise)
    assert _close_product(rounded, got, got + 0.003 * noise)
    assert not _close_product(plain, got, got + 0.06 * noise)


@pytest.mark.parametrize("case", [CASES[6][1], CASES[7][1]], ids=lambda case: case.name)
def test_only_rows_of_a_group_are_compared(case: Case) -> None:
    inputs = case.make(Maker(CPU))
    want = case.call(inputs, "reference")
    rows = speed.served(inputs)
    assert 0 < rows.sum() < rows.numel() == want[..., 0].numel()
    assert not inputs["x"].dequantize()[~rows].any()  # a peer may read them
    other = torch.where(rows[..., None], want, 9.0)
    case.compare(inputs, other, want)
    assert _close_rows(inputs, want, other)
    wrong = torch.where(rows[..., None], want + 1, want)
    assert not _close_rows(inputs, want, wrong)
    with pytest.raises(AssertionError, match="over tolerance"):
        case.compare(inputs, wrong, want)


def test_every_call_meets_other_weights() -> None:
    sets = _input_sets(Line(CASES[0][1], (), None), bench(Peers()), 3)
    codes = [x["weight"].codes for x in sets]
    assert len({c.data_ptr() for c in codes}) == 3 and not codes[0].equal(codes[2])


def test_every_call_of_experts_meets_other_experts() -> None:
    sets = _input_sets(Line(CASES[2][1], (), None), bench(Peers()), 2)
    assert sets[0]["gate_up"] is sets[1]["gate_up"]
    assert not sets[0]["ids"].equal(sets[1]["ids"])
    for row in sets[1]["ids"].tolist():
        assert len(set(row)) == speed.TOPK  # a token names an expert once


def test_the_rows_of_experts_are_those_of_tokens() -> None:
    counts = speed.routed(64, 256)
    assert sum(counts) == 64 * 8 and max(counts) <= 64 and len(counts) == 256
    assert speed.routed(64, 256) == counts != speed.routed(65, 256)


def test_the_least_work() -> None:
    by_name = {case.name: case.timing for case in speed.CASES}
    few = by_name["nvfp4-w4a16-16x6144x4096"]
    assert few is not None and few.flops == 2 * 16 * 6144 * 4096
    assert few.nbytes == 6144 * 4096 * 9 // 16 + 2 * 16 * (6144 + 4096)
    fp8 = by_name["fp8-w8a8-128x4096x7168"]
    assert fp8 is not None and fp8.math == "fp8"
    assert fp8.nbytes == 4096 * 7168 + 4 * 32 * 56 + 128 * (7168 + 4 * 56 + 2 * 4096)
    group = by_name["fp8-v3-up-decode-8"]
    read = sum(count > 0 for count in speed.routed(8, 256))
    assert group is not None and 50 < read < 64
    rows = 64 * (7168 + 4 * 56 + 2 * 4096)
    assert group.nbytes == read * (4096 * 7168 + 4 * 32 * 56) + rows
    one = by_name["nvfp4-w4a16-glm5-b1"]
    assert one is not None and one.nbytes == 8 * 3 * 2048 * 6144 * 9 // 16 + 4 * 6144
    most = by_name["nvfp4-w4a16-glm5-b64"]
    assert most is not None and 0.86 < most.nbytes / (32 * one.nbytes) < 0.88
