"""Products: SMs, caches, memory and peak rates, each figure with its source.

Peaks are dense (without sparsity) with FP32 accumulation, or INT32 for int8.  A key that ends in
"_f16acc" names the rate with FP16 accumulation where that differs.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sparkwell.errors import BadInput
from sparkwell.hardware.figures import Figure
from sparkwell.hardware.targets import Target, target

PEAKS = ("bf16", "fp16_f16acc", "fp8", "fp8_f16acc", "fp4", "int8")


@dataclass(frozen=True, eq=False)
class Gpu:
    """One product; there is one object per row, so identity is equality.

    memory: what the driver reports where known, else the nominal size.  shared_memory: host and
    GPU use the same memory.  peaks: FLOP/s (OP/s for int8) by type, a missing type has no native
    matrix instruction or no known figure.  measured: rates seen on the device, same keys and
    "read", "copy" (B/s).  clock: of its SMs under load, where known.  device_names: what the
    driver calls exactly this product.
    """

    name: str
    title: str
    target: Target
    sms: Figure
    l2: Figure
    memory: Figure
    bandwidth: Figure
    peaks: Mapping[str, Figure]
    measured: Mapping[str, Figure] = field(default_factory=dict)
    clock: Figure | None = None
    shared_memory: bool = False
    aliases: tuple[str, ...] = ()
    device_names: tuple[str, ...] = ()


def _peaks(source: str, weak: str = "", **tera: float) -> Mapping[str, Figure]:
    """Peaks in tera-operations per second; `weak` lists the doubtful ones, or "all"."""
    doubtful = tera.keys() if weak == "all" else weak.split()
    return {
        key: Figure(value * 1e12, "OP/s" if key == "int8" else "FLOP/s", source, key in doubtful)
        for key, value in tera.items()
    }


def _sms(value: int, source: str, weak: bool = False) -> Figure:
    return Figure(value, "SM", source, weak)


def _mib(value: float, source: str, weak: bool = False) -> Figure:
    return Figure(value * 2**20, "B", source, weak)


def _gb_per_s(value: float, source: str, weak: bool = False) -> Figure:
    return Figure(value * 1e9, "B/s", source, weak)


def _ghz(value: float, source: str, weak: bool = False) -> Figure:
    return Figure(value * 1e9, "Hz", source, weak)


_A100 = "NVIDIA A100 datasheet"
_A100_QUERY = "CUDA deviceQuery of an A100"
_GA102 = "NVIDIA GA102 whitepaper"
_ADA = "NVIDIA Ada whitepaper"
_L40S = "NVIDIA L40S datasheet"
_H100 = "NVIDIA H100 datasheet"
_H200 = "NVIDIA H200 datasheet"
_OURS = "measured on one H200 under CUDA graphs, cuBLAS for the products"
_REPORTED = "driver report, from memory"
_RTX50 = "NVIDIA RTX Blackwell whitepaper"
_RATE_512 = "from memory; equals SMs x boost clock x 512 FLOP (BF16)"
_RATE_1024 = "from memory; equals SMs x 2.617 GHz x 1024 FLOP (BF16)"
_SPARK = "NVIDIA DGX Spark documentation"
_SPARK_FORUM = "NVIDIA developer forum, thread 359960"
_THOR_QUERY = "NVIDIA developer forum, thread 356355 (device query)"
_THOR = "NVIDIA Jetson Thor datasheet, from memory"

_A100_PEAKS = _peaks(_A100, bf16=312, int8=624)
_H100_PEAKS = _peaks(_H100, bf16=989, fp8=1979, int8=1979)

GPUS: tuple[Gpu, ...] = (
    Gpu(
        name="a100-sxm-40",
        title="A100 SXM 40 GB",
        target=target("sm_80"),
        sms=_sms(108, _A100),
        l2=_mib(40, _A100_QUERY),
        memory=_mib(40960, _REPORTED, weak=True),
        bandwidth=_gb_per_s(1555, _A100),
        peaks=_A100_PEAKS,
        aliases=("a100-40",),
        device_names=("A100-SXM4-40GB",),
    ),
    Gpu(
        name="a100-sxm-80",
        title="A100 SXM 80 GB",
        target=target("sm_80"),
        sms=_sms(108, _A100),
        l2=_mib(40, _A100_QUERY),
        memory=_mib(81920, _REPORTED, weak=True),
        bandwidth=_gb_per_s(2039, _A100),
        peaks=_A100_PEAKS,
        aliases=("a100", "a100-80", "a100-sxm"),
        device_names=("A100-SXM4-80GB",),
    ),
    Gpu(
        name="a100-pcie-80",
        title="A100 PCIe 80 GB",
        target=target("sm_80"),
        sms=_sms(108, _A100),
        l2=_mib(40, _A100_QUERY),
        memory=_mib(81920, _REPORTED, weak=True),
        bandwidth=_gb_per_s(1935, _A100),
        peaks=_A100_PEAKS,
        aliases=("a100-pcie",),
        device_names=("A100 80GB PCIe",),
    ),
    Gpu(
        name="rtx-3090",
        title="GeForce RTX 3090",
        target=target("sm_86"),
        sms=_sms(82, _GA102),
        l2=_mib(6, _GA102),
        memory=_mib(24576, _REPORTED, weak=True),
        bandwidth=_gb_per_s(936, _GA102),
        peaks=_peaks(f"{_GA102}, from memory", weak="all", bf16=71, fp16_f16acc=142, int8=284),
        aliases=("3090",),
        device_names=("GeForce RTX 3090",),
    ),
    Gpu(
        name="rtx-4090",
        title="GeForce RTX 4090",
        target=target("sm_89"),
        sms=_sms(128, _ADA),
        l2=_mib(72, _ADA),
        memory=_mib(24564, _REPORTED, weak=True),
        bandwidth=_gb_per_s(1008, _ADA),
        peaks=_peaks(_ADA, bf16=165, fp8=330, fp8_f16acc=661, int8=661),
        aliases=("4090",),
        device_names=("GeForce RTX 4090",),
    ),
    Gpu(
        name="l40s",
        title="L40S",
        target=target("sm_89"),
        sms=_sms(142, _L40S),
        l2=_mib(96, "Ada whitepaper's full AD102; some listings of the L40S say 48 MB", weak=True),
        memory=_mib(46068, _REPORTED, weak=True),
        bandwidth=_gb_per_s(864, _L40S),
        peaks=_peaks(_L40S, weak="int8", bf16=362, fp8=733, int8=733),
        device_names=("L40S",),
    ),
    Gpu(
        name="h100-sxm",
        title="H100 SXM 80 GB",
        target=target("sm_90"),
        sms=_sms(132, _H100),
        l2=_mib(50, _H100),
        memory=_mib(81559, _REPORTED, weak=True),
        bandwidth=_gb_per_s(3350, _H100),
        peaks=_H100_PEAKS,
        aliases=("h100",),
        device_names=("H100 80GB HBM3",),
    ),
    Gpu(
        name="h100-pcie",
        title="H100 PCIe 80 GB",
        target=target("sm_90"),
        sms=_sms(114, _H100),
        l2=_mib(50, _H100),
        memory=_mib(81559, _REPORTED, weak=True),
        bandwidth=_gb_per_s(2000, _H100),
        peaks=_peaks(_H100, bf16=756, fp8=1513, int8=1513),
        device_names=("H100 PCIe",),
    ),
    Gpu(
        name="h200",
        title="H200 SXM 141 GB",
        target=target("sm_90"),
        sms=_sms(132, _H200),
        l2=_mib(50, _H200),
        memory=_mib(143771, "driver report"),
        bandwidth=_gb_per_s(4800, _H200),
        peaks=_peaks(_H200, bf16=989, fp8=1979, int8=1979),
        measured={
            **_peaks(_OURS, bf16=785, fp8=1444),
            "read": _gb_per_s(4460, _OURS),
            "copy": _gb_per_s(4080, _OURS),
        },
        clock=_ghz(1.98, "driver report under load, largest"),
        aliases=("h200-sxm",),
        device_names=("H200",),
    ),
    Gpu(
        name="b200",
        title="B200",
        target=target("sm_100"),
        sms=_sms(148, "torchao issue 4002"),
        l2=_mib(126.5, "torchao issue 4002"),
        memory=_mib(178.35 * 1024, "torchao issue 4002; 180 GB nominal"),
        bandwidth=_gb_per_s(7670, "7680-bit bus; 8 TB/s is often quoted"),
        peaks=_peaks(
            "public instance description (Verda)", bf16=2250, fp8=4500, fp4=9000, int8=4500
        ),
        device_names=("B200",),
    ),
    Gpu(
        name="b300",
        title="B300",
        target=target("sm_103"),
        sms=_sms(148, "public instance description (Verda)", weak=True),
        l2=_mib(126, "from memory", weak=True),
        memory=Figure(270e9, "B", "usable, public instance description (Verda)", weak=True),
        bandwidth=_gb_per_s(7700, "public instance description; 7.7 to 8 TB/s", weak=True),
        peaks=_peaks(
            "public instance description (Verda), FlashInfer comments",
            weak="all",
            bf16=2250,
            fp8=4500,
            fp4=14000,
            int8=150,
        ),
        device_names=("B300", "B300 SXM6 AC"),
    ),
    Gpu(
        name="rtx-5090",
        title="GeForce RTX 5090",
        target=target("sm_120"),
        sms=_sms(170, _RTX50),
        l2=_mib(96, _RTX50),
        memory=_mib(32607, _REPORTED, weak=True),
        bandwidth=_gb_per_s(1792, _RTX50),
        peaks=_peaks(_RATE_512, weak="all", bf16=210, fp8=419, fp8_f16acc=838, fp4=1676, int8=838),
        clock=_ghz(2.407, _RTX50),
        aliases=("5090",),
        device_names=("GeForce RTX 5090",),
    ),
    Gpu(
        name="rtx-pro-6000",
        title="RTX PRO 6000 Blackwell Workstation Edition",
        target=target("sm_120"),
        sms=_sms(188, _RTX50),
        l2=_mib(128, _RTX50),
        memory=_mib(97887, "driver report"),
        bandwidth=_gb_per_s(1792, _RTX50),
        peaks=_peaks(_RATE_1024, weak="all", bf16=504, fp8=1008, fp4=2015, int8=1008),
        clock=_ghz(2.617, _RATE_1024, weak=True),
        aliases=("rtx-pro-6000-blackwell", "pro-6000"),
        device_names=("RTX PRO 6000 Blackwell Workstation Edition",),
    ),
    Gpu(
        name="rtx-5070-ti",
        title="GeForce RTX 5070 Ti",
        target=target("sm_120"),
        sms=_sms(70, _RTX50),
        l2=_mib(48, "from memory", weak=True),
        memory=_mib(16303, _REPORTED, weak=True),
        bandwidth=_gb_per_s(896, _RTX50),
        peaks=_peaks(_RATE_512, weak="all", bf16=88, fp8=176, fp4=703, int8=351),
        aliases=("5070-ti",),
        device_names=("GeForce RTX 5070 Ti",),
    ),
    Gpu(
        name="rtx-5070",
        title="GeForce RTX 5070",
        target=target("sm_120"),
        sms=_sms(48, _RTX50),
        l2=_mib(48, "from memory", weak=True),
        memory=_mib(12227, _REPORTED, weak=True),
        bandwidth=_gb_per_s(672, _RTX50),
        peaks=_peaks(_RATE_512, weak="all", bf16=62, fp8=123, fp4=494, int8=247),
        aliases=("5070",),
        device_names=("GeForce RTX 5070",),
    ),
    Gpu(
        name="dgx-spark",
        title="DGX Spark (GB10)",
        target=target("sm_121"),
        sms=_sms(48, _SPARK),
        l2=_mib(24, "from memory", weak=True),
        memory=Figure(127600748 * 1024, "B", "MemTotal of a DGX Spark; 128 GB nominal"),
        bandwidth=_gb_per_s(273, _SPARK),
        peaks=_peaks(
            "NVIDIA blog: 1 PFLOP/s sparse FP4; the others by ratio, 100 to 120 for BF16",
            weak="all",
            bf16=100,
            fp8=250,
            fp4=500,
            int8=250,
        ),
        measured=_peaks(_SPARK_FORUM, weak="all", fp8=188, fp4=356),
        clock=_ghz(2.14, "users' reports of 2.14 to 2.4 GHz", weak=True),
        shared_memory=True,
        aliases=("gb10", "spark"),
        device_names=("GB10",),
    ),
    Gpu(
        name="jetson-thor",
        title="Jetson AGX Thor (T5000)",
        target=target("sm_110"),
        sms=_sms(20, _THOR_QUERY),
        l2=_mib(32, _THOR_QUERY),
        memory=Figure(128e9, "B", "nominal; the system sees less", weak=True),
        bandwidth=_gb_per_s(273, _THOR),
        peaks=_peaks(_THOR, weak="all", bf16=258, fp8=517, fp4=1035),
        shared_memory=True,
        aliases=("thor", "t5000", "jetson-agx-thor"),
        device_names=("Thor",),
    ),
)


def _plain(name: str) -> str:
    """Lower case without spaces, hyphens or the maker's name: "rtx5090"."""
    return re.sub(r"[\s_-]+", "", name.lower()).removeprefix("nvidia").removeprefix("geforce")


_BY_NAME = {_plain(name): gpu for gpu in GPUS for name in (gpu.name, *gpu.aliases)}
_BY_DEVICE_NAME = {_plain(name): gpu for gpu in GPUS for name in gpu.device_names}


def gpu(name: str) -> Gpu:
    """The product called `name`: its name, an alias, or what the driver calls it; any case.

    Raises BadInput for anything else, with the likeliest and all known names.
    """
    plain = _plain(name)
    if found := _BY_NAME.get(plain) or _BY_DEVICE_NAME.get(plain):
        return found
    close = difflib.get_close_matches(plain, _BY_NAME, n=1, cutoff=0.75)
    hint = f"; did you mean {_BY_NAME[close[0]].name!r}?" if close else "."
    known = ", ".join(gpu.name for gpu in GPUS)
    raise BadInput(f"GPU {name!r} is not known{hint} Want one of {known}")


def match_device_name(device_name: str) -> Gpu | None:
    """The product that the driver calls `device_name` ("NVIDIA H200"), or None.

    Only exact names count: an "RTX 4090 Laptop GPU" or "H200 NVL" is another product.
    """
    return _BY_DEVICE_NAME.get(_plain(device_name))
