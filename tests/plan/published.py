"""Figures that others published, beside what the plan predicts: rows of a table in docs/plan.md."""

from collections.abc import Callable
from dataclasses import dataclass

from sparkwell.hardware.gpus import gpu
from sparkwell.plan.efficiency import efficiency
from sparkwell.plan.figures import decode_time, prefill_time
from sparkwell.plan.memory import cache_dtype
from sparkwell.plan.model import find_model
from sparkwell.plan.schemes import NVFP4, NVFP4_A4, Format, find
from sparkwell.plan.share import share
from sparkwell.plan.step import Case


@dataclass(frozen=True)
class Row:
    """value: published.  predicted: of the same, by this package.  unit: of both.

    note: what was not said and had to be assumed.
    """

    what: str
    where: str
    unit: str
    value: float
    predicted: Callable[[], float]
    source: str
    note: str = ""


def case(model: str, product: str, scheme: str, gpus: int = 1, cache: str = "auto") -> Case:
    found, one, kind = find_model(model), gpu(product), find(scheme)
    shared = share(found.config, found.parts, kind, gpus)
    assert not shared.refused
    return Case(found, kind, one, shared, cache_dtype(found.config, cache))


def tpot(of: Case, batch: int, context: int) -> float:
    """Milliseconds."""
    return 1e3 * decode_time(of, batch, context).predicted


def tokens(of: Case, batch: int, context: int) -> float:
    return batch / decode_time(of, batch, context).predicted


def prefill(of: Case, length: int, chunk: int) -> float:
    """Tokens a second."""
    return length / prefill_time(of, 1, length, chunk).predicted


def product_us(product: str, kind: Format, of: str, m: int, n: int, k: int, peak: str) -> float:
    """Microseconds of a product whose x is quantized already."""
    one, each = gpu(product), {"none": 2.0, "nvfp4": 9 / 16}[kind.activations]
    nbytes = kind.nbytes(n, k) + m * (2 * n + each * k)
    bounds = nbytes / one.bandwidth.value, 2.0 * m * n * k / one.peaks[peak].value
    return 1e6 * efficiency(of).seconds(*bounds)


def tera(product: str, of: str, peak: str) -> float:
    """TFLOP/s of a large product."""
    return efficiency(of).math * gpu(product).peaks[peak].value / 1e12


def giga(product: str, of: str) -> float:
    """GB/s of a large cache."""
    return efficiency(of).memory * gpu(product).bandwidth.value / 1e9


