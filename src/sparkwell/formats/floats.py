"""Bit codecs of the small float formats: e4m3 (FP8), e2m1 (FP4) and ue8m0 (power-of-two scales).

e4m3 is the "fn" variant of the OCP 8-bit floating point specification (no infinities, one NaN
pattern per sign); e2m1 and ue8m0 (there: E8M0) are those of the OCP microscaling specification.
"""

import torch

from sparkwell.errors import BadInput

E4M3_MAX = 448.0  # largest finite e4m3 value, bits 0x7e
E2M1_MAX = 6.0  # largest e2m1 value, bits 0x7
SMALLEST_NORMAL = 2.0**-126  # of fp32

# (value, bits) of every value at which a format changes its behaviour; a NaN stands for any NaN.
E4M3_EDGES: tuple[tuple[float, int], ...] = (
    (0.0, 0x00),
    (-0.0, 0x80),
    (2.0**-9, 0x01),  # smallest subnormal
    (7 * 2.0**-9, 0x07),  # largest subnormal
    (2.0**-6, 0x08),  # smallest normal
    (1.0, 0x38),
    (1.125, 0x39),  # the next one
    (-2.0, 0xC0),
    (240.0, 0x77),  # where the variant with infinities would end
    (E4M3_MAX, 0x7E),
    (-E4M3_MAX, 0xFE),
    (float("nan"), 0x7F),
    (float("nan"), 0xFF),
)
E2M1_EDGES: tuple[tuple[float, int], ...] = (
    (0.0, 0x0),
    (0.5, 0x1),  # the only subnormal
    (1.0, 0x2),
    (1.5, 0x3),
    (2.0, 0x4),
    (3.0, 0x5),
    (4.0, 0x6),
    (E2M1_MAX, 0x7),
    (-0.0, 0x8),
    (-0.5, 0x9),
    (-1.0, 0xA),
    (-1.5, 0xB),
    (-2.0, 0xC),
    (-3.0, 0xD),
    (-4.0, 0xE),
    (-E2M1_MAX, 0xF),
)
UE8M0_EDGES: tuple[tuple[float, int], ...] = (
    (2.0**-127, 0x00),  # a subnormal of fp32
    (2.0**-126, 0x01),
    (0.5, 0x7E),
    (1.0, 0x7F),
    (2.0, 0x80),
    (2.0**127, 0xFE),
    (float("nan"), 0xFF),
)

# |x| above boundary i has at least code i+1.  The midpoints, but those whose tie goes up to an
# even code (.75, 1.75, 3.5) stand one fp32 step lower, so that one comparison serves both kinds.
_E2M1_BOUNDARIES = (0.25, 0.75 - 2.0**-24, 1.25, 1.75 - 2.0**-23, 2.5, 3.5 - 2.0**-22, 5.0)


def _require_float(op: str, x: torch.Tensor) -> torch.Tensor:
    if not x.is_floating_point():
        raise BadInput(f"{op}: x is {x.dtype}, want a float tensor; convert it first")
    return x.float()


def _require_codes(op: str, codes: torch.Tensor) -> None:
    if codes.dtype != torch.uint8:
        raise BadInput(f"{op}: codes are {codes.dtype}, want torch.uint8; view them as bytes first")


def e4m3_encode(x: torch.Tensor) -> torch.Tensor:
    """bits = e4m3(clamp(x, -448, 448)), round to nearest even.

    x: [...] any float, rounded to fp32 first; infinities saturate, NaN becomes 0x7f or 0xff.
    Returns [...] uint8.  Raises BadInput for integers.  Source: OCP FP8 specification, table 1.
    """
    x = _require_float("e4m3_encode", x)
    # The clamp is ours: whether a cast saturates differs between versions of torch.
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)


def e4m3_decode(codes: torch.Tensor) -> torch.Tensor:
    """The value of each code: sign * 2^(e-7) * (1 + m/8), or sign * 2^-6 * m/8 where e = 0.

    codes: [...] uint8; 0x7f and 0xff are NaN.  Returns [...] fp32.  Raises BadInput otherwise.
    """
    _require_codes("e4m3_decode", codes)
    return codes.view(torch.float8_e4m3fn).float()


