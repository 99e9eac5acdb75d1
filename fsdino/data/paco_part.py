"""PACO-Part (Ramanathan et al., CVPR 2023) as Matcher (Liu et al., ICLR 2024) evaluates it.

A class is a part of one kind of object, such as a mug's handle. Classes, folds and draws follow the
order of the authors' files, which are untrusted input: nothing in them is executed, and every
segmentation is checked before it is drawn.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from fsdino.data import sampling
from fsdino.data.disk import file_state, read_rgb
from fsdino.data.episodes import EpisodeKey, Sample
from fsdino.data.lists import Lists, safe_name
from fsdino.data.lvis import ARCHIVES
from fsdino.data.parts import (
    PartsOfObjects,
    cropped,
    object_name,
    outlines,
    split_name,
    whole_numbers,
    window,
    without_separator,
)
from fsdino.data.pickles import filled, read_pickle
from fsdino.data.source import Found, Part, Places, evaluation_only
from fsdino.errors import DataError, FsdinoError, UsageError, counted, shown
from fsdino.progress import Report

FOLDS = 4
CLASSES = 448
EPISODES = 2500
TRAIN, VAL = "paco/paco_part_train.pkl", "paco/paco_part_val.pkl"
_IMAGES = "coco"  # folder of the images

PICKLES = "paco.zip, linked from datasets/README.md of https://github.com/aim-uofa/Matcher (PACO)"
_FORM = (
    "{'cid2img': {category: [{image id: path}]}, 'img2anno': {image id: [{'category_id', "
    "'obj_ann_id', 'obj_bbox', 'segmentation'}]}}"
)
_MOST_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class _Annotation:
    """A part in an image: its category, its object, that one's x, y, w, h, and the segmentation."""

    category: int
    number: int
    box: Any
    segmentation: Any


@dataclass(frozen=True)
class _Object:
    """An object with a part: x, y, w, h of its first annotation, and the part's segmentations."""

    box: Any
    segmentations: list[Any]


@dataclass(frozen=True)
class Annotations:
    """What the file of the validation images holds.

    Attributes:
        images: of each category, names of its images in the order of the file, each once.
        annotations: of each image, its annotations in the order of the file.
    """

    images: Mapping[int, tuple[str, ...]]
    annotations: Mapping[str, Sequence[_Annotation]]

    def objects(self, category: int, name: str) -> dict[int, _Object]:
        """The objects of an image with a category's part, in the order of their annotations."""
        found: dict[int, _Object] = {}
        for one in self.annotations.get(name, ()):
            if one.category == category:
                own = found.setdefault(one.number, _Object(one.box, []))
                own.segmentations.append(one.segmentation)
        return found


