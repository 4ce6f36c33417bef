"""The engine: requests, cache pages, scheduling, and the loop that runs them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparkwell.engine.core import (
        Engine,
        EngineClosed,
        EngineStats,
        QueueFull,
        Runner,
    )
    from sparkwell.engine.llm import LLM, Completion, GenerationError
    from sparkwell.engine.pages import PagePool
    from sparkwell.engine.request import (
        Output,
        Request,
        Sampled,
        SamplingParams,
        Timing,
        TokenLogprob,
    )
    from sparkwell.engine.scheduler import Scheduler, StepPlan, Work
    from sparkwell.engine.tokenizer import Detokenizer, Tokenizer

_HOME = {
    "core": ("Engine", "EngineClosed", "EngineStats", "QueueFull", "Runner"),
    "llm": ("LLM", "Completion", "GenerationError"),
    "pages": ("PagePool",),
    "request": ("Output", "Request", "Sampled", "SamplingParams", "Timing", "TokenLogprob"),
    "scheduler": ("Scheduler", "StepPlan", "Work"),
    "tokenizer": ("Detokenizer", "Tokenizer"),
}

__all__ = [
    "LLM",
    "Completion",
    "Detokenizer",
    "Engine",
    "EngineClosed",
    "EngineStats",
    "GenerationError",
    "Output",
    "PagePool",
    "QueueFull",
    "Request",
    "Runner",
    "Sampled",
    "SamplingParams",
    "Scheduler",
    "StepPlan",
    "Timing",
    "TokenLogprob",
    "Tokenizer",
    "Work",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"sparkwell.engine.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
