"""A model's name becomes its config, its weights' shapes and, where known, their format."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sparkwell.checkpoints.config import parse_config, read_config
from sparkwell.checkpoints.locate import ASSETS, HUB_ID
from sparkwell.checkpoints.reader import INDEX, SINGLE, Checkpoint
from sparkwell.checkpoints.stored import Promise
from sparkwell.checkpoints.survey import DECLARE, survey
from sparkwell.errors import BadCheckpoint
from sparkwell.plan.models import builtin, known
from sparkwell.plan.parts import QUANTIZABLE, Config, Part, parts
from sparkwell.plan.schemes import (
    BF16,
    FP8,
    FP8_ROWS,
    INT4,
    MXFP4,
    NVFP4,
    NVFP4_A4,
    NVFP4_A8,
    Format,
    Scheme,
)

AS_STORED = "as stored"
LARGEST = 1 << 40
COUNTS = dict.fromkeys(("n_routed_experts", "num_experts", "num_local_experts"), 1 << 16)
COUNTS["num_hidden_layers"] = 1 << 12


@dataclass(frozen=True)
class Model:
    """stored: its one scheme, where its files or its config say so; None: plain weights.

    source: "built-in table", "folder: headers", "folder: config" or "Hub: config".
    """

    name: str
    config: Config
    parts: tuple[Part, ...]
    stored: Scheme | None
    source: str
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Values of all weights."""
        return sum(part.parameters for part in self.parts)


def find_model(name: str) -> Model:
    """The model: a local folder, a built-in or packaged name, or a Hub id (its config only).

    Raises BadCheckpoint where nothing has that name, its config cannot be read or planned for, or
    the Hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return _of_folder(folder, name)
    if (found := builtin(name)) is not None:
        return _of_config(found[0], found[1], "built-in table", None)
    if re.fullmatch(r"[\w-]+", name) and (ASSETS / name / "config.json").is_file():
        return _of_folder(ASSETS / name, name)
    match = HUB_ID.fullmatch(name)
    if match is None or match[0].startswith(".") or folder.is_file():
        raise BadCheckpoint(
            f"no model {name!r}",
            came="a file" if folder.is_file() else "no such folder, no such name, and no Hub id",
            wanted=f"a folder with config.json, a Hub id owner/name, or one of {known()}",
            do="check the name",
        )
    file = _download(match["repo"], match["revision"])
    return _of_config(name, read_config(file.parent), "Hub: config", file)


def _parse(raw: dict[str, Any], file: Path | None) -> Config:
    """The config, refused before anything is made of sizes that no model has."""
    for key, value in raw.items():
        most = COUNTS.get(key, LARGEST)
        if isinstance(value, int | float) and not abs(value) <= most:
            raise BadCheckpoint(
                "config.json holds a number that no model has",
                file=file or "config.json",
                came=f"{key} = {str(value)[:40]}",
                wanted=f"at most {most}",
                do="take config.json from the model's own repository",
            )
    return parse_config(raw, file=file)


def _of_config(name: str, raw: dict[str, Any], source: str, file: Path | None) -> Model:
    config = _parse(raw, file)
    found = parts(config)
    stored, notes = _declared(raw, found, file), []
    if stored is not None:
        notes.append("formats by the config alone; give a folder with the weights for exact bytes")
    return Model(name, config, found, stored, source, tuple(notes))


def _of_folder(folder: Path, name: str) -> Model:
    if not (folder / SINGLE).is_file() and not (folder / INDEX).is_file():
        file = folder / "config.json"
        return _of_config(name, read_config(folder), "folder: config", file)
    checkpoint = Checkpoint.open(folder)
    config = _parse(checkpoint.config, folder / "config.json")
    found = parts(config)
    stored = _measured(checkpoint, found)
    scheme, notes = (stored.scheme, stored.notes) if stored else (None, ())
    return Model(name, config, found, scheme, "folder: headers", notes)


# ---------------------------------------------------------------- formats, by the files


@dataclass(frozen=True)
class _Found:
    scheme: Scheme
    notes: tuple[str, ...]


def _measured(checkpoint: Checkpoint, found: tuple[Part, ...]) -> _Found | None:
    """The formats and bytes in the headers; None where all weights are plain 16-bit ones."""
    seen = survey(checkpoint)
    wanted = {name.removesuffix(".weight") for part in found for name in part.names()}
    seen.check(lambda name: name.removesuffix(".weight") not in wanted)
    nbytes: dict[str, int] = {}
    formats: dict[str, Format] = {}
    notes = []
    for part in found:
        kinds: Counter[Format] = Counter()
        total = 0
        for name in part.names():
            stored, plain = seen.weights.get(name), checkpoint.tensors.get(name)
            if stored is None and plain is None:
                raise BadCheckpoint(
                    "a weight that the config asks for is missing",
                    file=checkpoint.folder,
                    tensor=name,
                    came=f"{len(checkpoint.tensors)} tensors, none of this name",
                    wanted=name,
                    do="take config.json and weights from the same repository",
                )
            if stored is not None and part.group in QUANTIZABLE:
                kinds[_format(stored.kind, stored.activations, stored.group)] += 1
                total += stored.nbytes
            else:  # served in 16 bits, however it is stored
                kinds[BF16] += 1
                total += part.nbytes * part.n * max(1, part.k)
        nbytes[part.name], formats[part.name] = total, kinds.most_common(1)[0][0]
        if len(kinds) > 1:
            what = ", ".join(f"{count} {kind.kind}" for kind, count in kinds.most_common())
            notes.append(f"{part.name}: {what}; speed is that of the most common format")
    if not seen.weights:
        return None
    words = f"{seen.declared.method}, as its files hold it"
    scheme = Scheme(AS_STORED, words, measured=nbytes, of_parts=formats)
    return _Found(scheme, tuple(notes))


def _format(kind: str | None, activations: str | None, group: int | None) -> Format:
    """What a checkpoint says, in this package's table."""
    made = activations or "none"
    if kind == "fp8-block":
        return Format("Fp8Block", made, 1, "fp8", "fp8-block") if made != "fp8-group" else FP8
    if kind == "fp8-rows":
        return Format("Fp8Rows", made, 1, "fp8", "fp8-rows") if made != "fp8-token" else FP8_ROWS
    if kind == "nvfp4":
        return NVFP4_A4 if made == "nvfp4" else NVFP4_A8 if made.startswith("fp8") else NVFP4
    if kind == "int4":
        return Format("Int4Group", "none", group or INT4.group, "int4", "int4")
    return replace(MXFP4, activations=made) if kind == "mxfp4" else BF16


