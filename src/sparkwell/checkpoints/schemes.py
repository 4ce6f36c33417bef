"""Weights read in whatever format they are stored, and whether a model's tensors are all there."""

from collections.abc import Callable, Iterable, Mapping

import torch

from sparkwell.checkpoints.reader import INDEX, SINGLE, Checkpoint
from sparkwell.checkpoints.stored import PLAIN, mismatch
from sparkwell.checkpoints.survey import survey
from sparkwell.errors import BadCheckpoint
from sparkwell.formats.weights import Weight

# ---------------------------------------------------------------- reading


def read_weight(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Weight:
    """The weight that a model calls `name`: plain, or quantized and whole with its scales.

    shape: what the model needs; [n, k] for a quantized weight.
    Returns a float tensor in its own dtype, or a quantized tensor, on the CPU; of the files, only
    this weight's tensors are read.
    Raises BadCheckpoint for a weight that is missing, of another shape or of an integer dtype, for
    tensors that no format explains, and for scales that are NaN, infinite or negative.
    """
    found = survey(checkpoint)
    if error := found.error_of(name):
        raise error
    stored = found.weights.get(name)
    if stored is not None:
        info = next(iter(stored.parts.values()))
        if stored.shape != tuple(shape):
            came = f"{list(stored.shape)} in {stored.kind}"
            raise mismatch("tensor of a wrong shape", info, came, str(list(shape)))
        return stored.read(stored, checkpoint)
    plain = checkpoint.tensors.get(name)
    if plain is not None and plain.shape != tuple(shape):
        came = str(list(plain.shape))
        raise mismatch("tensor of a wrong shape", plain, came, str(list(shape)))
    if plain is not None and plain.dtype not in PLAIN:
        raise mismatch("tensor of a wrong dtype", plain, plain.dtype, " or ".join(PLAIN))
    return checkpoint.read(name)


def stored_bytes(checkpoint: Checkpoint, name: str) -> int:
    """Bytes that reading this weight takes from the files, its scales included."""
    stored = survey(checkpoint).weights.get(name)
    return checkpoint.tensors[name].nbytes if stored is None else stored.nbytes


# ---------------------------------------------------------------- names and shapes


def differences(
    checkpoint: Checkpoint,
    expected: Mapping[str, tuple[int, ...]],
    *,
    ignored: Callable[[str], bool],
) -> dict[str, list[str]]:
    """Names of weights that are "missing", "surplus" and "of another shape", in that order.

    expected, ignored: as `check_tensors` has them.
    """
    held = survey(checkpoint).shapes(checkpoint)
    return {
        "missing": [name for name in expected if name not in held],
        "surplus": [n for n in held if n not in expected and not ignored(n)
                    and not _zero_bias(checkpoint, n)],
        "of another shape": [n for n in expected if n in held and held[n] != tuple(expected[n])],
    }  # fmt: skip


def check_tensors(
    checkpoint: Checkpoint,
    expected: Mapping[str, tuple[int, ...]],
    *,
    ignored: Callable[[str], bool],
) -> None:
    """Compare the checkpoint's names and shapes with what the model needs, before any data is read.

    expected: name -> shape of each weight, as the model sees it; scales left out.
    ignored: tells which surplus names are fine.  Scales of a present weight always are, and so is
    a bias of zeros beside a GPTQ or AWQ weight, which old files have everywhere.
    Raises BadCheckpoint for a scheme that is not supported or contradicts the tensors; and one for
    all that is missing, surplus or of another shape.
    """
    survey(checkpoint).check(ignored)
    counts = differences(checkpoint, expected, ignored=ignored)
    if not any(counts.values()):
        return
    index = checkpoint.folder / INDEX
    names = [*counts["of another shape"], *counts["missing"], *counts["surplus"]]
    few = names[:4]
    raise BadCheckpoint(
        "tensors " + ", ".join(f"{len(v)} {k}" for k, v in counts.items() if v),
        file=index if index.is_file() else checkpoint.folder / SINGLE,
        tensor=", ".join(few) + (f" and {len(names) - 4} more" if len(names) > 4 else ""),
        came=_shapes(few, survey(checkpoint).shapes(checkpoint)),
        wanted=_shapes(few, expected),
        do="check that config.json and the weights belong to the same model and version",
    )


def _zero_bias(checkpoint: Checkpoint, name: str) -> bool:
    weight = survey(checkpoint).weights.get(f"{name.removesuffix('.bias')}.weight")
    if not name.endswith(".bias") or weight is None or weight.dialect not in ("awq", "gptq"):
        return False
    try:
        return not bool(torch.any(checkpoint.read(name)))
    except BadCheckpoint:  # of a file that is cut off, and refused for that
        return False


def _shapes(names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(str(list(shapes[name])) if name in shapes else "absent" for name in names)
