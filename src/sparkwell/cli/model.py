"""Opening a model for a verb."""

from typing import TYPE_CHECKING, Any

from sparkwell.cli.output import loading, note

if TYPE_CHECKING:
    from sparkwell.engine.llm import LLM


def open_model(model: str, *, threads: int | None, **settings: Any) -> "LLM":
    """LLM(model, **settings), with a progress bar and notes.

    threads: CPU threads of one operation; None: torch's choice, one for each core.
    """
    from sparkwell.engine.llm import LLM

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    with loading(model) as progress:
        return LLM(model, progress=progress, say=note, **settings)
