"""What bytes mean: number formats, quantized tensors, cache records."""

from sparkwell.formats.floats import (
    e2m1_decode,
    e2m1_encode,
    e2m1_pack,
    e2m1_unpack,
    e4m3_decode,
    e4m3_encode,
    pow2_ceil,
    ue8m0_decode,
    ue8m0_encode,
)
from sparkwell.formats.kv import Field, Record, gqa_record, index_key_record, latent_record
from sparkwell.formats.paged import PagedCache
from sparkwell.formats.weights import (
    Fp8Block,
    Weight,
    dequantize_fp8_rows,
    quantize_fp8_block,
    quantize_fp8_rows,
)

__all__ = [
    "Field",
    "Fp8Block",
    "PagedCache",
    "Record",
    "Weight",
    "dequantize_fp8_rows",
    "e2m1_decode",
    "e2m1_encode",
    "e2m1_pack",
    "e2m1_unpack",
    "e4m3_decode",
    "e4m3_encode",
    "gqa_record",
    "index_key_record",
    "latent_record",
    "pow2_ceil",
    "quantize_fp8_block",
    "quantize_fp8_rows",
    "ue8m0_decode",
    "ue8m0_encode",
]
