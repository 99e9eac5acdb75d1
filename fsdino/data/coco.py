"""COCO-20i (Nguyen and Todorovic 2019): COCO 2014, 4 interleaved folds of 20 classes."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fsdino.data import lists as split_lists
from fsdino.data import sampling
from fsdino.data.coco_masks import RASTERISED_FILE, Annotations, rasterise
from fsdino.data.disk import (
    any_visible,
    content_key,
    file_key,
    labelled,
    prepared,
    read_labels,
    read_rgb,
    visible,
)
from fsdino.data.episodes import EpisodeKey, Image, Sample
from fsdino.data.lists import MIN_PIXELS, Lists
from fsdino.data.source import Found, Part, Places
from fsdino.errors import DataError, FsdinoError, UsageError
from fsdino.progress import Progress, Report

logger = logging.getLogger("fsdino.data")

CLASS_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
FOLDS = 4
EPISODES = 1000
YEARS = ("train2014", "val2014")
_PART = {"train2014": "trn", "val2014": "val"}

ARCHIVES = {year: f"{year}.zip, http://images.cocodataset.org/zips/{year}.zip" for year in YEARS}
ANNOTATIONS = (
    "annotations_trainval2014.zip, "
    "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"
)


@dataclass(frozen=True)
class Coco:
    """COCO-20i on disk; implements `fsdino.data.source.Source`. Class ids are contiguous, 0..79.

    Masks are annotations/{train,val}2014/*.png if they exist, in the root or in the folder of
    lists (if `prepare` made it); otherwise they are rasterised from annotations/instances_*.json
    into the cache.

    Args:
        root: folder with train2014/, val2014/ and annotations/, or COCO2014/ with them.
        splits: the folder with HSNet's coco/{trn,val}/fold{i}.pkl; None derives lists.
    """

    root: Path
    splits: Path | None = None
    _mask_folders: dict[str, tuple[Path, bool]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _parsed: dict[str, Annotations | FsdinoError] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    dataset = "coco20i"
    folds = FOLDS
    places = Places(("COCO2014", "coco"), "annotations", ANNOTATIONS)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.places.find(self.root) or self.root)

    @property
    def class_names(self) -> Mapping[int, str]:
        """COCO's names by contiguous id."""
        return dict(enumerate(CLASS_NAMES))

    def classes(self, fold: int | None, split: str) -> tuple[int, ...]:
        """Fold i holds out the contiguous ids i, i + 4, i + 8 ... i + 76."""
        if fold is None or not 0 <= fold < FOLDS:
            raise UsageError(f"fold {fold}: COCO-20i has the folds 0..{FOLDS - 1}")
        everything = range(len(CLASS_NAMES))
        return tuple(c for c in everything if (c % FOLDS == fold) == (split == "val"))

    def lists(self, fold: int | None, split: str) -> Lists:
        """Images of a split.

        In the published lists, trn/fold{i} already has the classes of the other three folds;
        val/fold{i} has those of fold i.

        Raises:
            UsageError: a list is missing, or a fold out of range.
            DataError: a list cannot be used.
        """
        classes = self.classes(fold, split)
        if split != "base_val":
            return Lists(
                self._read("trn" if split == "train" else "val", fold, classes), self._derived
            )
        items = [
            item
            for other in range(FOLDS)
            if other != fold
            for item in self._read("val", other, self.classes(other, "val"))
        ]
        found = Lists(tuple(items), self._derived)
        if self.splits is None:  # derived lists take val2014 here and train2014 to train
            return found
        return found.without(Lists(self._read("trn", fold, classes), self._derived))

    @property
    def _derived(self) -> bool:
        return self.splits is None or split_lists.is_derived(self.splits)

    def _read(
        self, part: str, fold: int | None, classes: Sequence[int]
    ) -> tuple[split_lists.Item, ...]:
        file = _list_file(self.splits or self._derived_lists(part), part, fold)
        found = split_lists.read_class_pickle(file, classes, len(CLASS_NAMES))
        for name in (name for names in found.values() for name in names):
            if name.partition("/")[0] not in YEARS:
                raise DataError(
                    f"{file}: {name!r} is not in {' or '.join(YEARS)}; replace the list"
                )
        return tuple((name, class_id) for class_id in classes for name in found.get(class_id, ()))

    def hsnet(
        self, lists: Lists, classes: Sequence[int], shots: int, episodes: int | None
    ) -> tuple[EpisodeKey, ...]:
        """Class, query and supports drawn, 1000 times."""
        return sampling.hsnet_by_class(classes, lists.by_class, shots, episodes or EPISODES)

    def mask_source(self, split: str) -> str:
        """Where mask PNGs came with the data "published", else "rasterised"."""
        published = self._masks(_year(split))[1]
        return "published" if published else "rasterised"

    def _masks(self, year: str) -> tuple[Path, bool]:
        """The folder of a year's masks, and whether they are the published ones."""
        if year not in self._mask_folders:
            self._mask_folders[year] = self._find_masks(year)
        return self._mask_folders[year]

    def _find_masks(self, year: str) -> tuple[Path, bool]:
        folder = self.root / "annotations" / year
        if _has_png(folder):
            return folder, not (folder / RASTERISED_FILE).exists()
        if self.splits is not None and (self.splits / "annotations" / year).is_dir():
            return self.splits / "annotations" / year, False
        file = self._instances(year)
        if not self._can_mask(year):
            raise UsageError(
                f"{folder} has no mask PNGs and {file} is missing: get {ANNOTATIONS}, from which "
                "masks are rasterised"
            )
        return prepared(self.dataset, content_key(file)) / year, False

    def _can_mask(self, year: str) -> bool:
        return _has_png(self.root / "annotations" / year) or self._instances(year).is_file()

    def _came_with_data(self, year: str) -> bool:
        return self._masks(year)[0] == self.root / "annotations" / year

    def _instances(self, year: str) -> Path:
        return self.root / "annotations" / f"instances_{year}.json"

    def make_masks(self, names: Sequence[str]) -> None:
        """Rasterise the masks of these images where PNGs neither came with the data nor are cached.

        Raises:
            UsageError: COCO's annotations or pycocotools are missing.
        """
        for year in YEARS:
            stems = [Path(name).stem for name in names if name.startswith(year)]
            if stems and not self._came_with_data(year):
                with Progress("rasterise masks", unit="masks", live=False) as progress:
                    rasterise(self._instances(year), stems, self._masks(year)[0], progress.report)

    def prepare(self, folder: Path | None, report: Report) -> dict[str, Path]:
        """Rasterise all masks, and derive lists from the masks, of the years that are there.

        Raises:
            UsageError: neither year has images and masks or annotations.
        """
        lacking = {year: reason for year in YEARS if (reason := self._lacks(year)) is not None}
        years = [year for year in YEARS if year not in lacking]
        if not years:
            raise UsageError(f"--root {self.root}: {'; '.join(lacking.values())}")
        for year, reason in lacking.items():
            use = "train on" if year == "train2014" else "evaluate on"
            logger.warning("%s: no masks and no lists to %s are made", reason, use)
        target = self if folder is None else Coco(self.root, folder)
        made = {}
        for year in years:
            if folder is not None and not self._came_with_data(year):
                split_lists.make_folder(folder / "annotations" / year)
            made[f"masks of {year}"] = target._rasterise_all(year, report)
        lists = folder or self._lists_folder()
        for year in years:
            if not _list_file(lists, _PART[year], FOLDS - 1).exists():
                target.derive(lists, year, report)
        return {**made, "lists": lists}

    def _lacks(self, year: str) -> str | None:
        """The missing parts of a year, and where to get them; None if it is complete."""
        if not any_visible(self.root / year, ".jpg"):
            return f"{year}/ has no images, get {ARCHIVES[year]}"
        if not self._can_mask(year):
            return f"annotations/instances_{year}.json is missing, get {ANNOTATIONS}"
        return None

    def _rasterise_all(self, year: str, report: Report) -> Path:
        """Rasterise every image of a year that has no mask; returns the folder of masks."""
        folder = self._masks(year)[0]
        if not self._came_with_data(year):
            rasterise(self._instances(year), self._stems(year), folder, report)
        return folder

    def _stems(self, year: str) -> list[str]:
        """Names of a year's images, sorted, without suffix."""
        names = (path.stem for path in visible(self.root / year, ".jpg"))
        return [name for name in names if name.startswith(f"COCO_{year}_")]

    def read(self, name: str, class_id: int, *, query: bool) -> Sample:
        """Read an image and the mask of one class; COCO ignores no pixel."""
        image = read_rgb(self.root / name)
        path = self._masks(Path(name).parts[0])[0] / f"{Path(name).stem}.png"
        labels = self._labels(path, image.shape[:2])
        return labelled(path, labels, class_id + 1, image, name, class_id, ignored=False)

    def _labels(self, path: Path, size: tuple[int, int] | None = None) -> Image:
        labels = read_labels(path, size)
        if labels.max() > len(CLASS_NAMES):
            raise DataError(
                f"{path}: the value {labels.max()} is not a class; COCO-20i's masks hold the "
                f"contiguous id + 1, 0..{len(CLASS_NAMES)}: remove annotations/{path.parent.name} "
                "to have them rasterised"
            )
        return labels

    def file(self, name: str) -> Path:
        """A sample is named like its image."""
        return self.root / name

    def unprepared(self) -> str | None:
        """Lists are derived from masks, which may have to be rasterised first."""
        parts = [_PART[year] for year in YEARS if self._lacks(year) is None]
        files = [_list_file(self._lists_folder(), part, FOLDS - 1) for part in parts]
        if self.splits is not None or (files and all(file.exists() for file in files)):
            return None
        return "not counted: pass --splits, or derive lists by `fsdino data prepare coco20i` first"

    def parts(self) -> list[Part]:
        """The required parts, and whether they exist."""
        parts = []
        for year in YEARS:
            what = "to train" if year == "train2014" else "to evaluate"
            needed, images = year == "val2014", self.root / year
            file, masks = self._instances(year), self.root / "annotations" / year
            png = _has_png(masks)
            parts += [
                Part(year, ARCHIVES[year], needed, images.is_dir(), what),
                Part(
                    f"annotations/instances_{year}.json", ANNOTATIONS, needed and not png,
                    file.is_file(), f"{what}, where mask PNGs are missing",
                ),
                Part(f"annotations/{year}", ANNOTATIONS, False, png,
                     "mask PNGs; where they are missing, `fsdino data prepare` makes them"),
            ]  # fmt: skip
        return parts

    def described(self) -> dict[str, Any]:
        """Where each year's masks come from."""
        stems = {year: self._stems(year) for year in YEARS}
        return {f"masks of {y}": self._masks_there(y, own) for y, own in stems.items() if own}

    def _masks_there(self, year: str, stems: Sequence[str]) -> str:
        file = f"annotations/{self._instances(year).name}"
        if not self._can_mask(year):
            return f"none, and none can be made without {file}"
        folder, published = self._masks(year)
        there = len({path.stem for path in visible(folder, ".png")}.intersection(stems))
        count = f"{there:,} of {len(stems):,} images"
        if published:
            return f"published, of {count}"
        if there == len(stems):
            return f"rasterised from {file}"
        return f"rasterised of {count}; the others will be, from {file}"

    def problems(self) -> list[str]:
        """What is wrong with instances_*.json, and classes that have too few images in any case."""
        found = []
        for year in YEARS:
            annotations = self._annotations(year)
            if isinstance(annotations, FsdinoError):
                found.append(str(annotations))
        annotations = self._annotations("val2014")
        if self.unprepared() is not None and isinstance(annotations, Annotations):
            counts = Counter(
                class_id
                for stem in self._stems("val2014")
                if stem in annotations.images
                for class_id in annotations.classes(stem)
            )
            few = [
                f"{CLASS_NAMES[c]} {counts[c]}" for c in range(len(CLASS_NAMES)) if counts[c] < 2
            ]
            if few:
                found.append(
                    f"val2014 has too few images of {', '.join(few[:6])}"
                    f"{f' and {len(few) - 6} more classes' if len(few) > 6 else ''}: an episode "
                    f"needs two of its class; get {ARCHIVES['val2014']}"
                )
        return found

    def _annotations(self, year: str) -> Annotations | FsdinoError | None:
        """A year's annotations or what is wrong with them; None where PNGs take their place."""
        if _has_png(self.root / "annotations" / year) or not self._instances(year).is_file():
            return None
        if year not in self._parsed:
            try:
                self._parsed[year] = Annotations(self._instances(year))
            except FsdinoError as error:
                self._parsed[year] = error
        return self._parsed[year]

    def pairs(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        """Every image of both years with its mask, or with the annotations that it is made from."""
        for year in YEARS:
            folder, whole = (
                self.root / "annotations" / year,
                _has_png(self.root / "annotations" / year),
            )
            with contextlib.suppress(UsageError):
                folder = self._masks(year)[0]
            masks = {path.stem for path in visible(folder, ".png")}
            annotations = self._annotations(year)
            known = annotations if isinstance(annotations, Annotations) else None
            for stem in sorted(masks.union(self._stems(year))):
                mask = folder / f"{stem}.png" if stem in masks or whole else None
                yield f"{year}/{stem}.jpg", _Check(self, f"{year}/{stem}.jpg", mask, known)

    def _derived_lists(self, part: str) -> Path:
        """The folder of lists derived from this copy's masks, made if they are missing."""
        year = "train2014" if part == "trn" else "val2014"
        folder = self._lists_folder()
        if not _list_file(folder, part, FOLDS - 1).exists():
            logger.info("no --splits: deriving COCO-20i's lists from the masks of %s, once", year)
            with Progress("rasterise masks", unit="masks", live=False) as progress:
                self._rasterise_all(year, progress.report)
            with Progress("read masks", unit="masks", live=False) as progress:
                self.derive(folder, year, progress.report)
        return folder

    def _lists_folder(self) -> Path:
        return prepared(
            f"{self.dataset}-{split_lists.DERIVED_FORMAT}", "-".join(map(self._key, YEARS))
        )

    def _key(self, year: str) -> str:
        """Of what lists are derived from."""
        folder = self.root / "annotations" / year
        if _has_png(folder):
            return file_key(visible(folder, ".png"))
        file = self._instances(year)
        if not file.is_file():
            return "none"
        stems = "\n".join(self._stems(year))  # lists of a part of the images are of that part
        return f"{content_key(file)}-{hashlib.sha256(os.fsencode(stems)).hexdigest()[:8]}"

    def derive(self, folder: Path, year: str, report: Report) -> None:
        """Write one year's lists in the published layout, derived from its masks.

        val/ takes val2014 and trn/ train2014, in the order of the images' names, for each class
        with at least `MIN_PIXELS` pixels.

        Raises:
            UsageError: masks and annotations are missing.
            DataError: a mask cannot be used.
        """
        masks, names = self._masks(year)[0], dict[int, list[str]]()
        stems = self._stems(year)
        for done, stem in enumerate(stems, 1):
            if (path := masks / f"{stem}.png").exists():
                counts = np.bincount(self._labels(path).ravel(), minlength=len(CLASS_NAMES) + 1)
                for class_id in np.flatnonzero(counts[1:] >= MIN_PIXELS).tolist():
                    names.setdefault(class_id, []).append(f"{year}/{stem}.jpg")
            report(done, len(stems))
        split_lists.make_folder(folder)
        split_lists.mark_derived(folder, dataset=self.dataset, min_pixels=MIN_PIXELS)
        for fold in range(FOLDS):  # the last one shows that all are there
            file = _list_file(folder, _PART[year], fold)
            split_lists.make_folder(file.parent)
            classes = self.classes(fold, "train" if year == "train2014" else "val")
            own = {c: names.get(c, []) for c in classes}
            split_lists.write_class_pickle(file, own, len(CLASS_NAMES))


@dataclass(frozen=True)
class _Check:
    source: Coco
    name: str
    mask: Path | None
    annotations: Annotations | None

    def __call__(self) -> Found:
        size = read_rgb(self.source.root / self.name).shape[:2]
        if self.mask is not None:
            labels = self.source._labels(self.mask, size)
            present = frozenset(value - 1 for value in np.unique(labels).tolist() if value)
            return Found(classes=present)
        if self.annotations is not None:
            self.annotations.check(Path(self.name).stem, size)
        return Found(masked=False)


def _has_png(folder: Path) -> bool:
    return any_visible(folder, ".png")


def _year(split: str) -> str:
    return "train2014" if split == "train" else "val2014"


def _list_file(folder: Path, part: str, fold: int | None) -> Path:
    return folder / "coco" / part / f"fold{fold}.pkl"
