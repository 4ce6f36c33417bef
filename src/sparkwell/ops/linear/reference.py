"""References of the linear layers, in fp32:  y = x W^T + bias, with W = values * scales.

Where activations are quantized too, x is replaced by what their format makes of it; the products
and sums stay fp32, so that a kernel's error is its own and not the format's.
"""

from typing import get_args

import torch
from torch.nn import functional

from sparkwell.errors import BadInput
from sparkwell.formats.fp8 import (
    Fp8Block,
    dequantize_fp8_rows,
    quantize_fp8_rows,
    quantize_fp8_tokens,
)
from sparkwell.formats.mxfp4 import quantize_mxfp4
from sparkwell.formats.nvfp4 import quantize_nvfp4_tokens
from sparkwell.formats.quantized import Activations
from sparkwell.formats.weights import QuantizedTensor, Weight, dequantize
from sparkwell.ops.linear.arithmetic import activations_of


def linear_reference(
    x: torch.Tensor | QuantizedTensor,
    weight: Weight,
    bias: torch.Tensor | None = None,
    *,
    arithmetic: str = "auto",
) -> torch.Tensor:
    """The meaning of `linear`, in fp32.  [..., K], [N, K], [N] -> [..., N]

    arithmetic: one whose activations are quantized quantizes x first; "auto" leaves it as it is.
    """
    if not isinstance(x, torch.Tensor):
        x = x.dequantize()
    elif not isinstance(weight, torch.Tensor):
        x = activations_reference(x, weight, activations_of(arithmetic, weight))
    bias = None if bias is None else bias.float()
    return functional.linear(x.float(), dequantize(weight), bias)


def fp8_block_gemm_reference(
    x_q: torch.Tensor, x_scales: torch.Tensor, weight: Fp8Block
) -> torch.Tensor:
    """y[m, n] = sum over K groups g of x_scales[m, g] * w_scales[n/128, g] * (x_q[m, g] . w[n, g]).

    The multiplication with quantized activations (arXiv 2412.19437, section 3.3): both operands
    e4m3, one scale per token and 128 of K, one per 128 x 128 of the weight, fp32 accumulation.

    x_q: [..., K] e4m3, from `quantize_fp8_rows`.
    x_scales: [..., ceil(K/128)] fp32.
    weight: [N, K].

    Returns [..., N] fp32.
    """
    x = dequantize_fp8_rows(x_q, x_scales, group=weight.block[1])
    return functional.linear(x, weight.dequantize())


def quantized_gemm_reference(x: QuantizedTensor, weight: QuantizedTensor) -> torch.Tensor:
    """y[m, n] = sum_k x[m, k] w[n, k] of two quantized operands, in fp32.  [M, K], [N, K] -> [M, N]

    x: what `quantize_fp8_tokens` (FP8 per token: y = s_m s_n sum x_q w_q for Fp8Rows; W4A8 for
    Nvfp4, Mxfp4 and Int4Group) or `quantize_nvfp4_tokens` (W4A4: y = f_m f_n sum over blocks b of
    s[m, b] s[n, b] sum x_q w_q, NVIDIA's block-scaled product) makes, or a kernel in their place.
    """
    return functional.linear(x.dequantize(), weight.dequantize())


def quantized_linear_reference(
    x: torch.Tensor,
    weight: QuantizedTensor,
    bias: torch.Tensor | None = None,
    *,
    activations: Activations | None = None,
) -> torch.Tensor:
    """`linear_reference` of x as the checkpoint's makers quantize it.  [..., K] -> [..., N] fp32

    activations: None: weight.activations, with its static scale where it has one.  Of another
    format they are quantized dynamically.
    """
    return linear_reference(activations_reference(x, weight, activations), weight, bias)


def activations_reference(
    x: torch.Tensor, weight: QuantizedTensor, activations: Activations | None = None
) -> torch.Tensor:
    """x quantized and dequantized again, [..., K] fp32; the scales' formulas:

    "fp8-token": amax(token) / 448 (vLLM, compressed-tensors "token"); floor 1e-4 / 448.
    "fp8-tensor": the checkpoint's input_scale; where it has none, as "fp8-token", whose result
    does not depend on the other tokens of the batch.
    "fp8-group": amax / 448 of each block[1] values (arXiv 2412.19437, section 3.3); 128 for
    weights without blocks.
    "nvfp4": e4m3(amax(16) / (6 f)) * f, f = input_scale or amax(token) / 2688.
    "mxfp4": a power of two of each 32 (`quantize_mxfp4`); x must be finite.
    """
    kind = weight.activations if activations is None else activations
    scale = weight.input_scale if kind == weight.activations else None
    rows = x.float().reshape(-1, x.shape[-1])
    if kind == "none":
        return x.float()
    if kind == "fp8-group":
        group = weight.block[1] if isinstance(weight, Fp8Block) else 128
        y = dequantize_fp8_rows(*quantize_fp8_rows(rows, group), group)
    elif kind == "fp8-token":
        y = quantize_fp8_tokens(rows).dequantize()
    elif kind == "fp8-tensor":
        y = quantize_fp8_tokens(rows, scale).dequantize()
    elif kind == "nvfp4":
        y = quantize_nvfp4_tokens(rows, scale).dequantize()
    elif kind == "mxfp4":
        y = quantize_mxfp4(rows).dequantize()
    else:
        raise BadInput(
            f"activations_reference: activations are {kind!r}, want one of "
            f"{', '.join(get_args(Activations))}"
        )
    return y.reshape(x.shape)
