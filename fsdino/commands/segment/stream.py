"""Segment many files into a folder: a stream that can be interrupted and resumed."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fsdino import images as pixels
from fsdino.commands.segment.output import Output, Row, file_stamp
from fsdino.commands.segment.supports import MAX_CLASSES
from fsdino.errors import DataError, FsdinoError, UsageError, is_out_of_memory, shown_path
from fsdino.models.segmentation import Segmentation
from fsdino.models.segmenter import Segmenter
from fsdino.models.supports import Support
from fsdino.processes import Processes
from fsdino.progress import Progress

logger = logging.getLogger("fsdino.commands")


# Queries that share an encoder pass, bounded also by the bytes that their pixels and maps take:
# 24 megapixels of one class.
_BATCH_IMAGES, _BATCH_BYTES = 8, 7 * 24_000_000


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
    model: Segmenter,
    supports: Mapping[str, Support],
    queries: Sequence[Path],
    output: Output,
    *,
    threshold: float | None = None,
    tiles: bool = False,
    processes: Processes | None = None,
) -> Outcome:
    """Segment every query that `output` does not hold yet; each process returns all of them.

    At most one small batch of images is in memory; each gets one encoder pass. A query that cannot
    be read, segmented or written is noted, and the others continue. Whole batches are
    distributed, so that they are the same for any number of processes. `output` is closed at the
    end.

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

    model: Segmenter
    supports: Mapping[str, Support]
    threshold: float | None
    tiles: bool

    @property
    def bytes_per_pixel(self) -> int:
        """Of a query in memory: RGB, and a map for each class."""
        return 3 + 4 * len(self.supports)

    def answers(self, batch: Sequence[_Image]) -> Iterator[Segmentation | str]:
        """The result for each image, or why there is none.

        Where a batch fails because of an image, each of its images is asked alone.
        """
        try:
            yield from self._segment([image.array for image in batch])
            return
        except Exception as error:
            if not _is_about_query(error):
                raise
            if len(batch) == 1:
                yield _reason(error)
                return
        for image in batch:
            yield from self.answers([image])

    def _segment(self, arrays: list[npt.NDArray[np.uint8]]) -> list[Segmentation]:
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
        [query for query in queries[start : start + _BATCH_IMAGES] if query not in done]
        for start in range(0, len(queries), _BATCH_IMAGES)
    ]
    mine = processes.share([group for group in groups if group])
    total = sum(map(len, mine)) + (resumed if processes.is_first else 0)
    try:
        with Progress("segment", total, done=total - sum(map(len, mine))) as progress:
            task = _Task(failed, progress)
            for batch in _batches(mine, task, ask.bytes_per_pixel):
                began = time.monotonic()
                results = list(ask.answers(batch))
                each = (time.monotonic() - began) / len(batch)
                for image, result in zip(batch, results, strict=True):
                    made = _write(output, image, result, image.seconds + each)
                    if isinstance(made, Row):
                        done[image.query] = made
                        progress.advance()
                    else:
                        task.fail(image.query, f"query ({shown_path(image.query)}): {made}")
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


def _write(output: Output, image: _Image, result: Segmentation | str, seconds: float) -> Row | str:
    """The row of a written result, or why there is none."""
    if isinstance(result, str):
        return result
    try:
        return output.write(image.query, image.stamp, result, seconds)
    except Exception as error:
        if not _is_about_query(error):
            raise
        return _reason(error)


def _is_about_query(error: Exception) -> bool:
    return isinstance(error, DataError | UsageError) or is_out_of_memory(error)


def _reason(error: Exception) -> str:
    if isinstance(error, FsdinoError):
        return str(error)
    return "it does not fit into memory: make it smaller, or use fewer classes or another --device"


@dataclass(frozen=True)
class _Image:
    query: Path
    stamp: tuple[int, int]
    array: npt.NDArray[np.uint8]  # [H, W, 3]
    seconds: float


@dataclass(frozen=True)
class _Task:
    """Reasons by failed query, and the progress that they count in."""

    failed: dict[str, str]
    progress: Progress = field(repr=False)

    def fail(self, query: Path, reason: str) -> None:
        self.failed[os.path.abspath(query)] = reason
        logger.warning("%s", reason)
        self.progress.advance()


def _batches(
    groups: Sequence[Sequence[Path]], task: _Task, bytes_per_pixel: int
) -> Iterator[list[_Image]]:
    """Read groups of queries, large ones in parts or alone."""
    for group in groups:
        batch: list[_Image] = []
        for query in group:
            began = time.monotonic()
            try:
                stamp = file_stamp(query)
                array = pixels.read_image(query, "query")
            except (DataError, UsageError) as error:
                task.fail(query, str(error))
                continue
            except OSError as error:
                reason = f"query ({shown_path(query)}): {error.strerror}; check the path"
                task.fail(query, reason)
                continue
            image = _Image(query, stamp, array, time.monotonic() - began)
            del array
            sizes = [i.array.size // 3 * bytes_per_pixel for i in (*batch, image)]
            if batch and sizes[-1] >= _BATCH_BYTES:
                yield batch
                batch, sizes = [], sizes[-1:]
            batch.append(image)
            del image
            if sum(sizes) >= _BATCH_BYTES:
                yield batch
                batch = []
        if batch:
            yield batch


def _with_state(error: FsdinoError | OSError, done: int, total: int, folder: Path) -> FsdinoError:
    """The same kind of error, with what is kept in its one line."""
    kept = f"{done} of {total} queries are done and kept in {folder}"
    kind = type(error) if isinstance(error, FsdinoError) else FsdinoError
    return kind(f"{error}; {kept}, the same command does the rest")
