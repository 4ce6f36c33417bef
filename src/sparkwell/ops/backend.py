"""Which backend serves an op's call: the fp32 torch reference, or a refusal that says why."""

import torch

from sparkwell.errors import BadInput, Unsupported

BACKENDS = ("auto", "reference")


def choose(op: str, tensor: torch.Tensor, backend: str = "auto") -> None:
    """Return where the reference serves `op` on `tensor`'s device; raise where nothing does.

    op: name of the op, for the message.
    tensor: any operand; its device decides.
    backend: "auto" (the best backend that serves the device) or "reference" (on any device).

    Raises BadInput for an unknown backend, Unsupported with every candidate's reason otherwise.
    """
    if backend == "reference" or (backend == "auto" and tensor.is_cpu):
        return
    if backend not in BACKENDS:
        raise BadInput(f"{op}: backend is {backend!r}, want one of {', '.join(BACKENDS)}")
    raise Unsupported(
        op,
        f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}",
        {
            "kernel": f"{op} has no kernel for device type {tensor.device.type!r}",
            "reference": "runs on CPU tensors by itself, on others only where it is asked for",
        },
        'pass CPU tensors, or backend="reference" for the slow fp32 torch reference',
    )
