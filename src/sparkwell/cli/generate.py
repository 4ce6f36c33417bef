"""`sparkwell generate`: continue a prompt."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkwell.cli import options
from sparkwell.cli.model import open_model
from sparkwell.cli.output import configure_logging, latencies, note, write
from sparkwell.errors import BadInput

if TYPE_CHECKING:
    from sparkwell.engine.llm import LLM, Completion
    from sparkwell.engine.request import SamplingParams


def generate(
    model: options.Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text; - reads stdin.")],
    max_tokens: options.MaxTokens = 128,
    temperature: options.Temperature = 1.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    stream: Annotated[bool, typer.Option(help="Print the text as it comes.")] = True,
    as_json: options.Json = False,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, help="With --json: so many alternatives for each token."),
    ] = None,
    device: options.Device = "auto",
    dtype: options.ComputeDtype = options.Dtype.AUTO,
    scheme: options.Scheme = None,
    kv_cache_dtype: options.KvCacheDtype = options.CacheDtype.AUTO,
    page_size: options.PageSize = 64,
    num_pages: options.NumPages = None,
    max_context: options.MaxContext = None,
    enforce_eager: options.EnforceEager = False,
    threads: options.Threads = None,
    debug: options.Debug = False,
) -> None:
    """Continue a prompt."""
    if logprobs is not None and not as_json:
        raise typer.BadParameter("--logprobs needs --json; text has no place for them")
    configure_logging()
    text = _from_stdin() if prompt == "-" else prompt
    from sparkwell.engine.request import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        logprobs=logprobs,
    )
    llm = open_model(
        model,
        threads=threads,
        device=device,
        dtype=dtype,
        scheme=scheme,
        kv_cache_dtype=kv_cache_dtype,
        page_size=page_size,
        num_pages=num_pages,
        max_requests=1,
        max_context=max_context,
        enforce_eager=enforce_eager,
    )
    with llm:
        if as_json:
            done = llm.generate(text, params)[0]
            write(json.dumps(_report(model, text, llm, done), ensure_ascii=False) + "\n")
        elif stream:
            _stream(llm, text, params)
        else:
            write(llm.generate(text, params)[0].text + "\n")


def _from_stdin() -> str:
    """All of stdin, without the newline that ends it."""
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"the prompt on stdin is not UTF-8: {error}") from error


def _stream(llm: "LLM", text: str, params: "SamplingParams") -> None:
    for output in llm.stream(text, params):
        write(output.text)
    write("\n")
    if sys.stderr.isatty():
        times = latencies(output.timing, output.output_tokens)
        rate = times["tokens_per_s"]
        speed = "" if rate is None else f", then {rate:.1f} tokens/s"
        note(
            f"[{output.prompt_tokens} + {output.output_tokens} tokens, {output.finish_reason}, "
            f"first after {times['ttft_s']:.2f} s{speed}]"
        )


def _report(model: str, prompt: str, llm: "LLM", done: "Completion") -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "text": done.text,
        "finish_reason": done.finish_reason,
        "stop_reason": done.stop_reason,
        "token_ids": done.token_ids,
        "usage": {
            "prompt_tokens": done.prompt_tokens,
            "cached_tokens": done.cached_tokens,
            "completion_tokens": len(done.token_ids),
            "total_tokens": done.prompt_tokens + len(done.token_ids),
        },
        "timings": latencies(done.timing, len(done.token_ids)),
        "logprobs": None if done.logprobs is None else _logprobs(llm, done),
    }


def _logprobs(llm: "LLM", done: "Completion") -> list[dict[str, Any]]:
    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text = llm.tokenizer.decode([token_id])
        return {"token_id": token_id, "token": text, "logprob": logprob}

    return [
        {**entry(drawn.token_id, drawn.logprob), "top": [entry(*other) for other in drawn.top]}
        for drawn in done.logprobs or ()
    ]
