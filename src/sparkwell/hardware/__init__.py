"""What GPUs are: targets and their features, products and their peaks, this machine."""

from sparkwell.hardware.figures import Figure
from sparkwell.hardware.gpus import GPUS, Gpu, gpu, match_device_name
from sparkwell.hardware.probe import DeviceInfo, Machine, probe
from sparkwell.hardware.targets import TARGETS, Feature, Target, TensorPath, target

__all__ = [
    "GPUS",
    "TARGETS",
    "DeviceInfo",
    "Feature",
    "Figure",
    "Gpu",
    "Machine",
    "Target",
    "TensorPath",
    "gpu",
    "match_device_name",
    "probe",
    "target",
]
