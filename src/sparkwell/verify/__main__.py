"""`python -m sparkwell.verify`: the verb where the command line's packages are not installed."""

import json
import sys
from dataclasses import asdict

from sparkwell.errors import SparkwellError
from sparkwell.verify import records
from sparkwell.verify.command import Options, lines, run_lines, verify_compiled, verify_run
from sparkwell.verify.run import FAILED, Outcome

FLAGS = ("--full", "--json", "--list", "--run", "--small", "--record")
VALUES = ("--target", "--op", "--jobs", "--commit")
USAGE = f"usage: python -m sparkwell.verify [{' | '.join(FLAGS)} | {' X | '.join(VALUES)} X]..."


def _parse(words: list[str]) -> dict[str, list[str]]:
    """Options by name.  Raises ValueError for what is no option."""
    found: dict[str, list[str]] = {}
    rest = iter(words)
    for word in rest:
        if word in FLAGS:
            found[word] = []
        elif word in VALUES:
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
        targets=tuple(found.get("--target", ())),
        ops=tuple(found.get("--op", ())),
        full="--full" in found,
        jobs=jobs,
        small="--small" in found,
    )
    try:
        return (_run if "--run" in found else _compile)(options, found)
    except SparkwellError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _compile(options: Options, found: dict[str, list[str]]) -> int:
    report = verify_compiled(options, _progress)
    print(report.as_json() if "--json" in found else "\n".join(lines(report, "--list" in found)))
    if "--record" in found:
        records.append(records.of_report(report, _around(found)))
    return 1 if report.failures else 0


def _run(options: Options, found: dict[str, list[str]]) -> int:
    outcomes = verify_run(options, _say, _note)
    if "--json" in found:
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    else:
        print("\n".join(run_lines(outcomes)))
    if "--record" in found:
        records.append(records.of_outcomes(outcomes, _around(found)))
    return 1 if any(outcome.status == FAILED for outcome in outcomes) else 0


def _around(found: dict[str, list[str]]) -> records.Record:
    return records.surroundings(found.get("--commit", [""])[0] or None)


def _progress(done: int, total: int) -> None:
    if done == total or sys.stderr.isatty():
        end = "\n" if done == total else "\r"
        print(f"compiled {done} of {total}", end=end, file=sys.stderr, flush=True)


def _say(outcome: Outcome) -> None:
    if outcome.status == FAILED or sys.stderr.isatty():
        _note(f"{outcome.op} {outcome.case} as {outcome.target}: {outcome.status}")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
