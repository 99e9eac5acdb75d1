"""PASCAL-Part (Chen et al., CVPR 2014) as Matcher (Liu et al., ICLR 2024) evaluates it: 4 folds.

A class is a part of one kind of object, such as a cat's tail. Classes and draws follow the order of
the authors' index; their annotations, one file for each image, say which parts were merged. Both
are untrusted input, and every segmentation is checked before it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from fsdino.data import sampling
from fsdino.data.disk import any_visible, file_state, read_rgb
from fsdino.data.episodes import EpisodeKey, Sample
from fsdino.data.lists import Lists, safe_name
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
from fsdino.data.pickles import filled
from fsdino.data.source import Found, Part, Places, evaluation_only
from fsdino.errors import DataError, FsdinoError, UsageError, printable, shown
from fsdino.files import read_json
from fsdino.progress import Report

FOLDS = ("animals", "indoor", "person", "vehicles")
MOST_EPISODES = 2500
INDEX = "all_obj_part_to_image.json"
ANNOTATIONS = "Annotations_Part_json_merged_part_classes"
_IMAGES = "JPEGImages"
_LEFT_OUT = ("aeroplane", "TAIL")

JSON_FILES = (
    "pascal.zip, linked from datasets/README.md of https://github.com/aim-uofa/Matcher "
    "(Pascal-Part)"
)
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar"
IMAGES = f"VOCtrainval_03-May-2010.tar, {_VOC}"
_MOST_INDEX = 2**26  # bytes
_MOST_ANNOTATION = 2**24


@dataclass(frozen=True)
class Index:
    """What the authors' index holds.

    Attributes:
        names: object and part of each class, in the order of the folds and of the file.
        images: of each class, names of the validation images in the order of the file.
        first: number of the first class of each fold, and the number of all classes.
        listed: of each fold, the length of all validation lists, also of classes left out.
    """

    names: tuple[tuple[str, str], ...]
    images: tuple[tuple[str, ...], ...]
    first: tuple[int, ...]
    listed: tuple[int, ...]


@dataclass(frozen=True)
class _Object:
    """An object of an annotation: its number in it, kind, box, and lists of masks by part."""

    number: int
    kind: str
    box: Any
    parts: Mapping[str, Sequence[Any]]

    def segmentations(self, part: str) -> list[Any]:
        """Segmentations of a part; ValueError if there are none."""
        title = f'"mask" of {printable(part)} of object {self.number}'
        return [one for mask in self.parts[part] for one in filled(list, mask, title)]


@dataclass(frozen=True)
class PascalPart(PartsOfObjects):
    """PASCAL-Part on disk; implements `fsdino.data.source.Source`. For evaluation only.

    Classes are numbered in the order of folds and index, from 0. A sample is one object, cropped to
    its box, and named IMAGE#N for the N-th object of its annotation, from 0. Without #N it is the
    first that has the part.

    Args:
        root: VOC2010 with the authors' files, or a folder above it.
    """

    root: Path

    dataset = "pascal-part"
    folds = len(FOLDS)
    places = Places(
        ("VOC2010", "VOCdevkit/VOC2010", "Pascal-Part/VOCdevkit/VOC2010"), INDEX, JSON_FILES
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.places.find(self.root) or self.root)

    @property
    def index(self) -> Index:
        """What the index holds, kept once in a process.

        Raises:
            UsageError: the file does not exist.
            DataError: it is damaged, or of another form.
        """
        return _read_index(*file_state(self.root / INDEX, JSON_FILES))

    @property
    def class_names(self) -> Mapping[int, str]:
        """Object and part, such as "cat TAIL"."""
        return {i: printable(" ".join(names)) for i, names in enumerate(self.index.names)}

    def classes(self, fold: int | None, split: str) -> tuple[int, ...]:
        """Parts of animals, of things indoors, of persons or of vehicles.

        Raises:
            UsageError: a fold out of range, a split to train on, or no index.
            DataError: the index cannot be used.
        """
        evaluation_only(self.dataset, split)
        if fold is None or not 0 <= fold < self.folds:
            raise UsageError(f"fold {fold}: PASCAL-Part has the folds 0..{self.folds - 1}")
        first = self.index.first
        return tuple(range(first[fold], first[fold + 1]))

    def lists(self, fold: int | None, split: str) -> Lists:
        """The validation images of the fold's classes, in the order of the index.

        Raises:
            UsageError, DataError: as of `classes`.
        """
        classes, images = self.classes(fold, split), self.index.images
        return Lists(tuple((name, c) for c in classes for name in images[c]), derived=False)

    def hsnet(
        self, lists: Lists, classes: Sequence[int], shots: int, episodes: int | None
    ) -> tuple[EpisodeKey, ...]:
        """Classes in turn, as many times as images are listed, but at most 2500 times.

        Reads the annotations of drawn images.
        """
        index = self.index
        fold = next(i for i, first in enumerate(index.first[1:]) if classes[0] < first)
        count = episodes or min(index.listed[fold], MOST_EPISODES)
        parts = lru_cache(maxsize=None)(self._parts)

        def objects(class_id: int, name: str) -> list[str | None]:
            kind, part = index.names[class_id]
            found = [
                object_name(name, number) if part in its_parts else None
                for number, its_kind, its_parts in parts(name)
                if its_kind == kind
            ]
            if not found:
                raise self._lacks(class_id, name)
            return found

        return sampling.object_in_turn(classes, lists.by_class, shots, count, objects)

    def _parts(self, name: str) -> list[tuple[int, str, frozenset[str]]]:
        """Number, kind and parts of each object of an image."""
        return [(one.number, one.kind, frozenset(one.parts)) for one in self._objects(name)]

    def prepare(self, folder: Path | None, report: Report) -> dict[str, Path]:
        """Nothing to make: it is read as it is."""
        return {}

    def read(self, name: str, class_id: int, *, query: bool) -> Sample:
        """Read an object, and draw the union of its part's segmentations.

        A query whose part covers no pixel of its box is scored, as the authors' code does.
        """
        image_name, number = split_name(name)
        whole, one = read_rgb(self.root / image_name), self._object(class_id, image_name, number)
        part = self.index.names[class_id][1]
        try:
            image, mask = cropped(whole, one.segmentations(part), _corners(one.box))
        except ValueError as error:
            raise self._damaged(image_name, error) from error
        if not query and not mask.any():
            raise DataError(
                f"{self._annotation(image_name)}: {self.class_names[class_id]} covers no pixel of "
                f"object {one.number}, which cannot be a support"
            )
        return Sample(image, mask, name, class_id)

    def _object(self, class_id: int, name: str, number: int | None) -> _Object:
        """An object with the class's part: the one of a number, or the first."""
        kind, part = self.index.names[class_id]
        for one in self._objects(name):
            if one.kind == kind and part in one.parts and number in (None, one.number):
                return one
        raise self._lacks(class_id, name)

    def _lacks(self, class_id: int, name: str) -> DataError:
        return DataError(
            f"{self._annotation(name)}: has no such object for {self.class_names[class_id]}, which "
            f"{INDEX} lists; get both from one source: {JSON_FILES}"
        )

    def _annotation(self, name: str) -> Path:
        """The file that annotates an image."""
        return self.root / ANNOTATIONS / f"{Path(name).stem}.json"

    def _damaged(self, name: str, error: Exception) -> DataError:
        return DataError(f"{self._annotation(name)}: damaged ({error}); get it again: {JSON_FILES}")

    def _objects(self, name: str) -> list[_Object]:
        """All objects of an image.

        Raises:
            DataError: the annotation is missing, or damaged.
        """
        file = self._annotation(name)
        try:
            content = filled(dict, read_json(file, most=_MOST_ANNOTATION), "it")
            found = filled(list, content.get("object"), '"object"')
            return [_shape_object(number, one) for number, one in enumerate(found)]
        except OSError as error:
            raise DataError(
                f"{file}: cannot be read ({error.strerror}); get {JSON_FILES}"
            ) from error
        except ValueError as error:
            raise self._damaged(name, error) from error

    def parts(self) -> list[Part]:
        """The required parts, and whether they exist."""
        annotated = any_visible(self.root / ANNOTATIONS, ".json")
        images = any_visible(self.root / _IMAGES, ".jpg")
        return [
            Part(INDEX, JSON_FILES, True, (self.root / INDEX).is_file(), "classes and draws"),
            Part(f"{ANNOTATIONS}/*.json", JSON_FILES, True, annotated, "objects and masks"),
            Part(f"{_IMAGES}/*.jpg", IMAGES, True, images, "of VOC 2010"),
        ]

    def described(self) -> dict[str, Any]:
        """Classes and episodes of each fold, to be compared with other copies."""
        try:
            index = self.index
        except FsdinoError:  # `pairs` raises it
            return {}
        counts = [after - before for before, after in pairwise(index.first)]
        words = (
            f"{name}: {count} classes, {min(listed, MOST_EPISODES):,} episodes"
            for name, count, listed in zip(FOLDS, counts, index.listed, strict=True)
        )
        return {"folds": "; ".join(words)}

    def pairs(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        """Every validation image of the index."""
        if not (self.root / INDEX).is_file():
            return
        classes: dict[str, list[int]] = {}
        for class_id, images in enumerate(self.index.images):
            for name in images:
                classes.setdefault(name, []).append(class_id)
        for name in sorted(classes):
            yield name, partial(self._check, name, tuple(classes[name]))

    def _check(self, name: str, classes: tuple[int, ...]) -> Found:
        """Check all objects that can be drawn."""
        size, objects = read_rgb(self.root / name).shape[:2], self._objects(name)
        for class_id in classes:
            kind, part = self.index.names[class_id]
            own = [one for one in objects if one.kind == kind]
            if not own:
                raise self._lacks(class_id, name)
            try:
                for one in own:
                    if part in one.parts:
                        window(_corners(one.box), size)
                        outlines(one.segmentations(part), size)
            except ValueError as error:
                raise self._damaged(name, error) from error
        return Found()


def _corners(box: Any) -> list[int]:
    """The corners x0, y0, x1, y1, which are the values in their order.

    Raises:
        ValueError: something else; a reason of one line.
    """
    values = list(filled(dict, box, "bndbox").values())
    if len(values) != 4:
        raise ValueError(f"bndbox has {len(values)} values, x0, y0, x1 and y1 are four")
    return whole_numbers(values, "bndbox")


def _shape_object(number: int, one: Any) -> _Object:
    """An object, without a look at its box and masks: those of others need not be usable.

    Raises:
        ValueError: something is where something else should be.
    """
    title = f"object {number}"
    filled(dict, one, title)
    kind, parts = one.get("name"), one.get("parts", [])
    if type(kind) is not str or type(parts) is not list:
        raise ValueError(f"{title} has the name {shown(kind)} and the parts {shown(parts)}")
    found: dict[str, list[Any]] = {}
    for part in parts:
        name = filled(dict, part, f"a part of {title}").get("name")
        if type(name) is not str:
            raise ValueError(f"a part of {title} has the name {shown(name)}")
        found.setdefault(name, []).append(part.get("mask"))
    return _Object(number, kind, one.get("bndbox"), found)


@lru_cache(maxsize=2)
def _read_index(file: Path, size: int, changed: int) -> Index:
    """Read the index, unless it was read before; its size and time of change are the key."""
    try:
        return _shape_index(file, read_json(file, most=_MOST_INDEX))
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror}); get {JSON_FILES}") from error
    except ValueError as error:
        form = '{fold: {"object": {kind: {"part": {part: {"train": [...], "val": [...]}}}}}}'
        raise DataError(f"{file}: expected {form}, but {error}; get {JSON_FILES} again") from error


