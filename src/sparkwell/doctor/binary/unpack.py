"""Packed images made plain, within a budget that the file's size sets.

An image says how large it is unpacked.  That many bytes are charged before any work is done, so a
small file cannot cost much time or memory whatever it claims.
"""

from dataclasses import dataclass

import zstandard

from sparkwell.doctor.binary.view import Damage, View

IMAGE_LIMIT = 1 << 28  # bytes of one image; the largest met in published wheels has 65 MB
RATIO = 32  # and of all images of a file: this many times its size; published ones need up to 14
FLOOR = 1 << 28  # or this, for small files
WINDOW_LIMIT = 1 << 27


@dataclass(slots=True)
class Budget:
    """Bytes that may still be unpacked from one file."""

    left: int

    @classmethod
    def of(cls, size: int) -> "Budget":
        return cls(max(FLOOR, RATIO * size))

    def take(self, size: int, offset: int) -> None:
        if size > IMAGE_LIMIT:
            raise Damage(offset, "unpacked size", size, f"at most {IMAGE_LIMIT}")
        if size > self.left:
            wanted = f"at most {self.left}, what is left of {RATIO} times the file"
            raise Damage(offset, "unpacked size", size, wanted)
        self.left -= size


def unpack(packed: View, packing: str, size: int, budget: Budget) -> memoryview:
    """The `size` bytes that `packed` holds."""
    budget.take(size, packed.base)
    return memoryview(lz4(packed, size) if packing == "lz4" else zstd(packed, size))


def zstd(packed: View, size: int) -> bytearray:
    """One Zstandard frame."""
    out = bytearray(size)
    window, filled = memoryview(out), 0
    reader = zstandard.ZstdDecompressor(max_window_size=WINDOW_LIMIT).stream_reader(packed.data)
    try:
        while filled < size:
            count = reader.readinto(window[filled:])
            if not count:
                raise Damage(packed.base, "Zstandard data", f"{filled} bytes unpacked", str(size))
            filled += count
        if reader.read(1):
            raise Damage(packed.base, "Zstandard data", "longer unpacked", f"{size} bytes")
    except zstandard.ZstdError as error:
        raise Damage(packed.base, "Zstandard data", f"unreadable ({error})", "a frame") from None
    return out


def lz4(packed: View, size: int) -> bytearray:
    """One LZ4 block: tokens of (literals, then a copy of what came before)."""
    longest = size + size // 255 + 16  # nothing packed is longer
    if len(packed) > longest:
        raise Damage(packed.base, "LZ4 data", f"{len(packed)} bytes long", f"at most {longest}")
    source, out = bytes(packed.data), bytearray()
    at, length = 0, len(source)
    try:
        while at < length:
            token = source[at]
            at += 1
            literals = token >> 4
            if literals == 15:
                while (more := source[at]) == 255:
                    literals += 255
                    at += 1
                literals += more
                at += 1
            if literals:
                if at + literals > length:
                    raise Damage(packed.base + at, "LZ4 literals", literals, f"{length - at} left")
                out += source[at : at + literals]
                at += literals
            if at >= length:
                break
            back = source[at] | source[at + 1] << 8
            at += 2
            count = (token & 15) + 4
            if count == 19:
                while (more := source[at]) == 255:
                    count += 255
                    at += 1
                count += more
                at += 1
            start = len(out) - back
            if back == 0 or start < 0:
                raise Damage(packed.base + at, "LZ4 offset", back, f"1 to {len(out)}")
            if len(out) + count > size:
                break
            if back >= count:
                out += out[start : start + count]
            else:
                out += (out[start:] * (count // back + 1))[:count]
    except IndexError:
        raise Damage(packed.base + length, "LZ4 data", "cut off", "a whole block") from None
    if at < length or len(out) != size:
        came = f"{'more than ' * (at < length)}{len(out)} bytes unpacked"
        raise Damage(packed.base, "LZ4 data", came, str(size))
    return out
