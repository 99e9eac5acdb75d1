"""The rows of finished episodes on disk: appended at once, so that an interruption loses none."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fsdino.errors import DataError, UsageError
from fsdino.evaluation.metrics import REGIONS
from fsdino.files import append_json_lines, make_folder, read_journal, write_json_lines
from fsdino.locks import Lock
from fsdino.processes import Processes

logger = logging.getLogger("fsdino.evaluation")

FORMAT = "fsdino-episodes-1"
_ANOTHER = "pass another --out"
_MOST_PIXELS = 2**40  # more than any image has; sums of a million episodes fit into int64


@dataclass(frozen=True)
class Row:
    """The record of one episode.

    Attributes:
        seed: of the draws.
        episode: its index.
        class_id: which class was asked for.
        query: name of the query image.
        intersection, union: pixels of background, foreground and boundary; see `metrics.overlaps`.
        error: why the episode could not be read; its pixels are then not counted.
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
    """Rows of a result file: one part per process while it runs, then one file for all.

    For `result.json` these are `result.part0.jsonl` and so on, and `result.episodes.jsonl`. The
    first line of each names the call of its rows. Damaged lines are left out and reported;
    so are the rows of an episode that do not agree with each other.

    Args:
        result: the result file of these rows; `lock` keeps other calls away from it.
        call: everything that determines the rows (model, data, protocol, size ...).
        processes: the processes that share the work.
        overwrite: discard existing rows.

    Raises:
        UsageError: the rows there belong to another call.
        DataError: a file does not name the call of its rows.
        FsdinoError: the folder cannot be read or written.
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
        make_folder(result.parent, "pass an --out that can be written")
        if overwrite:
            self.processes.gather(None)
            for file in [*self._parts(), rows_file(result)]:
                file.unlink(missing_ok=True)
            self.processes.gather(None)
        found: list[Row] = []
        self._started = False  # whether this process's part has its header
        for file in [rows_file(result), *self._parts()]:
            header, rows = _parse(file)
            if header is not None:
                self._check(file, header)
                self._started |= file == self._file
            found += rows
        # Every process reads the stored rows of all machines before any of them continues.
        self.rows = _joined([row for rows in self.processes.gather(found) for row in rows])

    def finished(self, seed: int) -> dict[int, Row]:
        """The rows of a seed by episode, without episodes that could not be read."""
        return {
            episode: row
            for (s, episode), row in self.rows.items()
            if s == seed and row.error is None
        }

    def append(self, rows: Iterable[Row]) -> None:
        """Add finished episodes in one write.

        Raises:
            FsdinoError: the file cannot be written; the rows before these are kept.
        """
        rows = list(rows)
        header = [] if self._started and self._file.exists() else [self._header]
        append_json_lines(self._file, [*header, *map(asdict, rows)])
        self._started = True
        self.rows |= {(row.seed, row.episode): row for row in rows}

    def finish(self, rows: Sequence[Row]) -> None:
        """Write the rows of all processes into one file, and remove the parts."""
        if self.processes.is_first:
            write_json_lines(rows_file(self.result), [self._header, *map(asdict, rows)])
        self.processes.gather(None)
        for file in self._parts():
            file.unlink(missing_ok=True)

    def _parts(self) -> list[Path]:
        name = re.compile(re.escape(self.result.stem) + r"\.part[0-9]+\.jsonl")
        return sorted(path for path in self.result.parent.iterdir() if name.fullmatch(path.name))

    def _check(self, file: Path, header: Mapping[str, Any]) -> None:
        changed = differences(header, self._header)
        if changed:
            raise UsageError(
                f"{file} has the episodes of another call (it differs in {', '.join(changed)}): "
                f"{_ANOTHER}, or --overwrite"
            )


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Names of the values by which two calls differ, as files hold them: NaN equals NaN."""
    a, b = ({k: json.dumps(v, sort_keys=True) for k, v in call.items()} for call in (first, second))
    return sorted(key for key in {*a, *b} if a.get(key) != b.get(key))


def lock(result: Path) -> Lock:
    """Prevent two calls from writing a result and its rows at the same time.

    Files whose names differ only in the suffix share their rows and this lock.

    Raises:
        UsageError: another call holds it, which is named; or the result has the name of a lock.
        FsdinoError: the lock cannot be written.
    """
    real = Path(os.path.realpath(result))
    if real.name.endswith((".lock", ".lock.json")):  # these are removed at the end
        raise UsageError(
            f"result {result}: names that end in .lock and .lock.json are those of locks; pass "
            "another --out, such as result.json"
        )
    make_folder(result.parent, "pass an --out that can be written")
    return Lock(real.with_suffix(".lock"), f"result {result}", _ANOTHER)


def rows_file(result: Path) -> Path:
    """The file with the rows of a finished result."""
    return result.with_suffix(".episodes.jsonl")


def read_rows(result: Path) -> list[Row]:
    """The rows of a finished result.

    Raises:
        UsageError: there are none beside it.
        DataError: they are damaged.
    """
    file = rows_file(result)
    if not file.is_file():
        raise UsageError(
            f"{result}: {file.name} is missing in the same folder; it has the episodes"
        )
    header, rows = _parse(file)
    if header is None:
        raise _foreign(file)
    return list(_joined(rows).values())


def _parse(file: Path) -> tuple[dict[str, Any] | None, list[Row]]:
    """Header and rows; no header if the file cannot be read.

    Damaged lines are left out, such as one that an interruption cut off.
    """
    headers: list[dict[str, Any]] = []

    def keep(header: dict[str, Any]) -> None:
        if header.get("format") != FORMAT:
            raise _foreign(file)
        headers.append(header)

    rows, _ = read_journal(file, _row, header=keep)
    return (headers[0] if headers else None), rows


def _row(data: Mapping[str, Any]) -> Row | None:
    """A row as it was written, or None if it is invalid."""
    if set(data) != {field.name for field in fields(Row)}:
        return None
    numbers = (data["seed"], data["episode"], data["class_id"])
    texts = (data["query"], "" if data["error"] is None else data["error"])
    right = (
        all(type(number) is int for number in numbers)
        and data["episode"] >= 0
        and all(type(text) is str for text in texts)
        and _are_counts(data["intersection"], data["union"])
    )
    counts = {key: tuple(data[key]) for key in ("intersection", "union")} if right else {}
    return Row(**{**data, **counts}) if right else None


def _are_counts(intersection: Any, union: Any) -> bool:
    """Whether these are pixels of each region, the intersection within the union."""
    both = (intersection, union)
    if not all(type(part) is list and len(part) == len(REGIONS) for part in both):
        return False
    return all(
        type(i) is type(u) is int and 0 <= i <= u <= _MOST_PIXELS
        for i, u in zip(intersection, union, strict=True)
    )


def _joined(rows: Iterable[Row]) -> dict[tuple[int, int], Row]:
    """Rows by seed and episode; those that contradict each other are left out."""
    kept: dict[tuple[int, int], Row] = {}
    doubtful = set()
    for row in rows:
        place = (row.seed, row.episode)
        before = kept.get(place)
        if before is None or before.error is not None:
            kept[place] = row
        elif row.error is None and row != before:
            doubtful.add(place)
    if doubtful:
        logger.warning("%d episodes have rows that differ: they are done again", len(doubtful))
    return {place: row for place, row in kept.items() if place not in doubtful}


def _foreign(file: Path) -> DataError:
    return DataError(
        f"{file} is not a file of episodes, or it is damaged: remove it, or pass --overwrite"
    )