ROWS: tuple[Row, ...] = (
    Row("Qwen3-8B BF16, decode, 1 request", "RTX 5090", "ms", 11.1,
        lambda: tpot(case("qwen3-8b", "rtx-5090", "bf16"), 1, 1024),
        "model card Rodder5/Qwen3-8B-NVFP4", "context of 1024"),
    Row("Qwen3-8B NVFP4 by Marlin, decode", "RTX 5090", "ms", 4.6,
        lambda: tpot(case("qwen3-8b", "rtx-5090", "nvfp4"), 1, 1024),
        "model card Rodder5/Qwen3-8B-NVFP4", "context of 1024"),
    Row("Qwen3-8B NVFP4 W4A4, decode", "RTX 5090", "ms", 6.6,
        lambda: tpot(case("qwen3-8b", "rtx-5090", "nvfp4-w4a4"), 1, 1024),
        "model card Rodder5/Qwen3-8B-NVFP4", "context of 1024"),
    Row("Qwen3-32B, NVFP4 over BF16 in tokens/s", "RTX PRO 6000", "x", 2.0,
        lambda: tokens(case("qwen3-32b", "rtx-pro-6000", "nvfp4-w4a4"), 16, 2048)
        / tokens(case("qwen3-32b", "rtx-pro-6000", "bf16"), 16, 2048),
        "jarvislabs.ai, nvfp4-rtxpro-6000", "16 requests of 2048"),
    Row("GLM-5.1 NVFP4 experts, decode, no MTP", "8 x RTX PRO 6000", "tokens/s", 50.0,
        lambda: tokens(case("glm-5.1", "rtx-pro-6000", "nvfp4-experts", 8), 1, 4096),
        "rtx6kpro, 2026-05-08 (vLLM, b12x)", "context of 4096"),
    Row("the same, 128k of context", "8 x RTX PRO 6000", "tokens/s", 45.6,
        lambda: tokens(case("glm-5.1", "rtx-pro-6000", "nvfp4-experts", 8), 1, 131072),
        "rtx6kpro, 2026-05-08 (vLLM, b12x)"),
    Row("the same, prefill of 8k", "8 x RTX PRO 6000", "tokens/s", 4333,
        lambda: prefill(case("glm-5.1", "rtx-pro-6000", "nvfp4-experts", 8), 8192, 4096),
        "rtx6kpro, 2026-05-08 (vLLM, b12x)", "steps of 4096"),
    Row("the same, prefill of 128k", "8 x RTX PRO 6000", "tokens/s", 3170,
        lambda: prefill(case("glm-5.1", "rtx-pro-6000", "nvfp4-experts", 8), 131072, 4096),
        "rtx6kpro, 2026-05-08 (vLLM, b12x)", "steps of 4096"),
    Row("GLM-5.2 NVFP4 experts, decode", "8 x RTX PRO 6000", "tokens/s", 47.7,
        lambda: tokens(case("glm-5.2", "rtx-pro-6000", "nvfp4-experts", 8), 1, 4096),
        "sgl-project/sglang#33075", "context of 4096; format not said"),
    Row("GLM-5.1 FP8, decode, FA3-sparse, TP 8", "8 x H200", "ms", 15.7,
        lambda: tpot(case("glm-5.1", "h200", "fp8", 8), 1, 4096),
        "vllm-project/vllm#46189", "context of 4096; format not said"),
    Row("the same, 8 requests", "8 x H200", "ms", 26.1,
        lambda: tpot(case("glm-5.1", "h200", "fp8", 8), 8, 4096),
        "vllm-project/vllm#46189", "context of 4096; format not said"),
    Row("NVFP4 W4A16, 1 x 4608 x 7168, Marlin", "DGX Spark", "us", 145,
        lambda: product_us("dgx-spark", NVFP4, "linear w4a16 few", 1, 4608, 7168, "bf16"),
        "flashinfer-ai/flashinfer#5242"),
    Row("NVFP4 W4A4, 64 x 8192 x 4096", "DGX Spark", "us", 158,
        lambda: product_us("dgx-spark", NVFP4_A4, "linear w4a4 few", 64, 8192, 4096, "fp4"),
        "flashinfer-ai/flashinfer#3026"),
    Row("NVFP4 W4A4, 4096 x 512 x 7168", "DGX Spark", "us", 168,
        lambda: product_us("dgx-spark", NVFP4_A4, "linear w4a4 many", 4096, 512, 7168, "fp4"),
        "flashinfer-ai/flashinfer#3560"),
    Row("FP8 index scores of a prompt", "RTX PRO 6000", "TFLOP/s", 651,
        lambda: tera("rtx-pro-6000", "index_logits", "fp8"), "deepseek-ai/DeepGEMM#324"),
    Row("FP8 index scores over pages", "RTX PRO 6000", "GB/s", 1360,
        lambda: giga("rtx-pro-6000", "index_logits_paged"), "deepseek-ai/DeepGEMM#324"),
    Row("dense MLA decode", "RTX 4090", "GB/s", 943,
        lambda: giga("rtx-4090", "mla_paged"), "FlashInfer, 256 requests of 16k"),
    Row("dense MLA decode", "H100 (H800)", "GB/s", 3000,
        lambda: giga("h100-sxm", "mla_paged"), "FlashMLA's README"),
    Row("attention of a prompt, FA4", "DGX Spark", "TFLOP/s", 86.9,
        lambda: tera("dgx-spark", "attention_prefill", "bf16"), "FlashAttention, thread on GB10"),
    Row("sparse MLA of a prompt", "H100 (H800)", "TFLOP/s", 640,
        lambda: tera("h100-sxm", "mla_sparse prefill", "bf16"), "FlashMLA's README"),
)  # fmt: skip


def speed_ratio(row: Row) -> float:
    """Predicted speed over the published one; above 1: the plan promises more."""
    ratio = row.predicted() / row.value
    return 1 / ratio if row.unit in ("ms", "us") else ratio


def table() -> str:
    """In Markdown."""
    lines = [
        "| what | where | published | predicted | predicted speed | source | assumed |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        got = row.predicted()
        words = f"{got:.3g}" if got < 1000 else f"{got:.0f}"
        lines.append(
            f"| {row.what} | {row.where} | {row.value:g} {row.unit} | {words} | "
            f"{speed_ratio(row):.2f} | {row.source} | {row.note} |"
        )
    return "\n".join(lines)
