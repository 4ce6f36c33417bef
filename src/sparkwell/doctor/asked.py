"""Which GPU is asked about, and the CPU beside it."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass

from sparkwell.doctor.images import Host
from sparkwell.errors import BadInput
from sparkwell.hardware import GPUS, TARGETS, Target, gpu, probe, target
from sparkwell.hardware.probe import Machine

HOSTS: tuple[Host, ...] = ("x86_64", "aarch64")
SPELLINGS: dict[str, Host] = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
# Targets whose every product is one chip with an Arm CPU (Orin, Thor, GB10).
ARM_ONLY = frozenset({"sm_87", "sm_110", "sm_121"})


@dataclass(frozen=True)
class Asked:
    """One GPU to judge for.  name: as in the answer; host: None where it does not matter."""

    name: str
    title: str
    target: Target
    host: Host | None


def this_host(machine: str | None = None) -> Host | None:
    """This machine's CPU, or None where it is another kind.  machine: as the system says it."""
    name = (machine or platform.machine()).lower()
    name = SPELLINGS.get(name, name)
    return next((host for host in HOSTS if host == name), None)


def read_host(text: str) -> Host:
    """The host called `text`.  Raises BadInput."""
    if found := this_host(text):
        return found
    raise BadInput(f"host is {text!r}, want one of {', '.join(HOSTS)}")


def asked(names: Sequence[str], host: Host | None = None) -> tuple[Asked, ...]:
    """The GPUs called `names` (products or targets), each once; none: this machine's.

    host: the CPU beside them; None: the one that product always has, else this machine's.
    Raises BadInput for a name that is not known, and where this machine has no GPU.
    """
    if not names:
        return _of_machine(probe(), host)
    found = {}
    for name in names:
        one = _one(name, host)
        found[one.name] = one
    return tuple(found.values())


def all_targets(host: Host | None = None) -> tuple[Asked, ...]:
    """Every target there is, beside `host`, or whatever the host."""
    return tuple(Asked(row.name, row.parts, row, host) for row in TARGETS)


def _one(name: str, host: Host | None) -> Asked:
    try:
        row = target(name)
        return Asked(row.name, row.parts, row, host or _host_of(row))
    except BadInput:
        pass
    try:
        product = gpu(name)
    except BadInput as error:
        raise BadInput(f"{error}; or a target such as sm_121") from None
    return Asked(product.name, product.title, product.target, host or _host_of(product.target))


def _host_of(row: Target) -> Host | None:
    return "aarch64" if row.name in ARM_ONLY else this_host()


def _of_machine(machine: Machine, host: Host | None) -> tuple[Asked, ...]:
    found = {}
    for device in machine.gpus:
        if device.target is not None:
            name = device.product.name if device.product else device.target.name
            own = host or this_host(machine.host_arch)
            found[name] = Asked(name, device.name, device.target, own)
    if not found:
        why = "; ".join(machine.problems) or "no GPU was found"
        names = ", ".join(product.name for product in GPUS[-3:])
        raise BadInput(
            f"no GPU of this machine is known ({why}); say which one you mean with --gpu, such as "
            f"{names} or sm_121, or ask for all with --all"
        )
    return tuple(found.values())
