"""What bytes mean: number formats, quantized tensors, cache records."""

from typing import TYPE_CHECKING

from sparkwell.lazy import lazily

if TYPE_CHECKING:
    from sparkwell.formats.floats import (
        e2m1_decode,
        e2m1_encode,
        e2m1_pack,
        e2m1_unpack,
        e2m1_values,
        e4m3_decode,
        e4m3_encode,
        pow2_ceil,
        ue8m0_decode,
        ue8m0_encode,
    )
    from sparkwell.formats.fp8 import (
        Fp8Block,
        Fp8Rows,
        dequantize_fp8_rows,
        quantize_fp8_block,
        quantize_fp8_channels,
        quantize_fp8_rows,
        quantize_fp8_tokens,
    )
    from sparkwell.formats.int4 import Int4Group, quantize_int4
    from sparkwell.formats.kv import Field, Record, gqa_record, index_key_record, latent_record
    from sparkwell.formats.mxfp4 import Mxfp4, quantize_mxfp4
    from sparkwell.formats.nvfp4 import (
        Nvfp4,
        quantize_nvfp4,
        quantize_nvfp4_tokens,
        swizzle_128x4,
        unswizzle_128x4,
    )
    from sparkwell.formats.paged import PagedCache
    from sparkwell.formats.quantized import Activations, Quantized
    from sparkwell.formats.weights import (
        QuantizedTensor,
        Weight,
        dequantize,
        join,
        kind,
        select,
        stack,
        unjoinable,
        unstackable,
    )

__all__ = [
    "Activations",
    "Field",
    "Fp8Block",
    "Fp8Rows",
    "Int4Group",
    "Mxfp4",
    "Nvfp4",
    "PagedCache",
    "Quantized",
    "QuantizedTensor",
    "Record",
    "Weight",
    "dequantize",
    "dequantize_fp8_rows",
    "e2m1_decode",
    "e2m1_encode",
    "e2m1_pack",
    "e2m1_unpack",
    "e2m1_values",
    "e4m3_decode",
    "e4m3_encode",
    "gqa_record",
    "index_key_record",
    "join",
    "kind",
    "latent_record",
    "pow2_ceil",
    "quantize_fp8_block",
    "quantize_fp8_channels",
    "quantize_fp8_rows",
    "quantize_fp8_tokens",
    "quantize_int4",
    "quantize_mxfp4",
    "quantize_nvfp4",
    "quantize_nvfp4_tokens",
    "select",
    "stack",
    "swizzle_128x4",
    "ue8m0_decode",
    "ue8m0_encode",
    "unjoinable",
    "unstackable",
    "unswizzle_128x4",
]

if not TYPE_CHECKING:
    __getattr__ = lazily(
        __name__, "floats", "fp8", "int4", "kv", "mxfp4", "nvfp4", "paged", "quantized", "weights"
    )
