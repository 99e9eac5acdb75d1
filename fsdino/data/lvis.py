"""LVIS-92i (Liu et al., "Matcher", ICLR 2024): LVIS's validation images, 10 folds.

Classes and draws follow the order of the keys in the authors' file. It is untrusted input: nothing
in it is executed, and every segmentation is checked before it is drawn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fsdino.data import sampling
from fsdino.data.coco_masks import outline, plain
from fsdino.data.disk import file_state, read_rgb
from fsdino.data.episodes import EpisodeKey, Mask, Sample
from fsdino.data.lists import Lists, safe_name
from fsdino.data.pickles import filled, read_pickle
from fsdino.data.source import Found, MasksIncluded, Part, Places, evaluation_only
from fsdino.errors import DataError, FsdinoError, UsageError, counted, printable, shown
from fsdino.progress import Report

FOLDS = 10
EPISODES = 2300
FILE = "lvis_val.pkl"
_IMAGES = "coco"  # folder of the images
_YEARS = ("train2017", "val2017")  # LVIS's validation images are of both

PICKLES = (
    "lvis.zip, linked from datasets/README.md of https://github.com/aim-uofa/Matcher (LVIS-92i)"
)
ARCHIVES = {year: f"{year}.zip, http://images.cocodataset.org/zips/{year}.zip" for year in _YEARS}
_MOST_BYTES = 2**30
_MOST_ANNOTATIONS = 2**22  # LVIS's validation set has 244,707


@dataclass(frozen=True)
class Annotations:
    """What the authors' file holds.

    Attributes:
        file: where it is.
        names: a name for each class, in the order of the file.
        images: of each class, the segmentations of its images by name, in the order of the file.
    """

    file: Path
    names: tuple[str, ...]
    images: tuple[Mapping[str, Sequence[Any]], ...]

    def mask(self, class_id: int, name: str, size: tuple[int, int]) -> Mask:
        """The union of a class's segmentations in an image, bool [H, W].

        Args:
            class_id: place of the class in the file.
            name: the image's name in the file.
            size: (H, W) of the image.

        Raises:
            DataError: the file lacks the image, or a segmentation is damaged.
            UsageError: pycocotools is not installed.
        """
        mask: Mask = np.zeros(size, np.bool_)
        for draw in self.outlines(class_id, name, size):
            mask |= draw()
        return mask

    def outlines(self, class_id: int, name: str, size: tuple[int, int]) -> list[Callable[[], Mask]]:
        """Check a class's segmentations in an image; functions that draw them.

        Arguments and errors as of `mask`.
        """
        try:
            return [outline(plain(one), size) for one in self.images[class_id][name]]
        except (KeyError, IndexError) as error:
            raise DataError(
                f"{self.file}: has no {name} of class {class_id}; get {PICKLES}"
            ) from error
        except ValueError as error:
            raise DataError(
                f"{self.file}: {self.names[class_id]} in {name} is damaged ({error}); get image "
                f"and file again: {PICKLES}"
            ) from error


@dataclass(frozen=True)
class Lvis(MasksIncluded):
    """LVIS-92i on disk; implements `fsdino.data.source.Source`. For evaluation only.

    Class ids are the places of the classes in the file, from 0. Those with more than `shots` images
    are dealt to the folds, so that a fold's classes depend on the number of shots.

    Args:
        root: has lvis_val.pkl and coco/{train,val}2017/*.jpg, or LVIS/ with them.
        shots: supports per episode.
    """

    root: Path
    shots: int = 1

    dataset = "lvis92i"
    folds = FOLDS
    places = Places(("LVIS",), FILE, PICKLES)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.places.find(self.root) or self.root)

    @property
    def annotations(self) -> Annotations:
        """What the file holds: some hundred MB, kept once in a process.

        Raises:
            UsageError: the file does not exist.
            DataError: it is damaged, or of another form.
        """
        return _read(*file_state(self.root / FILE, PICKLES))

    @property
    def class_names(self) -> Mapping[int, str]:
        """The keys of the file, numbers as "category 7", by their places."""
        return dict(enumerate(self.annotations.names))

    @property
    def _kept(self) -> tuple[int, ...]:
        """Classes with more images than shots."""
        images = self.annotations.images
        return tuple(c for c, own in enumerate(images) if len(own) > self.shots)

    def classes(self, fold: int | None, split: str) -> tuple[int, ...]:
        """Every tenth class with more images than shots, from the one of the fold's number on.

        Raises:
            UsageError: a fold out of range, a split to train on, or no file.
            DataError: the file cannot be used, or has fewer than ten such classes.
        """
        evaluation_only(self.dataset, split)
        if fold is None or not 0 <= fold < FOLDS:
            raise UsageError(f"fold {fold}: LVIS-92i has the folds 0..{FOLDS - 1}")
        kept = self._kept
        count = len(kept) // FOLDS
        if count == 0:
            raise DataError(
                f"{self.root / FILE}: {len(kept)} classes have more than "
                f"{counted(self.shots, 'image')}, ten folds need ten: use fewer shots, or get "
                f"{PICKLES}"
            )
        return kept[fold : FOLDS * count : FOLDS]

    def lists(self, fold: int | None, split: str) -> Lists:
        """All images of the fold's classes, in the order of the file.

        Raises:
            UsageError, DataError: as of `classes`.
        """
        classes, images = self.classes(fold, split), self.annotations.images
        items = ((f"{_IMAGES}/{name}", c) for c in classes for name in images[c])
        return Lists(tuple(items), derived=False)

    def hsnet(
        self, lists: Lists, classes: Sequence[int], shots: int, episodes: int | None
    ) -> tuple[EpisodeKey, ...]:
        """Classes in turn, query and supports drawn, 2300 times."""
        return sampling.class_in_turn(classes, lists.by_class, shots, episodes or EPISODES)

    def prepare(self, folder: Path | None, report: Report) -> dict[str, Path]:
        """Nothing to make: it is read as it is."""
        return {}

    def read(self, name: str, class_id: int, *, query: bool) -> Sample:
        """Read an image, and draw the union of its class's segmentations.

        A query in which they cover no pixel is scored, as the authors' code does.
        """
        image = read_rgb(self.root / name)
        mask = self.annotations.mask(class_id, _own(name), image.shape[:2])
        if not query and not mask.any():
            raise DataError(
                f"{self.root / FILE}: {self.class_names[class_id]} covers no pixel of {name}, "
                "which cannot be a support"
            )
        return Sample(image, mask, name, class_id)

    def parts(self) -> list[Part]:
        """The required parts, and whether they exist."""
        used = set(_YEARS)
        with contextlib.suppress(FsdinoError):
            used = {name.partition("/")[0] for own in self.annotations.images for name in own}
        found = [
            Part(FILE, PICKLES, True, (self.root / FILE).is_file(), "the train file is unused")
        ]
        for year in _YEARS:
            folder = self.root / _IMAGES / year
            found.append(Part(f"{_IMAGES}/{year}", ARCHIVES[year], year in used, folder.is_dir()))
        return found

    def described(self) -> dict[str, Any]:
        """How many classes each fold has, which depends on the shots."""
        try:
            kept, total = len(self._kept), len(self.annotations.names)
        except FsdinoError:  # `pairs` raises it
            return {}
        return {
            "classes": f"{kept:,} of {total:,} have more than {counted(self.shots, 'image')}, "
            f"{kept // FOLDS} in each of {FOLDS} folds; with more shots there are fewer"
        }

    def pairs(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        """Every image of the file."""
        if not (self.root / FILE).is_file():
            return
        annotations = self.annotations
        classes: dict[str, list[int]] = {}
        for class_id, images in enumerate(annotations.images):
            for name in images:
                classes.setdefault(name, []).append(class_id)
        for name in sorted(classes):
            yield f"{_IMAGES}/{name}", _Check(self, f"{_IMAGES}/{name}", tuple(classes[name]))


@dataclass(frozen=True)
class _Check:
    source: Lvis
    name: str
    classes: tuple[int, ...]

    def __call__(self) -> Found:
        size = read_rgb(self.source.root / self.name).shape[:2]
        for class_id in self.classes:
            self.source.annotations.outlines(class_id, _own(self.name), size)
        return Found()


def _own(name: str) -> str:
    """An image's name in the file."""
    return name.removeprefix(f"{_IMAGES}/")


@lru_cache(maxsize=1)
def _read(file: Path, size: int, changed: int) -> Annotations:
    """Read the file, unless the same one was the last; its size and time of change are the key."""
    remedy = f"get {PICKLES} again"
    try:
        found = read_pickle(file, _MOST_BYTES, remedy)
    except FileNotFoundError as error:
        raise UsageError(f"{file}: no such file; get {PICKLES}") from error
    try:
        return _shape(file, found)
    except ValueError as error:
        form = "{class: {image: {'annotations': [{'segmentation': ...}]}}}"
        raise DataError(f"{file}: expected {form}, but {error}; {remedy}") from error


def _shape(file: Path, found: Any) -> Annotations:
    """Check the form of the file's content, without looking into segmentations.

    Raises:
        ValueError: what is where something else should be.
        DataError: a name that leaves the root.
    """
    classes = filled(dict, found, "the file")
    names: list[str] = []
    images: list[Mapping[str, Sequence[Any]]] = []
    seen: set[str] = set()
    total = 0
    for key, records in classes.items():
        title = f"category {key}" if type(key) is int else printable(str(key))
        own: dict[str, list[Any]] = {}
        for name, record in filled(dict, records, title).items():
            where = f"{shown(name)} of {title}"
            if type(name) is not str:
                raise ValueError(f"the name {where} is not a text")
            if name not in seen:
                seen.add(safe_name(name, str(file), name.count("/") + 1))
            entries = filled(dict, record, where).get("annotations")
            entries = filled(list, entries, f"the annotations of {where}")
            total += len(entries)
            if total > _MOST_ANNOTATIONS:
                raise ValueError(f"it has more than {_MOST_ANNOTATIONS:,} annotations")
            own[name] = [_segmentation(entry, where) for entry in entries]
        names.append(title)
        images.append(own)
    return Annotations(file, tuple(names), tuple(images))


def _segmentation(entry: Any, where: str) -> Any:
    found = filled(dict, entry, f"an annotation of {where}").get("segmentation")
    if type(found) not in (list, dict):
        raise ValueError(f"a segmentation of {where} is {shown(found)}")
    return found
