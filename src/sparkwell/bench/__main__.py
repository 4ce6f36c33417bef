"""`python -m sparkwell.bench`: the verb where the command line's packages are not installed."""

import argparse
import json
import sys
from pathlib import Path

from sparkwell.bench import command
from sparkwell.errors import SparkwellError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m sparkwell.bench", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=Path, help="file that records are appended to")
    common.add_argument("--commit", help="what records name; by default git is asked")
    common.add_argument("--json", action="store_true", help="print records")
    one = verbs.add_parser("kernels", parents=[common], help="time kernels beside their peers")
    one.add_argument("--op", action="append", default=[], help="op, or how it starts: mla")
    one.add_argument("--case", action="append", default=[], help="part of a case's name")
    one.add_argument("--peers", type=Path, help="file of loaders; default: what is installed")
    two = verbs.add_parser("soak", parents=[common], help="replay one graph a million times")
    two.add_argument("--replays", type=int, default=1_000_000, help="of sparse decode")
    two.add_argument("--steps", type=int, default=100_000, help="of the whole attention step")
    two.add_argument("--layers", type=int, default=30_000, help="of linear layers and of experts")
    four = verbs.add_parser("perplexity", parents=[common], help="of a held-out text")
    four.add_argument("model", help="folder, Hub id or packaged name")
    four.add_argument("--text", type=Path, required=True, help="file of held-out text, UTF-8")
    four.add_argument("--scheme", action="append", default=[], help="the first is the base")
    four.add_argument("--window", type=int, default=512, help="tokens that stand alone")
    four.add_argument("--windows", type=int, help="so many at most")
    four.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    four.add_argument("--arithmetic", default="scheme", help="scheme or auto")
    five = verbs.add_parser("modelled", parents=[common], help="linear layers on other GPUs")
    five.add_argument("--gpu", action="append", required=True, help="a product: dgx-spark")
    three = verbs.add_parser("table", help="the document of speeds, from records")
    three.add_argument("--of", default="speed", help="speed, perplexity or modelled")
    three.add_argument("--records", type=Path, default=Path("bench/records"))
    three.add_argument("--write", type=Path, help="a file instead of the terminal")
    return parser


def main(words: list[str]) -> int:
    """Run with these arguments.  -> exit code: 0 done, 1 something failed, 2 usage."""
    found = _parser().parse_args(words)

    def say(text: str) -> None:
        print(text, file=sys.stderr if getattr(found, "json", False) else sys.stdout, flush=True)

    try:
        if found.verb == "table":
            text = command.table(found.records, found.write, found.of)
            if found.write is None:
                sys.stdout.write(text)
            return 0
        options = {"out": found.out, "commit": found.commit, "say": say}
        if found.verb == "kernels":
            entries, failures = command.kernels(found.op, found.case, peers=found.peers, **options)
        elif found.verb == "modelled":
            entries, failures = command.model(found.gpu, **options)
        elif found.verb == "perplexity":
            options |= {"window": found.window, "most": found.windows, "device": found.device}
            options |= {"arithmetic": found.arithmetic}
            entries = command.perplexity(found.model, found.text, found.scheme, **options)
            failures = []
        else:
            entries, failures = command.soaks(found.replays, found.steps, found.layers, **options)
    except SparkwellError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if found.json:
        print(json.dumps({"records": entries, "failures": failures}, indent=1))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
