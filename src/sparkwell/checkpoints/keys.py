"""config.json read key by key: a wrong or missing value becomes an error that names its key."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sparkwell.errors import BadCheckpoint

REQUIRED: Final = object()  # the default of a key that has none
REPAIR = "take config.json from the model's own repository again, or correct this key"


class Keys:
    """One JSON object and where it came from.  A key whose value is null counts as absent."""

    def __init__(
        self, values: Mapping[str, Any], file: Path | str | None = None, prefix: str = ""
    ) -> None:
        self.values, self.prefix = values, prefix
        self.file = "config.json" if file is None else file

    def has(self, key: str) -> bool:
        """Whether the key stands there with a value."""
        return self.values.get(key) is not None

    def wrong(
        self, key: str, wanted: str, *, problem: str | None = None, do: str = REPAIR
    ) -> BadCheckpoint:
        """The error for this key; `came` is what stands there."""
        path = self.prefix + key
        if key not in self.values:
            return BadCheckpoint(
                problem or f"config.json lacks {path}",
                file=self.file,
                came=f"no key {path}",
                wanted=f"{path}: {wanted}",
                do=do,
            )
        came = repr(self.values[key])
        return BadCheckpoint(
            problem or f"config.json has a bad value of {path}",
            file=self.file,
            came=f"{path} = {came if len(came) <= 200 else came[:200] + '...'}",
            wanted=f"{path}: {wanted}",
            do=do,
        )

    def _get(self, key: str, default: Any, wanted: str) -> Any:
        if self.has(key):
            return self.values[key]
        if default is REQUIRED:
            raise self.wrong(key, wanted)
        return default

    def integer(self, key: str, default: Any = REQUIRED, *, least: int = 1) -> Any:
        """An integer of at least `least`; the default is returned as it is."""
        wanted = f"an integer of at least {least}"
        value = self._get(key, default, wanted)
        if value is default:
            return value
        if type(value) is not int or value < least:
            raise self.wrong(key, wanted)
        return value

    def real(self, key: str, default: Any = REQUIRED, *, or_zero: bool = False) -> Any:
        """A finite number above zero, as a float; the default is returned as it is."""
        wanted = "a finite number above 0" + (", or 0" if or_zero else "")
        value = self._get(key, default, wanted)
        if value is default:
            return value
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.wrong(key, wanted)
        if value < 0 or (value == 0 and not or_zero):
            raise self.wrong(key, wanted)
        return float(value)

    def flag(self, key: str, default: Any = REQUIRED) -> bool:
        """true or false."""
        value = self._get(key, default, "true or false")
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: Any = REQUIRED, *, choices: Sequence[str]) -> str:
        """One of `choices`."""
        wanted = "one of " + ", ".join(choices)
        value = self._get(key, default, wanted)
        if value not in choices:
            raise self.wrong(key, wanted)
        return value

    def choices_per_layer(
        self, key: str, layers: int, extra: int, choices: Mapping[str, bool]
    ) -> tuple[bool, ...]:
        """One of `choices` for each layer, as booleans.

        Some published files list the `extra` prediction layers too; those entries are dropped.
        """
        named = " or ".join(choices)
        wanted = f"{layers} entries (num_hidden_layers), each {named}"
        value = self._get(key, REQUIRED, wanted)
        if not isinstance(value, list | str) or len(value) not in (layers, layers + extra):
            raise self.wrong(key, wanted)
        if any(not isinstance(entry, str) or entry not in choices for entry in value):
            raise self.wrong(key, wanted)
        return tuple(choices[entry] for entry in value[:layers])

    def object(self, key: str) -> "Keys | None":
        """A nested object, or None where it is absent."""
        value = self._get(key, None, "an object")
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "an object {...} or null")
        return Keys(value, self.file, f"{self.prefix}{key}.")
