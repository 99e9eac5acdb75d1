"""The tables of photographs' results."""

from __future__ import annotations

from collections.abc import Sequence

from photo_results import Row
from rich.console import Console
from rich.table import Table

from fsdino.environment import environment


def show(title: str, result: Row, names: Sequence[str], console: Console) -> None:
    """The columns and what the methods explain, then the differences."""
    columns = {name: column for name, column in result["columns"].items() if column}
    table = Table(title=title, title_justify="left")
    table.add_column("IoU in percent")
    for heading in (*columns, "AUROC", "not found", "Spearman"):
        table.add_column(heading, justify="right")
    for name in names:
        cells = [_cell(column["methods"][name]) for column in columns.values()]
        there, quality = result["presence"].get(name, {}), result["quality"].get(name, {})
        cells += [_number(there.get("auroc"), 3), _number(there.get("not_found_percent"), 1)]
        table.add_row(name, *cells, _number(quality.get("spearman"), 3))
    console.print(table)
    rows = {d: None for column in columns.values() for d in column["differences"]}
    if rows:
        table = Table("difference", *columns)
        for row in rows:
            table.add_row(row, *(_cell(c["differences"][row], "+") for c in columns.values()))
        console.print(table)


def show_parts(title: str, parts: dict[str, dict[str, float | None]], console: Console) -> None:
    """One column for each class, picture or pair."""
    table = Table(title, *parts)
    for name in next(iter(parts.values())):
        table.add_row(name, *(_number(values[name], 1) for values in parts.values()))
    console.print(table)


def _cell(value: Row, sign: str = "") -> str:
    low, high = value["interval"]
    return f"{value['iou']:{sign}.1f} [dim]({low:.1f} to {high:.1f})[/dim]"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def show_latency(found: Row, console: Console) -> None:
    table = Table("latency", "ms", "slowest", "peak MB", title=environment()["processor"])
    for row in found["array"]:
        values = [row["milliseconds"], row["slowest_milliseconds"], row["peak_megabytes"]]
        table.add_row(f"{row['threads']} threads", *(_number(v, 0) for v in values))
    console.print(table)
    folder = found["folder"]
    console.print(
        f"fsdino segment, {folder['threads']} threads: {folder['images_per_second']:.1f} images/s, "
        f"{_number(folder['peak_megabytes'], 0)} MB"
    )
