"""Options every test may ask for, and one thread for each test process."""

import pytest
import torch

from line_budget import report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-docs", action="store_true", help="rewrite the generated tables in docs/"
    )


def pytest_configure(config: pytest.Config) -> None:
    # xdist runs a process a core; threads beside them only wait for each other.
    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("lines per folder")
    terminalreporter.write_line(report())
