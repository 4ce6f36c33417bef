"""Which device a model runs on: a GPU with kernels where there is one, else the CPU, and why."""

import importlib.util

import torch

from sparkwell.errors import BadInput, Unsupported
from sparkwell.hardware.targets import target
from sparkwell.ops.schedule import EVERY


def gpu_refusal(index: int = 0) -> str | None:
    """Why the GPU `index` cannot run the kernels; None where it can."""
    if not torch.cuda.is_available():
        built = "is built without CUDA" if torch.version.cuda is None else "sees no NVIDIA GPU"
        return f"torch {torch.__version__} {built}"
    if index >= torch.cuda.device_count():
        return f"there are {torch.cuda.device_count()} GPUs, counted from 0"
    if importlib.util.find_spec("triton") is None:
        return "the package triton, which compiles the kernels, is not installed"
    properties = torch.cuda.get_device_properties(index)
    name = f"{properties.major}.{properties.minor}"
    try:
        row = target(name)
    except BadInput:
        return f"{properties.name} has compute capability {name}, which is not known here"
    if row.sm not in EVERY:
        served = ", ".join(f"sm_{sm}" for sm in sorted(EVERY))
        return f"{properties.name} is {row.name}; the kernels are written for {served}"
    return None


def choose_device(name: str) -> torch.device:
    """The device `name`: "cpu", "cuda", "cuda:1", or "auto": a GPU that has kernels, or the CPU.

    Raises BadInput for another name, Unsupported with the reason where the GPU cannot be used.
    """
    if name == "auto":
        return torch.device("cpu") if gpu_refusal() else torch.device("cuda", 0)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise BadInput(f"device is {name!r}; want auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device
    index = device.index or 0
    if reason := gpu_refusal(index):
        raise Unsupported(
            "model runner",
            f"device {name!r}",
            {"gpu kernels": reason},
            "leave --device out, or say --device cpu",
        )
    return torch.device("cuda", index)