# ---------------------------------------------------------------- formats, by the config


def _declared(raw: Mapping[str, Any], found: tuple[Part, ...], file: Path | None) -> Scheme | None:
    """The formats that quantization_config promises, less what it leaves out; None: none."""
    fields = raw.get("quantization_config") or raw.get("compression_config")
    if not isinstance(fields, dict):
        return None
    where = file or Path("config.json")
    method = fields.get("quant_method") or "compressed-tensors"
    if method not in DECLARE:
        raise BadCheckpoint(
            "quantization scheme is not supported",
            file=where,
            came=f"quant_method = {method!r}",
            wanted=", ".join(sorted(DECLARE)),
            do="choose a version of the model in one of these formats",
        )
    declared = DECLARE[method](fields, where)
    if not declared.quantizes:
        return None
    skipped = _left_out(fields)
    nbytes, formats = {}, {}
    for part in found:
        if part.group not in QUANTIZABLE:
            continue
        kinds = Counter(
            _promised(declared.promise(module)) if not skipped(module) else BF16
            for module in (
                part.name.format(layer=layer, expert=0).removesuffix(".weight")
                for layer in part.layers
            )
        )
        formats[part.name] = kinds.most_common(1)[0][0]
        nbytes[part.name] = sum(
            count * part.experts * kind.nbytes(part.n, part.k) for kind, count in kinds.items()
        )
    return Scheme(AS_STORED, f"{method}, says its config", measured=nbytes, of_parts=formats)


def _promised(promise: Promise | None) -> Format:
    if promise is None:
        return BF16
    return _format(promise.kind, promise.activations, promise.group)


def _left_out(fields: Mapping[str, Any]) -> Any:
    """Whether a module is on one of the lists of what stays plain."""
    lists = [fields.get(key) for key in ("ignore", "exclude_modules", "modules_to_not_convert")]
    inner = fields.get("quantization")
    if isinstance(inner, dict):
        lists.append(inner.get("exclude_modules"))
    entries = [str(entry) for some in lists if isinstance(some, list) for entry in some]

    def skipped(module: str) -> bool:
        return any(_named(entry, module) for entry in entries)

    return skipped


def _named(entry: str, module: str) -> bool:
    if entry.startswith("re:"):
        try:
            return re.match(entry[3:], module) is not None
        except re.error:
            return False
    inside = module == entry or module.startswith(entry + ".") or f".{entry}." in f".{module}."
    return inside or fnmatchcase(module, entry)


# ---------------------------------------------------------------- the Hub


def _download(repo: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    at = "" if revision is None else f"@{revision}"
    try:
        return Path(huggingface_hub.hf_hub_download(repo, "config.json", revision=revision))
    except (errors.LocalEntryNotFoundError, errors.HTTPError) as error:
        built = builtin(repo.rpartition("/")[2])
        instead = f"plan for {built[0]}, whose config is built in" if built else "give a folder"
        raise BadCheckpoint(
            f"the Hub cannot be reached, and config.json of {repo}{at} is not in the local cache",
            came=_first_line(error),
            wanted="network access, a local folder, or a built-in name",
            do=f"{instead}; or unset HF_HUB_OFFLINE if it is set and try again",
        ) from error
    except (
        errors.GatedRepoError,
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.EntryNotFoundError,
        errors.HFValidationError,
        OSError,
    ) as error:
        raise BadCheckpoint(
            f"config.json of {repo}{at} cannot be had from the Hub",
            came=_first_line(error),
            wanted="a public repository with a config.json, or one this account may read",
            do="check the spelling; for a gated or private repository log in: hf auth login",
        ) from error


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
