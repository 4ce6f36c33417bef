"""Stop strings in a text that arrives in pieces."""


class StopStrings:
    """Passes text on until a stop string is complete.

    The answer does not depend on how the text is cut into pieces: the stop string that is complete
    first counts, the longest one where several end at the same character.  Text that could be the
    beginning of a stop string is held back until it is decided.

    stops: texts, none empty; include: pass the stop string itself on, too.
    """

    def __init__(self, stops: tuple[str, ...], *, include: bool = False) -> None:
        self._stops, self._include = stops, include
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that may be shown now, and the stop string that ended it, if one did."""
        window = self._held + text
        found = [(at + len(stop), -len(stop), stop) for stop in self._stops
                 if (at := window.find(stop)) >= 0]  # fmt: skip
        if found:
            end, _, stop = min(found)
            self._held = ""
            return window[: end if self._include else end - len(stop)], stop
        keep = self._undecided(window)
        self._held = window[len(window) - keep :]
        return window[: len(window) - keep], None

    def flush(self) -> str:
        """The text still held back: no more follows, so it is no stop string."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, window: str) -> int:
        """Length of the longest end of `window` that a stop string begins with."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(window)), 0, -1):
            if any(stop.startswith(window[-length:]) for stop in self._stops):
                return length
        return 0
