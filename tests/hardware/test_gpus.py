"""Products: complete figures, lookups, and arithmetic that ties figures to each other."""

import dataclasses
import json

import pytest

from sparkwell.errors import BadInput
from sparkwell.hardware.figures import Figure
from sparkwell.hardware.gpus import GPUS, PEAKS, gpu, match_device_name
from sparkwell.hardware.targets import Feature, TensorPath

UNITS = {"sms": "SM", "l2": "B", "memory": "B", "bandwidth": "B/s"}

# name: target, SMs, L2 MiB, memory GB as sold, GB/s, BF16 TFLOP/s
ROWS = {
    "a100-sxm-40": ("sm_80", 108, 40, 40, 1555, 312),
    "a100-sxm-80": ("sm_80", 108, 40, 80, 2039, 312),
    "a100-pcie-80": ("sm_80", 108, 40, 80, 1935, 312),
    "rtx-3090": ("sm_86", 82, 6, 24, 936, 71),
    "rtx-4090": ("sm_89", 128, 72, 24, 1008, 165),
    "l40s": ("sm_89", 142, 96, 48, 864, 362),
    "h100-sxm": ("sm_90", 132, 50, 80, 3350, 989),
    "h100-pcie": ("sm_90", 114, 50, 80, 2000, 756),
    "h200": ("sm_90", 132, 50, 141, 4800, 989),
    "b200": ("sm_100", 148, 126.5, 180, 7670, 2250),
    "b300": ("sm_103", 148, 126, 270, 7700, 2250),
    "rtx-5090": ("sm_120", 170, 96, 32, 1792, 210),
    "rtx-pro-6000": ("sm_120", 188, 128, 96, 1792, 504),
    "rtx-5070-ti": ("sm_120", 70, 48, 16, 896, 88),
    "rtx-5070": ("sm_120", 48, 48, 12, 672, 62),
    "dgx-spark": ("sm_121", 48, 24, 128, 273, 100),
    "jetson-thor": ("sm_110", 20, 32, 128, 273, 258),
}
each = pytest.mark.parametrize("product", GPUS, ids=lambda product: product.name)


@each
def test_figures(product):
    target, sms, l2, memory, bandwidth, bf16 = ROWS[product.name]
    assert product.target.name == target
    assert product.sms.value == sms
    assert product.l2.value == l2 * 2**20
    assert product.bandwidth.value == bandwidth * 1e9
    assert product.peaks["bf16"].value == bf16 * 1e12
    assert 0.93 * memory * 1e9 <= product.memory.value <= 1.08 * memory * 1e9


@each
def test_every_figure_has_unit_and_source(product):
    figures = {name: getattr(product, name) for name in UNITS}
    assert {name: figure.unit for name, figure in figures.items()} == UNITS
    assert set(product.peaks) <= set(PEAKS)
    assert set(product.measured) <= {*PEAKS, "read", "copy"}
    for key, figure in {**product.peaks, **product.measured}.items():
        assert figure.unit == {"int8": "OP/s", "read": "B/s", "copy": "B/s"}.get(key, "FLOP/s")
        figures[key] = figure
    for figure in figures.values():
        assert isinstance(figure, Figure) and figure.value > 0 and figure.source


@each
def test_peaks_agree_with_the_target(product):
    peaks, features = product.peaks, product.target.features
    assert ("fp8" in peaks) == (Feature.FP8_MMA in features)
    assert ("fp4" in peaks) == (Feature.FP4_BLOCK_MMA in features)
    if "fp8" in peaks:
        ratio = peaks["fp8"].value / peaks["bf16"].value
        assert 1.95 < ratio < 2.05 or product.name == "dgx-spark"
    if product.target.tensor_path is TensorPath.WGMMA:
        clock = peaks["bf16"].value / product.sms.value / 4096
        assert 1.5e9 < clock < 2e9


