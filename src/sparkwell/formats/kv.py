"""Cache records: what the bytes of one token mean, as tables of fields.

A record is inline (one token = one run of bytes) or planar (a page holds all tokens' first field,
then all tokens' second field, ...).  In a planar page the plane of a field starts at
page_size * field.offset, since the fields before it take that many bytes for a whole page.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from sparkwell.errors import BadInput
from sparkwell.formats.limits import AMAX_FLOOR, AMAX_TINY

if TYPE_CHECKING:
    import torch  # what records are is known without it; what fills them imports it

LATENT_GROUP = 128  # latent values per scale in the FP8 latent record
_BYTES = {"fp32": 4, "bf16": 2, "e4m3": 1}  # of a value
_PLAIN = ("fp32", "bf16")


@dataclass(frozen=True)
class Field:
    """`count` numbers of `type` ("fp32", "bf16", "e4m3"), little endian, `offset` bytes into a
    token's record."""

    name: str
    offset: int
    type: str
    count: int
    meaning: str

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return _BYTES[self.type]

    @property
    def nbytes(self) -> int:
        """Bytes per token."""
        return self.count * self.itemsize

    @cached_property
    def dtype(self) -> "torch.dtype":
        """The type as torch's."""
        import torch

        types = {"fp32": torch.float32, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn}
        return types[self.type]


@dataclass(frozen=True)
class Part:
    """The next `fields[field].count` logical values: stored in `field`, scaled by `scale`.

    scale: name of the field with one fp32 scale per `group` values; None: stored as they are.
    pow2: written scales are powers of two.  floor: smallest amax that sets a written scale.
    """

    field: str
    scale: str | None = None
    group: int = 0
    pow2: bool = False
    floor: float = AMAX_FLOOR


@dataclass(frozen=True)
class Record:
    """One token's bytes: `fields` tile them without gap, `parts` say how values become fields.

    width: logical values per token, the sum over the parts.
    """

    name: str
    width: int
    fields: tuple[Field, ...]
    planar: bool
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        end = 0
        for field in self.fields:
            assert field.offset == end, f"{self.name}: {field.name} leaves a gap or overlaps"
            assert end % field.itemsize == 0, f"{self.name}: {field.name} is misaligned"
            end += field.nbytes
        assert end % self.alignment == 0, f"{self.name}: {end} bytes misalign the next record"
        stored = [self.field(part.field).count for part in self.parts]
        assert sum(stored) == self.width, f"{self.name}: parts hold {stored}, width {self.width}"
        named = {name for part in self.parts for name in (part.field, part.scale) if name}
        assert named == {field.name for field in self.fields}, f"{self.name}: unused field"

    @cached_property
    def nbytes(self) -> int:
        """Bytes per token."""
        return sum(field.nbytes for field in self.fields)

    @cached_property
    def alignment(self) -> int:
        """Bytes of the largest number inside; a page must start at a multiple of it."""
        return max(field.itemsize for field in self.fields)

    @cached_property
    def _plain_dtype(self) -> "torch.dtype | None":
        """The one type of all values, where the record is just those values in order."""
        types = {field.dtype for field in self.fields}
        scaled = any(part.scale for part in self.parts)
        return None if scaled or len(types) > 1 else types.pop()

    def page_nbytes(self, page_size: int) -> int:
        """Bytes of a page of `page_size` tokens."""
        return self.nbytes * page_size

    def field(self, name: str) -> Field:
        """The field called `name`; KeyError where there is none."""
        return {field.name: field for field in self.fields}[name]

    def pack(self, values: "torch.Tensor") -> "torch.Tensor":
        """Tokens to bytes, fields in order (for a planar record too).

        values: [n, width] float.  BF16 fields round to nearest even; FP8 fields hold
        e4m3(x / scale), scale = max(amax, floor) / 448 (rounded up to a power of two where the
        record says so), so one NaN or infinity makes its whole group NaN when read.
        Returns uint8 [n, nbytes].  Raises BadInput for another shape or for integers.
        """
        import torch

        from sparkwell.formats.fp8 import quantize_fp8_rows

        if values.ndim != 2 or values.shape[1] != self.width or not values.is_floating_point():
            raise BadInput(
                f"{self.name}.pack: values are {values.dtype} {list(values.shape)}, want "
                f"float [n, {self.width}]"
            )
        packed = values.new_empty((len(values), self.nbytes), dtype=torch.uint8)
        if self._plain_dtype is not None:
            packed.view(self._plain_dtype).copy_(values)
            return packed
        start = 0
        for part in self.parts:
            field = self.field(part.field)
            x = values[:, start : start + field.count]
            start += field.count
            if part.scale is not None:
                x, scales = quantize_fp8_rows(x, part.group, part.pow2, floor=part.floor)
                self._column(packed, part.scale).copy_(scales)
            self._column(packed, part.field).copy_(x)
        return packed

    def unpack(self, packed: "torch.Tensor") -> "torch.Tensor":
        """Inverse of `pack`: e4m3 values are multiplied by whatever fp32 scale is stored.

        packed: uint8 [n, nbytes].  Returns fp32 [n, width].  Raises BadInput for another shape.
        """
        import torch

        from sparkwell.formats.fp8 import dequantize_fp8_rows

        if packed.ndim != 2 or packed.shape[1] != self.nbytes or packed.dtype != torch.uint8:
            raise BadInput(
                f"{self.name}.unpack: bytes are {packed.dtype} {list(packed.shape)}, want "
                f"uint8 [n, {self.nbytes}]"
            )
        aligned = self.alignment
        if packed.stride(1) != 1 or packed.stride(0) % aligned or packed.storage_offset() % aligned:
            packed = packed.clone(memory_format=torch.contiguous_format)
        if self._plain_dtype is not None:
            return packed.view(self._plain_dtype).float()
        values = []
        for part in self.parts:
            x = self._column(packed, part.field)
            if part.scale is None:
                values.append(x.float())
            else:
                scales = self._column(packed, part.scale)
                values.append(dequantize_fp8_rows(x, scales, part.group))
        return torch.cat(values, 1)

    def _column(self, packed: "torch.Tensor", name: str) -> "torch.Tensor":
        """One field of every token, as its own type; a view [n, count]."""
        field = self.field(name)
        return packed[:, field.offset : field.offset + field.nbytes].view(field.dtype)


