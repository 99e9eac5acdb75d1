"""Your own folder as a data set, in the layouts that annotation tools write."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fsdino.data.episodes import EpisodeKey, Image, Mask, Sample
from fsdino.data.labels import Labelling, read_label_map, several_classes
from fsdino.data.layouts import Reading, read_layout
from fsdino.data.lists import Lists
from fsdino.data.sampling import Pools, check_pools
from fsdino.data.source import Found, MasksIncluded, Part, Places
from fsdino.errors import DataError, UsageError
from fsdino.images import read_image
from fsdino.masks import read_mask
from fsdino.progress import Report

logger = logging.getLogger("fsdino.data")

# Of each class, every fifth image is kept out of training, or one where there are fewer than ten:
# but none of two, of which an episode needs both.
_EVERY = 5
_FEWEST = 3  # images of a class of which one is kept out


@dataclass(frozen=True)
class Folder(MasksIncluded):
    """Images and masks of a user's own; implements `fsdino.data.source.Source`.

    Layouts:

    * class-folders: a folder is a class, its id the place of its name in alphabetical order; the
      mask of CLASS/IMAGE.jpg is CLASS/IMAGE.png or CLASS/IMAGE_mask with any image suffix, or in
      CLASS/masks/ for images in CLASS/images/.
    * pairs: one class; images/NAME.jpg with masks/NAME.png, or NAME.jpg beside NAME_mask.png.
    * labels: files as in pairs, but a mask has a value for each class, which is the class's id;
      classes.txt may name them.

    Pictures are turned upright by their EXIF data. The split "val" has all images; "base_val"
    every fifth of each class, and "train" the others. Of three to nine images of a class, one is
    in "base_val"; of two, both are in both.

    Args:
        root: the folder.
        layout: one of `fsdino.data.names.LAYOUTS`.
        ignore: value of label maps that is left out of a query's score, or "none"; None is 255.
        background: value of label maps that is not a class, 0 or "none"; None is 0.
        skip_bad: leave out images without a mask and label maps that cannot be read, with a
            warning.

    Raises:
        UsageError: `ignore` or `background` is out of range.
    """

    root: Path
    layout: str = "auto"
    ignore: int | str | None = None
    background: int | str | None = None
    skip_bad: bool = False

    dataset = "folder"
    folds = 0
    places = Places((), "*", "a folder for each class, with CLASS/IMAGE.jpg and CLASS/IMAGE.png")

    def __post_init__(self) -> None:
        Labelling.of(self.ignore, self.background)

    @cached_property
    def reading(self) -> Reading:
        """The content of the folder, and how it is read.

        Raises:
            UsageError: an unknown layout, or options that this one does not have.
            DataError: several layouts match, or none.
        """
        found = read_layout(self.root, self.layout, self._labels)
        if found.layout != "labels" and (self.ignore, self.background) != (None, None):
            raise UsageError(
                f"--ignore and --background are for label maps, and {self.root} is read as "
                f"{found.layout}: leave them out, or pass --layout labels"
            )
        if found.left_out:
            name, reason = next(iter(found.left_out.items()))
            logger.warning(
                "%d entries of %s are not read, such as %s (%s); `fsdino data check folder` "
                "lists all",
                len(found.left_out),
                self.root,
                name,
                reason,
            )
        return found

    @property
    def _labels(self) -> Labelling:
        return Labelling.of(self.ignore, self.background)

    @property
    def class_names(self) -> Mapping[int, str]:
        """Names of the classes that have images."""
        return self.reading.classes

    def classes(self, fold: int | None, split: str) -> tuple[int, ...]:
        """Ids of all classes."""
        return tuple(self.class_names)

    def lists(self, fold: int | None, split: str) -> Lists:
        """Images by class and name.

        Raises:
            DataError: no class, an image without a mask, or a label map that cannot be read.
        """
        self._check_masks()
        items = []
        for class_id, names in self.reading.images.items():
            out = _kept_out(len(names))
            for place, name in enumerate(names):
                if split == "val" or not out or (place in out) == (split == "base_val"):
                    items.append((name, class_id))
        if not items and self.reading.masks and self.reading.layout == "labels":
            raise DataError(
                f"--root {self.root}: no label map has a class, with {self._labels}; pass other "
                "--ignore and --background, or --layout pairs for masks of one class"
            )
        if not items:
            raise DataError(
                f"--root {self.root}: no image found; a folder of classes holds "
                "CLASS/IMAGE.jpg and CLASS/IMAGE.png"
            )
        return Lists(tuple(items), derived=True)

    def pools(self, lists: Lists) -> tuple[Pools, Pools]:
        """Images of each class that are queries, and those that supports are drawn from.

        If a class has one image in the lists, as for validation with few images, that image is the
        query, and its other images are the supports.

        Args:
            lists: lists of a split.

        Raises:
            DataError: a class with fewer than two images.
        """
        images = self.reading.images
        check_pools(images, self.class_names, self.class_names, self.dataset)
        queries = {class_id: lists.by_class.get(class_id, ()) for class_id in self.class_names}
        supports = {c: names if len(names) > 1 else images[c] for c, names in queries.items()}
        return queries, supports

    def few_images(self) -> tuple[list[str], list[str]]:
        """Classes of which one image is kept out of training, and those of which none is."""
        counts = {self.class_names[c]: len(n) for c, n in self.reading.images.items()}
        some = [name for name, n in counts.items() if _FEWEST <= n < 2 * _EVERY]
        return some, [name for name, n in counts.items() if n < _FEWEST]

    def _check_masks(self) -> None:
        """Names of images whose mask cannot be read; `skip_bad` leaves them out."""
        unmarked = [name for names in self.reading.unmarked.values() for name in names]
        problems = [*self.reading.damaged.values()]
        if unmarked:
            problems.append(
                f"{len(unmarked)} images have no mask, such as {self.root / unmarked[0]}: add "
                f"{Path(unmarked[0]).stem}.png where the other masks are, or remove the image"
            )
        for problem in problems:
            if not self.skip_bad:
                raise DataError(problem)
            logger.warning("left out: %s", problem)

    def hsnet(
        self, lists: Lists, classes: Sequence[int], shots: int, episodes: int | None
    ) -> tuple[EpisodeKey, ...]:
        """A user's own folder has no published draws."""
        raise UsageError("a folder of your own has no published episodes; use sampling seeded")

    def mask_source(self, split: str) -> str:
        """The masks are the user's; values with another meaning than usual are named."""
        return "published" if self._labels.is_default else f"published, {self._labels}"

    def prepare(self, folder: Path | None, report: Report) -> dict[str, Path]:
        """Nothing to make: a folder is read as it is."""
        return {}

    def read(self, name: str, class_id: int, *, query: bool) -> Sample:
        """Read an image and its mask.

        Raises:
            DataError: one of them is missing or cannot be used, or they differ in size.
        """
        mask = self.reading.masks.get(name)
        if mask is None:
            raise DataError(f"{self.root / name}: has no mask; add one, or remove the image")
        try:
            image = read_image(self.root / name)
            if self.reading.layout == "labels":
                return self._labelled(name, self.root / mask, image, class_id, query)
            flags = self._mask(self.root / mask, self.root / name, image.shape[:2])
            return Sample(image, flags, name, class_id)
        except UsageError as error:
            raise DataError(str(error)) from error

    def _mask(self, path: Path, image: Path, size: tuple[int, int]) -> Mask:
        try:
            return read_mask(path, size, image=image)
        except DataError as error:
            if several_classes(path):
                raise DataError(
                    f"{error}; label maps of several classes are read by --layout labels"
                ) from error
            raise

    def _labelled(self, name: str, path: Path, image: Image, class_id: int, query: bool) -> Sample:
        labels = read_label_map(path, image.shape[:2], self.root / name)
        mask: Mask = labels == class_id
        if not mask.any():
            raise DataError(
                f"{path}: no pixel has the value {class_id}; it may have changed in the meantime"
            )
        undecided = self._labels.ignore
        ignore: Mask | None = None
        if query and undecided is not None:
            ignore = labels == undecided
        return Sample(image, mask, name, class_id, ignore)

    def parts(self) -> list[Part]:
        """A folder needs images of a class."""
        found = bool(self.class_names)
        path = "CLASS/IMAGE.jpg and .png"
        if found and self.reading.layout != "class-folders":
            path = "images and their masks"
        return [Part(path, "your own images and masks of them", True, found)]

    def described(self) -> dict[str, Any]:
        """Layout, images by class, and what is left out, with reasons."""
        reading = self.reading
        classes = {
            name: len(reading.images.get(class_id, ()))
            for class_id, name in self.class_names.items()
        }
        values = {"values": str(self._labels)} if reading.layout == "labels" else {}
        return {
            "layout": reading.layout,
            **values,
            "images by class": classes,
            "left out": dict(sorted(reading.left_out.items())),
        }

    def pairs(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        """Every image, once."""
        reading = self.reading
        classes: dict[str, int] = {}
        for images in (reading.images, reading.unmarked):
            for class_id, names in images.items():
                for name in names:
                    classes.setdefault(name, class_id)
        classes.update(dict.fromkeys(reading.damaged, -1))
        for name in sorted(classes):
            yield name, _Check(self, name, classes[name])


def _kept_out(count: int) -> frozenset[int]:
    """Which of a class's images are kept out of training."""
    if count < _FEWEST:
        return frozenset()
    return frozenset(range(_EVERY - 1, count, _EVERY)) or frozenset({count - 1})


@dataclass(frozen=True)
class _Check:
    source: Folder
    name: str
    class_id: int

    def __call__(self) -> Found:
        reason = self.source.reading.damaged.get(self.name)
        if reason is not None:
            raise DataError(reason)
        self.source.read(self.name, self.class_id, query=True)
        return Found()
