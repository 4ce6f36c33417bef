"""PTX rewritten for another GPU: what becomes of each instruction, and what is refused."""

import subprocess
from pathlib import Path

import pytest
from triton import knobs

from sparkwell.errors import BadInput, Unsupported
from sparkwell.hardware.targets import target
from sparkwell.ops.device import as_target
from sparkwell.ops.launch import interpreting
from sparkwell.ops.schedule import HMMA
from sparkwell.verify.compile import compiled
from sparkwell.verify.matrix import cases_of, record, targets_named
from sparkwell.verify.retarget import WouldNotLoad, prepare, retargeted, rewrite, runs_here
from verify import planted

HEADER = ".version 9.4\n.target sm_121a\n.address_size 64\n"
KERNEL = (
    HEADER
    + """
.visible .entry f() {
 .reg .b32 %r<40>; .reg .b64 %rd<9>; .reg .b8 %b; .reg .b16 %h; .reg .pred %p;
 BODY
 ret;
}
"""
)
FP4 = "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1"
FRAGMENTS = "{%r1,%r2,%r3,%r4}, {%r5,%r6,%r7,%r8}, {%r9,%r10}, {%r1,%r2,%r3,%r4}"
FP8 = "mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32"
GATHER = "cp.async.bulk.tensor.2d.tile::gather4.shared::cta.global.mbarrier::complete_tx::bytes"