def _scale_is_pow2(op: str, scale: str) -> bool:
    if scale not in ("pow2", "fp32"):
        raise BadInput(f"{op}: scale is {scale!r}, want 'pow2' or 'fp32'")
    return scale == "pow2"


def _require_dtype(op: str, dtype: str) -> None:
    if dtype not in (*_PLAIN, "fp8"):
        raise BadInput(f"{op}: dtype is {dtype!r}, want 'fp32', 'bf16' or 'fp8'")


def latent_record(
    dtype: str, *, scale: str = "pow2", kv_lora_rank: int = 512, rope_dim: int = 64
) -> Record:
    """MLA cache: `kv_lora_rank` latent values, then `rope_dim` rotated key values per token.

    dtype: "fp32" or "bf16": all as they are (2304 or 1152 bytes at 512 + 64); "fp8": latent e4m3
    with one fp32 scale per 128, rope bf16 (656 bytes), inline; FlashMLA's layout.
    scale: "pow2" (DeepSeek; amax floored at 1e-4) or "fp32" (scale floored at 2^-126).
    Raises BadInput for other names, an odd rope_dim, or FP8 and a rank that 128 does not divide.
    """
    _require_dtype("latent_record", dtype)
    pow2 = _scale_is_pow2("latent_record", scale)
    if kv_lora_rank < 1 or rope_dim < 0 or rope_dim % 2:
        raise BadInput(
            f"latent_record: kv_lora_rank {kv_lora_rank}, rope_dim {rope_dim}; want a positive "
            "rank and an even rope_dim, 0 for none"
        )
    width = kv_lora_rank + rope_dim
    name = f"latent_{dtype}_{width}"
    meanings = ("normed latent c_kv, before any head's up-projection", "rotated shared key")
    if dtype == "fp8":
        if kv_lora_rank % LATENT_GROUP:
            raise BadInput(
                f"latent_record: fp8 has one scale per {LATENT_GROUP} latent values, but "
                f"kv_lora_rank is {kv_lora_rank}; use dtype 'bf16'"
            )
        groups = kv_lora_rank // LATENT_GROUP
        floor = AMAX_FLOOR if pow2 else AMAX_TINY
        parts = [Part("latent", "latent_scale", LATENT_GROUP, pow2, floor)]
        fields = [
            Field("latent", 0, "e4m3", kv_lora_rank, meanings[0]),
            Field("latent_scale", kv_lora_rank, "fp32", groups, "per 128 latent values"),
        ]
        rope_type = "bf16"
    else:
        rope_type = dtype
        parts, fields = (
            [Part("latent")],
            [Field("latent", 0, rope_type, kv_lora_rank, meanings[0])],
        )
    if rope_dim:
        offset = fields[-1].offset + fields[-1].nbytes
        parts.append(Part("rope"))
        fields.append(Field("rope", offset, rope_type, rope_dim, meanings[1]))
    return Record(name, width, tuple(fields), False, tuple(parts))


