"""Segment many files into a folder: a stream that can be interrupted and resumed."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import math
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fsdino import files, overlay
from fsdino import images as pixels
from fsdino.apps.supports import MAX_CLASSES
from fsdino.errors import DataError, FsdinoError, UsageError, is_out_of_memory
from fsdino.image_files import Listing, printable, scan_folder
from fsdino.models.segmentation import Segmentation
from fsdino.models.segmenter import Segmenter
from fsdino.models.supports import Support
from fsdino.processes import Processes, is_first
from fsdino.progress import Progress

logger = logging.getLogger("fsdino.apps")

FORMAT = "fsdino-segment-2"
CALL_FILE, ROWS_FILE, LOCK_FILE = "segment.json", "results.jsonl", "segment.lock"
MASKS, OVERLAYS = "masks", "overlays"

_OTHERS = "others"  # key of CALL_FILE for names that files of other programs have
_REMEDY = "pass another --out"

# Queries that share an encoder pass, bounded also by the bytes that their pixels and maps take:
# 24 megapixels of one class.
_BATCH_IMAGES, _BATCH_BYTES = 8, 7 * 24_000_000
_MOST_JPEG = 65_500  # pixels of a side
_MOST_NAME = 200  # bytes of a result's name, which an ending and a number are added to
# What writing fails with because of what is written, and not for all results alike.
_OWN_TROUBLE = frozenset({errno.EFBIG, errno.ENAMETOOLONG})


@dataclass(frozen=True)
class Row:
    """The result for one query.

    Attributes:
        query: its absolute path.
        stamp: its size in bytes and its modification time in ns, to notice another content.
        mask, overlay: files, relative to the output folder.
        sizes: of these files, in bytes, to notice what was cut off.
        foreground: share of the pixels in the mask, 0 to 1.
        classes: the same by class.
        scores: how likely it is that each class is in the image at all, 0 to 1.
        found: whether that is enough for a mask, by class.
        seconds: that reading and segmenting it took; a batch's time is shared equally.
    """

    query: str
    stamp: tuple[int, int]
    mask: str
    overlay: str
    sizes: tuple[int, int]
    foreground: float
    classes: dict[str, float]
    scores: dict[str, float]
    found: dict[str, bool]
    seconds: float

    @property
    def name(self) -> str:
        """Of the mask and of the overlay, without their endings."""
        return PurePosixPath(self.mask).stem

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Row | None:
        """A row of ROWS_FILE; None if it is not one, or if its files would lie elsewhere."""
        if set(data) != {part.name for part in fields(cls)}:
            return None
        numbers, shares = [data["foreground"], data["seconds"]], [data["classes"], data["scores"]]
        found = data["found"]
        texts = [data["query"], data["mask"], data["overlay"]]
        pairs = [data["stamp"], data["sizes"]]
        if not (
            all(isinstance(text, str) for text in texts)
            and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
            and all(type(number) is int for pair in pairs for number in pair)
            and all(isinstance(part, dict) for part in (*shares, found))
            and all(_is_number(n) for n in [*numbers, *(n for s in shares for n in s.values())])
            and all(type(flag) is bool for flag in found.values())
        ):
            return None
        row = cls(**{**data, "stamp": tuple(data["stamp"]), "sizes": tuple(data["sizes"])})
        if not os.path.isabs(row.query) or "\0" in row.query or row.name in ("", ".", ".."):
            return None
        if "/" in row.name or "\\" in row.name or "\0" in row.name:
            return None
        inside = row.mask == f"{MASKS}/{row.name}.png" and row.overlay in (
            f"{OVERLAYS}/{row.name}.jpg",
            f"{OVERLAYS}/{row.name}.png",
        )
        return row if inside else None


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
            rows.append({**data, **paths})
        failed = [{"query": query, "error": error} for query, error in self.failed.items()]
        return {"queries": rows, "failed": failed, "resumed": self.resumed}


class Queries(list[Path]):
    """Files to segment.

    Attributes:
        left_out: the other files in the folders that were searched, with the reason.
    """

    def __init__(self, paths: Iterable[Path], left_out: Mapping[str, str]) -> None:
        super().__init__(paths)
        self.left_out = dict(left_out)

    def summary(self) -> str:
        """What was left out, in a line."""
        return Listing(list(self), self.left_out).summary()


def find_queries(paths: Sequence[Path], out: Path | None = None) -> Queries:
    """Files as they are, folders as the images in them and in their subfolders; each once.

    Args:
        paths: files and folders.
        out: folder of the results, which are not queries themselves.

    Raises:
        UsageError: no query, a missing path, a folder without images, a query among the results.
    """
    if not paths:
        raise UsageError("no query given: pass --query with images or folders of images")
    own = set() if out is None else {os.path.realpath(out / name) for name in (MASKS, OVERLAYS)}
    found: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    for path in paths:
        if _lies_in(path, own):
            raise UsageError(
                f"query {path} lies where the results of this call are written: {_REMEDY}"
            )
        if path.is_dir():
            listing = scan_folder(path, recursive=True)
            images = [file for file in listing.images if not _lies_in(file, own)]
            others = {
                str(path / name): reason
                for name, reason in listing.left_out.items()
                if not _lies_in(path / name, own)
            }
            if not images:
                why = f" ({Listing([], others).summary()})" if others else ""
                raise UsageError(f"query {path}: there is no image in this folder{why}")
            left_out |= others
        elif path.exists():
            images = [path]
        else:
            raise UsageError(f"query {path}: no such file or folder")
        for file in images:
            found.setdefault(os.path.abspath(file), file)
    return Queries(found.values(), left_out)


class Output:
    """The output folder: masks/, overlays/, the call that made them and a row per query.

    It is in use by one call at a time, until `close`, or the end of `segment_files`. Of processes
    that share the work, the first holds the lock for all.

    Args:
        folder: created if missing.
        call: what decides the results (model, supports, threshold ...). A folder belongs to
            one call, whose queries are not done twice.
        overwrite: start again in a folder of another call; its results are removed, and no other
            files.

    Raises:
        UsageError: the folder is in use, belongs to another call, is damaged, or holds files of
            another program.
        FsdinoError: the folder cannot be written.
    """

    def __init__(self, folder: Path, call: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--out {folder}: a folder is needed, this is a file")
        files.make_folder(folder, "pass an --out that can be written")
        self._lock: files.Lock | None = None
        if is_first():  # before anything is read: what others write meanwhile would be lost
            self._lock = files.Lock(folder / LOCK_FILE, f"--out {folder}", _REMEDY)
        try:
            others = self._clear() if overwrite else self._check_call(call)
            for name in (MASKS, OVERLAYS):
                files.make_folder(folder / name, "pass an --out that can be written")
            if not (folder / CALL_FILE).exists():
                more = {_OTHERS: sorted(others)} if others else {}
                files.write_json(folder / CALL_FILE, {**call, **more})
            self._rows = self._read_rows(mend=self._lock is not None)
        except BaseException:
            self.close()
            raise
        self._names = {query: row.name for query, row in self._rows.items()}
        self._taken = {name.casefold() for name in (*self._names.values(), *others)}

    def close(self) -> None:
        """Let other processes use the folder."""
        if self._lock is not None:
            self._lock.release()

    def finished(self, query: Path) -> Row | None:
        """The row of a query that is done, has not changed since, and whose files are whole."""
        row = self._rows.get(os.path.abspath(query))
        if row is None:
            return None
        try:
            complete = row.stamp == _stamp(query) and all(
                _file_size(self.folder / name) == size
                for name, size in zip((row.mask, row.overlay), row.sizes, strict=True)
            )
        except OSError:  # reading it says why
            return None
        return row if complete else None

    def write(
        self, query: Path, stamp: tuple[int, int], result: Segmentation, seconds: float
    ) -> Row:
        """Write mask and overlay, each whole or not at all, then the row that says so.

        The overlay is a JPEG file, or PNG where the image is too long for JPEG.

        Raises:
            DataError: this result cannot be encoded or written; others can.
            FsdinoError: a file cannot be written.
        """
        name, labels = self._name(query), result.compact_labels()
        shares = np.bincount(labels.ravel(), minlength=len(result.names) + 1) / labels.size
        fits = max(labels.shape) <= _MOST_JPEG
        row = Row(
            query=os.path.abspath(query),
            stamp=stamp,
            mask=f"{MASKS}/{name}.png",
            overlay=f"{OVERLAYS}/{name}.{'jpg' if fits else 'png'}",
            sizes=(0, 0),
            foreground=round(1 - float(shares[0]), 6),
            classes={n: round(float(shares[i]), 6) for i, n in enumerate(result.names, 1)},
            scores={n: round(s, 4) for n, s in zip(result.names, result.scores, strict=True)},
            found=dict(zip(result.names, result.founds, strict=True)),
            seconds=round(seconds, 4),
        )
        drawn = overlay.overlay(result.image, labels)
        contents = {
            row.mask: pixels.encode_image(_mask_image(labels, len(result.names)), "PNG"),
            row.overlay: (
                pixels.encode_image(drawn, "JPEG", quality=92)
                if fits
                else pixels.encode_image(drawn, "PNG")
            ),
        }
        row = Row(**{**vars(row), "sizes": tuple(map(len, contents.values()))})
        self._write_files(name, contents)
        files.append_json_lines(self.folder / ROWS_FILE, [asdict(row)])
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
        files.write_json_lines(self.folder / ROWS_FILE, map(asdict, rows))

    def _write_files(self, name: str, contents: Mapping[str, bytes]) -> None:
        """Write the files of a name, all of them or none."""
        try:
            for file, content in contents.items():
                files.write_bytes(self.folder / file, content)
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._remove(name, [])
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in _OWN_TROUBLE:
                raise DataError(str(error)) from error
            raise
        self._remove(name, contents)

    def _remove(self, name: str, kept: Iterable[str]) -> None:
        """Remove the files of a name, but for some: an overlay of the other kind, say."""
        for file in {f"{MASKS}/{name}.png", *(f"{OVERLAYS}/{name}.{e}" for e in ("jpg", "png"))}:
            if file not in kept:
                with contextlib.suppress(FileNotFoundError):
                    (self.folder / file).unlink()

    def _name(self, query: Path) -> str:
        """The query's name, which no other has, also where the file system ignores case."""
        path = os.path.abspath(query)
        if path not in self._names:
            self._names[path] = self._new_name(query)
            self._taken.add(self._names[path].casefold())
        return self._names[path]

    def _new_name(self, query: Path) -> str:
        stem = os.fsdecode(os.fsencode(query.stem)[:_MOST_NAME])
        ending = query.suffix.removeprefix(".")[:32]
        numbered = (f"{stem}-{n}" for n in itertools.count(2))
        for name in itertools.chain((stem, f"{stem}-{ending}"), numbered):
            if name.casefold() not in self._taken:
                return name
        raise AssertionError("unreachable: the numbers do not end")

    def _check_call(self, call: Mapping[str, Any]) -> set[str]:
        """Refuse a folder that is not this call's; returns the names that others have in it."""
        remedy = f"{_REMEDY}, or --overwrite"
        file = self.folder / CALL_FILE
        if not file.exists():
            foreign = [f"folder {n}/" for n in (MASKS, OVERLAYS) if _names_in(self.folder / n)]
            foreign += [f"file {ROWS_FILE}"] if (self.folder / ROWS_FILE).exists() else []
            if foreign:
                raise UsageError(
                    f"--out {self.folder} has a {foreign[0]} of another program: {remedy}"
                )
            return set()
        before = files.read_object(file, remedy, UsageError)
        others = _read_others(before)
        if others is None:
            raise UsageError(f"{file} is damaged ({_OTHERS!r} is not a list of names): {remedy}")
        before.pop(_OTHERS, None)
        changed = sorted(k for k in {*before, *call} if before.get(k) != call.get(k))
        if changed:
            raise UsageError(
                f"--out {self.folder} holds results of another call "
                f"(it differs in {', '.join(map(printable, changed))}): {remedy}"
            )
        return others

    def _clear(self) -> set[str]:
        """Remove the results that are here; returns the names that others have in it."""
        call, rows = self.folder / CALL_FILE, self.folder / ROWS_FILE
        others = None
        if call.exists():
            with contextlib.suppress(UsageError):
                others = _read_others(files.read_object(call, "", UsageError))
        elif rows.exists() and rows.stat().st_size and not self._read_rows(mend=False):
            raise UsageError(
                f"--out {self.folder} has a file {ROWS_FILE} of another program: {_REMEDY}"
            )
        try:
            for row in self._read_rows(mend=False).values():
                if row.name not in (others or ()):
                    self._remove(row.name, [])
            for file in (rows, call):
                file.unlink(missing_ok=True)
        except OSError as error:
            raise FsdinoError(
                f"--out {self.folder}: {error.filename} cannot be removed ({error.strerror}): "
                f"{_REMEDY}"
            ) from error
        if others is None:  # nothing says what was here before fsdino came
            others = _names_in(self.folder / MASKS) | _names_in(self.folder / OVERLAYS)
        return others

    def _read_rows(self, *, mend: bool) -> dict[str, Row]:
        """The stored rows by query; damaged ones are dropped, from the file, too, to `mend` it."""
        file = self.folder / ROWS_FILE
        found, damaged = files.read_json_lines(file)
        rows: dict[str, Row] = {}
        names: dict[str, str] = {}  # whose it is, by name
        for data in found:
            row = Row.read(data)
            if row is None or names.setdefault(row.name.casefold(), row.query) != row.query:
                damaged += 1
            else:
                rows[row.query] = row
        if damaged and mend:
            logger.warning(
                "%s: %d damaged lines are dropped, and their queries done again", file, damaged
            )
            files.write_json_lines(file, map(asdict, rows.values()))
        return rows


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
    be read, segmented or written is noted, and the others go on. Processes share whole batches, so
    that images meet in the same batches in any number of them. `output` is closed at the end.

    Raises:
        UsageError: supports of another model, too many of them, or a threshold outside of (0, 1).
        FsdinoError: results cannot be written; what is done is kept.
        KeyboardInterrupt: with a message that says what is kept.
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
    total = sum(map(len, mine)) + (resumed if processes.rank == 0 else 0)
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
                        task.fail(image.query, f"query ({printable(str(image.query))}): {made}")
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
                stamp = _stamp(query)
                array = pixels.read_image(query, "query")
            except (DataError, UsageError) as error:
                task.fail(query, str(error))
                continue
            except OSError as error:
                reason = f"query ({printable(str(query))}): {error.strerror}; check the path"
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