def assemble(ptx: str, folder: Path) -> None:
    """Raises where the assembler for Hopper refuses it."""
    path = folder / "kernel.ptx"
    path.write_text(ptx)
    command = [knobs.nvidia.ptxas_blackwell.path, "--gpu-name=sm_90a", str(path)]
    done = subprocess.run([*command, "-o", f"{path}.o"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "body",
    [
        f"{FP4}.f32.ue4m3 {FRAGMENTS}, %r11, {{0, 0}}, %r12, {{0, 1}};",
        f"{FP4.replace('4X', '2X')}.f32.ue8m0 {FRAGMENTS}, {{%r11}}, {{2, 1}}, {{%r12}}, {{0, 0}};",
        f"{FP8}.e4m3.e2m1.f32.ue8m0 {FRAGMENTS}, %r11, {{3, 1}}, %r12, {{1, 2}};",
        f"{FP8}.e2m3.e3m2.f32.ue8m0 {FRAGMENTS}, %r11, {{3, 1}}, %r12, {{1, 2}};",
        "mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.e5m2.e4m3.f32 " + FRAGMENTS + ";",
        "cvt.rn.satfinite.e2m1x2.f32 %b, %r1, %r2;",
        "cvt.rn.bf16x2.e4m3x2 %r1, %h; cvt.rn.bf16x2.e5m2x2 %r1, %h;",
        "fma.rn.ftz.f32x2 %rd1, %rd2, %rd3, %rd4; add.f32x2 %rd1, %rd2, %rd3;",
        "max.NaN.f32 %r1, %r2, %r3, %r4; min.f32 %r1, %r2, %r3;",
        "sub.rn.f32.f16 %r1, %h, %r2; fma.rn.f32.bf16 %r1, %h, %h, %r2;",
        f"@%p {GATHER} [%r1+64], [%rd1, {{%r2, %r3, %r4, %r5, %r6}}], [%r7];",
    ],
)
def test_what_hopper_lacks_is_emulated(body: str, tmp_path: Path) -> None:
    ptx = KERNEL.replace("BODY", body)
    out = rewrite(ptx, 90, "9.0")
    assert out.startswith(".version 9.0\n.target sm_90a\n") and body not in out
    assemble(out, tmp_path)


def test_gathered_rows_are_loaded_one_by_one_under_the_same_predicate() -> None:
    body = f"@%p {GATHER} [%r1 + 64], [%rd1, {{%r2, %r3, %r4, %r5, %r6}}], [%r7];"
    out = rewrite(KERNEL.replace("BODY", body), 90, "9.0")
    lines = [line.strip() for line in out.splitlines() if "cp.async" in line]
    assert len(lines) == 4 and all(line.startswith("@%p ") for line in lines)
    assert [f"[%r1 + {64 + 128 * i}], [%rd1, {{%r2, %r{3 + i}}}], [%r7]" for i in range(4)] == [
        line.partition("bytes ")[2].rstrip(";") for line in lines
    ]


def test_what_is_the_same_everywhere_stays() -> None:
    body = "max.f32 %r1, %r2, %r3;\n mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 X;"
    ptx = KERNEL.replace("BODY", body)
    out = rewrite(ptx, 90, "9.4")
    assert out == ptx.replace("sm_121a", "sm_90a")


@pytest.mark.parametrize(
    "body",
    [
        "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1], 128;",
        "ld.global.v8.b32 {%r1}, [%rd1];",
        "redux.sync.max.f32 %r1, %r2, %r3;",
        "cvt.rn.bf16x2.ue8m0x2 %r1, %h;",
        f"{FP4}.f32.ue4m3 {FRAGMENTS}, %r11, {{%r1, 0}}, %r12, {{0, 1}};",
        "mma.sync.aligned.m16n8k128.row.col.kind::f8f6f4.f32.e5m2.e4m3.f32 " + FRAGMENTS + ";",
        "@%p cvt.rn.satfinite.e2m1x2.f32 %b, %r1, %r2;",
        f"{GATHER}.cta_group::1 [%r1], [%rd1, {{%r2, %r3, %r4, %r5, %r6}}], [%r7];",
    ],
)
def test_what_cannot_be_emulated_is_refused(body: str) -> None:
    with pytest.raises(Unsupported, match="retarget"):
        rewrite(KERNEL.replace("BODY", body), 90, "9.0")


def test_who_can_run_whose_code() -> None:
    hopper = target(90)
    assert all(runs_here(target(sm), hopper) is None for sm in (80, 86, 89, 120, 121))
    assert "TCGEN05" in (runs_here(target(100), hopper) or "")
    assert "WGMMA" in (runs_here(hopper, target(121)) or "")
    assert "FP8" in (runs_here(target(89), target(80)) or "")
    assert runs_here(target(80), target(86)) is None


@pytest.mark.skipif(interpreting(), reason="kernels are interpreted here")
def test_whole_kernels_assemble(tmp_path: Path) -> None:
    uses = record(cases_of(["norm"]), targets_named(["sm_89", "sm_121"])).uses
    for unit in list({use.unit.key: use.unit for use in uses}.values())[:6]:
        assemble(rewrite(compiled(unit).asm["ptx"], 90, "9.0"), tmp_path)


@pytest.mark.skipif(interpreting(), reason="kernels are interpreted here")
def test_preparing_compiles_the_other_targets_code(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def noted(ptx: str, sm: int, version: str) -> str:
        made.append(rewrite(ptx, sm, version))
        return made[-1]

    monkeypatch.setattr("sparkwell.verify.retarget.rewrite", noted)
    monkeypatch.setattr(knobs.compilation, "always_compile", True)
    unit = record(cases_of(["rms_norm"]), targets_named(["sm_121"])).uses[0].unit
    prepare(unit, 90)
    assert len(made) == 1 and ".target sm_90a" in made[0]
    assert knobs.runtime.override_arch is None
    assert knobs.runtime.add_stages_inspection_hook is None


@pytest.mark.skipif(interpreting(), reason="kernels are interpreted here")
def test_the_other_targets_shared_memory_is_the_limit() -> None:
    large = planted.use(HMMA, 121, planted.Schedule(128, 256, 64, num_warps=8, num_stages=4)).unit
    with pytest.raises(WouldNotLoad, match=r"takes \d+ bytes of shared memory a block, sm_121 has"):
        prepare(large, 90)


def test_running_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BadInput, match="needs an NVIDIA GPU"), retargeted("sm_121"):
        pass


@pytest.mark.skipif(interpreting(), reason="kernels are interpreted here")
def test_a_choice_for_another_target_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a thread that `as_target` does not reach."""
    unit = record(cases_of(["rms_norm"]), targets_named(["sm_121"])).uses[0].unit
    monkeypatch.setattr("sparkwell.verify.retarget.as_target", lambda *_, **__: as_target(90))
    with pytest.raises(Unsupported, match="code is for sm_121"):
        prepare(unit, 90)
