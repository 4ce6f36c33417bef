"""The entries: every one is found by its own texts, the best first; nothing is made up."""

import re
import time

import pytest

from sparkwell.errors import BadInput
from sparkwell.explain.match import MOST_TEXT, entries, explain, near
from sparkwell.hardware.targets import TARGETS, Feature

# What people paste -> the entry that has to come first.
TEXTS = {
    "no kernel image is available": "no kernel image",
    "RuntimeError: CUDA error: no kernel image is available for execution on the device\n"
    "CUDA kernel errors might be asynchronously reported": "no kernel image",
    "FlashAttention only supports Ampere GPUs or newer.": "FlashAttention gate",
    "wgmma.fence not supported on .target sm_120": "instruction not supported on the target",
    "ptxas /tmp/x.ptx, line 40; error : Instruction 'setmaxnreg.dec' not supported on .target "
    "'sm_120'": "instruction not supported on the target",
    "Instruction 'cvt with .e2m1x2' not supported on .target 'sm_120'": "instruction not "
    "supported on the target",
    "tcgen05": "tcgen05",
    "tcgen05.mma.cta_group::1": "tcgen05",
    "wgmma": "wgmma",
    "wgmma.mma_async.sync.aligned.m64n256k16": "wgmma",
    "setmaxnreg.inc.sync.aligned.u32": "setmaxnreg",
    "TMEM": "tensor memory",
    "mma.sync.aligned.m16n8k64.kind::mxf4nvf4.block_scale": "block-scaled mma",
    "cp.async.bulk.tensor.2d": "TMA",
    "tensormap.replace": "TMA",
    "multicast::cluster": "multicast",
    "griddepcontrol.wait": "programmatic dependent launch",
    "cvt.rn.satfinite.e2m1x2.f32": "FP4 conversion",
    "type fp8e4nv not supported in this architecture. The supported fp8 dtypes are ('fp8e4b15', "
    "'fp8e5')": "FP8 type below sm_89",
    "ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'": "ptxas does not know "
    "the GPU",
    "nvcc fatal : Unsupported gpu architecture 'compute_120a'": "ptxas does not know the GPU",
    "torch.AcceleratorError: CUDA error: the provided PTX was compiled with an unsupported "
    "toolchain.": "PTX from a newer toolchain",
    "RuntimeError: Assertion error (csrc/apis/attention.hpp:219): Unsupported architecture": "Deep"
    "GEMM: unsupported architecture",
    "TllmGenFmhaRunner::run Unsupported architecture": "TllmGenFmhaRunner",
    "RuntimeError: Sparse Attention Indexer CUDA op requires DeepGEMM to be installed.": "sparse "
    "indexer wants DeepGEMM",
    "ValueError: No valid attention backend found for cuda with AttentionSelectorConfig("
    "head_size=576, dtype=torch.bfloat16, use_mla=True)": "no attention backend",
    "RuntimeError: Failed to run cutlass FP4 gemm on sm120. Error: Error Internal": "CUTLASS FP4 "
    "GEMM failed",
    "Failed to set the allowed dynamic shared memory size to 168128": "too much shared memory",
    "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 163840, "
    "Hardware limit: 101376": "too much shared memory",
    "Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist": "nvcc is missing",
    "NaN in the output of the fp4 layers": "NaN or garbage with FP4",
    "GPU shows 96% util at 18 W, livelock": "GPU is busy and does nothing",
    "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current "
    "PyTorch installation.": "CUDA-capable device not compatible with PyTorch",
    "CUDA driver version is insufficient for CUDA runtime version": "driver too old",
    "CUDA error: an illegal instruction was encountered": "illegal instruction",
    "ERROR : Arch conditional MMA instruction used without targeting appropriate compute "
    "capability. Aborting.": "device-side assert",
    "thread block cluster": "clusters",
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32": "mma.sync",
    "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32": "FP8 mma.sync",
    "cp.async.bulk.tensor.2d.tile::gather4": "TMA gather",
    "mbarrier.try_wait.parity": "mbarrier",
    "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your "
    "Tesla T4 GPU has compute capability 7.5.": "BF16 on Turing",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB": "out of memory",
    "libcudart.so.12: cannot open shared object file: No such file": "CUDA library not found",
    "ImportError: _C.abi3.so: undefined symbol: _ZN3c104cuda9SetDeviceEi": "undefined symbol",
    "stale jit cache": "JIT cache of another GPU",
}


