"""How Python packages talk about a GPU's capability: names, helpers, and what they mean."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from sparkwell.hardware import Target


class Mark(Enum):
    """What is neither true nor false.  UNKNOWN: about the GPU, and not to be decided here.
    OTHER: about something else (a data type, a version, an option)."""

    UNKNOWN = "unknown"
    OTHER = "other"


UNKNOWN, OTHER = Mark.UNKNOWN, Mark.OTHER

# Names that hold a whole capability, its major and its minor.
CAPABILITY = re.compile(
    r"(?:device_|compute_|cuda_|gpu_|current_|_)*(?:compute_)?"
    r"(?:capability|compute_cap|cap|cc|arch|sm|sm_version|sm_arch|arch_num|capability_int)$"
)
NOT_CAPABILITY = re.compile(
    r"^(?:min|max|lowest|highest|supported|required|target|model|hf|host|cpu)_|model_arch|_list$"
)
MAJOR = re.compile(r"(?:cc_|sm_|capability_|device_|cuda_cc_|compute_capability_|_)?major$")
MINOR = re.compile(r"(?:cc_|sm_|capability_|device_|cuda_cc_|compute_capability_|_)?minor$")

# Calls that return the capability.
ASKING = re.compile(
    r"_?(?:get_|current_|device_|cuda_)*(?:device|compute|cuda|gpu)?_?"
    r"(?:capability|compute_capability|compute_cap|sm_version|device_sm|sm_arch|cuda_arch|gpu_arch"
    r"|device_arch)(?:_int|_tuple|_cached)?$"
)
ASKING_PREFIX = re.compile(r"^_?(?:get|current|device|cuda|torch|compute|query)|^capability$")

# Calls and names that say whether this is another maker's device: here it never is.
OTHER_MAKERS = re.compile(
    r"^_?(?:is_|on_|has_|use_)*(?:rocm|hip|amd|gfx\w*|musa|xpu|npu|hpu|mps|cpu|tpu|habana|cambricon"
    r"|ascend)(?:_platform|_available)?$"
)
NVIDIA = re.compile(r"^_?is_(?:cuda|nvidia)(?:_platform|_available|_alike)?$")

GENERATIONS = {
    # word: (targets it means for certain, majors for which packages differ)
    "turing": (frozenset({75}), frozenset[int]()),
    "ampere": (frozenset({80, 86, 87}), frozenset({8})),
    "ada": (frozenset({89}), frozenset[int]()),
    "hopper": (frozenset({90}), frozenset[int]()),
    "blackwell": (frozenset({100, 103}), frozenset({11, 12})),
}
_GENERATION = re.compile(
    r"^_?(?:is|has|check|on|support\w*)_?(?:nvidia_)?(turing|ampere|ada|hopper|blackwell)"
    r"(_or_newer|_or_later|_plus|_or_higher)?(?:_gpu|_supported|_available|_class)?$"
)
_BY_NUMBER = re.compile(
    r"^_?(?:is|has|check|on|support\w*)_?(?:device_|cuda_|gpu_)?(?:sm|cc|compute)_?(\d{1,3})"
    r"([xaf]?)_?(plus|or_higher|or_later|or_newer)?_?(?:supported|available|gpu|device|family)?$"
)
_OLDEST = {"turing": 75, "ampere": 80, "ada": 89, "hopper": 90, "blackwell": 100}


@dataclass(frozen=True)
class Capability:
    """The GPU's capability as a package holds it: as a number, a pair or a text."""

    gpu: Target

    @property
    def pair(self) -> tuple[int, int]:
        """(12, 1)."""
        return self.gpu.major, self.gpu.sm % 10


Answer = bool | Mark


@functools.lru_cache(maxsize=1 << 16)
def is_capability_name(name: str) -> bool:
    """Whether a variable or attribute of this name holds a whole capability."""
    low = name.lower()
    return bool(CAPABILITY.match(low)) and not NOT_CAPABILITY.search(low)


@functools.lru_cache(maxsize=1 << 16)
def asks_capability(name: str) -> bool:
    """Whether a call of this name returns the capability."""
    low = name.lower()
    return bool(ASKING.match(low) and ASKING_PREFIX.match(low))


def helper(name: str, gpu: Target) -> Answer | None:
    """What a yes-or-no helper of this name says on `gpu`; None: it is no such helper."""
    found = _understood(name)
    return found(gpu) if found else None


@functools.lru_cache(maxsize=1 << 16)
def _understood(name: str) -> Callable[[Target], Answer] | None:
    low = name.lower()
    if match := _GENERATION.match(low):
        return functools.partial(_generation, match[1], bool(match[2]))
    if match := _BY_NUMBER.match(low):
        return functools.partial(_by_number, match[1], match[2], bool(match[3]))
    if OTHER_MAKERS.match(low):
        return lambda gpu: False
    return (lambda gpu: True) if NVIDIA.match(low) else None


def _generation(word: str, or_newer: bool, gpu: Target) -> Answer:
    if or_newer:
        return gpu.sm >= _OLDEST[word]
    certain, differing = GENERATIONS[word]
    if gpu.sm in certain:
        return True
    return UNKNOWN if gpu.major in differing else False


def _by_number(digits: str, suffix: str, or_newer: bool, gpu: Target) -> Answer:
    """is_sm90, is_sm12x_supported, is_sm_100a_supported, is_sm80_or_later."""
    number = int(digits)
    if suffix == "x":  # sm12x and sm120x both mean the family
        return gpu.major == (number if number < 20 else number // 10)
    if number < 50:
        return UNKNOWN
    if or_newer:
        return gpu.sm >= number
    # Packages say "sm100" for the whole major about as often as for 10.0 alone.
    if gpu.major != number // 10:
        return False
    return True if gpu.sm == number else UNKNOWN


# Methods that compare: name -> how the GPU's number and the argument's are compared.
METHODS: dict[str, Callable[[int, int], bool]] = {
    "has_device_capability": lambda own, wanted: own >= wanted,
    "is_device_capability": lambda own, wanted: own == wanted,
    "is_device_capability_family": lambda own, wanted: own // 10 == wanted // 10,
    "cuda_capability_geq": lambda own, wanted: own >= wanted,
    "is_compute_capability_at_least": lambda own, wanted: own >= wanted,
}

# Decorators, arguments and class attributes that list what is supported: by number or by major.
LISTS = re.compile(r"(?i)^_?supported_(?:compute_)?(?:capabilit(?:y|ies)|archs?|sms?|cc)$")
MAJOR_LISTS = re.compile(r"(?i)^_?supported_major(?:s|_versions?)$")
DECORATORS = re.compile(
    r"^_?(?:supported|requires?)_(?:compute_)?(?:capabilit(?:y|ies)|archs?|sms?)$"
)
