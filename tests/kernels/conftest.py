"""Kernels under Triton's CPU interpreter: run as `TRITON_INTERPRET=1 pytest tests/kernels`.

Triton decides at import whether a kernel is compiled or interpreted, so these tests need a process
of their own; `make test` starts one.
"""

import pytest
import torch

from sparkwell.ops.launch import interpreting
from sparkwell.verify.interpreter import correct

if interpreting():
    correct()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not interpreting():
        skip = pytest.mark.skip(reason="needs TRITON_INTERPRET=1")
        for item in items:
            if item.path.parent.name == "kernels":
                item.add_marker(skip)


@pytest.fixture
def cpu() -> torch.device:
    return torch.device("cpu")
