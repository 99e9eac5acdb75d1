"""FSS-1000 (Li et al. 2020): 1000 classes of ten images, split by class into 520, 240 and 240."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fsdino.data import lists as split_lists
from fsdino.data import sampling
from fsdino.data.disk import prepared, read_gray, read_rgb
from fsdino.data.episodes import EpisodeKey, Image, Sample
from fsdino.data.lists import Lists
from fsdino.data.source import Found, MasksIncluded, Part, Places
from fsdino.errors import DataError, UsageError
from fsdino.progress import Report

logger = logging.getLogger("fsdino.data")

IMAGES = 10  # of each class
# List and share of the classes for each split. The classes of val.txt are not trained on: they
# take the place of base classes' validation images.
PARTS = {"train": "trn", "base_val": "val", "val": "test"}
_SHARES = {"train": 520, "base_val": 240, "val": 240}
_FEW = {1: [0, 0, 0, 1], 2: [0, 1, 1, 2], 3: [0, 1, 2, 3]}  # bounds of the splits
_FOREGROUND = 128
_PLACES = ("FSS-1000/data", "FSS-1000", "data", "fewshot_data/fewshot_data", "fewshot_data")
ARCHIVE = "fewshot_data.zip, linked from https://github.com/HKUSTCV/FSS-1000"


@dataclass(frozen=True)
class Fss1000(MasksIncluded):
    """FSS-1000 on disk; implements `fsdino.data.source.Source`.

    Class ids count through the names of trn.txt, val.txt and test.txt, each sorted: with the
    published lists 0..519, 520..759 and 760..999.

    Args:
        root: has a folder for each class, with 1.jpg, 1.png ... 10.jpg, 10.png.
        splits: the folder with HSNet's fss/{trn,val,test}.txt; None derives a division.
    """

    root: Path
    splits: Path | None = None

    dataset = "fss1000"
    folds = 0
    places = Places(_PLACES, "*/1.jpg", ARCHIVE)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.places.find(self.root) or self.root)

    @cached_property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """Sorted names of each split's classes."""
        if self.splits is not None:
            # Of three classes or fewer, some derived lists are empty.
            derived = split_lists.is_derived(self.splits)
            files = {split: self.splits / "fss" / f"{part}.txt" for split, part in PARTS.items()}
            return {
                split: tuple(sorted(split_lists.read_names(file, allow_empty=derived)))
                for split, file in files.items()
            }
        logger.info("no --splits: dividing FSS-1000's classes here, not as published numbers do")
        return self.derive()

    def derive(self) -> dict[str, tuple[str, ...]]:
        """Divide the classes as 520 : 240 : 240, in the order of their names' SHA-256.

        With fewer than four classes, the test set gets the first, then training, then validation.
        """
        order = sorted(
            self._folders(),
            key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest(),
        )
        bounds, total = [0], 0
        for share in _SHARES.values():
            total += share
            bounds.append(round(len(order) * total / sum(_SHARES.values())))
        bounds = _FEW.get(len(order), bounds)
        return {
            split: tuple(sorted(order[bounds[i] : bounds[i + 1]])) for i, split in enumerate(PARTS)
        }

    def _folders(self) -> list[str]:
        """Names of the folders with any of a class's images."""
        numbers = range(1, IMAGES + 1)
        return sorted(
            folder.name
            for folder in self.root.iterdir()
            if not folder.name.startswith(".")
            and any((folder / f"{number}.jpg").is_file() for number in numbers)
        )

    @property
    def class_names(self) -> Mapping[int, str]:
        """Names of all classes."""
        return dict(enumerate(name for split in PARTS for name in self.names[split]))

    def classes(self, fold: int | None, split: str) -> tuple[int, ...]:
        """Ids of a split's classes."""
        first = 0
        for name in PARTS:
            if name == split:
                break
            first += len(self.names[name])
        return tuple(range(first, first + len(self.names[split])))

    def lists(self, fold: int | None, split: str) -> Lists:
        """Classes by name, images in the order of their paths: 1, 10, 2 ... 9.

        Raises:
            DataError: a class or one of its images is missing, or one class is in two lists.
        """
        counts = Counter(name for names in self.names.values() for name in names)
        name, count = counts.most_common(1)[0]
        if count > 1:
            raise DataError(
                f"class {name} is in FSS-1000's lists more than once; use the published ones"
            )
        numbers = sorted(str(number) for number in range(1, IMAGES + 1))
        items = []
        names = self.class_names
        for class_id in self.classes(fold, split):
            folder = self.root / names[class_id]
            found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            for number in numbers:
                for file in (f"{number}.jpg", f"{number}.png"):
                    if file not in found:
                        raise DataError(f"{folder / file}: missing; get {ARCHIVE} again")
                items.append((f"{names[class_id]}/{number}.jpg", class_id))
        derived = self.splits is None or split_lists.is_derived(self.splits)
        return Lists(tuple(items), derived)

    def hsnet(
        self, lists: Lists, classes: Sequence[int], shots: int, episodes: int | None
    ) -> tuple[EpisodeKey, ...]:
        """Each image is the query once; supports are drawn from the numbers 1..10."""
        if episodes is not None and episodes > len(lists.items):
            raise UsageError(
                f"episodes {episodes}: protocol hsnet uses each of {len(lists.items)} images once; "
                "use fewer, or sampling seeded"
            )
        pools = {
            class_id: [f"{Path(names[0]).parent.as_posix()}/{n}.jpg" for n in range(1, IMAGES + 1)]
            for class_id, names in lists.by_class.items()
        }
        return sampling.hsnet_in_turn(lists.items, pools, shots, episodes or len(lists.items))

    def prepare(self, folder: Path | None, report: Report) -> dict[str, Path]:
        """Write the derived division of the classes as lists."""
        folder = folder or prepared(self.dataset, "division")
        split_lists.make_folder(folder / "fss")
        for split, names in self.derive().items():
            split_lists.write_names(folder / "fss" / f"{PARTS[split]}.txt", names)
        split_lists.mark_derived(folder, dataset=self.dataset)
        return {"lists": folder}

    def read(self, name: str, class_id: int, *, query: bool) -> Sample:
        """Read an image and its mask: from 128 on a pixel is foreground."""
        image, gray = self._pair(name)
        mask = gray >= _FOREGROUND
        if not mask.any():
            path = (self.root / name).with_suffix(".png")
            raise DataError(f"{path}: no pixel is foreground (128 or more); get {ARCHIVE} again")
        return Sample(image, mask, name, class_id)

    def _pair(self, name: str) -> tuple[Image, Image]:
        image = read_rgb(self.root / name)
        return image, read_gray((self.root / name).with_suffix(".png"), image.shape[:2])

    def parts(self) -> list[Part]:
        """The required parts, and whether they exist."""
        found = len(self._folders())
        note = f"{found} of {sum(_SHARES.values())} folders of classes"
        return [Part("CLASS/{1..10}.jpg and .png", ARCHIVE, True, found > 0, note)]

    def pairs(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        """Every image."""
        for folder in self._folders():
            for number in range(1, IMAGES + 1):
                name = f"{folder}/{number}.jpg"
                yield name, _Check(self, name)


@dataclass(frozen=True)
class _Check:
    source: Fss1000
    name: str

    def __call__(self) -> Found:
        self.source.read(self.name, 0, query=True)
        return Found()
