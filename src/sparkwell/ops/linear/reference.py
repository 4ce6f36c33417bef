"""References of the linear layers, in fp32:  y = x W^T + bias, with W = values * scales."""

import torch
from torch.nn import functional

from sparkwell.formats.fp8 import Fp8Block, dequantize_fp8_rows
from sparkwell.formats.weights import Weight, dequantize


def linear_reference(
    x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The meaning of `linear`, in fp32.  [..., K], [N, K], [N] -> [..., N]"""
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
