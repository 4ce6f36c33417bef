"""The command line: one module a verb.  What a verb needs is imported when the verb runs."""

import sys
from typing import Annotated

import typer

from sparkwell import __version__
from sparkwell.cli.bench import bench
from sparkwell.cli.chat import chat
from sparkwell.cli.demo import demo
from sparkwell.cli.doctor import doctor
from sparkwell.cli.explain import explain
from sparkwell.cli.failures import INTERRUPTED, guarded
from sparkwell.cli.generate import generate
from sparkwell.cli.gpus import gpus
from sparkwell.cli.inspect import inspect
from sparkwell.cli.plan import plan
from sparkwell.cli.serve import serve
from sparkwell.cli.verify import verify

app = typer.Typer(
    name="sparkwell",
    help="LLM inference for MLA, sparse-attention, MoE, FP8 and NVFP4 models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for verb in (demo, generate, chat, serve, inspect, plan, verify, doctor, gpus, explain):
    app.command()(guarded(verb))
app.add_typer(bench, name="bench")


@app.command()
def version() -> None:
    """Print the version."""
    print(f"sparkwell {__version__}")


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


_Version = typer.Option(
    "--version", callback=_print_version, is_eager=True, help="Print the version."
)


@app.callback()
def _options(version: Annotated[bool, _Version] = False) -> None:
    pass


def main() -> None:
    """Run the command.  Exits with 0 done, 1 refused or failed, 2 usage, 128 + the signal."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character shows "?"
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="sparkwell")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
