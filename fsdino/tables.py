"""Tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", *, numbers: bool = True
) -> None:
    """A table on stdout; columns of `numbers`, all but the first, are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=title or None, title_justify="left", box=box.SIMPLE_HEAD, show_header=any(headers)
    )
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index and numbers else "left")
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)
