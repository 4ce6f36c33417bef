"""Which GPU target kernels are chosen for: the device's own, or one that the caller names.

`as_target` lets kernels of another target be chosen: to compile them without a GPU (`verify`), to
run them under Triton's CPU interpreter, or to run another GPU's code on this one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from sparkwell.errors import BadInput
from sparkwell.hardware.targets import Target, target

if TYPE_CHECKING:
    import torch  # a target is chosen for without it

DEFAULT_SMS = 132  # multiprocessors assumed where no GPU says: splits differ, results do not


@dataclass(frozen=True)
class Device:
    """What selection may ask: features and limits of the target, and how many SMs share work.

    product: what the driver calls the GPU; "": not known.
    """

    target: Target
    sms: int
    product: str = ""


_NAMED: ContextVar[Device | None] = ContextVar("sparkwell_target", default=None)


@contextmanager
def as_target(name: str | int, *, sms: int | None = None) -> Iterator[Device]:
    """Within this context kernels are chosen for `name` ("sm_121", 121), whatever the device.

    sms: multiprocessors to share work among; None: the CUDA device's own, 132 without one.
    """
    if sms is None:
        import torch

        sms = device_of(torch.device("cuda")).sms if torch.cuda.is_available() else DEFAULT_SMS
    named = Device(target(name), sms)
    token = _NAMED.set(named)
    try:
        yield named
    finally:
        _NAMED.reset(token)


def device_of(device: "torch.device") -> Device:
    """The target kernels for `device` are chosen for.

    Raises BadInput for a device that is no CUDA device, unless `as_target` named one.
    """
    named = _NAMED.get()
    if named is not None:
        return named
    if device.type != "cuda":
        raise BadInput(
            f"kernels for device {device}: it has no GPU target; name one with as_target('sm_90')"
        )
    import torch

    return _cuda(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _cuda(index: int) -> Device:
    import torch

    properties = torch.cuda.get_device_properties(index)
    name = f"{properties.major}.{properties.minor}"
    return Device(target(name), properties.multi_processor_count, properties.name)
