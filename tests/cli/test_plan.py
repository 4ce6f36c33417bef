"""plan: exit codes, text, JSON, the figure; and that none of these verbs imports torch."""

import json
import os
import resource
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sparkwell.cli import app
from sparkwell.cli import plan as verb
from sparkwell.hardware.gpus import GPUS, gpu
from sparkwell.plan.report import MOST_GPUS

ROOT = Path(__file__).resolve().parents[2]
SPARK = ("glm-5.2", "--gpu", "dgx-spark")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments])


# ---------------------------------------------------------------- exit codes


def test_it_fits() -> None:
    result = run("llama-3.1-8b", "--gpu", "rtx-4090")
    assert result.exit_code == 0, result.stderr
    assert "…" not in result.stdout
    heading = "llama-3.1-8b (llama; built-in table): 8.03 B parameters, 32 layers, grouped-query "
    assert result.stdout.startswith(heading)
    assert "Times are predictions." in result.stdout
    assert "; --scheme makes it), bound by memory bandwidth" in result.stdout


def test_it_does_not_fit() -> None:
    result = run(*SPARK)
    assert result.exit_code == 1
    assert "1 x dgx-spark, int4: lacks 2" in result.stdout and "; 4 would do" in result.stdout


def test_no_number_of_gpus_fits() -> None:
    result = run("llama-3.1-405b", "--gpu", "rtx-5070", "--gpus", "fit", "--scheme", "bf16")
    assert result.exit_code == 1
    assert f"no number of GPUs up to {MOST_GPUS} does" in result.stdout


