"""A user's own folder of classes: CLASS/IMAGE.jpg beside its mask CLASS/IMAGE.png."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fsdino.data.episodes import EpisodeKey, Sample
from fsdino.data.files import Part, Places, Report
from fsdino.data.lists import Lists
from fsdino.errors import DataError, UsageError
from fsdino.images import list_images, read_image, read_mask

logger = logging.getLogger("fsdino.data")

# Of each class, every fifth image is kept out of training.
_EVERY = 5


@dataclass(frozen=True)
class Folder:
    """Classes of a user's own; implements `fsdino.data.files.Source`.

    A folder is a class, its id the place of its name in alphabetical order. Images are any format
    but PNG; the mask of CLASS/IMAGE.jpg is CLASS/IMAGE.png. Pictures are turned upright as their
    EXIF data say. split "val" takes all images; "base_val" every fifth of each class, and "train"
    the others.
    """

    root: Path

    dataset = "folder"
    folds = 0
    places = Places((), "*", "a folder for each class, with CLASS/IMAGE.jpg and CLASS/IMAGE.png")

    @cached_property
    def class_names(self) -> Mapping[int, str]:
        """Names of the folders that hold images."""
        folders = sorted(path for path in self.root.iterdir() if _is_class(path))
        names = [folder.name for folder in folders if _images(folder)]
        for folder in folders:
            if folder.name not in names:
                logger.warning("%s: there is no image in this folder, it is no class", folder)
        return dict(enumerate(names))

    def classes(self, fold: int | None, split: str) -> tuple[int, ...]:
        """Ids of all classes."""
        return tuple(self.class_names)

    def lists(self, fold: int | None, split: str) -> Lists:
        """Images by class and name.

        Raises:
            DataError: no class, or an image without a mask.
        """
        items, unmarked = [], []
        for class_id, class_name in self.class_names.items():
            for place, path in enumerate(_images(self.root / class_name)):
                if not path.with_suffix(".png").exists():
                    unmarked.append(path)
                kept_out = place % _EVERY == _EVERY - 1
                if split == "val" or kept_out == (split == "base_val"):
                    items.append((f"{class_name}/{path.name}", class_id))
        if unmarked:
            raise DataError(
                f"{len(unmarked)} images have no mask, such as {unmarked[0]}: add "
                f"{unmarked[0].stem}.png beside it, or remove the image"
            )
        if not items:
            raise DataError(
                f"--root {self.root}: no image found; a folder of classes holds "
                "CLASS/IMAGE.jpg and CLASS/IMAGE.png"
            )
        return Lists(tuple(items), derived=True)

    def hsnet(
        self, lists: Lists, classes: Sequence[int], shots: int, episodes: int | None
    ) -> tuple[EpisodeKey, ...]:
        """There are no published draws for a folder of one's own."""
        raise UsageError("a folder of your own has no published episodes; use sampling seeded")

    def mask_source(self, split: str) -> str:
        """The masks are the user's."""
        return "published"

    def make_masks(self, names: Sequence[str]) -> None:
        """Nothing to make: the masks are part of the data set."""

    def prepare(self, folder: Path | None, report: Report) -> dict[str, Path]:
        """Nothing to make: a folder is read as it is."""
        return {}

    def read(self, name: str, class_id: int, *, query: bool) -> Sample:
        """Read an image and its mask.

        Raises:
            DataError: one of them is missing or cannot be used, or they differ in size.
        """
        path = self.root / name
        try:
            image = read_image(path)
            mask = read_mask(path.with_suffix(".png"), image.shape[:2])
        except UsageError as error:
            raise DataError(str(error)) from error
        return Sample(image, mask, name, class_id)

    def unprepared(self) -> str | None:
        """Nothing takes long."""
        return None

    def parts(self) -> list[Part]:
        """A folder of classes needs images."""
        found = bool(self.class_names)
        return [
            Part("CLASS/IMAGE.jpg and .png", "your own images", True, found, "a folder is a class")
        ]

    def pairs(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Every image."""
        for class_id, class_name in self.class_names.items():
            for path in _images(self.root / class_name):
                name = f"{class_name}/{path.name}"
                yield name, _Check(self, name, class_id)


@dataclass(frozen=True)
class _Check:
    source: Folder
    name: str
    class_id: int

    def __call__(self) -> object:
        return self.source.read(self.name, self.class_id, query=True)


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _images(folder: Path) -> list[Path]:
    return [path for path in list_images(folder) if path.suffix.lower() != ".png"]
