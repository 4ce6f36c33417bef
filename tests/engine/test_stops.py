"""Stop strings: the answer never depends on how the text was cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkwell.engine.stops import StopStrings

SHORT = st.text(alphabet="abc", min_size=1, max_size=4)


def one_by_one(text: str, stops: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """The definition: read character by character until the text so far ends with a stop string."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            stop = max(done, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@given(st.text(alphabet="abc", max_size=20), st.lists(SHORT, max_size=3).map(tuple),
       st.booleans(), st.lists(st.integers(0, 20), max_size=6))  # fmt: skip
def test_any_cut_gives_what_reading_by_characters_gives(
    text: str, stops: tuple[str, ...], include: bool, cuts: list[int]
) -> None:
    filter_ = StopStrings(stops, include=include)
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    shown, stop = "", None
    for start, end in zip(edges, edges[1:], strict=False):
        new, stop = filter_.push(text[start:end])
        shown += new
        if stop is not None:
            break
    if stop is None:
        # Held back is only what a stop string begins with.
        held = text[:end][len(shown) :]
        assert held == "" or any(s.startswith(held) and s != held for s in stops)
        shown += filter_.flush()
    assert (shown, stop) == one_by_one(text, stops, include)


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "stop"),
    [
        (("END",), ["a E", "N", "D b"], ["a ", "", ""], "END"),
        (("END",), ["a E", "N", "x"], ["a ", "", "ENx"], None),
        (("abcd", "bc"), ["ab", "c"], ["", "a"], "bc"),  # complete first, though begun later
        (("bc", "abc"), ["xabc"], ["x"], "abc"),  # both end here: the longest
        (("aab",), ["aa", "a", "b"], ["", "a", ""], "aab"),
        ((), ["a", "b"], ["a", "b"], None),
    ],
)
def test_what_is_shown_when(
    stops: tuple[str, ...], pieces: list[str], shown: list[str], stop: str | None
) -> None:
    filter_ = StopStrings(stops)
    results = [filter_.push(piece) for piece in pieces]
    assert [text for text, _ in results] == shown
    assert results[-1][1] == stop


def test_included_stop_strings_are_shown_and_nothing_behind_them() -> None:
    filter_ = StopStrings(("END",), include=True)
    assert filter_.push("a E") == ("a ", None)
    assert filter_.push("ND b") == ("END", "END")
    assert filter_.flush() == ""


def test_flush_gives_what_was_held_once() -> None:
    filter_ = StopStrings(("END",))
    filter_.push("a EN")
    assert filter_.flush() == "EN" and filter_.flush() == ""