def _shape_index(file: Path, found: Any) -> Index:
    """Check the form of the index's content.

    Raises:
        ValueError: something is where something else should be.
        DataError: a name that leaves the root.
    """
    filled(dict, found, "the file")
    names: list[tuple[str, str]] = []
    images: list[tuple[str, ...]] = []
    first, listed = [0], []
    for fold in FOLDS:
        count = 0
        for kind, part, train, val in _listed(fold, found.get(fold)):
            count += len(val)
            if train and val and (kind, part) != _LEFT_OUT:
                stems = (without_separator(safe_name(stem, str(file))) for stem in val)
                names.append((kind, part))
                images.append(tuple(f"{_IMAGES}/{stem}.jpg" for stem in stems))
        if len(names) == first[-1]:
            raise ValueError(f"{fold} has no class with images in train and val")
        first.append(len(names))
        listed.append(count)
    return Index(tuple(names), tuple(images), tuple(first), tuple(listed))


def _listed(fold: str, found: Any) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Object, part, training and validation images of a fold, in the order of the file."""
    kinds = filled(dict, filled(dict, found, fold).get("object"), f'"object" of {fold}')
    for kind, content in kinds.items():
        parts = filled(dict, content, printable(kind)).get("part")
        for part, own in filled(dict, parts, f'"part" of {printable(kind)}').items():
            title = printable(f"{kind} {part}")
            filled(dict, own, title)
            if "+" in kind + part:
                raise ValueError(f"{title} holds '+', which joins an object and its part")
            lists = [own.get(split) for split in ("train", "val")]
            for one in lists:
                if type(one) is not list or any(type(stem) is not str for stem in one):
                    raise ValueError(f"{title} has a list {shown(one)}")
            yield kind, part, lists[0], lists[1]
