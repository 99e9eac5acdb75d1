"""Check a data set, and make once what evaluation and training need."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fsdino.data.catalog import draw, open_source
from fsdino.data.davis import Davis
from fsdino.data.lists import Lists
from fsdino.data.source import Found, Part, Source
from fsdino.errors import DataError, FsdinoError
from fsdino.progress import Progress

logger = logging.getLogger("fsdino.commands")

INDEX_FILE = "index.json"
_LISTS = ("pascal", "coco", "fss")  # folders in a folder of lists
_CHUNK = 512  # files handed to the readers at once
_READERS = 8


@dataclass(frozen=True)
class Fold:
    """What the lists of one fold hold.

    Attributes:
        fold: its number; None if there are no folds.
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
    """The state of a data set.

    Attributes:
        dataset, root: which one, where.
        parts: what it consists of.
        folds: what its lists hold.
        reading: how it is read, by title: layout, where masks come from, what is left out.
        read: how many images were read.
        masked: of how many of them a mask was read, too.
        bad: reasons by image that cannot be used.
        problems: what is wrong with lists and annotations.
        note: reason why `folds` are missing, if that is not an error.
    """

    dataset: str
    root: str
    parts: list[Part]
    folds: list[Fold]
    reading: dict[str, Any]
    read: int
    masked: int
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
        found = [f"{missing} missing, download {' and '.join(fetch)}"] if missing else []
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
        layout, ignore, background: how your own folder is read; see `Folder`.

    Raises:
        UsageError: the data set is unknown, or the root or the folder of lists does not exist.
        DataError: several layouts match your own folder.
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
    reading, problems, note = {}, list[str](), None
    if not isinstance(source, Davis):
        reading, problems, note = source.described(), source.problems(), source.unprepared()
    try:
        pairs = list(source.pairs())
    except FsdinoError as error:  # a list of theirs
        pairs = []
        problems.append(str(error))
    found, bad = _read_all(pairs) if pairs else ({}, {})
    folds: list[Fold] = []
    if pairs and note is None and not isinstance(source, Davis):
        folds, wrong = _count_all(source, dict.fromkeys(name for name, _ in pairs) | found)
        problems += wrong
    masked = sum(one.masked for one in found.values())
    return Check(
        dataset, str(source.root), parts, folds, reading, len(pairs), masked, bad,
        list(dict.fromkeys(problems)), note,
    )  # fmt: skip


def image_counts(lists: Lists) -> dict[int, int]:
    """Images by the class, which is an index."""
    return {class_id: len(names) for class_id, names in lists.by_class.items()}


def _count_all(source: Source, present: Mapping[str, Found | None]) -> tuple[list[Fold], list[str]]:
    """What the lists of all folds hold, and what is wrong with lists."""
    folds: list[Fold] = []
    problems: list[str] = []
    for fold in range(source.folds) if source.folds else (None,):
        for split in ("val", "train"):
            try:
                lists = source.lists(fold, split)
            except FsdinoError as error:
                if split == "val" or isinstance(error, DataError):  # who evaluates need not train
                    problems.append(str(error))
                continue
            folds.append(_count(source, fold, split, lists, present))
            if split == "val":
                title = "" if fold is None else f"fold {fold}: "
                problems += [f"{title}{why}" for why in _refused(source, fold, lists, present)]
    return folds, problems


def _count(
    source: Source, fold: int | None, split: str, lists: Lists, present: Mapping[str, object]
) -> Fold:
    counts = image_counts(lists)
    classes = {
        source.class_names[class_id]: counts.get(class_id, 0)
        for class_id in source.classes(fold, split)
    }
    missing = len({name for name, _ in lists.items} - present.keys())
    return Fold(fold, split, lists.derived, classes, missing)


def _refused(
    source: Source, fold: int | None, lists: Lists, present: Mapping[str, Found | None]
) -> Iterator[str]:
    """Why evaluation would refuse the lists of novel classes."""
    try:
        draw(source, source.classes(fold, "val"), lists, "val")
    except FsdinoError as error:
        yield str(error)
    lacking = []
    for name, class_id in lists.items:
        found = present.get(name)
        if found is not None and found.classes is not None and class_id not in found.classes:
            lacking.append((name, class_id))
    if lacking:
        name, class_id = lacking[0]
        yield (
            f"{len(lacking)} listed images have no pixel of their class, such as {name} of class "
            f"{class_id}; get masks and lists that belong together"
        )


def _read_all(
    pairs: Sequence[tuple[str, Callable[[], Found]]],
) -> tuple[dict[str, Found], dict[str, str]]:
    """Read everything; what was found by name, and reasons by the name of what cannot be used."""
    found, bad = {}, {}
    waiting = iter(pairs)
    readers = min(_READERS, os.cpu_count() or 1)
    with Progress("check", len(pairs)) as progress, ThreadPoolExecutor(readers) as pool:
        while chunk := list(islice(waiting, _CHUNK)):
            for name, one in pool.map(_read, chunk):
                if isinstance(one, str):
                    bad[name] = one
                else:
                    found[name] = one
                progress.advance(note=f"{len(bad)} bad" if bad else "")
    return found, bad


def _read(pair: tuple[str, Callable[[], Found]]) -> tuple[str, Found | str]:
    name, read = pair
    try:
        return name, read()
    except FsdinoError as error:
        return name, str(error)
