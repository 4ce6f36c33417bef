"""Launches of linear layers both of whose operands are quantized."""

import torch
import triton

from sparkwell.errors import BadInput
from sparkwell.formats.fp8 import Fp8Block, Fp8Rows
from sparkwell.formats.weights import QuantizedTensor, kind
from sparkwell.hardware.targets import Feature
from sparkwell.ops.device import device_of
from sparkwell.ops.launch import interpreting, launch
from sparkwell.ops.linear.kernels.scaled import scaled_kernel
from sparkwell.ops.linear.run import add_parts
from sparkwell.ops.linear.schedule import SCALED, Problem, parts, scaled_shared
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import pick


def multiply_quantized(
    x: QuantizedTensor,
    weight: QuantizedTensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """x W^T + bias of two quantized operands.  [m, K], [N, K] -> [m, N]

    Raises BadInput for formats that no product takes together.
    """
    if isinstance(x, Fp8Rows) and isinstance(weight, Fp8Rows):
        return _fp8(x, weight, bias, out_dtype, 0)
    if isinstance(x, Fp8Block) and isinstance(weight, Fp8Block):
        if x.block != (1, weight.block[1]):
            raise BadInput(
                f"linear: x has scales per {x.block[0]} rows and {x.block[1]} columns, want one "
                f"a row and {weight.block[1]} columns, as the weight's blocks are"
            )
        return _fp8(x, weight, bias, out_dtype, weight.block[1])
    raise BadInput(
        f"linear: x is {kind(x)} and the weight {kind(weight)}; want Fp8Rows for Fp8Rows and "
        "Nvfp4 weights, Fp8Block for Fp8Block, Nvfp4 for Nvfp4"
    )


def _fp8(
    x: Fp8Rows | Fp8Block,
    weight: Fp8Rows | Fp8Block,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    group: int,
) -> torch.Tensor:
    (m, k), n, device = x.shape, weight.shape[0], device_of(x.device)
    problem = Problem(m, n, k, "fp8", "fp8", group)
    choice = pick("linear", SCALED, problem, device.target, shared=scaled_shared)
    s, widen = choice.schedule, bool(device.target.missing(Feature.FP8_MMA))
    share = parts(problem, s, device.sms)
    kind_of = torch.uint8 if widen else torch.float8_e4m3fn
    w, rows = unit_stride(weight.values.view(kind_of)), unit_stride(x.values.view(kind_of))
    y = torch.empty(m, n, dtype=out_dtype, device=x.device)
    out = y
    if share.count > 1:
        out = torch.empty(share.count, m, n, dtype=torch.float32, device=x.device)
    bias = None if bias is None else unit_stride(bias)
    group_n = weight.block[0] if isinstance(weight, Fp8Block) else 1
    w_scales = unit_stride(weight.scales)
    stride_group = x.scales.stride(1) if isinstance(x, Fp8Block) else 0
    launch(
        scaled_kernel, (triton.cdiv(n, s.block_n) * triton.cdiv(m, s.block_m), share.count), out, w,
        w_scales, rows, x.scales, bias, m, n, k, share.chunk, group_n, w.stride(0),
        w_scales.stride(0), rows.stride(0), x.scales.stride(0), stride_group,
        choice=choice, GROUPED=group > 0, UNIFORM=group > 0 and group_n % s.block_n == 0,
        BY_X=s.block_m >= 64, WIDEN=widen, ASM=not interpreting(), PARTS=share.count > 1,
        EVEN=k % s.block_k == 0, GROUP=max(1, group), BN=s.block_n, BM=s.block_m, BK=s.block_k,
    )  # fmt: skip
    if share.count > 1:
        add_parts(y, out, None, bias, choice)
    return y