def test_one_of_several_does_not_fit() -> None:
    several = ("--gpu", "h200", "--gpu", "rtx-4090")
    assert run("glm-4.7-flash", "--scheme", "bf16", *several).exit_code == 1
    assert run("glm-4.7-flash", "--scheme", "nvfp4", *several).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no-such-model", "--gpu", "h200"), "no model 'no-such-model'"),
        (("glm-5.3-flash", "--gpu", "h200"), "known but not supported yet"),
        (("glm-5.2", "--gpu", "rtx-509"), "GPU 'rtx-509' is not known; did you mean 'rtx-5090'?"),
        ((*SPARK, "--gpus", "0"), "gpus is '0', want a number of at least 1, or fit"),
        ((*SPARK, "--gpus", "two"), "gpus is 'two'"),
        ((*SPARK, "--gpus", "9" * 5000), "want a number of at least 1, or fit"),
        ((*SPARK, "--scheme", "int8"), "scheme is 'int8', want one of bf16"),
        ((*SPARK, "--context", "a lot"), "context is 'a lot', want a number of tokens"),
        ((*SPARK, "--context", "2m"), "context is 2097152, but glm-5.2 was made for 1048576"),
        ((*SPARK, "--input", "0"), "input is '0'"),
        ((*SPARK, "--batch", "0"), "batch is 0, want 1 to 1073741824"),
        ((*SPARK, "--kv-cache", "fp4"), "cache is 'fp4'"),
        ((*SPARK, "--experts", "dp", "--gpus", "4"), "experts is 'dp', want one of auto, tp, ep"),
        ((*SPARK, "--plot", "figure.txt"), "want a name that ends in .svg, .png, .pdf"),
        ((*SPARK, "--plot", "/no/such/folder/x.svg"), "there is no folder /no/such/folder"),
    ],
)
def test_usage(arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert words in result.stderr.replace("\n", " ")


def test_debug_lets_errors_through() -> None:
    result = run(*SPARK, "--gpus", "0", "--debug")
    assert type(result.exception).__name__ == "BadInput"


def test_this_machines_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparkwell.hardware.probe import DeviceInfo, Machine

    probing = sys.modules["sparkwell.hardware.probe"]  # the package's `probe` is the function

    def machine(*products: str) -> Machine:
        found = tuple(
            DeviceInfo(i, name, "9.0", None, None, False, None, gpu(name) if name else None)
            for i, name in enumerate(products)
        )
        return Machine(found, None, None, "x86_64", "Linux", 2, None, ())

    monkeypatch.setattr(probing, "probe", lambda: machine("", "h200"))
    result = run("llama-3.1-8b", "--json")
    assert json.loads(result.stdout)["plans"][0]["gpu"] == "h200"
    monkeypatch.setattr(probing, "probe", lambda: machine(""))
    result = run("llama-3.1-8b")
    assert result.exit_code == 2 and "no GPU of this machine is known; name one" in result.stderr
    assert all(one.name in result.stderr for one in GPUS)


# ---------------------------------------------------------------- what is said


def cells(text: str, first: str) -> list[str]:
    """The cells of the table row that begins with this word."""
    (line,) = [x for x in text.splitlines() if x.split()[:1] == [first]]
    return line.split()


def test_one_gpu() -> None:
    arguments = (*SPARK, "--gpus", "4", "--context", "64k", "--batch", "2")
    result = run(*arguments)
    text = result.stdout
    assert result.exit_code == 0, text
    assert "4 x DGX Spark (GB10) (sm_121): 273 GB/s" in text
    assert "2 requests of 65536 tokens, prompts of 65536, cache fp8: 53,940 B a token" in text
    assert "53,940 B a token and GPU (2,772 of them the indexer's)" in text
    found = json.loads(
        run(*SPARK, "--gpus", "4", "--context", "64k", "--batch", "2", "--json").stdout
    )
    (one,) = found["plans"]
    for row in one["schemes"]:
        shown = cells(text, row["scheme"])
        assert shown[1] == ("yes" if row["fits"] else "no")
        assert float(shown[2]) == pytest.approx(row["weights_bytes"] / 1e9, abs=0.06)
        assert shown[-1] in ("bandwidth", "launches", "links") or shown[-2:] == ["matrix", "units"]
    assert f"best: {one['best']} (" in text
    best = next(row for row in one["schemes"] if row["scheme"] == one["best"])
    held = f"caches hold {best['tokens']:,} tokens: contexts of up to {best['max_context']:,} for "
    assert f"{held}2 requests, or {best['concurrency']} requests of 65,536" in text
    assert "note: each GPU holds the whole latent cache and indexer" in text
    assert "note: several GPUs want an engine with tensor parallelism" in text
    assert "wants such a checkpoint" in text and "--scheme makes it" not in text
    assert "mla_sparse:fp8-grouped-s   mma.sync, 16-bit" in text
    assert cells(text, "w4a16")[-3] == "1"  # the fastest from one row on
    assert "bandwidth-bound up to" in text


def test_what_lacks_a_kernel_is_said() -> None:
    result = run("llama-3.1-8b", "--gpu", "jetson-thor", "--scheme", "nvfp4")
    assert "attention_paged: none" in result.stdout
    assert "attention: not decode: written for sm 80" in result.stdout


def test_why() -> None:
    plain, why = (run(*SPARK, "--gpus", "4", *more).stdout for more in ((), ("--why",)))
    assert "attention: not gathered: written for sm 90" in why
    assert "attention: not gathered" not in plain


def test_several_gpus() -> None:
    names = ("dgx-spark", "rtx-pro-6000", "h200", "b200", "rtx-5090")
    gpus = [word for name in names for word in ("--gpu", name)]
    result = run("glm-5.2", *gpus, "--gpus", "fit", "--context", "64k")
    assert result.exit_code == 0 and "…" not in result.stdout
    assert [cells(result.stdout, name)[1] for name in names] == ["4", "8", "4", "4", "16"]
    assert "kernels of one decode step" not in result.stdout


def test_a_quantized_folder(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from checkpoints.dialects import BY_NAME
    from cli.inspected import LLAMA, write

    folder = write(tmp_path, BY_NAME["deepseek"], LLAMA)
    result = run(str(folder), "--gpu", "h200", "--context", "64", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["model"]["source"] == "folder: headers"
    (row,) = found["plans"][0]["schemes"]
    assert row["scheme"] == "as stored" and row["words"] == "fp8, as its files hold it"
    layers = {x["layer"]: x["arithmetic"] for x in found["plans"][0]["kernels"]}
    assert layers["o"] == "w8a16"
    assert run(str(folder), "--gpu", "h200", "--context", "64", "--scheme", "fp8").exit_code == 2


def test_notes_are_shown(tmp_path: Path) -> None:
    from sparkwell.plan.models import MODELS

    quantization = {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}
    config = MODELS["llama-3.1-8b"] | {"quantization_config": quantization}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = run(str(tmp_path), "--gpu", "h200")
    assert "note: formats by the config alone" in result.stdout


# ---------------------------------------------------------------- the figure


def test_a_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    to = tmp_path / "out.svg"
    to.write_text("old")
    several = ("--gpu", "h200", "--gpu", "dgx-spark")
    result = run("llama-3.1-8b", *several, "--plot", str(to))
    assert result.exit_code == 0, result.stderr
    texts = " ".join(ElementTree.parse(to).getroot().itertext())
    for word in ("h200", "dgx-spark", "predictions", "seconds to the first token", "context 8192"):
        assert word in texts
    assert "bf16" not in texts  # each GPU by its best
    assert [path.name for path in tmp_path.iterdir()] == ["out.svg"]
    first = to.read_bytes()
    run("llama-3.1-8b", *several, "--plot", str(to))
    assert to.read_bytes() == first  # the same plan is the same file
    assert run("llama-3.1-8b", *several, "--plot", str(tmp_path / "x.PNG")).exit_code == 0
    assert (tmp_path / "x.PNG").read_bytes().startswith(b"\x89PNG")


def test_a_figure_of_one_gpu_has_its_schemes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    to = tmp_path / "out.svg"
    run("llama-3.1-70b", "--gpu", "rtx-pro-6000", "--plot", str(to))
    texts = " ".join(ElementTree.parse(to).getroot().itertext())
    assert "rtx-pro-6000, fp8" in texts and "rtx-pro-6000, int4" in texts
    assert "rtx-pro-6000, bf16" not in texts  # it does not fit
    assert run(*SPARK, "--plot", str(to)).exit_code == 1  # nothing fits: the smallest is drawn
    assert "1 x dgx-spark, int4" in " ".join(ElementTree.parse(to).getroot().itertext())


def test_a_figure_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    def broken(self: object, name: str, **options: object) -> None:
        Path(name).write_text("half")
        raise RuntimeError("no room")

    monkeypatch.setattr(Figure, "savefig", broken)
    to = tmp_path / "out.svg"
    to.write_text("old")
    result = run("llama-3.1-8b", "--gpu", "h200", "--plot", str(to))
    assert isinstance(result.exception, RuntimeError)
    assert [path.name for path in tmp_path.iterdir()] == ["out.svg"] and to.read_text() == "old"


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("llama-3.1-8b", "--gpu", "h200", "--plot", str(tmp_path / "x.svg"))
    assert result.exit_code == 2 and not list(tmp_path.iterdir())
    assert "--plot needs matplotlib: pip install 'sparkwell[plot]'" in result.stderr


# ---------------------------------------------------------------- as a process

LIGHT = """
import sys, sparkwell.cli
sys.argv = ["sparkwell", *{arguments!r}]
try:
    sparkwell.cli.main()
except SystemExit as end:
    assert end.code in (0, 1, None), end.code
heavy = {{"torch", "triton", "numpy", "transformers", "huggingface_hub", "safetensors"}}
print("HEAVY", sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "glm-5.2", "--gpu", "dgx-spark", "--gpus", "4"),
        ("plan", "bard", "--gpu", "h200", "--context", "256", "--json"),
        ("plan", "llama-3.1-8b"),
        ("gpus",),
        ("gpus", "dgx-spark", "--json"),
        ("explain", "tcgen05"),
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(arguments: tuple[str, ...]) -> None:
    code = LIGHT.format(arguments=list(arguments))
    if arguments == ("plan", "llama-3.1-8b"):  # no GPU here: refused, and still without torch
        code = code.replace("(0, 1, None)", "(0, 1, 2, None)")
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_start_up_is_quick() -> None:
    """Processor time: others may keep the machine busy."""
    command = [sys.executable, "-m", "sparkwell", "plan", "llama-3.1-8b", "--gpu", "h200"]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, env=env, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 1.0  # half of it on a machine with nothing else to do


def test_names_of_bounds_are_short() -> None:
    from sparkwell.plan.figures import BINDS

    assert set(verb.SHORT) <= set(BINDS.values())