def test_rates_per_clock_tie_products_to_their_clock():
    clocks = {"rtx-3090": (512, 1.695), "rtx-4090": (512, 2.52), "rtx-pro-6000": (1024, 2.617)}
    clocks |= {"rtx-5090": (512, 2.407), "rtx-5070": (512, 2.512), "rtx-5070-ti": (512, 2.452)}
    for name, (flop, ghz) in clocks.items():
        product = gpu(name)
        rate = product.sms.value * flop * ghz * 1e9
        assert product.peaks["bf16"].value == pytest.approx(rate, rel=0.01), name


def test_the_weak_rows_are_marked():
    for name in ("dgx-spark", "jetson-thor", "b300"):
        assert all(figure.weak for figure in gpu(name).peaks.values()), name
    for name in ("h100-sxm", "h200", "a100", "b200"):
        assert not any(figure.weak for figure in gpu(name).peaks.values()), name
    assert gpu("l40s").peaks["int8"].weak and not gpu("l40s").peaks["bf16"].weak


def test_measured_rates():
    measured = {key: figure.value for key, figure in gpu("h200").measured.items()}
    assert measured == {"bf16": 785e12, "fp8": 1444e12, "read": 4.46e12, "copy": 4.08e12}
    assert not any(figure.weak for figure in gpu("h200").measured.values())
    spark = {key: figure.value for key, figure in gpu("spark").measured.items()}
    assert spark == {"fp8": 188e12, "fp4": 356e12}
    for product in GPUS:
        for key, figure in product.measured.items():
            limit = product.peaks.get(key, product.bandwidth)
            assert figure.value < limit.value


def test_only_these_share_memory_with_the_host():
    assert {p.name for p in GPUS if p.shared_memory} == {"dgx-spark", "jetson-thor"}


def test_rows_can_be_keys_and_become_plain_data():
    assert len(set(GPUS)) == len(ROWS)
    plain = json.loads(json.dumps(dataclasses.asdict(gpu("h200")), default=str))
    assert plain["peaks"]["bf16"]["value"] == 989e12
    assert plain["target"]["sm"] == 90


def test_every_name_and_alias_finds_its_product():
    seen = {}
    for product in GPUS:
        for name in (product.name, product.title, *product.aliases, *product.device_names):
            if name != product.title:
                assert gpu(name) is product
                assert gpu(f" NVIDIA_{name.upper()} ") is product
            assert seen.setdefault(name, product) is product


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("gb10", "dgx-spark"),
        ("DGX Spark", "dgx-spark"),
        ("spark", "dgx-spark"),
        ("rtx5090", "rtx-5090"),
        ("NVIDIA GeForce 5090", "rtx-5090"),
        ("GeForce RTX 5070 Ti", "rtx-5070-ti"),
        ("h100", "h100-sxm"),
        ("a100", "a100-sxm-80"),
        ("thor", "jetson-thor"),
    ],
)
def test_lookup(name, want):
    assert gpu(name).name == want


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "rtx-5080",
            r"GPU 'rtx-5080' is not known; did you mean 'rtx-50.0'\? Want one of a100-sxm",
        ),
        ("dgx-sparc", "did you mean 'dgx-spark'"),
        ("mi300x", r"GPU 'mi300x' is not known. Want one of a100-sxm-40, .*, jetson-thor$"),
        ("", r"GPU '' is not known. Want"),
    ],
)
def test_unknown_products_list_the_known_ones(name, text):
    with pytest.raises(BadInput, match=text):
        gpu(name)


@pytest.mark.parametrize(
    ("device_name", "want"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm-40"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", None),
        ("NVIDIA B200", "b200"),
        ("NVIDIA B300 SXM6 AC", "b300"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", None),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", None),
        ("NVIDIA GeForce RTX 5070", "rtx-5070"),
        ("NVIDIA GeForce RTX 5070 Ti", "rtx-5070-ti"),
        ("NVIDIA GB10", "dgx-spark"),
        ("NVIDIA Thor", "jetson-thor"),
        ("", None),
    ],
)
def test_only_the_exact_product_matches(device_name, want):
    found = match_device_name(device_name)
    assert (found and found.name) == want
