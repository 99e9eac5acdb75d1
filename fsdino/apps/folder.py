"""Segment many files into a folder: a stream that can be interrupted and resumed."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fsdino import images as pixels
from fsdino.apps.progress import Progress
from fsdino.errors import DataError, FsdinoError, UsageError
from fsdino.files import atomic_write
from fsdino.models.segmenter import Segmentation, Segmenter
from fsdino.models.supports import Support
from fsdino.processes import Processes

logger = logging.getLogger("fsdino.apps")

FORMAT = "fsdino-segment-1"
CALL_FILE, ROWS_FILE = "segment.json", "results.jsonl"
MASKS, OVERLAYS = "masks", "overlays"

# Queries that share an encoder pass, bounded also by what their pixels and maps take.
_BATCH_IMAGES, _BATCH_PIXELS = 8, 24_000_000


@dataclass(frozen=True)
class Row:
    """The result for one query.

    Attributes:
        query: its absolute path.
        stamp: its size in bytes and its modification time in ns, to notice another content.
        mask, overlay: files, relative to the output folder.
        foreground: share of the pixels in the mask, 0 to 1.
        classes: the same by class.
        seconds: that reading and segmenting it took; a batch's time is shared equally.
    """

    query: str
    stamp: tuple[int, int]
    mask: str
    overlay: str
    foreground: float
    classes: dict[str, float]
    seconds: float


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
            del data["stamp"]
            paths = {kind: str(folder / data[kind]) for kind in ("mask", "overlay")}
            rows.append({**data, **paths})
        failed = [{"query": query, "error": error} for query, error in self.failed.items()]
        return {"queries": rows, "failed": failed, "resumed": self.resumed}


def find_queries(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the images in them; each once.

    Raises:
        UsageError: no query, a missing path, a folder without images.
    """
    if not paths:
        raise UsageError("no query given: pass --query with images or folders of images")
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            files = pixels.list_images(path)
            if not files:
                raise UsageError(f"query {path}: there is no image in this folder")
        elif path.exists():
            files = [path]
        else:
            raise UsageError(f"query {path}: no such file or folder")
        for file in files:
            found.setdefault(os.path.abspath(file), file)
    return list(found.values())


