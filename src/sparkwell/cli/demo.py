"""`sparkwell demo`: this machine, the packaged model, some text, and what it took."""

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkwell.cli import options
from sparkwell.cli.model import open_model
from sparkwell.cli.output import configure_logging, latencies, write

if TYPE_CHECKING:
    from sparkwell.engine.llm import LLM
    from sparkwell.engine.request import Output
    from sparkwell.hardware.probe import Machine

MODEL = "bard"
# Written as the training text is: headings without full stops, a speaker on a line of his own.
PROMPT = "ACT II\n\nSCENE I Verona A garden\n\nEnter ROMEO and JULIET\n\nROMEO\n"
GIB = 1 << 30


def demo(
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = PROMPT,
    max_tokens: options.MaxTokens = 160,
    seed: Annotated[int, typer.Option(help="Another seed, another text.")] = 2,
    device: options.Device = "auto",
    scheme: Annotated[
        str, typer.Option(help="bf16, or what to quantize into: fp8, nvfp4, nvfp4-w4a4.")
    ] = "bf16",
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write some text with the model in the package, and show what it took."""
    configure_logging()
    from sparkwell.engine.device import gpu_refusal
    from sparkwell.engine.request import SamplingParams
    from sparkwell.hardware.probe import probe

    machine = probe()
    refusal = "--device cpu was said" if device == "cpu" else gpu_refusal()
    if not as_json:
        write("\n".join(_machine_lines(machine, refusal)) + "\n\n")
    # One thread: the model's matrices are so small that threads would mostly wait for each other,
    # and on a busy machine for the scheduler.
    settings = {"device": device, "scheme": scheme, "max_requests": 1}
    with open_model(MODEL, threads=1, **settings) as llm:
        facts = _model_facts(llm, scheme)
        if not as_json:
            write("\n".join(_model_lines(facts)) + f"\n\n{prompt}")
        pieces = []
        params = SamplingParams(max_tokens=max_tokens, temperature=0.7, top_p=0.95, seed=seed)
        for output in llm.stream(prompt, params):
            pieces.append(output.text)
            if not as_json:
                write(output.text)
        figures = _figures(llm, output)
    if as_json:
        report = {
            "gpus": [gpu.name for gpu in machine.gpus],
            "computed_on": facts.pop("device"),
            "model": facts,
            "prompt": prompt,
            "text": "".join(pieces),
            "finish_reason": output.finish_reason,
            "figures": figures,
        }
        write(json.dumps(report, ensure_ascii=False) + "\n")
    else:
        write("\n\n")
        _print_table(figures)


def _machine_lines(machine: "Machine", refusal: str | None) -> list[str]:
    """refusal: why the GPU is not used; None where it is."""
    lines = []
    for gpu in machine.gpus:
        target = gpu.capability if gpu.target is None else gpu.target.name
        memory = "" if gpu.memory_bytes is None else f", {gpu.memory_bytes / GIB:.0f} GiB"
        lines.append(f"GPU    {gpu.name} ({target}{memory})")
    if machine.gpus and refusal is not None:
        lines.append(f"       not used: {refusal}")
    if not machine.gpus:
        why = machine.problems[0] if machine.problems else "none was found"
        lines.append(f"GPU    none: {why}")
    computes = "; computes in torch" if refusal is not None else ""
    memory = "" if machine.memory_bytes is None else f", {machine.memory_bytes / GIB:.0f} GiB"
    lines.append(f"CPU    {machine.host_arch}, {machine.cpus} cores{memory}{computes}")
    return lines


def _model_facts(llm: "LLM", scheme: str) -> dict[str, Any]:
    from sparkwell.checkpoints.config import DeepseekConfig, parse_config
    from sparkwell.checkpoints.locate import locate
    from sparkwell.checkpoints.reader import Checkpoint
    from sparkwell.checkpoints.survey import survey
    from sparkwell.engine.runner import ModelRunner, page_bytes
    from sparkwell.models.load import weight_bytes
    from sparkwell.models.schemes import find_scheme

    checkpoint = Checkpoint.open(locate(MODEL))
    config = parse_config(checkpoint.config)
    runner = llm.engine.runner
    assert isinstance(config, DeepseekConfig) and isinstance(runner, ModelRunner)
    assert config.moe is not None and config.indexer is not None
    return {
        "name": MODEL,
        "device": str(runner.device).partition(":")[0],
        "architecture": config.model_type,
        "parameters": sum(map(math.prod, survey(checkpoint).shapes(checkpoint).values())),
        "bytes": sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
        "scheme": scheme,
        "scheme_in_words": find_scheme(scheme).words,
        "weight_bytes": weight_bytes(runner.model),
        "layers": config.num_layers,
        "heads": config.num_heads,
        "latent_width": config.kv_lora_rank + config.qk_rope_head_dim,
        "experts": config.moe.num_experts,
        "experts_per_token": config.moe.topk,
        "indexer_topk": config.indexer.topk,
        "max_context": llm.engine.max_context,
        "cache_dtype": runner.cache_dtype,
        "cache_bytes_per_token": page_bytes(runner.model, runner.cache_dtype, 1),
    }


def _model_lines(facts: dict[str, Any]) -> list[str]:
    return [
        f"model  {facts['name']}: {facts['architecture']}, {facts['parameters'] / 1e6:.1f} M "
        f"parameters, {facts['layers']} layers, {facts['heads']} heads",
        f"       {facts['scheme']}: {facts['scheme_in_words']}; "
        f"{facts['weight_bytes'] / 1e6:.1f} MB in memory",
        f"       MLA over a latent of {facts['latent_width']}, sparse attention to "
        f"{facts['indexer_topk']} keys, {facts['experts_per_token']} of {facts['experts']} experts",
        f"       cache {facts['cache_dtype']}, {facts['cache_bytes_per_token']} bytes a token; "
        f"context {facts['max_context']} tokens",
    ]


def _figures(llm: "LLM", last: "Output") -> dict[str, Any]:
    pool = llm.engine.scheduler.pool
    return {
        "prompt_tokens": last.prompt_tokens,
        "generated_tokens": last.output_tokens,
        **latencies(last.timing, last.output_tokens),
        # The last token's cache entry would only be needed by a token after it.
        "pages_used": pool.pages_for(last.prompt_tokens + last.output_tokens - 1),
        "pages_total": pool.num_pages,
        "page_size": pool.page_size,
    }


def _print_table(figures: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    def milliseconds(seconds: float | None) -> str:
        return "-" if seconds is None else f"{seconds * 1e3:.1f} ms"

    rate = figures["tokens_per_s"]
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        ("prompt", f"{figures['prompt_tokens']} tokens"),
        ("generated", f"{figures['generated_tokens']} tokens"),
        ("time to first token (TTFT)", milliseconds(figures["ttft_s"])),
        ("time per output token (TPOT)", milliseconds(figures["tpot_s"])),
        ("decode speed", "-" if rate is None else f"{rate:.1f} tokens/s"),
        ("cache", f"{figures['pages_used']} of {figures['pages_total']} pages"),
        ("page", f"{figures['page_size']} tokens"),
    ):
        table.add_row(name, value)
    Console().print(table)