@dataclass(frozen=True)
class PacoPart(PartsOfObjects):
    """PACO-Part on disk; implements `fsdino.data.source.Source`. For evaluation only.

    Class ids are the places of the 448 categories in the training file, from 0; those with more
    than `shots` validation images are kept. A sample is one object, cropped to its box, and named
    IMAGE#ID by the id of the object's annotation. Without #ID it is the first that has the part.

    Args:
        root: has paco/paco_part_{train,val}.pkl and coco/{train,val}2017/*.jpg, or PACO-Part/ with
            them.
        shots: supports per episode.
    """

    root: Path
    shots: int = 1

    dataset = "paco-part"
    folds = FOLDS
    places = Places(("PACO-Part",), VAL, PICKLES)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.places.find(self.root) or self.root)

    @property
    def annotations(self) -> Annotations:
        """What the validation images' file holds, kept once in a process.

        Raises:
            UsageError: the file does not exist.
            DataError: it is damaged, or of another form.
        """
        return _read_val(*file_state(self.root / VAL, PICKLES))

    @property
    def categories(self) -> tuple[int, ...]:
        """All categories in the order of the training images' file, of which only this is used.

        Raises:
            UsageError, DataError: as of `annotations`.
        """
        return _read_order(*file_state(self.root / TRAIN, PICKLES))

    @property
    def class_names(self) -> Mapping[int, str]:
        """Numbers of the categories, as "category 7", by their places."""
        return {place: f"category {number}" for place, number in enumerate(self.categories)}

    def classes(self, fold: int | None, split: str) -> tuple[int, ...]:
        """Every fourth category from the fold's number on, if it has more images than shots.

        Raises:
            UsageError: a fold out of range, a split to train on, or a missing file.
            DataError: a file cannot be used, or no category has as many images.
        """
        evaluation_only(self.dataset, split)
        if fold is None or not 0 <= fold < FOLDS:
            raise UsageError(f"fold {fold}: PACO-Part has the folds 0..{FOLDS - 1}")
        images, places = self.annotations.images, range(fold, CLASSES, FOLDS)
        categories = self.categories
        kept = tuple(c for c in places if len(images.get(categories[c], ())) > self.shots)
        if not kept:
            raise DataError(
                f"{self.root / VAL}: no category of fold {fold} has more than "
                f"{counted(self.shots, 'image')}: use fewer shots, or get {PICKLES}"
            )
        return kept

    def lists(self, fold: int | None, split: str) -> Lists:
        """All images of the fold's classes, in the order of the file.

        Raises:
            UsageError, DataError: as of `classes`.
        """
        classes, images, categories = (
            self.classes(fold, split), self.annotations.images, self.categories,
        )  # fmt: skip
        items = ((name, c) for c in classes for name in images[categories[c]])
        return Lists(tuple(items), derived=False)

    def hsnet(
        self, lists: Lists, classes: Sequence[int], shots: int, episodes: int | None
    ) -> tuple[EpisodeKey, ...]:
        """Class, query and supports drawn, each with its object, 2500 times."""
        annotations, categories = self.annotations, self.categories

        def objects(class_id: int, name: str) -> list[str]:
            found = annotations.objects(categories[class_id], name)
            if not found:
                raise self._lacks(class_id, name)
            return [object_name(name, number) for number in found]

        return sampling.object_by_class(
            classes, lists.by_class, shots, episodes or EPISODES, objects
        )

    def prepare(self, folder: Path | None, report: Report) -> dict[str, Path]:
        """Nothing to make: it is read as it is."""
        return {}

    def read(self, name: str, class_id: int, *, query: bool) -> Sample:
        """Read an object, and draw the union of its part's segmentations.

        A query whose part covers no pixel of its box is scored, as the authors' code does.
        """
        image_name, number = split_name(name)
        found = self.annotations.objects(self.categories[class_id], image_name)
        one = next((o for n, o in found.items() if number in (None, n)), None)
        if one is None:
            raise self._lacks(class_id, name)
        whole = read_rgb(self.root / image_name)
        try:
            image, mask = cropped(whole, one.segmentations, _corners(one.box))
        except ValueError as error:
            raise self._damaged(class_id, name, error) from error
        if not query and not mask.any():
            raise DataError(
                f"{self.root / VAL}: {self.class_names[class_id]} covers no pixel of {name}, which "
                "cannot be a support"
            )
        return Sample(image, mask, name, class_id)

    def _lacks(self, class_id: int, name: str) -> DataError:
        return DataError(
            f"{self.root / VAL}: has no object with {self.class_names[class_id]} in {name}; get "
            f"{PICKLES}"
        )

    def _damaged(self, class_id: int, name: str, error: Exception) -> DataError:
        return DataError(
            f"{self.root / VAL}: {self.class_names[class_id]} in {name} is damaged ({error}); get "
            f"image and file again: {PICKLES}"
        )

    def parts(self) -> list[Part]:
        """The required parts, and whether they exist."""
        used = {f"{_IMAGES}/{year}" for year in ARCHIVES}
        with contextlib.suppress(FsdinoError):
            used = {name.rpartition("/")[0] for name in self.annotations.annotations}
        found = [
            Part(VAL, PICKLES, True, (self.root / VAL).is_file()),
            Part(TRAIN, PICKLES, True, (self.root / TRAIN).is_file(), "for the order of classes"),
        ]
        for year, archive in ARCHIVES.items():
            path = f"{_IMAGES}/{year}"
            found.append(Part(path, archive, path in used, (self.root / path).is_dir()))
        return found

    def described(self) -> dict[str, Any]:
        """How many classes each fold has, which depends on the shots."""
        try:
            counts = [len(self.classes(fold, "val")) for fold in range(FOLDS)]
        except FsdinoError:  # `pairs` or the count of the folds raises it
            return {}
        return {
            "classes": f"{sum(counts):,} of {CLASSES} have more than "
            f"{counted(self.shots, 'image')}, {', '.join(map(str, counts))} in the folds; with "
            "more shots there are fewer"
        }

    def pairs(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        """Every image of the validation file that has one of the classes."""
        if not ((self.root / VAL).is_file() and (self.root / TRAIN).is_file()):
            return
        classes: dict[str, list[int]] = {}
        for class_id, category in enumerate(self.categories):
            for name in self.annotations.images.get(category, ()):
                classes.setdefault(name, []).append(class_id)
        for name in sorted(classes):
            yield name, partial(self._check, name, tuple(classes[name]))

    def _check(self, name: str, classes: tuple[int, ...]) -> Found:
        """Check all objects that can be drawn."""
        size = read_rgb(self.root / name).shape[:2]
        for class_id in classes:
            found = self.annotations.objects(self.categories[class_id], name)
            if not found:
                raise self._lacks(class_id, name)
            try:
                for one in found.values():
                    window(_corners(one.box), size)
                    outlines(one.segmentations, size)
            except ValueError as error:
                raise self._damaged(class_id, name, error) from error
        return Found()


def _corners(box: Any) -> list[int]:
    """The corners x0, y0, x1, y1 of x, y, w, h, truncated after the sums.

    Raises:
        ValueError: something else; a reason of one line.
    """
    if type(box) not in (list, array) or len(box) != 4:
        raise ValueError(f"obj_bbox is {shown(box)} and not x, y, w and h")
    if any(type(value) not in (int, float) for value in box):
        raise ValueError(f"obj_bbox is {shown(box)}, which are not numbers")
    x, y, width, height = box
    return whole_numbers((x, y, x + width, y + height), "obj_bbox")


@lru_cache(maxsize=1)
def _read_order(file: Path, size: int, changed: int) -> tuple[int, ...]:
    """The categories of the training file; its size and time of change are the key."""
    found = tuple(_read(file, lambda content: _part(content, "cid2img")))
    if len(found) != CLASSES or any(type(category) is not int for category in found):
        raise DataError(
            f"{file}: has {len(found)} categories, PACO-Part has {CLASSES} with whole numbers; get "
            f"{PICKLES} again"
        )
    return found


@lru_cache(maxsize=1)
def _read_val(file: Path, size: int, changed: int) -> Annotations:
    """Read the validation file; its size and time of change are the key."""
    found: Annotations = _read(file, lambda content: _shape(file, content))
    return found


def _read(file: Path, shape: Callable[[Any], Any]) -> Any:
    """What a function takes from a file's content; the rest is freed."""
    remedy = f"get {PICKLES} again"
    try:
        return shape(read_pickle(file, _MOST_BYTES, remedy))
    except FileNotFoundError as error:
        raise UsageError(f"{file}: no such file; get {PICKLES}") from error
    except ValueError as error:
        raise DataError(f"{file}: expected {_FORM}, but {error}; {remedy}") from error


def _part(content: Any, key: str) -> dict[Any, Any]:
    found: dict[Any, Any] = filled(dict, filled(dict, content, "the file").get(key), f"{key!r}")
    return found


def _shape(file: Path, content: Any) -> Annotations:
    """Check the form of the validation file's content, without looking into segmentations.

    Raises:
        ValueError: something is where something else should be.
        DataError: a name that leaves the root.
    """
    images: dict[int, tuple[str, ...]] = {}
    ids: dict[str, Any] = {}
    for category, entries in _part(content, "cid2img").items():
        if type(category) is not int or type(entries) is not list:
            raise ValueError(f"category {shown(category)} has the images {shown(entries)}")
        own: dict[Any, str] = {}
        for entry in entries:
            number, path = next(iter(filled(dict, entry, f"an image of {category}").items()))
            if number not in own:
                own[number] = name = _name(file, path)
                if ids.setdefault(name, number) != number:
                    raise ValueError(f"two images are named {shown(name)}")
        images[category] = tuple(own.values())
    by_id = _part(content, "img2anno")
    annotations = {
        name: [_annotation(entry, name) for entry in filled(list, by_id.get(number), name)]
        for name, number in ids.items()
    }
    return Annotations(images, annotations)


def _name(file: Path, path: Any) -> str:
    """The name of an image below the root: a path's last two parts, in the folder of images."""
    if type(path) is not str:
        raise ValueError(f"the path {shown(path)} is not a text")
    name = safe_name("/".join(path.split("/")[-2:]), str(file), 2)
    return f"{_IMAGES}/{without_separator(name)}"


def _annotation(entry: Any, name: str) -> _Annotation:
    filled(dict, entry, f"an annotation of {name}")
    category, number = entry.get("category_id"), entry.get("obj_ann_id")
    if type(category) is not int or type(number) is not int or number < 0:
        raise ValueError(
            f"an annotation of {name} has the category {shown(category)} and the object "
            f"{shown(number)}"
        )
    return _Annotation(category, number, entry.get("obj_bbox"), entry.get("segmentation"))
