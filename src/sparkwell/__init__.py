"""Sparkwell: one source, every tensor core.  `LLM` and `SamplingParams` load on first use."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from sparkwell.engine.llm import LLM

        return LLM
    if name == "SamplingParams":
        from sparkwell.engine.request import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'sparkwell' has no attribute {name!r}")
