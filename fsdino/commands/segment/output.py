"""The output folder of `fsdino segment`: its masks, its overlays, and a row for each query."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import math
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fsdino import files, overlay
from fsdino import images as pixels
from fsdino.commands.options import check_folder
from fsdino.commands.segment.formats import (
    CLASSES_FILE,
    COCO_FILE,
    COLLECTED,
    PLACES,
    Formats,
    coco_of_all,
    place,
    yolo_apart,
)
from fsdino.commands.segment.queries import MASKS, OVERLAYS, REMEDY
from fsdino.errors import DataError, FsdinoError, UsageError, printable
from fsdino.locks import Lock
from fsdino.models.segmentation import Segmentation

logger = logging.getLogger("fsdino.commands")

FORMAT = "fsdino-segment-3"
CALL_FILE, ROWS_FILE, LOCK_FILE = "segment.json", "results.jsonl", "segment.lock"

_OTHERS = "others"  # key of CALL_FILE for names that files of other programs have
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
        annotations: files of other formats, relative to the output folder, and their bytes.
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
    annotations: dict[str, int] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, int]:
        """All files, with their sizes in bytes."""
        return {self.mask: self.sizes[0], self.overlay: self.sizes[1], **self.annotations}

    @property
    def name(self) -> str:
        """Of the mask and of the overlay, without their endings."""
        return PurePosixPath(self.mask).stem

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Row | None:
        """A row of ROWS_FILE; None if it is not one, or if its files would lie elsewhere."""
        data = {"annotations": {}, **data}  # earlier versions had none
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
            and all(isinstance(part, dict) for part in (*shares, found, data["annotations"]))
            and all(type(size) is int for size in data["annotations"].values())
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
        own = {place(format_, row.name) for format_ in PLACES}
        return row if inside and own.issuperset(row.annotations) else None


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
        first: whether this is the first of the processes that share the work.
        formats: what else is written for a query.

    Raises:
        UsageError: the folder is in use, belongs to another call, is damaged, or holds files of
            another program.
        FsdinoError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        call: Mapping[str, Any],
        *,
        overwrite: bool = False,
        first: bool = True,
        formats: Formats | None = None,
    ) -> None:
        self.folder = folder
        self._formats = formats or Formats()
        check_folder(folder)
        files.make_folder(folder, "pass an --out that can be written")
        self._lock: Lock | None = None
        if first:  # before anything is read: what others write meanwhile would be lost
            self._lock = Lock(folder / LOCK_FILE, f"--out {folder}", REMEDY)
        try:
            others = self._clear() if overwrite else self._check_call(call)
            for name in self._folders:
                files.make_folder(folder / name, "pass an --out that can be written")
            if not (folder / CALL_FILE).exists():
                more = {_OTHERS: sorted(others)} if others else {}
                files.write_json(folder / CALL_FILE, {**call, **more})
            self._rows = self._read_rows(repair=self._lock is not None)
        except BaseException:
            self.close()
            raise
        self._names = {query: row.name for query, row in self._rows.items()}
        self._taken = {name.casefold() for name in (*self._names.values(), *others)}

    @property
    def _folders(self) -> tuple[str, ...]:
        return (MASKS, OVERLAYS, *self._formats.folders)

    @property
    def _collected(self) -> set[str]:
        """Files that `collect` writes."""
        return {COLLECTED[name] for name in self._formats.names if name in COLLECTED}

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
            complete = row.stamp == file_stamp(query) and all(
                _file_size(self.folder / name) == size for name, size in row.files.items()
            )
        except OSError:  # reading it says why
            return None
        wanted = self._formats.files(row.name).values()
        return row if complete and set(wanted) == set(row.annotations) else None

    def write(
        self, query: Path, stamp: tuple[int, int], result: Segmentation, seconds: float
    ) -> Row:
        """Write mask, overlay and further formats, each atomically, then the row that records them.

        The overlay is a JPEG file, or PNG where the image is too long for JPEG.

        Raises:
            DataError: this result cannot be encoded or written; others can.
            FsdinoError: a file cannot be written.
        """
        name, labels = self._name(query), result.compact_labels()
        shares = np.bincount(labels.ravel(), minlength=len(result.names) + 1) / labels.size
        kind, drawn = overlay.encode_overlay(
            overlay.named_overlay(result.image, labels, result.names)
        )
        row = Row(
            query=os.path.abspath(query),
            stamp=stamp,
            mask=f"{MASKS}/{name}.png",
            overlay=f"{OVERLAYS}/{name}.{kind}",
            sizes=(0, 0),
            foreground=round(1 - float(shares[0]), 6),
            classes={n: round(float(shares[i]), 6) for i, n in enumerate(result.names, 1)},
            scores={n: round(s, 4) for n, s in zip(result.names, result.scores, strict=True)},
            found=dict(zip(result.names, result.founds, strict=True)),
            seconds=round(seconds, 4),
        )
        mask = overlay.mask_image(labels, len(result.names))
        contents = {row.mask: pixels.encode_image(mask, "PNG"), row.overlay: drawn}
        more = self._formats.contents(name, query, self.folder, result)
        sizes = tuple(map(len, contents.values()))
        annotations = {file: len(content) for file, content in more.items()}
        row = Row(**{**vars(row), "sizes": sizes, "annotations": annotations})
        self._write_files(name, {**contents, **more})
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

    def collect(self, rows: Sequence[Row]) -> None:
        """Write what formats have for all queries together: COCO's annotations, YOLO's classes.

        Raises:
            DataError: the COCO file of a query is damaged.
            FsdinoError: a file cannot be written.
        """
        if not rows:
            return
        names = [*rows[0].classes]
        if "yolo" in self._formats.names:
            files.write_text(self.folder / CLASSES_FILE, "".join(f"{name}\n" for name in names))
            if warning := yolo_apart([row.query for row in rows], [row.name for row in rows]):
                logger.warning("%s", warning)
        if "coco" in self._formats.names:
            paths = [self.folder / place("coco", row.name) for row in rows]
            remedy = "remove it, and repeat the command"
            parts = [files.read_object(path, remedy) for path in paths]
            try:
                content = coco_of_all(parts, [row.query for row in rows], names)
            except (LookupError, TypeError) as error:
                raise DataError(
                    f"a file in {self.folder / 'coco'} is not a COCO file: remove them, and repeat "
                    "the command"
                ) from error
            files.write_bytes(self.folder / COCO_FILE, content)

    def _write_files(self, name: str, contents: Mapping[str, bytes]) -> None:
        """Write the files of a name, all of them or none."""
        more = self._formats.files(name).values()
        try:
            for file, content in contents.items():
                files.write_bytes(self.folder / file, content)
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._remove(name, more)
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in _OWN_TROUBLE:
                raise DataError(str(error)) from error
            raise
        self._remove(name, [], kept=contents)

    def _remove(self, name: str, more: Iterable[str], kept: Iterable[str] = ()) -> None:
        """Remove mask and overlay of a name, and more files, but for some that are kept.

        An overlay of the other kind goes when a new one is written.
        """
        overlays = (f"{OVERLAYS}/{name}.{ending}" for ending in ("jpg", "png"))
        for file in (f"{MASKS}/{name}.png", *overlays, *more):
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
        remedy = f"{REMEDY}, or --overwrite"
        file = self.folder / CALL_FILE
        if not file.exists():
            foreign = [f"folder {n}/" for n in self._folders if _names_in(self.folder / n)]
            own = (ROWS_FILE, *sorted(self._collected))
            foreign += [f"file {name}" for name in own if (self.folder / name).exists()]
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
        others, before = None, list[str]()
        if call.exists():
            with contextlib.suppress(UsageError):
                found = files.read_object(call, "", UsageError)
                others, before = _read_others(found), _read_formats(found)
        elif rows.exists() and rows.stat().st_size and not self._read_rows(repair=False):
            raise UsageError(
                f"--out {self.folder} has a file {ROWS_FILE} of another program: {REMEDY}"
            )
        collected = {COLLECTED[name] for name in before if name in COLLECTED}
        for name in self._collected - collected:
            if (self.folder / name).exists():
                raise UsageError(
                    f"--out {self.folder} has a file {name} of another program: {REMEDY}"
                )
        try:
            for row in self._read_rows(repair=False).values():
                if row.name not in (others or ()):
                    self._remove(row.name, row.annotations)
            for file in (*(self.folder / name for name in collected), rows, call):
                file.unlink(missing_ok=True)
        except OSError as error:
            raise FsdinoError(
                f"--out {self.folder}: {error.filename} cannot be removed ({error.strerror}): "
                f"{REMEDY}"
            ) from error
        if others is None:  # there is no record of the files from before fsdino
            others = _names_in(self.folder / MASKS) | _names_in(self.folder / OVERLAYS)
        new = [name for name in self._formats.names if name not in before]
        return others.union(*(_names_in(self.folder / PLACES[name][0]) for name in new))

    def _read_rows(self, *, repair: bool) -> dict[str, Row]:
        """The stored rows by query; damaged ones are dropped, with `repair` also from the file."""
        file = self.folder / ROWS_FILE
        owners: dict[str, str] = {}  # queries by the name that is theirs

        def parse(data: Mapping[str, Any]) -> Row | None:
            row = Row.read(data)
            if row is None or owners.setdefault(row.name.casefold(), row.query) != row.query:
                return None
            return row

        found, damaged = files.read_journal(file, parse, quiet=not repair)
        rows = {row.query: row for row in found}
        if damaged and repair:
            files.write_json_lines(file, map(asdict, rows.values()))
        return rows


def file_stamp(file: Path) -> tuple[int, int]:
    """Size in bytes and modification time in ns, to notice another content."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _file_size(path: Path) -> int | None:
    """Of a regular file."""
    status = path.stat()
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _names_in(folder: Path) -> set[str]:
    """Stems of a folder's files."""
    return {entry.stem for entry in folder.iterdir()} if folder.is_dir() else set()


def _read_others(call: Mapping[str, Any]) -> set[str] | None:
    """The names in CALL_FILE that files of other programs have; None where they are damaged."""
    others = call.get(_OTHERS, [])
    if isinstance(others, list) and all(isinstance(name, str) for name in others):
        return set(others)
    return None


def _read_formats(call: Mapping[str, Any]) -> list[str]:
    """The formats that CALL_FILE names."""
    formats = call.get("formats", [])
    return [name for name in PLACES if isinstance(formats, list) and name in formats]
