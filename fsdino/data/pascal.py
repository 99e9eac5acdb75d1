"""PASCAL-5i (Shaban et al. 2017): VOC 2012 and SBD's annotations, 4 folds of 5 classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fsdino.data import lists as split_lists
from fsdino.data import sampling
from fsdino.data.disk import file_key, labelled, prepared, read_labels, read_rgb, visible
from fsdino.data.episodes import EpisodeKey, Image, Sample
from fsdino.data.lists import MIN_PIXELS, Lists
from fsdino.data.source import Found, MasksIncluded, Part, Places
from fsdino.errors import DataError, UsageError
from fsdino.progress import Progress, Report

logger = logging.getLogger("fsdino.data")

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
FOLDS = 4
IGNORED = 255
EPISODES = 1000

VOC = "VOCtrainval_11-May-2012.tar, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
SBD = (
    "benchmark.tgz of SBD, "
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
)
# COCO's training classes of a fold contain PASCAL classes. Here PASCAL class c is held out in the
# fold of COCO-20i that holds out the same class (Boudiaf et al., "Few-Shot Segmentation Without
# Meta-Learning", CVPR 2021).
LEAK_SAFE_FOLDS = (
    (1, 4, 9, 11, 12, 15),
    (2, 6, 13, 18),
    (3, 7, 16, 17, 19, 20),
    (5, 8, 10, 14),
)


@dataclass(frozen=True)
class Pascal(MasksIncluded):
    """PASCAL-5i on disk; implements `fsdino.data.source.Source`. Class ids are VOC's, 1..20.

    Args:
        root: has JPEGImages/ and SegmentationClassAug/ or SegmentationClass/, or VOC2012/.
        splits: the folder with HSNet's pascal/{trn,val}/fold{i}.txt; None derives lists.
        leak_safe: folds for a model that was trained on COCO-20i's fold of the same number.
    """

    root: Path
    splits: Path | None = None
    leak_safe: bool = False

    folds = FOLDS
    places = Places(("VOC2012", "VOCdevkit/VOC2012"), "JPEGImages", VOC)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.places.find(self.root) or self.root)

    @property
    def dataset(self) -> str:
        """Its name in the catalog."""
        return "pascal5i-leak-safe" if self.leak_safe else "pascal5i"

    @property
    def class_names(self) -> Mapping[int, str]:
        """VOC's names by VOC's ids."""
        return dict(enumerate(CLASS_NAMES, 1))

    def classes(self, fold: int | None, split: str) -> tuple[int, ...]:
        """Fold i holds out VOC's classes 5i + 1 .. 5i + 5."""
        own = self._held_out(fold)
        everything = range(1, len(CLASS_NAMES) + 1)
        return own if split == "val" else tuple(c for c in everything if c not in own)

    def lists(self, fold: int | None, split: str) -> Lists:
        """Images of a split.

        A file of the published lists has its own fold's classes, in trn/ as in val/: training reads
        those of the other three folds.

        Raises:
            UsageError: a list is missing, or a fold out of range.
            DataError: a list cannot be used.
        """
        classes = self.classes(fold, split)
        folder = self.splits or self._derived_lists()
        read = self._read_folds(folder, "trn" if split == "train" else "val", classes)
        if split == "base_val":
            read = read.without(self._read_folds(folder, "trn", classes))
        return read

    def _held_out(self, fold: int | None) -> tuple[int, ...]:
        if fold is None or not 0 <= fold < FOLDS:
            raise UsageError(f"fold {fold}: PASCAL-5i has the folds 0..{FOLDS - 1}")
        return LEAK_SAFE_FOLDS[fold] if self.leak_safe else _fold_classes(fold)

    def _read_folds(self, folder: Path, part: str, classes: Sequence[int]) -> Lists:
        items = []
        for fold in range(FOLDS):
            own = _fold_classes(fold)
            if set(own) & set(classes):
                pairs = split_lists.read_pairs(_list_file(folder, part, fold), own)
                items += [(f"JPEGImages/{name}.jpg", c) for name, c in pairs if c in classes]
        return Lists(tuple(items), split_lists.is_derived(folder))

    def hsnet(
        self, lists: Lists, classes: Sequence[int], shots: int, episodes: int | None
    ) -> tuple[EpisodeKey, ...]:
        """Queries in the list's order, 1000 of them."""
        sampling.check_pools(lists.by_class, classes)
        return sampling.hsnet_in_turn(lists.items, lists.by_class, shots, episodes or EPISODES)

    def prepare(self, folder: Path | None, report: Report) -> dict[str, Path]:
        """Derive lists from the masks."""
        folder = folder or prepared(f"pascal5i-{split_lists.DERIVED_FORMAT}", self._key())
        if not split_lists.is_derived(folder):
            self.derive(folder, report)
        return {"lists": folder}

    def read(self, name: str, class_id: int, *, query: bool) -> Sample:
        """Read an image and the mask of one class; 255 is ignored in a query, else background."""
        image = read_rgb(self.root / name)
        path = self._mask(Path(name).stem)
        labels = self._labels(path, image.shape[:2])
        return labelled(path, labels, class_id, image, name, class_id, ignored=query)

    def _mask(self, stem: str) -> Path:
        augmented = self.root / "SegmentationClassAug" / f"{stem}.png"
        official = self.root / "SegmentationClass" / f"{stem}.png"
        if not augmented.exists() and not official.exists():
            raise DataError(
                f"{augmented}: missing, and so is {official}; VOC's own masks come with {VOC}, "
                f"those of the other training images are made from {SBD}"
            )
        return augmented if augmented.exists() else official

    def _labels(self, path: Path, size: tuple[int, int] | None) -> Image:
        labels = read_labels(path, size)
        present = np.flatnonzero(np.bincount(labels.ravel(), minlength=IGNORED + 1))
        strange = present[(present > len(CLASS_NAMES)) & (present != IGNORED)]
        if strange.size:
            raise DataError(
                f"{path}: the value {strange[0]} is not a class of VOC (0..20, 255); a palette "
                "file was perhaps converted to gray: get the original"
            )
        return labels

    def parts(self) -> list[Part]:
        """The required parts, and whether they exist."""
        found = {name: (self.root / name).exists() for name in _PARTS}
        derived = self.splits is None
        return [
            Part("JPEGImages", VOC, True, found["JPEGImages"]),
            Part(
                "SegmentationClass", VOC, not found["SegmentationClassAug"],
                found["SegmentationClass"], "enough to evaluate",
            ),
            Part(
                "SegmentationClassAug", SBD, False, found["SegmentationClassAug"],
                "for training with the published lists: SBD's annotations as PNGs",
            ),
            Part("ImageSets/Segmentation/val.txt", VOC, derived, found[_VAL], "to derive lists"),
        ]  # fmt: skip

    def pairs(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        """Every image with a mask."""
        for stem in sorted(_stems(self.root / "SegmentationClassAug", self.root / _OFFICIAL)):
            yield f"JPEGImages/{stem}.jpg", _Check(self, stem)

    def _derived_lists(self) -> Path:
        """The folder of lists derived from this copy's annotations, made if it is missing."""
        folder = prepared(f"pascal5i-{split_lists.DERIVED_FORMAT}", self._key())
        if not split_lists.is_derived(folder):
            logger.info("no --splits: deriving PASCAL-5i's lists from the masks, once")
            with Progress("read masks", unit="masks", live=False) as progress:
                self.derive(folder, progress.report)
        return folder

    def _key(self) -> str:
        files = [
            path
            for name in ("SegmentationClassAug", _OFFICIAL)
            for path in visible(self.root / name, ".png")
        ]
        return file_key([*files, *filter(Path.is_file, [self.root / _VAL])])

    def derive(self, folder: Path, report: Report | None = None) -> None:
        """Write lists in the published layout, derived from the masks.

        val/ takes the images of VOC's segmentation val set and trn/ all other annotated ones, for
        each class with at least `MIN_PIXELS` pixels.

        Raises:
            UsageError: VOC's ImageSets/Segmentation/val.txt is missing.
            DataError: a mask cannot be used.
        """
        if not (self.root / _VAL).is_file():
            raise UsageError(
                f"{self.root / _VAL} is missing, which lists the validation images: get it "
                f"from {VOC}, or pass --splits"
            )
        held_out = set(split_lists.read_names(self.root / _VAL))
        stems = sorted(_stems(self.root / "SegmentationClassAug", self.root / _OFFICIAL))
        pairs: dict[tuple[str, int], list[tuple[str, int]]] = {
            (part, fold): [] for part in ("trn", "val") for fold in range(FOLDS)
        }
        for done, stem in enumerate(stems, 1):
            counts = np.bincount(self._labels(self._mask(stem), None).ravel(), minlength=256)
            part = "val" if stem in held_out else "trn"
            for class_id in range(1, len(CLASS_NAMES) + 1):
                if counts[class_id] >= MIN_PIXELS:
                    pairs[part, (class_id - 1) // 5].append((stem, class_id))
            if report is not None:
                report(done, len(stems))
        for (part, fold), found in pairs.items():
            file = _list_file(folder, part, fold)
            split_lists.make_folder(file.parent)
            split_lists.write_pairs(file, found)
        split_lists.mark_derived(folder, dataset="pascal5i", min_pixels=MIN_PIXELS)


@dataclass(frozen=True)
class _Check:
    source: Pascal
    stem: str

    def __call__(self) -> Found:
        image = read_rgb(self.source.root / "JPEGImages" / f"{self.stem}.jpg")
        labels = self.source._labels(self.source._mask(self.stem), image.shape[:2])
        return Found(classes=frozenset(np.unique(labels).tolist()))


_OFFICIAL = "SegmentationClass"
_VAL = "ImageSets/Segmentation/val.txt"
_PARTS = ("JPEGImages", "SegmentationClass", "SegmentationClassAug", _VAL)


def _fold_classes(fold: int) -> tuple[int, ...]:
    return tuple(range(5 * fold + 1, 5 * fold + 6))


def _list_file(folder: Path, part: str, fold: int) -> Path:
    return folder / "pascal" / part / f"fold{fold}.txt"


def _stems(*folders: Path) -> set[str]:
    return {path.stem for folder in folders for path in visible(folder, ".png")}
