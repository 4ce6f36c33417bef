"""Options that several verbs share."""

from enum import StrEnum
from typing import Annotated

import typer

_MODEL = "Model"
_SAMPLING = "Sampling"


class CacheDtype(StrEnum):
    """What the cache stores."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP8 = "fp8"


class Dtype(StrEnum):
    """What the model computes in."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class LogLevel(StrEnum):
    """From which level on messages reach stderr."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Folder, Hub id (owner/name[@revision]) or packaged name (bard).",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_MODEL)]
ComputeDtype = Annotated[
    Dtype, typer.Option("--dtype", help="What to compute in.", rich_help_panel=_MODEL)
]
KvCacheDtype = Annotated[
    CacheDtype, typer.Option("--kv-cache-dtype", help="What to cache in.", rich_help_panel=_MODEL)
]
Scheme = Annotated[
    str | None,
    typer.Option(
        help="Quantize plain weights when loading: bf16 (not), fp8, nvfp4, nvfp4-w4a4.  "
        "Default: as they are stored.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
PageSize = Annotated[int, typer.Option(min=1, help="Tokens in a page.", rich_help_panel=_MODEL)]
NumPages = Annotated[
    int | None,
    typer.Option(min=1, help="Cache pages; by default as many as fit.", rich_help_panel=_MODEL),
]
MaxContext = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Most tokens of prompt and output; by default what the model was made for.",
        rich_help_panel=_MODEL,
    ),
]
EnforceEager = Annotated[
    bool,
    typer.Option(
        "--enforce-eager",
        help="Launch every kernel by itself: record no CUDA graphs when loading.",
        rich_help_panel=_MODEL,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="CPU threads; by default one for each core.  Small models run best on one.",
        rich_help_panel=_MODEL,
    ),
]
MaxTokens = Annotated[
    int, typer.Option(min=1, help="New tokens at most.", rich_help_panel=_SAMPLING)
]
Temperature = Annotated[
    float, typer.Option(min=0.0, help="0: the likeliest token.", rich_help_panel=_SAMPLING)
]
TopP = Annotated[
    float,
    typer.Option(help="Draw from this share of the probability.", rich_help_panel=_SAMPLING),
]
TopK = Annotated[
    int, typer.Option(min=0, help="Draw from the k likeliest; 0: all.", rich_help_panel=_SAMPLING)
]
MinP = Annotated[
    float,
    typer.Option(help="Drop tokens so much less likely than the best.", rich_help_panel=_SAMPLING),
]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Above 1: repeat less.", rich_help_panel=_SAMPLING)
]
Seed = Annotated[
    int | None,
    typer.Option(help="Draw the same tokens each time.", rich_help_panel=_SAMPLING),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="Text that ends the output; may be repeated.", rich_help_panel=_SAMPLING),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
System = Annotated[str | None, typer.Option(help="System message.")]
