"""Bytes that nobody vouches for: every read is checked, and an error says where and what."""

from dataclasses import dataclass
from struct import Struct
from typing import Any


class Damage(Exception):
    """Bytes that do not parse.  Caught inside this package and kept as text in `problems`."""

    def __init__(self, offset: int, field: str, came: object, wanted: str) -> None:
        self.offset, self.field, self.came, self.wanted = offset, field, str(came), wanted
        super().__init__(f"at {offset:#x}: {field} is {came}, want {wanted}")


@dataclass(frozen=True, slots=True)
class View:
    """A window on bytes.  `base` is where it starts, as errors shall count it."""

    data: memoryview
    base: int = 0

    def __len__(self) -> int:
        return len(self.data)

    def unpack(self, form: Struct, at: int, field: str) -> tuple[Any, ...]:
        if at < 0 or at + form.size > len(self.data):
            raise Damage(
                self.base + at, field, f"cut off after {self._left(at)} bytes", form_size(form)
            )
        return form.unpack_from(self.data, at)

    def part(self, at: int, size: int, field: str) -> "View":
        """`size` bytes from `at`."""
        if at < 0 or size < 0 or at + size > len(self.data):
            wanted = f"at most the {self._left(at)} bytes that follow"
            raise Damage(self.base + at, field, f"{size} bytes long", wanted)
        return View(self.data[at : at + size], self.base + at)

    def starts(self, magic: bytes, at: int = 0) -> bool:
        return self.data[at : at + len(magic)] == magic

    def _left(self, at: int) -> int:
        return max(0, len(self.data) - max(0, at))


def form_size(form: Struct) -> str:
    return f"{form.size} bytes"


def text(raw: bytes) -> str:
    """A name as it stands in a file: UTF-8, with bytes that are not kept readable."""
    return raw.decode("utf-8", "backslashreplace")
