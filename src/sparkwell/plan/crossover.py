"""From how many rows of x on which arithmetic of a linear layer is the fastest on a GPU."""

from dataclasses import dataclass

from sparkwell.hardware.gpus import Gpu
from sparkwell.hardware.targets import Feature
from sparkwell.plan.efficiency import efficiency, linear_size, quantizing
from sparkwell.plan.schemes import BF16, FP8, NVFP4, NVFP4_A4, NVFP4_A8, Format

MOST = 16384  # rows
CANDIDATES: tuple[tuple[str, Format, str, Feature], ...] = (
    # arithmetic, weights, peak, what the GPU must have for that peak
    ("w16a16", BF16, "bf16", Feature(0)),
    ("w8a8", FP8, "fp8", Feature.FP8_MMA),
    ("w4a16", NVFP4, "bf16", Feature(0)),
    ("w4a8", NVFP4_A8, "fp8", Feature.FP8_MMA),
    ("w4a4", NVFP4_A4, "fp4", Feature.FP4_BLOCK_MMA),
)


@dataclass(frozen=True)
class Crossover:
    """ridge: rows up to which reading the weight takes longer than the products, at the published
    rates.  first: the rows from which on it is predicted the fastest, and the last such; None:
    nowhere.  lacks: why the GPU cannot; then nothing else is known.
    """

    arithmetic: str
    ridge: int | None
    fastest: tuple[int, int] | None
    lacks: str | None = None


def seconds(arithmetic: str, kind: Format, peak: float, gpu: Gpu, m: int, n: int, k: int) -> float:
    """Predicted seconds of x [m, k] times a weight [n, k]."""
    nbytes = kind.nbytes(n, k) + 2 * m * (n + k)
    known = efficiency(f"linear {arithmetic} {linear_size(m)}")
    product = known.seconds(nbytes / gpu.bandwidth.value, 2.0 * m * n * k / peak)
    if arithmetic.endswith("a16"):
        return product
    return product + quantizing(m, k, gpu.bandwidth.value)


def crossovers(gpu: Gpu, n: int, k: int) -> list[Crossover]:
    """Of a linear layer [n, k] in every arithmetic."""
    able = {
        name: (kind, gpu.peaks[peak].value)
        for name, kind, peak, needs in CANDIDATES
        if peak in gpu.peaks and not gpu.target.missing(needs)
    }
    won: dict[str, list[int]] = {name: [] for name in able}
    for m in _rows():
        times = {name: seconds(name, *of, gpu, m, n, k) for name, of in able.items()}
        won[min(times, key=lambda name: times[name])].append(m)
    found = []
    for name, kind, peak, needs in CANDIDATES:
        if name not in able:
            lacks = ", ".join(str(f.name) for f in gpu.target.missing(needs)) or f"a {peak} peak"
            found.append(Crossover(name, None, None, f"{gpu.target.name} has no {lacks}"))
            continue
        rate = gpu.peaks[peak].value / gpu.bandwidth.value
        ridge = int(kind.nbytes(n, k) * rate / (2 * n * k))
        rows = won[name]
        found.append(Crossover(name, ridge, (rows[0], rows[-1]) if rows else None))
    return found


def _rows() -> list[int]:
    """1, 2, ... 16, then about a sixteenth more each time."""
    rows = list(range(1, 17))
    while rows[-1] < MOST:
        rows.append(max(rows[-1] + 1, rows[-1] * 17 // 16))
    return rows
