"""Look a data set over, and make once what evaluation and training need."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fsdino.apps.progress import Progress
from fsdino.data.catalog import open_source
from fsdino.data.davis import Davis
from fsdino.data.files import Part, Source
from fsdino.data.lists import Lists
from fsdino.errors import DataError, FsdinoError
from fsdino.files import atomic_write

INDEX_FILE = "index.json"
_CHUNK = 512  # files handed to the readers at once
_READERS = 8


@dataclass(frozen=True)
class Fold:
    """What the lists of one fold hold.

    Attributes:
        fold: its number; None where there are no folds.
        split: "val" (novel classes) or "train".
        derived: whether the lists are not the published ones.
        classes: images by the name of the class.
        missing: listed images of which the image or its mask is not there.
    """

    fold: int | None
    split: str
    derived: bool
    classes: dict[str, int]
    missing: int


@dataclass(frozen=True)
class Check:
    """What is there of a data set.

    Attributes:
        dataset, root: which one, where.
        parts: what it consists of.
        folds: what its lists hold.
        read: how many images were read, with their masks.
        bad: reasons by image that cannot be used.
        problems: what is wrong with the lists.
        note: why there are no `folds`, where that is no fault.
    """

    dataset: str
    root: str
    parts: list[Part]
    folds: list[Fold]
    read: int
    bad: dict[str, str]
    problems: list[str]
    note: str | None

    @property
    def missing(self) -> list[Part]:
        """Parts that are needed and not there."""
        return [part for part in self.parts if part.needed and not part.found]

    @property
    def passed(self) -> bool:
        """Whether novel classes can be evaluated on every listed image."""
        lacking = any(fold.missing for fold in self.folds if fold.split == "val")
        return not (self.missing or self.bad or self.problems or lacking)

    def summary(self) -> str:
        """What is missing or damaged, and the remedy, in one line."""
        fetch = dict.fromkeys(part.archive for part in self.missing)
        missing = ", ".join(part.path for part in self.missing)
        found = [f"{missing} missing, fetch {' and '.join(fetch)}"] if missing else []
        lacking = sum(fold.missing for fold in self.folds if fold.split == "val")
        if lacking:
            found.append(f"{lacking} listed images or their masks are not there")
        if self.bad:
            found.append(f"{len(self.bad)} images cannot be used, {next(iter(self.bad.values()))}")
        return "; ".join([*found, *self.problems])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "passed": self.passed}


def check(
    dataset: str,
    root: Path,
    splits: Path | None = None,
    *,
    layout: str = "auto",
    ignore: int | str | None = None,
    background: int | str | None = None,
) -> Check:
    """Look for all parts of a data set, read every file, and count what the lists hold.

    Args:
        dataset: its name.
        root: its folder.
        splits: folder of HSNet's lists; None derives lists.
        layout, ignore, background: how a folder of one's own is read; see `Folder`.

    Raises:
        UsageError: there is no such data set, root or folder of lists.
        DataError: a folder of one's own can be read in several ways.
    """
    source = open_source(
        dataset,
        root,
        splits,
        layout=layout,
        ignore=ignore,
        background=background,
        incomplete=True,
    )
    parts = source.parts()
    whole = all(part.found or not part.needed for part in parts)
    pairs = list(source.pairs()) if whole else []
    bad = _read_all(pairs) if pairs else {}
    note = None if isinstance(source, Davis) else source.unprepared()
    folds: list[Fold] = []
    problems: list[str] = []
    if pairs and note is None and not isinstance(source, Davis):
        folds, problems = _count_all(source, {name for name, _ in pairs})
    return Check(dataset, str(source.root), parts, folds, len(pairs), bad, problems, note)


def prepare(dataset: str, root: Path, out: Path | None = None) -> dict[str, Path]:
    """Make a data set's masks and lists, and an index of the lists; goes on where it was.

    Args:
        dataset: its name.
        root: its folder.
        out: where to; to be passed as --splits later. None is the cache, which is found by itself.

    Returns:
        Folders and files by title; none where a data set is read as it is.

    Raises:
        FsdinoError: something needed is missing, or cannot be read or written.
    """
    source = open_source(dataset, root)
    with _Stages(f"prepare {dataset}") as stages:
        made = source.prepare(out, stages.report)
    if isinstance(source, Davis) or "lists" not in made:
        return made
    folder = made["lists"]
    derived = open_source(dataset, root, folder)
    assert not isinstance(derived, Davis)
    index = {
        "dataset": dataset,
        "made": {title: str(path) for title, path in made.items()},
        "folds": list(_index(derived)),
    }
    with atomic_write(folder / INDEX_FILE) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return {**made, "index": folder / INDEX_FILE}


def _index(source: Source) -> Iterator[dict[str, Any]]:
    for fold in range(source.folds) if source.folds else (None,):
        for split in ("val", "train"):
            lists = source.lists(fold, split)
            counts = {source.class_names[c]: n for c, n in _counts(lists).items()}
            yield {"fold": fold, "split": split, "lists_hash": lists.hash, "classes": counts}


def _counts(lists: Lists) -> dict[int, int]:
    return {class_id: len(names) for class_id, names in lists.by_class.items()}


def _count_all(source: Source, present: set[str]) -> tuple[list[Fold], list[str]]:
    """What the lists of all folds hold, and what is wrong with lists."""
    folds: list[Fold] = []
    problems: dict[str, None] = {}
    for fold in range(source.folds) if source.folds else (None,):
        for split in ("val", "train"):
            try:
                folds.append(_count(source, fold, split, present))
            except FsdinoError as error:
                if split == "val" or isinstance(error, DataError):  # who evaluates need not train
                    problems[str(error)] = None
    return folds, list(problems)


def _count(source: Source, fold: int | None, split: str, present: set[str]) -> Fold:
    lists = source.lists(fold, split)
    counts = _counts(lists)
    classes = {
        source.class_names[class_id]: counts.get(class_id, 0)
        for class_id in source.classes(fold, split)
    }
    missing = len({name for name, _ in lists.items} - present)
    return Fold(fold, split, lists.derived, classes, missing)


def _read_all(pairs: Sequence[tuple[str, Callable[[], object]]]) -> dict[str, str]:
    """Read everything; reasons by the name of what cannot be used."""
    bad = {}
    waiting = iter(pairs)
    readers = min(_READERS, os.cpu_count() or 1)
    with Progress("check", len(pairs)) as progress, ThreadPoolExecutor(readers) as pool:
        while chunk := list(islice(waiting, _CHUNK)):
            for name, reason in pool.map(_reason, chunk):
                if reason is not None:
                    bad[name] = reason
                progress.advance(note=f"{len(bad)} bad" if bad else "")
    return bad


def _reason(pair: tuple[str, Callable[[], object]]) -> tuple[str, str | None]:
    name, read = pair
    try:
        read()
    except FsdinoError as error:
        return name, str(error)
    return name, None


class _Stages:
    """One progress after the other, for work that reports (done, total)."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._progress: Progress | None = None

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, *reason: object) -> None:
        self._end()

    def report(self, done: int, total: int) -> None:
        """Count one more; the first of a stage starts its progress."""
        if self._progress is None:
            self._progress = Progress(self._title, total).__enter__()
        self._progress.advance()
        if done == total:
            self._end()

    def _end(self) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None