def index_key_record(dtype: str, *, scale: str = "pow2", head_dim: int = 128) -> Record:
    """Keys of the sparse-attention indexer: `head_dim` values per token, one key head.

    dtype: "fp32" or "bf16": as they are (512 or 256 bytes at 128); "fp8": planar, a page holds
    page_size rows of e4m3, then page_size fp32 scales (132 bytes per token); DeepGEMM's layout.
    scale: "pow2" (DeepSeek) or "fp32"; amax floored at 1e-4 in both.
    Raises BadInput for other names or a head_dim that 4 does not divide.
    """
    _require_dtype("index_key_record", dtype)
    pow2 = _scale_is_pow2("index_key_record", scale)
    if head_dim < 1 or head_dim % 4:
        raise BadInput(f"index_key_record: head_dim is {head_dim}, want a positive multiple of 4")
    name, meaning = f"index_key_{dtype}_{head_dim}", "indexer key after norm and rotation"
    if dtype != "fp8":
        field = Field("key", 0, dtype, head_dim, meaning)
        return Record(name, head_dim, (field,), False, (Part("key"),))
    fields = (
        Field("key", 0, "e4m3", head_dim, meaning),
        Field("key_scale", head_dim, "fp32", 1, "of the whole key"),
    )
    part = Part("key", "key_scale", head_dim, pow2, AMAX_FLOOR)
    return Record(name, head_dim, fields, True, (part,))


def gqa_record(num_kv_heads: int, head_dim: int, dtype: str) -> Record:
    """Grouped-query cache: all K heads, then all V heads; planar: page_size K rows, then V rows.

    dtype: "fp32", "bf16", or "fp8": e4m3 with one fp32 scale per token and head, for K and for V
    (planes k, v, k_scale, v_scale), scales at least 2^-126.
    Raises BadInput for other names, no head, or an odd head_dim.
    """
    _require_dtype("gqa_record", dtype)
    if num_kv_heads < 1 or head_dim < 1 or head_dim % 2:
        raise BadInput(
            f"gqa_record: {num_kv_heads} heads of {head_dim}, want at least one and an even size"
        )
    row = num_kv_heads * head_dim
    name = f"gqa_{dtype}_{num_kv_heads}x{head_dim}"
    meanings = ("keys, head by head", "values, head by head")
    if dtype != "fp8":
        fields: tuple[Field, ...] = (
            Field("k", 0, dtype, row, meanings[0]),
            Field("v", row * _BYTES[dtype], dtype, row, meanings[1]),
        )
        return Record(name, 2 * row, fields, True, (Part("k"), Part("v")))
    scales_at = 2 * row
    fields = (
        Field("k", 0, "e4m3", row, meanings[0]),
        Field("v", row, "e4m3", row, meanings[1]),
        Field("k_scale", scales_at, "fp32", num_kv_heads, "per key head"),
        Field("v_scale", scales_at + 4 * num_kv_heads, "fp32", num_kv_heads, "per head"),
    )
    parts = tuple(Part(x, f"{x}_scale", head_dim, False, AMAX_TINY) for x in ("k", "v"))
    return Record(name, 2 * row, fields, True, parts)
