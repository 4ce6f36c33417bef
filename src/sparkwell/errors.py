"""Everything a caller has to catch.  An error says what came, what was wanted, what to do."""

from collections.abc import Mapping
from pathlib import Path


class SparkwellError(Exception):
    """Base of all errors this package raises on purpose."""


class BadInput(SparkwellError, ValueError):
    """A caller's argument is wrong.  The text names the value, what was wanted, and the way out."""


class Unreadable(BadInput):
    """A file that cannot be read at all, and where in it the reading ended."""

    def __init__(
        self, file: Path | str, *, field: str, came: str, wanted: str, offset: int | None = None
    ) -> None:
        self.file, self.offset, self.field = str(file), offset, field
        self.came, self.wanted = came, wanted
        where = "" if offset is None else f" at offset {offset:#x}"
        super().__init__(f"{file}:{where} {field} is {came}, want {wanted}")


class Unsupported(SparkwellError, RuntimeError):
    """Nothing here serves this call: what was asked, who refused it and why, what to do."""

    def __init__(self, op: str, asked: str, refused: Mapping[str, str], do: str) -> None:
        self.op, self.asked, self.refused, self.do = op, asked, dict(refused), do
        lines = [f"{op}: nothing serves this call", f"  asked    {asked}"]
        lines += [f"  refused  {name}: {why}" for name, why in refused.items()]
        super().__init__("\n".join([*lines, f"  do       {do}"]))


class BadCheckpoint(SparkwellError):
    """A model folder that cannot be loaded: which file and tensor, came / wanted, what to do."""

    def __init__(
        self,
        problem: str,
        *,
        file: Path | str | None = None,
        tensor: str | None = None,
        came: str,
        wanted: str,
        do: str,
    ) -> None:
        self.problem, self.file, self.tensor = problem, file, tensor
        self.came, self.wanted, self.do = came, wanted, do
        lines = [f"checkpoint: {problem}"]
        lines += [f"  file    {file}"] if file is not None else []
        lines += [f"  tensor  {tensor}"] if tensor is not None else []
        lines += [f"  came    {came}", f"  wanted  {wanted}", f"  do      {do}"]
        super().__init__("\n".join(lines))
