"""The probe against a small management library compiled here, each answer failing in turn."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkwell.hardware.probe import Machine, probe

MODULE = sys.modules["sparkwell.hardware.probe"]  # the package gives its function the same name
COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
H200_BYTES = 143771 * 2**20
HOST_BYTES = 128 * 2**30


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., str]:
    """Compiles the library with macros set, and returns its path."""

    def compile_with(**macros: object) -> str:
        library = tmp_path / "libfake.so"
        flags = [f"-D{name}={value}" for name, value in macros.items()]
        source = Path(__file__).with_name("fake_nvml.c")
        subprocess.run(
            [str(COMPILER), "-shared", "-fPIC", *flags, "-o", str(library), str(source)], check=True
        )
        return str(library)

    return compile_with


@pytest.fixture(autouse=True)
def host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_host_memory", lambda: HOST_BYTES)


def assert_host(machine: Machine) -> None:
    assert (machine.host_arch, machine.system) == (platform.machine(), platform.system())
    assert machine.cpus == os.cpu_count()
    assert machine.memory_bytes == HOST_BYTES


@needs_compiler
def test_two_gpus(build):
    library = build()
    machine = probe(library)
    assert_host(machine)
    assert (machine.driver, machine.cuda, machine.problems) == ("580.159.03", "13.2", ())
    assert [device.index for device in machine.gpus] == [0, 1]
    for device in machine.gpus:
        assert (device.name, device.capability) == ("NVIDIA H200", "9.0")
        assert (device.target.name, device.product.name) == ("sm_90", "h200")
        assert (device.memory_bytes, device.shared_memory) == (H200_BYTES, False)
        assert device.driver == "580.159.03"
    assert ctypes.CDLL(library).fake_running() == 0, "the library was not shut down"


@needs_compiler
def test_gpu_that_shares_the_host_memory(build):
    spark = probe(build(NAME_TEXT='"NVIDIA GB10"', MAJOR=12, MINOR=1, MEMORY=3))
    assert spark.problems == ()
    device = spark.gpus[1]
    assert (device.target.name, device.product.name) == ("sm_121", "dgx-spark")
    assert (device.memory_bytes, device.shared_memory) == (HOST_BYTES, True)


@needs_compiler
def test_gpu_in_no_table(build):
    machine = probe(build(NAME_TEXT='"NVIDIA X9000"', MAJOR=13, MINOR=5))
    device = machine.gpus[1]
    assert (device.capability, device.target, device.product) == ("13.5", None, None)
    assert device.memory_bytes == H200_BYTES
    (problem,) = machine.problems
    assert problem.startswith("GPU 1 (NVIDIA X9000): target '13.5' is not known; want one of sm_75")


@needs_compiler
@pytest.mark.parametrize(
    ("macros", "problem"),
    [
        ({"INIT": 9}, "nvmlInit_v2: Driver Not Loaded (code 9)"),
        ({"INIT": 18}, "nvmlInit_v2: Driver/library version mismatch (code 18)"),
        ({"INIT": 999, "NO_TEXT": 1}, "nvmlInit_v2: error (code 999)"),
        ({"INIT": 999, "OMIT_TEXT": 1}, "nvmlInit_v2: error (code 999)"),
    ],
)
def test_driver_that_does_not_answer(build, macros, problem):
    machine = probe(build(**macros))
    assert_host(machine)
    assert (machine.gpus, machine.driver, machine.cuda) == ((), None, None)
    assert machine.problems == (f"the NVIDIA driver does not answer; {problem}",)


@needs_compiler
@pytest.mark.parametrize(
    ("macros", "driver", "cuda", "problem"),
    [
        ({"DRIVER": 999}, None, "13.2", "nvmlSystemGetDriverVersion: Unknown Error (code 999)"),
        (
            {"CUDA": 3},
            "580.159.03",
            None,
            "nvmlSystemGetCudaDriverVersion_v2: Not Supported (code 3)",
        ),
        (
            {"OMIT_CUDA": 1},
            "580.159.03",
            None,
            "nvmlSystemGetCudaDriverVersion_v2: the driver is too old to have it",
        ),
        ({"SHUTDOWN": 999}, "580.159.03", "13.2", "nvmlShutdown: Unknown Error (code 999)"),
    ],
)
def test_versions_that_cannot_be_read(build, macros, driver, cuda, problem):
    machine = probe(build(**macros))
    assert (machine.driver, machine.cuda) == (driver, cuda)
    assert [device.driver for device in machine.gpus] == [driver, driver]
    assert machine.problems == (problem,)


@needs_compiler
@pytest.mark.parametrize(
    ("macros", "problem"),
    [
        ({"COUNT": 0}, "the NVIDIA driver is there and sees no GPU"),
        ({"COUNT_CODE": 15}, "nvmlDeviceGetCount_v2: GPU is lost (code 15)"),
    ],
)
def test_no_gpu(build, macros, problem):
    machine = probe(build(**macros))
    assert (machine.gpus, machine.driver) == ((), "580.159.03")
    assert machine.problems == (problem,)


@needs_compiler
@pytest.mark.parametrize(
    ("macro", "function"),
    [
        ("HANDLE", "nvmlDeviceGetHandleByIndex_v2"),
        ("NAME", "nvmlDeviceGetName"),
        ("CAPABILITY", "nvmlDeviceGetCudaComputeCapability"),
    ],
)
def test_a_gpu_that_fails_leaves_the_others(build, macro, function):
    machine = probe(build(**{macro: 15}))
    assert [device.index for device in machine.gpus] == [0]
    assert machine.problems == (f"GPU 1 is left out; {function}: GPU is lost (code 15)",)


@needs_compiler
def test_memory_that_cannot_be_read(build):
    machine = probe(build(MEMORY=3))
    assert [device.memory_bytes for device in machine.gpus] == [H200_BYTES, None]
    assert machine.gpus[1].shared_memory is False
    assert machine.problems == (
        "GPU 1 (NVIDIA H200): nvmlDeviceGetMemoryInfo: Not Supported (code 3)",
    )


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_no_library(tmp_path, content):
    library = tmp_path / "absent.so"
    if content:
        library.write_bytes(content)
    machine = probe(str(library))
    assert_host(machine)
    assert (machine.gpus, machine.driver, machine.cuda) == ((), None, None)
    (problem,) = machine.problems
    assert problem.startswith(f"{library} cannot be loaded: no NVIDIA driver is installed")


def test_host_memory(monkeypatch):
    monkeypatch.undo()
    if platform.system() == "Linux":
        line = Path("/proc/meminfo").read_text().splitlines()[0]
        assert MODULE._host_memory() == int(line.split()[1]) * 1024
    monkeypatch.delattr(os, "sysconf")
    assert MODULE._host_memory() is None


def test_hardware_needs_neither_torch_nor_triton():
    code = (
        "import sys; import sparkwell.hardware as h; h.probe(); h.gpu('spark'); h.target('90');"
        "heavy = {'torch', 'triton', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="needs an NVIDIA GPU")
def test_this_machine():
    machine = probe()
    assert machine.gpus, machine.problems
    assert all(device.target and device.memory_bytes for device in machine.gpus)
