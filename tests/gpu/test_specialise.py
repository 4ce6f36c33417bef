"""What verify compiles without a GPU is what a call on a GPU compiles."""

from typing import Any

import pytest
import torch

from sparkwell.errors import Unsupported
from sparkwell.ops.device import as_target, device_of
from sparkwell.ops.launch import Launch, interpreting, recording
from sparkwell.verify.case import Case, Maker
from sparkwell.verify.cases import all_cases
from sparkwell.verify.compile import compiled, specialise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or interpreting(), reason="needs a GPU"),
]
CASES = [case for case in all_cases() if case.size != "timed"]


def recorded(case: Case, device: str) -> list[Launch]:
    with as_target(device_of(torch.device("cuda")).target.sm), recording() as launches:
        case.call(case.make(Maker(torch.device(device))), "kernel")
    return [launch for launch in launches if 0 not in launch.grid]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.op}-{c.name}")
def test_shapes_alone_give_the_same_code_as_tensors(case: Case) -> None:
    try:
        real = recorded(case, "cuda")
    except (torch.OutOfMemoryError, Unsupported) as error:
        pytest.skip(str(error))
    finally:
        torch.cuda.empty_cache()
    shapes = recorded(case, "meta")
    assert [specialise(one).key for one in real] == [specialise(one).key for one in shapes]


def test_the_launcher_compiles_the_same_machine_code() -> None:
    case = next(c for c in CASES if c.op == "rms_norm" and c.name.startswith("4x512"))
    (launch,) = recorded(case, "cuda")
    options: dict[str, Any] = {**launch.constants, **launch.options}
    run = launch.kernel[launch.grid](*launch.args, **options)
    unit = specialise(launch)
    made = compiled(unit)
    assert run.hash == made.hash and run.asm["ptx"] == made.asm["ptx"]  # Triton's cache has one
    assert run.metadata.shared == made.metadata.shared
