"""The rows of finished episodes on disk: appended at once, so that an interruption loses none."""

from __future__ import annotations

import contextlib
import glob
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fsdino.errors import DataError, FsdinoError, UsageError
from fsdino.evaluation.metrics import REGIONS
from fsdino.files import atomic_write
from fsdino.processes import Processes

FORMAT = "fsdino-episodes-1"


@dataclass(frozen=True)
class Row:
    """What an evaluation keeps of one episode.

    Attributes:
        seed: of the draws.
        episode: its index.
        class_id: which class was asked for.
        query: name of the query image.
        intersection, union: pixels of background, foreground and boundary; see `metrics.overlaps`.
        error: why the episode could not be read; its pixels then count nowhere.
    """

    seed: int
    episode: int
    class_id: int
    query: str
    intersection: tuple[int, ...] = (0,) * len(REGIONS)
    union: tuple[int, ...] = (0,) * len(REGIONS)
    error: str | None = None

    @property
    def iou(self) -> float:
        """Foreground IoU, 0 to 1; 0 for an empty union."""
        return self.intersection[1] / max(self.union[1], 1)


class Journal:
    """Rows beside a result file: one part per process while it runs, then one file for all.

    For `result.json` these are `result.part0.jsonl` and so on, and `result.episodes.jsonl`. The
    first line of each says which call its rows belong to.

    Args:
        result: the result file that the rows lead to.
        call: what decides the rows (model, data, protocol, size ...).
        processes: that share the work.
        overwrite: forget rows of before.

    Raises:
        UsageError: the rows there belong to another call.
        FsdinoError: the folder cannot be written.
    """

    def __init__(
        self,
        result: Path,
        call: Mapping[str, Any],
        processes: Processes | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        self.result, self.processes = result, processes or Processes()
        self._header = {"format": FORMAT, **call}
        self._file = result.with_suffix(f".part{self.processes.rank}.jsonl")
        try:
            result.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FsdinoError(
                f"cannot create {result.parent}: {error.strerror}; pass an --out that can be "
                "written"
            ) from error
        if overwrite:
            self.processes.gather(None)
            for file in [*self._parts(), rows_file(result)]:
                file.unlink(missing_ok=True)
            self.processes.gather(None)
        found: list[Row] = []
        for file in [rows_file(result), *self._parts()]:
            found += self._read(file)
        # Every process sees what is kept on any machine, before any of them goes on.
        self.rows = {
            (row.seed, row.episode): row for rows in self.processes.gather(found) for row in rows
        }

    def finished(self, seed: int) -> dict[int, Row]:
        """The rows of a seed by episode; what could not be read is tried again."""
        return {
            episode: row
            for (s, episode), row in self.rows.items()
            if s == seed and row.error is None
        }

    def append(self, rows: Iterable[Row]) -> None:
        """Add finished episodes, in one piece.

        Raises:
            FsdinoError: the file cannot be written.
        """
        rows = list(rows)
        text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
        try:
            with self._file.open("a+b") as file:
                if file.tell() == 0:
                    text = json.dumps(self._header) + "\n" + text
                else:
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # a line that an interruption cut off
                        text = "\n" + text
                file.write(text.encode())
        except OSError as error:
            raise FsdinoError(
                f"cannot write {self._file}: {error.strerror}; the rows before it are kept"
            ) from error
        self.rows |= {(row.seed, row.episode): row for row in rows}

    def finish(self, rows: Sequence[Row]) -> None:
        """Write the rows of all processes into one file, and remove the parts."""
        if self.processes.rank == 0:
            lines = [json.dumps(self._header), *(json.dumps(asdict(row)) for row in rows)]
            with atomic_write(rows_file(self.result)) as temporary:
                Path(temporary).write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.processes.gather(None)
        for file in self._parts():
            file.unlink(missing_ok=True)

    def _parts(self) -> list[Path]:
        return sorted(self.result.parent.glob(f"{glob.escape(self.result.stem)}.part*.jsonl"))

    def _read(self, file: Path) -> list[Row]:
        if not file.exists():
            return []
        header, rows = _parse(file)
        changed = sorted(
            k for k in {*header, *self._header} if header.get(k) != self._header.get(k)
        )
        if changed:
            raise UsageError(
                f"{file} holds the episodes of another call (it differs in {', '.join(changed)}): "
                "pass another --out, or --overwrite"
            )
        return rows


def rows_file(result: Path) -> Path:
    """Where the rows of a finished result are."""
    return result.with_suffix(".episodes.jsonl")


def read_rows(result: Path) -> list[Row]:
    """The rows of a finished result.

    Raises:
        UsageError: there are none beside it.
        DataError: they are damaged.
    """
    file = rows_file(result)
    if not file.is_file():
        raise UsageError(f"{result}: {file.name} is missing beside it; it holds the episodes")
    return _parse(file)[1]


def _parse(file: Path) -> tuple[dict[str, Any], list[Row]]:
    """Header and rows; a line that an interruption cut off is left out."""
    first, *lines = file.read_text(encoding="utf-8").splitlines() or [""]
    try:
        header = json.loads(first)
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError(first)
    except ValueError as error:
        raise DataError(
            f"{file} is no file of episodes, or damaged: remove it, or pass --overwrite"
        ) from error
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            data = json.loads(line)
            counts = {k: tuple(data[k]) for k in ("intersection", "union")}
            rows.append(Row(**{**data, **counts}))
    return header, rows
