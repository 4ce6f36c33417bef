"""This machine: its GPUs through the driver's management library (NVML), its host.

NVML is loaded with ctypes; signatures and return codes are those of NVIDIA's NVML reference.
"""

import ctypes
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sparkwell.errors import BadInput, SparkwellError
from sparkwell.hardware.gpus import Gpu, match_device_name
from sparkwell.hardware.targets import Target, target

LIBRARY = "nvml.dll" if platform.system() == "Windows" else "libnvidia-ml.so.1"
T = TypeVar("T")
_NAME_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE
_VERSION_BYTES = 80  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE


@dataclass(frozen=True)
class DeviceInfo:
    """One GPU.

    target: None where its capability is in no table row.  memory_bytes: of the GPU, or of the host
    where both share it (`shared_memory`); None where neither is known.  product: the table's row
    for exactly this product, or None.
    """

    index: int
    name: str
    capability: str
    target: Target | None
    memory_bytes: int | None
    shared_memory: bool
    driver: str | None
    product: Gpu | None


@dataclass(frozen=True)
class Machine:
    """What `probe` found.  cuda: the newest CUDA the driver supports.  problems: what it could not
    read and why; where `gpus` is empty, why."""

    gpus: tuple[DeviceInfo, ...]
    driver: str | None
    cuda: str | None
    host_arch: str
    system: str
    cpus: int
    memory_bytes: int | None
    problems: tuple[str, ...]


class NvmlError(SparkwellError):
    """NVML refused a call: function, its text for the code, the code."""


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = [
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    ]


class _Nvml:
    """The loaded library; each method is one question."""

    def __init__(self, library: str) -> None:
        self._lib = ctypes.CDLL(library)

    def call(self, function: str, *arguments: object) -> None:
        """Calls `function`; NvmlError where it is missing or returns another code than 0."""
        try:
            code = getattr(self._lib, function)(*arguments)
        except AttributeError:
            raise NvmlError(f"{function}: the driver is too old to have it") from None
        if code:
            raise NvmlError(f"{function}: {self._text(code)} (code {code})")

    def _text(self, code: int) -> str:
        try:
            describe = self._lib.nvmlErrorString
        except AttributeError:
            return "error"
        describe.restype = ctypes.c_char_p
        return (describe(code) or b"error").decode(errors="replace")

    def driver(self) -> str:
        """Driver version, like "580.159.03"."""
        text = ctypes.create_string_buffer(_VERSION_BYTES)
        self.call("nvmlSystemGetDriverVersion", text, ctypes.c_uint(_VERSION_BYTES))
        return text.value.decode(errors="replace")

    def cuda(self) -> str:
        """Newest CUDA version the driver supports; NVML encodes 13.0 as 13000."""
        version = ctypes.c_int()
        self.call("nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    def count(self) -> int:
        """Number of GPUs."""
        count = ctypes.c_uint()
        self.call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        return count.value

    def handle(self, index: int) -> ctypes.c_void_p:
        """Handle of GPU `index`."""
        handle = ctypes.c_void_p()
        self.call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        return handle

    def name(self, handle: ctypes.c_void_p) -> str:
        """Product name."""
        text = ctypes.create_string_buffer(_NAME_BYTES)
        self.call("nvmlDeviceGetName", handle, text, ctypes.c_uint(_NAME_BYTES))
        return text.value.decode(errors="replace")

    def capability(self, handle: ctypes.c_void_p) -> str:
        """Compute capability, like "9.0"."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        arguments = (handle, ctypes.byref(major), ctypes.byref(minor))
        self.call("nvmlDeviceGetCudaComputeCapability", *arguments)
        return f"{major.value}.{minor.value}"

    def memory(self, handle: ctypes.c_void_p) -> int:
        """Total bytes of the GPU's own memory."""
        memory = _Memory()
        self.call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
        return memory.total


def probe(library: str | None = None) -> Machine:
    """All GPUs of this machine (whatever the process may see of them), driver and host.

    library: path of NVML; None: the system's.  Never raises for want of a GPU or driver: what
    could not be read is None or left out, and `problems` says why.
    """
    problems: list[str] = []
    memory_bytes = _host_memory()
    gpus: list[DeviceInfo] = []
    driver = cuda = None
    try:
        nvml = _Nvml(library or LIBRARY)
        nvml.call("nvmlInit_v2")
    except OSError:
        problems.append(
            f"{library or LIBRARY} cannot be loaded: no NVIDIA driver is installed, or this "
            "container was started without it"
        )
    except NvmlError as error:
        problems.append(f"the NVIDIA driver does not answer; {error}")
    else:
        try:
            driver = _ask(nvml.driver, problems)
            cuda = _ask(nvml.cuda, problems)
            count = _ask(nvml.count, problems)
            if count == 0:
                problems.append("the NVIDIA driver is there and sees no GPU")
            for index in range(count or 0):
                try:
                    gpus.append(_device(nvml, index, driver, memory_bytes, problems))
                except NvmlError as error:
                    problems.append(f"GPU {index} is left out; {error}")
        finally:
            _ask(lambda: nvml.call("nvmlShutdown"), problems)
    return Machine(
        gpus=tuple(gpus),
        driver=driver,
        cuda=cuda,
        host_arch=platform.machine(),
        system=platform.system(),
        cpus=os.cpu_count() or 1,
        memory_bytes=memory_bytes,
        problems=tuple(problems),
    )


def _ask(question: Callable[[], T], problems: list[str], about: str = "") -> T | None:
    """The answer, or None and one more problem, which starts with `about`."""
    try:
        return question()
    except NvmlError as error:
        problems.append(f"{about}{error}")
        return None


def _device(
    nvml: _Nvml, index: int, driver: str | None, host_memory: int | None, problems: list[str]
) -> DeviceInfo:
    handle = nvml.handle(index)
    name, capability = nvml.name(handle), nvml.capability(handle)
    product = match_device_name(name)
    # Where GPU and host share memory, NVML answers "not supported" or a figure of its own.
    shared = product is not None and product.shared_memory
    about = f"GPU {index} ({name}): "
    memory = host_memory if shared else _ask(lambda: nvml.memory(handle), problems, about)
    try:
        row = target(capability)
    except BadInput as error:
        row = None
        problems.append(f"{about}{error}")
    return DeviceInfo(index, name, capability, row, memory, shared, driver, product)


def _host_memory() -> int | None:
    """Bytes of physical memory, where the system tells."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