@pytest.mark.parametrize("text", TEXTS)
def test_what_people_paste(text: str) -> None:
    assert explain(text)[0].entry.name == TEXTS[text]


def test_every_entry_has_such_a_text() -> None:
    assert set(TEXTS.values()) == {entry.name for entry in entries()}


def test_entries_are_whole() -> None:
    names = [entry.name for entry in entries()]
    assert len(set(names)) == len(names) >= 30
    for entry in entries():
        assert entry.matches and entry.cure and entry.sources and len(entry.cause) > 40
        for text in (entry.cause, *entry.cure, *entry.sources):
            assert text == text.strip() and "  " not in text and "\n" not in text
        assert entry.cause.endswith(".")


def test_a_pattern_does_not_match_everything() -> None:
    for entry in entries():
        for pattern in entry.matches:
            assert not pattern.search("hello world") and not pattern.search(" "), entry.name


def test_instructions_name_the_gpus_that_have_them() -> None:
    by_name = {entry.name: entry for entry in entries()}
    assert by_name["wgmma"].having == ("sm_90",)
    assert by_name["tcgen05"].having == ("sm_100", "sm_103", "sm_107", "sm_110")
    assert "sm_121" in by_name["tcgen05"].lacking and "sm_120" in by_name["block-scaled mma"].having
    for entry in entries():
        both = [*entry.having, *entry.lacking]
        assert len(set(both)) == len(both) == (0 if entry.feature is None else len(TARGETS))
    assert by_name["no kernel image"].having == by_name["no kernel image"].lacking == ()
    assert by_name["multicast"].feature is Feature.MULTICAST


def test_the_longest_piece_comes_first() -> None:
    found = explain("Instruction 'wgmma.fence' not supported on .target 'sm_120'")
    assert [one.entry.name for one in found] == ["instruction not supported on the target", "wgmma"]
    assert found[0].text == "Instruction 'wgmma.fence' not supported on .target 'sm_120"
    assert found[1].text == "wgmma.fence"


def test_lines_and_case_do_not_matter() -> None:
    text = "NO KERNEL  image\n\tis available for\nexecution on the DEVICE"
    assert (
        explain(text)[0].text.lower() == "no kernel image is available for execution on the device"
    )


def test_unknown_texts_have_neighbours() -> None:
    assert explain("kernel imag missing") == ()
    assert near("kernel imag missing")[0] == "no kernel image"
    assert near("flashattenton suports amper")[0] == "FlashAttention gate"
    assert near("zzz qqq xxx") == () and near("") == ()
    assert len(near("cuda kernel gpu device memory error supported", most=2)) <= 2


@pytest.mark.parametrize("text", ["", "   ", "\n\n", "12 34", "!?", "«»"])
def test_no_text(text: str) -> None:
    with pytest.raises(BadInput, match="is no text; give an error message or instruction"):
        explain(text)


def test_long_logs_are_read_in_bounded_time() -> None:
    start = time.monotonic()
    for text in ("wgmma" * 10**5, "fp4 " * 10**5, "instruction '" * 10**5, "a " * 10**6):
        explain(text)
        near(text)
    assert time.monotonic() - start < 10
    late = "x " * MOST_TEXT + "no kernel image is available"
    assert explain(late) == ()  # beyond what is looked at
    assert explain("no kernel image is available" + " x" * MOST_TEXT)


def test_what_the_doctor_and_the_planner_are_called() -> None:
    """Cures name verbs that exist."""
    from sparkwell.cli import app

    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    for entry in entries():
        for cure in entry.cure:
            for verb in re.findall(r"sparkwell (\w+) [A-Z]", cure):
                assert verb in verbs, (entry.name, verb)
