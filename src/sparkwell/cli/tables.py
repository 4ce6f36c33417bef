"""Tables of the verbs that print several: plain, and never cut off."""

from typing import Any


def plain_table(*columns: str, right: tuple[str, ...] = ()) -> Any:
    """A table of these columns; those in `right` hold numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    return table


def print_whole(console: Any, table: Any) -> None:
    """Print a table as wide as it is: a pipe has no width, and a terminal wraps or scrolls."""
    unlimited = console.options.update(width=10_000, max_width=10_000)
    console.width = max(console.width, console.measure(table, options=unlimited).maximum)
    console.print(table)
