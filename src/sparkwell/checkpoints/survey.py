"""What a checkpoint's tensors are: every quantized weight recognised, from headers and config.

The tensors present decide the format of each weight; the config is checked against them, and only
says what tensors can't: what the activations were meant to be, how zero points are counted.
Published configs' lists of modules left out are unreliable, so they are not read.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from sparkwell.checkpoints.config import read_json_object
from sparkwell.checkpoints.dialects import (
    awq,
    compressed_tensors,
    fp8,
    gpt_oss,
    gptq,
    modelopt,
)
from sparkwell.checkpoints.header import TensorInfo
from sparkwell.checkpoints.reader import Checkpoint
from sparkwell.checkpoints.stored import (
    Declared,
    Module,
    Stored,
    described,
    mismatch,
    unsupported,
)
from sparkwell.errors import BadCheckpoint

DECLARE = {
    **dict.fromkeys(fp8.METHODS, fp8.declare),
    **dict.fromkeys(compressed_tensors.METHODS, compressed_tensors.declare),
    **dict.fromkeys(modelopt.METHODS, modelopt.declare),
    **dict.fromkeys(awq.METHODS, awq.declare),
    **dict.fromkeys(gptq.METHODS, gptq.declare),
    **dict.fromkeys(gpt_oss.METHODS, gpt_oss.declare),
}
RECOGNISE: tuple[Callable[[Module], Stored | None], ...] = (
    fp8.recognise_inverse,
    compressed_tensors.recognise,
    modelopt.recognise,
    fp8.recognise,
    awq.recognise,
    gptq.recognise,
)
# A leaf that only quantized modules have, in the order of those that tell most.
LEAVES = (
    *compressed_tensors.LEAVES,
    *modelopt.LEAVES,
    *fp8.LEAVES,
    *gptq.LEAVES,
    *gpt_oss.LEAVES,
)
CACHE_LEAVES = (
    *("k_scale", "v_scale", "q_scale", "prob_scale", "kv_scale", "output_scale"),
    *("k_zero_point", "v_zero_point"),
)
FOREIGN = {  # leaves of formats that nothing here reads
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "forward_hadamard_matrix": "FPQuant",
}
UNKNOWN = "unknown"  # the method of a config that could not be read
QUANTIZED_DTYPES = ("F8_E4M3", "F8_E5M2", "U8", "I8")
CONTRADICTION = "config and tensors contradict each other"
METADATA = "take config.json from the repository that the weights came from"


@dataclass(frozen=True)
class Survey:
    """The quantized weights of a checkpoint, and what else it holds.

    weights: by the name that a model has for each.  parts: the tensors that they consist of.
    cache_scales: scales of a quantized KV cache; nothing here uses them.
    errors: what is wrong with the config, or between it and the tensors as a whole.
    broken: what is wrong with a module, by its name; its tensors then count for nothing.
    """

    declared: Declared
    weights: dict[str, Stored] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)
    cache_scales: list[TensorInfo] = field(default_factory=list)
    errors: list[BadCheckpoint] = field(default_factory=list)
    broken: dict[str, BadCheckpoint] = field(default_factory=dict)

    def shapes(self, checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor as a model sees it: quantized weights whole, no parts of them."""
        hidden = {*self.parts, *(info.name for info in self.cache_scales)}
        held = {
            name: info.shape
            for name, info in checkpoint.tensors.items()
            if name not in hidden and name.rpartition(".")[0] not in self.broken
        }
        return held | {name: stored.shape for name, stored in self.weights.items()}

    def check(self, ignored: Callable[[str], bool] = lambda name: False) -> None:
        """Raises the first error; ignored: names of weights that nobody needs."""
        for error in self.errors:
            raise error
        for module, error in self.broken.items():
            if not ignored(f"{module}.weight"):
                raise error

    def error_of(self, name: str) -> BadCheckpoint | None:
        """What is wrong with the module that a weight belongs to, or with all."""
        if self.errors:
            return self.errors[0]
        module = name
        while module and module not in self.broken:
            module = module.rpartition(".")[0]
        return self.broken.get(module)


def survey(checkpoint: Checkpoint) -> Survey:
    """Recognise every quantized weight; done once for a checkpoint.

    Raises nothing: a scheme that is not supported, tensors that no dialect explains and a config
    that contradicts them stand in `errors` and `broken`.
    """
    if "survey" not in checkpoint.memo:
        checkpoint.memo["survey"] = _survey(checkpoint)
    return checkpoint.memo["survey"]


def _survey(checkpoint: Checkpoint) -> Survey:
    try:
        found = Survey(_declared(checkpoint))
    except BadCheckpoint as error:
        found = Survey(Declared(UNKNOWN, checkpoint.folder / "config.json"), errors=[error])
    undeclared = None
    for module in _modules(checkpoint, found.declared):
        try:
            _recognise(module, found)
        except BadCheckpoint as error:
            found.broken[module.name] = error
        if found.declared.method is None and undeclared is None:
            undeclared = next((i for leaf, i in module.tensors.items() if _marks(leaf, i)), None)
    if undeclared is not None:
        problem = "tensors are quantized, but config.json has no quantization_config"
        wanted = "plain weights, or a quantization_config that tells how they are quantized"
        came = described(undeclared)
        found.errors.append(mismatch(problem, undeclared, came, wanted, METADATA))
    if found.declared.quantizes and not found.weights and not found.broken:
        nothing = BadCheckpoint(
            "config.json says that weights are quantized, but no tensor is",
            file=found.declared.file,
            came=f"{len(checkpoint.tensors)} tensors, none of {found.declared.method}",
            wanted="quantized weights with their scales",
            do="remove quantization_config from config.json if the weights were dequantized",
        )
        found.errors.append(nothing)
    return found


