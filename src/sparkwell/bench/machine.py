"""What a record says about where it was taken."""

import datetime
import importlib
import subprocess
from pathlib import Path
from typing import Any

import torch

import sparkwell
from sparkwell.hardware.probe import probe

_QUERY = {"clocks.sm": "sm_mhz", "clocks.mem": "memory_mhz", "power.draw": "watts"}


def surroundings(commit: str | None = None) -> dict[str, Any]:
    """GPU, driver and versions.  commit: None asks git, where this is a checkout."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "gpu": properties.name,
        "sms": properties.multi_processor_count,
        "driver": probe().driver,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": importlib.import_module("triton").__version__,
        "sparkwell": sparkwell.__version__,
        "commit": commit or commit_here(),
    }


def commit_here() -> str | None:
    """The checkout's commit, "+" behind it where files differ; None outside a checkout."""
    root = Path(sparkwell.__file__).parent
    try:
        commit = _said("git", "-C", str(root), "rev-parse", "--short", "HEAD")
        changed = _said("git", "-C", str(root), "status", "--porcelain", "--", str(root))
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def clocks() -> dict[str, float]:
    """Clocks and power of the current GPU at this moment; empty where nothing tells."""
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    query = f"--query-gpu={','.join(_QUERY)}"
    try:
        text = _said("nvidia-smi", "-i", f"GPU-{uuid}", query, "--format=csv,noheader,nounits")
        return {name: float(x) for name, x in zip(_QUERY.values(), text.split(","), strict=True)}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()
