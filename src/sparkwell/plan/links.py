"""How GPUs of one product are joined, for the sums that tensor parallelism needs in every layer."""

from dataclasses import dataclass

from sparkwell.hardware.gpus import Gpu


@dataclass(frozen=True)
class Link:
    """rate: bytes a second in each direction.  wait: seconds of one sum of little data.

    Neither is measured here; `source` says where each is from.
    """

    name: str
    rate: float
    wait: float
    source: str

    def seconds(self, nbytes: float, gpus: int) -> float:
        """Of a sum over the GPUs: each byte travels 2 (n - 1) / n times."""
        if gpus < 2:
            return 0.0
        return self.wait + 2 * (gpus - 1) / gpus * nbytes / self.rate


_NVLINK = "datasheet; the wait of a one-shot sum, from memory"
_PCIE = "PCIe 5.0 x16 at 85 %; the wait as consumer boards report without peer copies, from memory"
_SLOW = "PCIe 4.0 x16 at 85 %; the wait as consumer boards report without peer copies, from memory"
_NIC = "one ConnectX-7 port of 200 Gbit/s; the wait of RoCE, from memory"
NVLINK5 = Link("NVLink 5", 900e9, 8e-6, _NVLINK)
NVLINK4 = Link("NVLink 4", 450e9, 10e-6, _NVLINK)
NVLINK3 = Link("NVLink 3", 300e9, 12e-6, _NVLINK)
PCIE5 = Link("PCIe 5", 54e9, 25e-6, _PCIE)
PCIE4 = Link("PCIe 4", 27e9, 30e-6, _SLOW)
ROCE = Link("200 Gbit/s RoCE", 24e9, 40e-6, _NIC)
_OF = {
    "a100-sxm-40": NVLINK3,
    "a100-sxm-80": NVLINK3,
    "h100-sxm": NVLINK4,
    "h200": NVLINK4,
    "b200": NVLINK5,
    "b300": NVLINK5,
    "rtx-5090": PCIE5,
    "rtx-pro-6000": PCIE5,
    "rtx-5070-ti": PCIE5,
    "rtx-5070": PCIE5,
    "h100-pcie": PCIE5,
    "dgx-spark": ROCE,
}


def link(gpu: Gpu) -> Link:
    """What joins several of this product; PCIe 4 where nothing better is known."""
    return _OF.get(gpu.name, PCIE4)