# ---------------------------------------------------------------- the config


def _declared(checkpoint: Checkpoint) -> Declared:
    """config.json's quantization_config, or else hf_quant_config.json."""
    config = checkpoint.folder / "config.json"
    beside = checkpoint.folder / modelopt.FILE
    fields = checkpoint.config.get("quantization_config")
    fields = fields or checkpoint.config.get("compression_config")
    other = read_json_object(beside) if beside.is_file() else None
    if not fields:
        return Declared(None, config) if other is None else modelopt.declare(other, beside)
    fields = fields if isinstance(fields, dict) else {}
    method = fields.get("quant_method")
    if method is None and isinstance(fields.get("config_groups"), dict):
        method = compressed_tensors.NAME
    if method not in DECLARE:
        raise unsupported(config, f"quantization_config: quant_method = {method!r}")
    try:
        declared = DECLARE[method](fields, config)
    except BadCheckpoint as error:
        if error.file == config:
            error = unsupported(config, f"quantization_config: {error.came}", error.wanted)
        raise error from None
    if other is not None and declared.method == modelopt.NAME:
        _check_agreement(declared, modelopt.declare(other, beside))
    return declared


def _check_agreement(inside: Declared, beside: Declared) -> None:
    if inside.version != beside.version:
        raise BadCheckpoint(
            f"config.json and {modelopt.FILE} contradict each other",
            file=beside.file,
            came=f"quant_algo {beside.version}, and {inside.version} in config.json",
            wanted="the same in both",
            do="take both files from the repository that the weights came from",
        )


# ---------------------------------------------------------------- the tensors


def _modules(checkpoint: Checkpoint, declared: Declared) -> Iterator[Module]:
    """The modules that have a tensor which only quantized ones have."""
    grouped: dict[str, dict[str, TensorInfo]] = {}
    for name, info in checkpoint.tensors.items():
        module, _, leaf = name.rpartition(".")
        grouped.setdefault(module, {})[leaf] = info
    for name, tensors in grouped.items():
        if any(leaf in CACHE_LEAVES or _marks(leaf, info) for leaf, info in tensors.items()):
            yield Module(name, tensors, declared, declared.promise(name))


def _marks(leaf: str, info: TensorInfo) -> bool:
    """Whether only a quantized module has such a tensor."""
    if leaf == "weight":
        return info.dtype in QUANTIZED_DTYPES
    return leaf in LEAVES or leaf in FOREIGN


def _recognise(module: Module, found: Survey) -> None:
    found.cache_scales.extend(module[leaf] for leaf in CACHE_LEAVES if leaf in module)
    stored = _weights_of(module)
    for one in stored:
        _check_promise(module, one)
        found.weights[one.name] = one
        found.parts.update(info.name for info in one.parts.values())
    known = {info.name for one in stored for info in one.parts.values()}
    rest = [module[leaf] for leaf in LEAVES if leaf in module and module[leaf].name not in known]
    if stored:
        found.parts.update(info.name for info in rest)  # static scales that nothing uses
    elif rest:
        problem = "scales without a weight that they belong to"
        wanted = f"{module.name}.weight, quantized as the scales say"
        raise mismatch(problem, rest[0], described(rest[0]), wanted)


def _weights_of(module: Module) -> list[Stored]:
    for leaf in FOREIGN:
        if leaf in module:
            raise unsupported(module[leaf].file, f"{FOREIGN[leaf]}, says {module[leaf].name}")
    if not module.tensors.keys().isdisjoint(gpt_oss.LEAVES):
        return gpt_oss.recognise_all(module)
    for recognise in RECOGNISE:
        stored = recognise(module)
        if stored is not None:
            return [stored]
    weight = module.tensors.get("weight")
    if weight is not None and weight.dtype in QUANTIZED_DTYPES:
        raise mismatch(
            "weight of a dtype that no supported format explains",
            weight,
            f"{described(weight)} beside {', '.join(sorted(module.tensors))}",
            "FP8 or packed FP4 with their scales",
            "choose a version of the model in a supported format",
        )
    return []


def _check_promise(module: Module, stored: Stored) -> None:
    """Raises BadCheckpoint where config and tensors are of different formats."""
    declared, promise = module.declared, module.promise
    info = next(iter(stored.parts.values()))
    came = f"{stored.kind} of {stored.dialect}: {described(info)}"
    if declared.method not in (None, UNKNOWN, stored.dialect):
        wanted = f"tensors of {declared.method}, says {declared.file.name}"
        raise mismatch(CONTRADICTION, info, came, wanted, METADATA)
    if promise is not None and promise.kind is not None and promise.kind != stored.kind:
        wanted = f"{promise.kind}, says {promise.said} in {declared.file.name}"
        raise mismatch(CONTRADICTION, info, came, wanted, METADATA)


def stored_weights(checkpoint: Checkpoint) -> Mapping[str, Stored]:
    """The quantized weights, by the name that a model has for each."""
    return survey(checkpoint).weights