def _mask_image(labels: npt.NDArray[np.integer[Any]], classes: int) -> Image.Image:
    """0 and 255 for one class. For several an 8-bit palette image in the overlays' colours:

    0 is background (black), i the i-th class.
    """
    if classes == 1:
        return Image.fromarray((labels > 0).astype(np.uint8) * np.uint8(255))
    image = Image.fromarray(labels.astype(np.uint8))
    colours = [overlay.label_color(label) for label in range(1, int(labels.max(initial=0)) + 1)]
    image.putpalette([0, 0, 0, *(part for colour in colours for part in colour)])
    return image


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _file_size(path: Path) -> int | None:
    """Of a regular file."""
    status = path.stat()
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _lies_in(path: Path, folders: set[str]) -> bool:
    """Whether a path is in one of some folders (absolute, without links), or is one."""
    if not folders:
        return False
    whole = Path(os.path.realpath(path))
    return any(str(part) in folders for part in (whole, *whole.parents))


def _names_in(folder: Path) -> set[str]:
    """Stems of a folder's files."""
    return {entry.stem for entry in folder.iterdir()} if folder.is_dir() else set()


def _read_others(call: Mapping[str, Any]) -> set[str] | None:
    """The names in CALL_FILE that files of other programs have; None where they are damaged."""
    others = call.get(_OTHERS, [])
    if isinstance(others, list) and all(isinstance(name, str) for name in others):
        return set(others)
    return None
