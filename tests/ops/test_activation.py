"""SwiGLU against its formula in fp64."""

import pytest
import torch

from sparkwell.errors import BadInput
from sparkwell.ops.activation import swiglu, swiglu_reference
from sparkwell.testing import assert_matches, in_poison


@pytest.mark.parametrize("shape", [(2, 3, 14), (5, 2), (0, 8), (3, 0), (6,)], ids=str)
def test_swiglu_is_its_formula_with_the_gate_first(shape: tuple[int, ...]) -> None:
    x = in_poison(4.0 * torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    half = shape[-1] // 2
    gate, up = x[..., :half].double(), x[..., half:].double()
    got = swiglu(x)
    assert got.shape == (*shape[:-1], half)
    assert_matches(got, gate / (1.0 + torch.exp(-gate)) * up, "elementwise")


def test_large_gates_saturate_and_do_not_overflow() -> None:
    got = swiglu(torch.tensor([[1e4, -1e4, 90.0, -90.0, 2.0, 2.0, 2.0, 2.0]]))
    assert got[0, :2].tolist() == [2e4, 0.0]
    assert got[0, 2] == 180.0
    assert -1e-30 < got[0, 3] <= 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_at_the_end(dtype: torch.dtype) -> None:
    x = torch.randn(4, 200, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert swiglu_reference(x).dtype == torch.float32
    assert torch.equal(swiglu(x), swiglu_reference(x).to(dtype))
    gate, up = x.double().chunk(2, -1)
    assert_matches(swiglu_reference(x), gate * gate.sigmoid() * up, "elementwise")


@pytest.mark.parametrize(
    "wrong", [torch.ones(2, 5), torch.tensor(1.0), torch.ones(2, 4, dtype=torch.int32)]
)
def test_what_is_no_pair_of_halves_is_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(BadInput, match=r"swiglu: gate_up is \(.*want \[\.\.\., 2\*I\] of a float"):
        swiglu(wrong)
