"""Which backend serves an op's call: a kernel, the fp32 torch reference, or a refusal."""

import torch

from sparkwell.errors import BadInput, Unsupported

BACKENDS = ("auto", "kernel", "reference")


def choose(op: str, tensor: torch.Tensor, backend: str = "auto") -> str:
    """What serves `op` on `tensor`'s device: "kernel" or "reference".

    op: name of the op, for the message.
    tensor: any operand; its device decides.
    backend: "auto": the kernel on a CUDA device, the reference on the CPU; "kernel"; "reference"
        (on any device).  A kernel takes CPU tensors under Triton's interpreter only, and meta
        tensors while launches are recorded.

    Raises BadInput for an unknown backend, Unsupported with every candidate's reason otherwise.
    """
    if backend not in BACKENDS:
        raise BadInput(f"{op}: backend is {backend!r}, want one of {', '.join(BACKENDS)}")
    kind = tensor.device.type
    if backend == "reference" or (backend == "auto" and kind == "cpu"):
        return "reference"
    if kind == "cuda" or _without_gpu(kind):
        return "kernel"
    why = f"{op} has no kernel for device type {kind!r}"
    raise Unsupported(
        op,
        f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}",
        {
            "kernel": why,
            "reference": "runs on CPU tensors by itself, on others only where it is asked for",
        },
        'pass CPU tensors, or backend="reference" for the slow fp32 torch reference',
    )


def _without_gpu(kind: str) -> bool:
    """Whether kernels can be called here on tensors that are on no GPU."""
    if kind not in ("cpu", "meta"):
        return False
    from sparkwell.ops.launch import interpreting, is_recording  # triton: CPU users may lack it

    return interpreting() if kind == "cpu" else is_recording()
