"""Is this tensor that tensor?  Three questions, one readable failure, one table of tolerances."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """An element passes within `atol` + `rtol`*|want|; the whole passes within the cosine `gap`."""

    atol: float
    rtol: float
    gap: float


# (op class, format) -> tolerance.  Changing a row is a commit of its own, with the measurement.
TOLERANCES: dict[tuple[str, str], Tolerance] = {
    ("elementwise", "fp32"): Tolerance(2e-6, 2e-6, 1e-10),
    ("elementwise", "bf16"): Tolerance(1e-3, 2**-7, 1e-5),
    # An angle of 4000 is known to 2^-12 in fp32: processors round its sine differently.
    ("rotary", "fp32"): Tolerance(5e-4, 1e-5, 1e-7),
    ("rotary", "bf16"): Tolerance(2e-3, 2**-7, 1e-5),
    ("matmul", "fp32"): Tolerance(2e-5, 2e-5, 1e-9),
    ("matmul", "bf16"): Tolerance(1e-2, 2**-6, 1e-5),
    # What stands between the two products is rounded, too: half a step of the size of the sum's
    # terms, which may cancel.  The reference against itself with hidden rows rounded to bfloat16,
    # 6144 x 2048, top 8: an error of 0.0048 of results of 2.9, 0.0088 in the worst of 256 rows, a
    # gap of 3e-6.  Of 25 million values the worst is six of those off: 5.5e-2 seen on a GPU.
    ("experts", "fp32"): Tolerance(2e-5, 2e-5, 1e-9),
    ("experts", "bf16"): Tolerance(6e-2, 2**-6, 2e-5),
    # A value at the edge of two codes of e4m3 may get the other one: 2^-4 of a term.  The reference
    # with nothing changed but hidden rows rounded to bfloat16 first, 60 draws of the small cases,
    # results of size 1.4: 0.27 beyond 2^-5, a gap of 1.9e-4.
    ("experts", "fp8"): Tolerance(4e-1, 2**-5, 4e-4),
    # ... and of e2m1, whose steps are up to a third of a value: 0.74, and a gap of 3.2e-3.
    ("experts", "fp4"): Tolerance(1.0, 2**-4, 6e-3),
    ("experts", "fp16"): Tolerance(5e-3, 2**-9, 2e-7),
    # Weights rounded to bfloat16 first: 2^-9 / sqrt(3) of the size of a sum's terms, five times.
    ("matmul", "rounded"): Tolerance(2e-2, 2**-6, 1e-5),
    # Hopper's FP8 units cut sums of 32 products to 13 bits: 1.6e-3 of 2.2 seen, 1.3e-4 of the norm.
    ("matmul", "fp8-units"): Tolerance(5e-3, 2**-10, 1e-7),
    # Weights rounded to e4m3, at most 2^-4 each: 2.4 % of a sum's size seen, so 0.14 of 1.2.
    ("matmul", "expanded"): Tolerance(0.2, 2**-6, 5e-4),
    ("attention", "fp32"): Tolerance(2e-5, 2e-5, 1e-9),
    ("attention", "bf16"): Tolerance(8e-4, 3 / 128, 7e-6),
    # Weights rounded to bfloat16 before they meet the values: 2^-9 of the sum of weight * |value|,
    # half of it for values of N(0, 1); seen: 3.8e-3 over the next row's bound, gap 1e-5.
    ("attention", "half"): Tolerance(8e-3, 3 / 128, 2e-5),
    ("lse", "fp32"): Tolerance(1e-6, 8.01 / 65536, 1e-7),
    ("indexer", "fp32"): Tolerance(1e-5, 1e-5, 1e-9),
    # Scores of FP8 operands are sums over heads of size 50 to 100 that cancel.
    ("indexer", "fp8"): Tolerance(5e-4, 1e-5, 1e-7),
    # Hopper's FP8 units cut sums of 32 products to 13 bits: 0.12 of 200 seen, a gap of 5e-9;
    # DeepGEMM's own tests allow 5e-6.
    ("indexer", "fp8-units"): Tolerance(0.3, 1e-5, 1e-7),
    ("logits", "fp32"): Tolerance(1e-4, 0.0, 1e-8),
}


def cosine_gap(x: torch.Tensor, y: torch.Tensor) -> float:
    """1 - 2<x,y> / (<x,x> + <y,y>), in fp64: 0 when equal."""
    x, y = x.double(), y.double()
    total = (x * x + y * y).sum().item()
    return 0.0 if total == 0 else 1.0 - 2.0 * (x * y).sum().item() / total


def assert_matches(
    got: torch.Tensor, want: torch.Tensor, op: str, fmt: str = "fp32", *, label: str = ""
) -> None:
    """`want` is the reference: same shape, same non-finite places, close each, close overall."""
    limit, label = TOLERANCES[op, fmt], label or op
    assert got.shape == want.shape, f"{label}: shape {tuple(got.shape)}, want {tuple(want.shape)}"
    got, want = got.float(), want.float()
    for name, test in (("nan", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        bad = (test(got) != test(want)).nonzero()
        assert not len(bad), f"{label}: {name} differs {len(bad)} times, first at {bad[0].tolist()}"
    finite = torch.isfinite(want)
    got, want = torch.where(finite, got, 0), torch.where(finite, want, 0)
    over = (got - want).abs() - (limit.atol + limit.rtol * want.abs())
    if bool((over > 0).any()):
        at = tuple(int(i) for i in torch.unravel_index(over.argmax(), over.shape))
        raise AssertionError(
            f"{label}: {int((over > 0).sum())} of {over.numel()} elements over tolerance; worst at "
            f"{at}: got {got[at]:.8g}, want {want[at]:.8g}"
        )
    gap = cosine_gap(got, want)
    assert gap <= limit.gap, f"{label}: cosine gap {gap:.2e} over {limit.gap:.0e}"


def in_poison(t: torch.Tensor, margin: int = 16) -> torch.Tensor:
    """The same values as a strided view into a larger buffer full of NaN on every side.

    Integer tensors get a margin of 2147480000, an index no table holds.
    """
    shape = [n + 2 * margin for n in t.shape]
    fill = float("nan") if t.is_floating_point() else min(2147480000, torch.iinfo(t.dtype).max)
    buffer = torch.full(shape, fill, dtype=t.dtype)
    view = buffer[tuple(slice(margin, margin + n) for n in t.shape)]
    view.copy_(t)
    return view
