"""Segment many files into a folder: a stream that can be interrupted and resumed."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fsdino import images as pixels
from fsdino.commands.segment.output import Output, Row, file_stamp
from fsdino.commands.segment.supports import MAX_CLASSES
from fsdino.errors import FsdinoError, UsageError, shown_path
from fsdino.models.queries import (
    BATCH_IMAGES,
    Query,
    answers,
    batches,
    bytes_per_pixel,
    is_about_query,
    read_ahead,
    reason,
)
from fsdino.models.segmentation import Segmentation
from fsdino.models.segmenting import Segmenting
from fsdino.models.supports import Support
from fsdino.processes import Processes
from fsdino.progress import Progress

logger = logging.getLogger("fsdino.commands")


@dataclass(frozen=True)
class Outcome:
    """What became of all queries: rows in the queries' order, reasons by failed query."""

    rows: list[Row]
    failed: dict[str, str]
    resumed: int

    def to_dict(self, folder: Path) -> dict[str, Any]:
        """Plain data for JSON, with the files' paths."""
        rows = []
        for row in self.rows:
            data = asdict(row)
            del data["stamp"], data["sizes"]
            paths = {kind: str(folder / data[kind]) for kind in ("mask", "overlay")}
            more = [str(folder / file) for file in row.annotations]
            rows.append({**data, **paths, "annotations": more})
        failed = [{"query": query, "error": error} for query, error in self.failed.items()]
        return {"queries": rows, "failed": failed, "resumed": self.resumed}


def segment_files(
    model: Segmenting[Any],
    supports: Mapping[str, Support],
    queries: Sequence[Path],
    output: Output,
    *,
    threshold: float | None = None,
    tiles: bool = False,
    processes: Processes | None = None,
) -> Outcome:
    """Segment every query that `output` does not hold yet; each process returns all of them.

    At most one small batch of images, which gets one encoder pass, and the next two are in memory.
    A query that cannot be read, segmented or written is noted, and the others continue. Whole
    batches are distributed, so that they are the same for any number of processes. `output` is
    closed at the end.

    Raises:
        UsageError: supports of another model, too many of them, or a threshold outside of (0, 1).
        FsdinoError: results cannot be written; what is done is kept.
        KeyboardInterrupt: with a message about what was stored.
    """
    with contextlib.closing(output):
        if len(supports) > MAX_CLASSES:
            raise UsageError(f"{len(supports)} supports: at most {MAX_CLASSES} fit one label image")
        model.segment([], supports, threshold=threshold, tiles=tiles)  # checks the arguments
        ask = _Asking(model, supports, threshold, tiles)
        return _segment_files(ask, queries, output, processes or Processes())


@dataclass(frozen=True)
class _Asking:
    """What queries are asked."""

    model: Segmenting[Any]
    supports: Mapping[str, Support]
    threshold: float | None
    tiles: bool

    def segment(self, arrays: list[npt.NDArray[np.uint8]]) -> list[Segmentation]:
        return self.model.segment(arrays, self.supports, threshold=self.threshold, tiles=self.tiles)


def _segment_files(
    ask: _Asking, queries: Sequence[Path], output: Output, processes: Processes
) -> Outcome:
    done = {query: row for query in queries if (row := output.finished(query)) is not None}
    resumed, failed = len(done), dict[str, str]()
    if resumed:
        logger.info("%d of %d queries are done already", resumed, len(queries))
    output.reserve(queries)
    groups = [
        [query for query in queries[start : start + BATCH_IMAGES] if query not in done]
        for start in range(0, len(queries), BATCH_IMAGES)
    ]
    mine = processes.share([group for group in groups if group])
    total = sum(map(len, mine)) + (resumed if processes.is_first else 0)
    try:
        with Progress("segment", total, done=total - sum(map(len, mine))) as progress:
            stamps: dict[Path, tuple[int, int]] = {}
            for batch in _batches(mine, stamps, len(ask.supports)):
                began = time.monotonic()
                results = answers(batch, ask.segment)
                each = (time.monotonic() - began) / len(batch)
                for query, result in zip(batch, results, strict=True):
                    stamp = stamps.pop(query.source, None)
                    made = _write(output, query, stamp, result, query.seconds + each)
                    if isinstance(made, Row):
                        done[query.source] = made
                    else:
                        failed[os.path.abspath(query.source)] = made
                        logger.warning("%s", made)
                    progress.advance()
    except KeyboardInterrupt:
        kept = f"{len(done)} of {len(queries)} queries are done and kept in {output.folder}"
        raise KeyboardInterrupt(f"{kept}; the same command does the rest") from None
    except (FsdinoError, OSError) as error:
        raise _with_state(error, len(done), len(queries), output.folder) from error
    for others_done, others_failed in processes.gather((done, failed)):
        done |= others_done
        failed |= others_failed
    rows = [done[query] for query in queries if query in done]
    if processes.count > 1 and processes.is_first:
        output.finish(rows)
    if processes.is_first:
        output.collect(rows)
    return Outcome(rows, failed, resumed)


def _write(
    output: Output,
    query: Query[Path],
    stamp: tuple[int, int] | None,
    result: Segmentation | FsdinoError,
    seconds: float,
) -> Row | str:
    """The row of a written result, or why there is none."""
    if isinstance(result, FsdinoError):
        return str(result)
    assert stamp is not None
    try:
        return output.write(query.source, stamp, result, seconds)
    except Exception as error:
        if not is_about_query(error):
            raise
        return f"{query.name}: {reason(error)}"


def _batches(
    groups: Sequence[Sequence[Path]], stamps: dict[Path, tuple[int, int]], supports: int
) -> Iterator[list[Query[Path]]]:
    """Read groups of queries, large ones in parts or alone, and note the stamp of each.

    A thread reads the next images, of the next group also, while the model is busy.
    """

    def name(place: int, query: Path) -> str:
        return f"query ({shown_path(query)})"

    def read(query: Path, name: str) -> pixels.Pixels:
        try:
            stamps[query] = file_stamp(query)
            return pixels.read_image(query, "query")
        except OSError as error:
            raise UsageError(f"{name}: {error.strerror}; check the path") from error

    found = read_ahead(itertools.chain.from_iterable(groups), name, read)
    with contextlib.closing(found):
        for group in groups:
            yield from batches(itertools.islice(found, len(group)), bytes_per_pixel(supports))


def _with_state(error: FsdinoError | OSError, done: int, total: int, folder: Path) -> FsdinoError:
    """The same kind of error, with what is kept in its one line."""
    kept = f"{done} of {total} queries are done and kept in {folder}"
    kind = type(error) if isinstance(error, FsdinoError) else FsdinoError
    return kind(f"{error}; {kept}, the same command does the rest")