class Output:
    """The output folder: masks/, overlays/, the call that made them and a row per query.

    Args:
        folder: created if missing.
        call: what decides the results (model, supports, threshold ...). A folder belongs to
            one call, whose queries are not done twice.
        overwrite: start anew in a folder of another call; its results are removed.

    Raises:
        UsageError: the folder belongs to another call or holds files of another program.
        FsdinoError: the folder cannot be written.
    """

    def __init__(self, folder: Path, call: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--out {folder}: a folder is needed, this is a file")
        self._rows: dict[str, Row] = {}
        if overwrite:
            self._remove_results()
        self._check_call(dict(call), overwrite)
        try:
            for name in (MASKS, OVERLAYS):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FsdinoError(
                f"cannot create {folder}: {error.strerror}; pass an --out that can be written"
            ) from error
        if not (folder / CALL_FILE).exists():
            with atomic_write(folder / CALL_FILE) as temporary:
                Path(temporary).write_text(json.dumps(call, indent=2) + "\n")
        self._rows = self._read_rows()
        self._names = {query: Path(row.mask).stem for query, row in self._rows.items()}
        self._taken = {name.casefold() for name in self._names.values()}

    def finished(self, query: Path) -> Row | None:
        """The row of a query that is done and has not changed since."""
        row = self._rows.get(os.path.abspath(query))
        if row is None or row.stamp != _stamp(query):
            return None
        complete = all((self.folder / name).is_file() for name in (row.mask, row.overlay))
        return row if complete else None

    def write(
        self, query: Path, stamp: tuple[int, int], result: Segmentation, seconds: float
    ) -> Row:
        """Write mask and overlay, each whole or not at all, then the row that says so.

        Raises:
            FsdinoError: a file cannot be written.
        """
        name, labels = self._name(query), result.labels
        mask, overlay = f"{MASKS}/{name}.png", f"{OVERLAYS}/{name}.jpg"
        if len(result.names) == 1:
            pixels.write_png(self.folder / mask, labels > 0)
        else:
            pixels.write_png(self.folder / mask, _palette_image(labels))
        with atomic_write(self.folder / overlay) as temporary:
            result.overlay().save(temporary, format="JPEG", quality=92)
        shares = np.bincount(labels.ravel(), minlength=len(result.names) + 1) / labels.size
        row = Row(
            query=os.path.abspath(query),
            stamp=stamp,
            mask=mask,
            overlay=overlay,
            foreground=round(1 - float(shares[0]), 6),
            classes={n: round(float(shares[i]), 6) for i, n in enumerate(result.names, 1)},
            seconds=round(seconds, 4),
        )
        with (self.folder / ROWS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        self._rows[row.query] = row
        return row

    def reserve(self, queries: Sequence[Path]) -> None:
        """Give every query its name, so that processes that share them agree on the names."""
        for query in queries:
            self._name(query)

    def finish(self, rows: Sequence[Row]) -> None:
        """Write the rows of all processes, in the queries' order, after those of other queries."""
        done = {row.query for row in rows}
        rows = [*(row for query, row in self._rows.items() if query not in done), *rows]
        with atomic_write(self.folder / ROWS_FILE) as temporary:
            text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
            Path(temporary).write_text(text, encoding="utf-8")

    def _name(self, query: Path) -> str:
        """The query's name, which no other has, also where the file system ignores case."""
        path = os.path.abspath(query)
        if path not in self._names:
            self._names[path] = self._new_name(query)
            self._taken.add(self._names[path].casefold())
        return self._names[path]

    def _new_name(self, query: Path) -> str:
        ending = query.suffix.removeprefix(".")
        numbered = (f"{query.stem}-{n}" for n in itertools.count(2))
        for name in itertools.chain((query.stem, f"{query.stem}-{ending}"), numbered):
            if name.casefold() not in self._taken:
                return name
        raise AssertionError("unreachable: the numbers do not end")

    def _check_call(self, call: dict[str, Any], overwrite: bool) -> None:
        file = self.folder / CALL_FILE
        remedy = "pass another --out, or --overwrite"
        if not file.exists():
            foreign = [n for n in (MASKS, OVERLAYS) if _has_entries(self.folder / n)]
            if foreign and not overwrite:
                raise UsageError(
                    f"--out {self.folder} has a folder {foreign[0]}/ of another program: {remedy}"
                )
            return
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            changed = sorted(k for k in {*before, *call} if before.get(k) != call.get(k))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{file} is damaged: {remedy}") from error
        if changed:
            raise UsageError(
                f"--out {self.folder} holds results of another call "
                f"(it differs in {', '.join(changed)}): {remedy}"
            )

    def _read_rows(self) -> dict[str, Row]:
        """The stored rows by query; a line that an interruption cut off is dropped."""
        file = self.folder / ROWS_FILE
        if not file.exists():
            return {}
        rows, whole = {}, []
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                data = json.loads(line)
                rows[data["query"]] = Row(**{**data, "stamp": tuple(data["stamp"])})
                whole.append(line.rstrip("\n") + "\n")
        if whole != lines:
            with atomic_write(file) as temporary:
                Path(temporary).write_text("".join(whole), encoding="utf-8")
        return rows

    def _remove_results(self) -> None:
        for row in self._read_rows().values():
            for folder, file in ((MASKS, row.mask), (OVERLAYS, row.overlay)):
                (self.folder / folder / Path(file).name).unlink(missing_ok=True)
        for name in (ROWS_FILE, CALL_FILE):
            (self.folder / name).unlink(missing_ok=True)


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

    At most one small batch of images is in memory; each gets one encoder pass. An image that
    cannot be read is noted, and the others go on. Processes share whole batches, so that images
    meet in the same batches in any number of them.

    Raises:
        UsageError: supports of another model, or a threshold outside of (0, 1).
        FsdinoError: a result cannot be written; what is done is kept.
        KeyboardInterrupt: with a message that says what is kept.
    """
    model.segment([], supports, threshold=threshold, tiles=tiles)  # checks the arguments
    done = {query: row for query in queries if (row := output.finished(query)) is not None}
    resumed, failed = len(done), dict[str, str]()
    if resumed:
        logger.info("%d of %d queries are done already", resumed, len(queries))
    processes = processes or Processes()
    output.reserve(queries)
    groups = [
        [query for query in queries[start : start + _BATCH_IMAGES] if query not in done]
        for start in range(0, len(queries), _BATCH_IMAGES)
    ]
    mine = processes.share([group for group in groups if group])
    total = sum(map(len, mine)) + (resumed if processes.rank == 0 else 0)
    try:
        with Progress("segment", total, done=total - sum(map(len, mine))) as progress:
            for batch in _batches(mine, failed, progress):
                began = time.monotonic()
                arrays = [image.array for image in batch]
                results = model.segment(arrays, supports, threshold=threshold, tiles=tiles)
                each = (time.monotonic() - began) / len(batch)
                for image, result in zip(batch, results, strict=True):
                    seconds = image.seconds + each
                    done[image.query] = output.write(image.query, image.stamp, result, seconds)
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
    if processes.count > 1 and processes.rank == 0:
        output.finish(rows)
    return Outcome(rows, failed, resumed)


@dataclass(frozen=True)
class _Image:
    query: Path
    stamp: tuple[int, int]
    array: npt.NDArray[np.uint8]  # [H, W, 3]
    seconds: float


def _batches(
    groups: Sequence[Sequence[Path]], failed: dict[str, str], progress: Progress
) -> Iterator[list[_Image]]:
    """Read groups of queries, large ones in parts; reasons for unreadable ones go to `failed`."""
    for group in groups:
        batch: list[_Image] = []
        for query in group:
            began = time.monotonic()
            try:
                stamp = _stamp(query)
                array = pixels.read_image(query, "query")
            except (DataError, UsageError, OSError) as error:
                failed[os.path.abspath(query)] = str(error)
                logger.warning("%s", error)
                progress.advance()
                continue
            batch.append(_Image(query, stamp, array, time.monotonic() - began))
            if sum(image.array.size // 3 for image in batch) >= _BATCH_PIXELS:
                yield batch
                batch = []
        if batch:
            yield batch


def _with_state(error: FsdinoError | OSError, done: int, total: int, folder: Path) -> FsdinoError:
    """The same kind of error, with what is kept in its one line."""
    kept = f"{done} of {total} queries are done and kept in {folder}"
    kind = type(error) if isinstance(error, FsdinoError) else FsdinoError
    return kind(f"{error}; {kept}, the same command does the rest")


def _palette_image(labels: npt.NDArray[np.int64]) -> Image.Image:
    """8-bit palette image: 0 is background (black), i the i-th class, in the overlays' colours."""
    image = Image.fromarray(labels.astype(np.uint8))
    colours = [pixels.label_color(label) for label in range(1, int(labels.max(initial=0)) + 1)]
    image.putpalette([0, 0, 0, *(part for colour in colours for part in colour)])
    return image


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _has_entries(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
