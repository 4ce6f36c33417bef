"""`python -m sparkwell.verify`: the verb where the command line's packages are not installed."""

import sys

from sparkwell.errors import SparkwellError
from sparkwell.verify.command import Options, lines, verify_compiled

USAGE = (
    "usage: python -m sparkwell.verify [--target NAME|all]... [--op NAME]... [--full] [--jobs N] "
    "[--list] [--json]"
)


def _parse(words: list[str]) -> dict[str, list[str]]:
    """Options by name.  Raises ValueError for what is no option."""
    found: dict[str, list[str]] = {}
    rest = iter(words)
    for word in rest:
        if word in ("--full", "--json", "--list"):
            found[word] = []
        elif word in ("--target", "--op", "--jobs"):
            found.setdefault(word, []).append(next(rest, ""))
        else:
            raise ValueError(word)
    return found


def main(words: list[str]) -> int:
    """Run with these arguments.  -> exit code: 0 all holds, 1 something failed, 2 usage."""
    try:
        found = _parse(words)
        jobs = int(found["--jobs"][0]) if "--jobs" in found else None
    except ValueError as error:
        print(f"{USAGE}\nnot understood: {error}", file=sys.stderr)
        return 2
    options = Options(
        tuple(found.get("--target", ())), tuple(found.get("--op", ())), "--full" in found, jobs
    )
    try:
        report = verify_compiled(options, _progress)
    except SparkwellError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = report.as_json() if "--json" in found else "\n".join(lines(report, "--list" in found))
    print(text)
    return 1 if report.failures else 0


def _progress(done: int, total: int) -> None:
    if done == total or sys.stderr.isatty():
        end = "\n" if done == total else "\r"
        print(f"compiled {done} of {total}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
