"""Which entry explains a text: the one whose pattern covers most of it, then the nearest words."""

import difflib
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sparkwell.errors import BadInput
from sparkwell.hardware.targets import TARGETS, Feature

ENTRIES = Path(__file__).with_name("entries.toml")
MOST_TEXT = 20_000  # characters that are looked at; logs may be longer
NEAR = 0.45  # share of an entry's words that a text must have, to be named as near


@dataclass(frozen=True)
class Entry:
    """One cause with its cures; see entries.toml."""

    name: str
    matches: tuple[re.Pattern[str], ...]
    cause: str
    cure: tuple[str, ...]
    sources: tuple[str, ...]
    feature: Feature | None = None

    @property
    def having(self) -> tuple[str, ...]:
        """Targets with the feature."""
        wanted = self.feature
        return tuple(t.name for t in TARGETS if wanted is not None and not t.missing(wanted))

    @property
    def lacking(self) -> tuple[str, ...]:
        """Targets without it."""
        wanted = self.feature
        return tuple(t.name for t in TARGETS if wanted is not None and t.missing(wanted))


@dataclass(frozen=True)
class Found:
    """An entry and the piece of the text that it explains."""

    entry: Entry
    text: str


@cache
def entries() -> tuple[Entry, ...]:
    """All entries.  A mistake in the file is an error of this package: KeyError or re.error."""
    return tuple(_entry(raw) for raw in tomllib.loads(ENTRIES.read_text())["entry"])


def _entry(raw: dict[str, object]) -> Entry:
    feature = raw.get("feature")
    return Entry(
        name=str(raw["name"]),
        matches=tuple(re.compile(text, re.IGNORECASE) for text in _texts(raw, "matches")),
        cause=str(raw["cause"]),
        cure=_texts(raw, "cure"),
        sources=_texts(raw, "sources"),
        feature=None if feature is None else Feature[str(feature)],
    )


def _texts(raw: dict[str, object], key: str) -> tuple[str, ...]:
    found = raw[key]
    assert isinstance(found, list)
    return tuple(map(str, found))


def explain(text: str) -> tuple[Found, ...]:
    """The entries that match, first what covers most of the text; of equal ones as they stand.

    Raises BadInput for a text without a letter.
    """
    plain = re.sub(r"\s+", " ", text[:MOST_TEXT]).strip()
    if not re.search(r"[A-Za-z]", plain):
        raise BadInput(f"explain: {plain[:80]!r} is no text; give an error message or instruction")
    found = []
    for entry in entries():
        hits = [hit[0] for pattern in entry.matches if (hit := pattern.search(plain))]
        if hits:
            found.append(Found(entry, max(hits, key=len)))
    return tuple(sorted(found, key=lambda one: -len(one.text)))


def near(text: str, most: int = 3) -> tuple[str, ...]:
    """Names of entries that share words with a text, or are spelled like it."""
    given = _words(text)
    scores = {}
    for entry in entries():
        about = f"{entry.name} {' '.join(pattern.pattern for pattern in entry.matches)}"
        words = _words(about)
        alike = sum(1 for word in given if difflib.get_close_matches(word, words, 1, 0.8))
        scores[entry.name] = alike / max(1, len(given))
    ranked: Sequence[str] = sorted(scores, key=lambda name: -scores[name])
    return tuple(name for name in ranked if scores[name] >= NEAR)[:most]


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"[a-z][a-z0-9_]{2,}", text[:MOST_TEXT].lower())))[:200]