def e2m1_encode(x: torch.Tensor) -> torch.Tensor:
    """code = 8*sign + index of |x| in {0, .5, 1, 1.5, 2, 3, 4, 6}, nearest, ties to the even code.

    x: [...] any float; beyond 6 saturates; NaN, which the format lacks, becomes +6 as in the PTX
    instruction cvt.rn.satfinite.e2m1x2; -0 and negative underflow keep their sign.
    Returns [...] uint8 in 0..15, one code a byte.  Raises BadInput for integers.  Source: OCP MX.
    """
    x = _require_float("e2m1_encode", x).nan_to_num(E2M1_MAX)
    boundaries = torch.tensor(_E2M1_BOUNDARIES, dtype=torch.float32, device=x.device)
    magnitude = torch.bucketize(x.abs().contiguous(), boundaries, out_int32=True)
    return (magnitude + 8 * x.signbit()).to(torch.uint8)


def e2m1_decode(codes: torch.Tensor) -> torch.Tensor:
    """The value of each code 0..15; the upper four bits of a byte are ignored.

    codes: [...] uint8, one code a byte.  Returns [...] fp32.  Raises BadInput for other types.
    """
    _require_codes("e2m1_decode", codes)
    values = torch.tensor([value for value, _ in E2M1_EDGES], device=codes.device)
    return values[(codes & 0xF).long()]


def e2m1_pack(codes: torch.Tensor) -> torch.Tensor:
    """byte j = codes[2j] | codes[2j+1] << 4: the even index lies in the low nibble.

    codes: [..., k] uint8 in 0..15, k even, else BadInput.  Returns [..., k/2] uint8.
    """
    _require_codes("e2m1_pack", codes)
    if codes.shape[-1] % 2:
        raise BadInput(f"e2m1_pack: {codes.shape[-1]} codes a row, want an even number; pad with 0")
    return (codes[..., 0::2] & 0xF) | (codes[..., 1::2] << 4)


def e2m1_unpack(packed: torch.Tensor) -> torch.Tensor:
    """Inverse of `e2m1_pack`.  packed: [..., k/2] uint8.  Returns [..., k] uint8 in 0..15."""
    _require_codes("e2m1_unpack", packed)
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


def e2m1_values(packed: torch.Tensor) -> torch.Tensor:
    """e2m1_decode(e2m1_unpack(packed)), both values of a byte at once.

    packed: [..., k/2] uint8.  Returns [..., k] fp32.
    """
    _require_codes("e2m1_values", packed)
    every = torch.arange(256, dtype=torch.uint8, device=packed.device)
    pairs = e2m1_decode(e2m1_unpack(every[:, None]))
    values = pairs.index_select(0, packed.flatten().int())
    return values.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def pow2_ceil(x: torch.Tensor) -> torch.Tensor:
    """2^ceil(log2 x), exactly: the smallest power of two that is a normal fp32 and not below x.

    x: [...] any float.  0 stays 0, above 2^127 becomes inf, negative and NaN become NaN.
    Returns [...] fp32.  Raises BadInput for integers.
    """
    x = _require_float("pow2_ceil", x)
    # Adding an almost whole exponent step carries into the exponent unless the fraction is zero.
    raised = (x.abs().view(torch.int32) + 0x7FFFFF) & ~0x7FFFFF
    return torch.where(x >= 0, raised.view(torch.float32), float("nan"))


def ue8m0_encode(scale: torch.Tensor) -> torch.Tensor:
    """code = ceil(log2 scale) + 127: the scale rounded up to a power of two.

    scale: [...] any float.  Up to 2^-127, zero included, is 0x00; above 2^127, infinity included,
    saturates to 0xfe; negative and NaN become 0xff (NaN).
    Returns [...] uint8.  Raises BadInput for integers.  Source: OCP MX specification, E8M0.
    """
    scale = _require_float("ue8m0_encode", scale)
    bits = scale.abs().view(torch.int32)
    exponent, fraction = bits >> 23, bits & 0x7FFFFF
    # 2^-127 is subnormal in fp32: its exponent field is 0 and its fraction has the top bit only.
    up = fraction > torch.where(exponent == 0, 0x400000, 0)
    return torch.where(scale >= 0, (exponent + up).clamp(max=0xFE), 0xFF).to(torch.uint8)


def ue8m0_decode(codes: torch.Tensor) -> torch.Tensor:
    """2^(code - 127); 0xff is NaN.  codes: [...] uint8.  Returns [...] fp32."""
    _require_codes("ue8m0_decode", codes)
    bits = codes.int() << 23
    bits = torch.where(codes == 0, 0x400000, bits)
    return torch.where(codes == 0xFF, float("nan"), bits.int().view(torch.float32))
