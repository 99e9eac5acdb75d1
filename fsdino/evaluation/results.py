"""result.json as a file: written whole, and read with a check of what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsdino.errors import DataError, UsageError, first_line
from fsdino.files import read_json, write_json

FORMAT = "fsdino-result-1"


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a result atomically.

    Raises:
        FsdinoError: it cannot be written.
    """
    write_json(path, dict(record))


def read(path: Path) -> dict[str, Any]:
    """Read what `write` wrote.

    Raises:
        UsageError: the file does not exist.
        DataError: it is damaged or something else.
    """
    if not path.is_file():
        raise UsageError(f"result {path}: no such file; pass what fsdino evaluate --out wrote")
    try:
        record = read_json(path)
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not a result of fsdino evaluate, or it is damaged ({first_line(error)}): "
            "evaluate again"
        ) from error
    return record
