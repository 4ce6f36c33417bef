"""What a record says about where it was taken."""

import subprocess
from typing import Any

import torch

from sparkwell.verify.records import surroundings as versions

_QUERY = {"clocks.sm": "sm_mhz", "clocks.mem": "memory_mhz", "power.draw": "watts"}


def surroundings(commit: str | None = None) -> dict[str, Any]:
    """GPU, driver, versions.  commit: None asks git, where this is a checkout."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return versions(commit) | {
        "gpu": properties.name,
        "sms": properties.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def clocks() -> dict[str, float]:
    """Clocks and power of the current GPU at this moment; empty where nothing tells."""
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    command = ["nvidia-smi", "-i", f"GPU-{uuid}", f"--query-gpu={','.join(_QUERY)}"]
    command += ["--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        values = done.stdout.split(",")
        return {name: float(x) for name, x in zip(_QUERY.values(), values, strict=True)}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
