"""Every case on the GPU at hand, as its own code, against the op's reference."""

import pytest
import torch

from sparkwell.errors import Unsupported
from sparkwell.ops.launch import interpreting
from sparkwell.verify.case import Case
from sparkwell.verify.cases import all_cases
from sparkwell.verify.run import compare

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or interpreting(), reason="needs a GPU"),
]
CASES = [case for case in all_cases() if case.size != "timed"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.op}-{c.name}")
def test_the_kernel_is_its_reference(case: Case) -> None:
    try:
        compare(case, torch.device("cuda"))
    except (torch.OutOfMemoryError, Unsupported) as error:
        pytest.skip(str(error))
    finally:
        torch.cuda.empty_cache()
