"""`fsdino data check` and `fsdino data prepare`: their options and tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fsdino.commands.options import File, Folder, Json, Layout, Value
from fsdino.data.names import ON_DISK
from fsdino.errors import DataError
from fsdino.tables import print_table

if TYPE_CHECKING:
    from fsdino.commands.data.check import Check

DatasetName = Annotated[
    tyro.conf.Positional[str],
    tyro.conf.arg(metavar="DATASET", help=f"One of {', '.join(ON_DISK)}."),
]


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """Check a data set: its parts, missing ones and where to get them, and damaged files.

    Reads every file, and counts the images of each fold and class. The exit code is 1 if something
    that evaluation needs is missing or damaged.
    """

    dataset: DatasetName
    root: Path
    """Its folder."""
    splits: Folder = None
    """Folder of HSNet's split lists; default: lists derived from the annotations."""
    layout: Layout = "auto"
    """Of folder: CLASS/IMAGE with its mask, images with masks of one class, or label maps of
    several classes; auto takes the one that matches."""
    ignore: Value = None
    """Of label maps: value of undecided pixels, or none; default: 255."""
    background: Value = None
    """Of label maps: 0 (the default), or none if 0 is a class."""
    as_json: Json = False
    """Print everything as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        from fsdino.commands.data.check import check

        found = check(
            self.dataset,
            self.root,
            self.splits,
            layout=self.layout,
            ignore=self.ignore,
            background=self.background,
        )
        if self.as_json:
            print(json.dumps(found.to_dict()))
        else:
            _print_check(found)
        if not found.passed:
            raise DataError(f"{self.dataset} is not complete: {found.summary()}")
        return 0


@dataclass(frozen=True, kw_only=True)
class DataPrepare:
    """Make masks and lists that are not part of a data set, once.

    Rasterises COCO's masks (needs the extra fsdino[train]) and derives split lists. The same
    command resumes where it was interrupted.
    """

    dataset: DatasetName
    root: Path
    """Its folder."""
    out: File = None
    """Folder for the results, to pass as --splits later; default: the cache, below
    ~/.cache/fsdino or FSDINO_CACHE, where they are found automatically."""
    as_json: Json = False
    """Print what was made as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        from fsdino.commands.data.prepare import prepare

        made = prepare(self.dataset, self.root, self.out)
        if self.as_json:
            print(json.dumps({title: str(path) for title, path in made.items()}))
        elif made:
            print_table(["", ""], [[key, str(path)] for key, path in made.items()], numbers=False)
        else:
            print(f"{self.dataset} is read as it is: nothing to prepare")
        return 0


DataCommand = (
    Annotated[DataCheck, tyro.conf.subcommand("check")]
    | Annotated[DataPrepare, tyro.conf.subcommand("prepare")]
)


def _print_check(found: Check) -> None:
    from fsdino.errors import shown_path

    shown = 20
    print(f"{found.dataset} in {found.root}")  # no table: addresses are there to be copied
    for part in found.parts:
        state = "there" if part.found else "MISSING" if part.needed else "not there"
        print(f"  {state:9}  {part.path}" + (f" ({part.note})" if part.note else ""))
        if not part.found:
            print(f"             get {part.archive}")
    for title, value in found.reading.items():
        if isinstance(value, Mapping):
            lines = [f"{shown_path(name)}: {about}" for name, about in value.items()]
            print(f"  {title}: {len(lines)}")
            more = [f"    ... and {len(lines) - shown} more; --json names all"]
            print("\n".join([f"    {line}" for line in lines[:shown]] + more[: len(lines) > shown]))
        else:
            print(f"  {title}: {value}")
    if found.folds:
        print_table(
            ["fold", "split", "lists", "classes", "images", "not there"],
            [
                ["–" if fold.fold is None else str(fold.fold), fold.split,
                 "derived" if fold.derived else "published", str(len(fold.classes)),
                 f"{sum(fold.classes.values()):,}", f"{fold.missing:,}"]
                for fold in found.folds
            ],
            "Images in the split lists, once for each class in them",
        )  # fmt: skip
    if found.note is not None:
        print(found.note)
    for fold in found.folds:
        if fold.split == "val" and fold.fold is not None:
            counts = ", ".join(f"{name} {count}" for name, count in fold.classes.items())
            print(f"fold {fold.fold}: {counts}")
    for name, reason in list(found.bad.items())[:shown]:
        print(f"{shown_path(name)}: {reason}")
    if len(found.bad) > shown:
        print(f"... and {len(found.bad) - shown} more; --json names all")
    masks = "with their masks"
    if found.masked < found.read:
        masks = f"({found.masked:,} of them with a mask)"
    print(f"{found.read:,} images read {masks}, {len(found.bad):,} cannot be used")
