"""Cross-domain sets (Lei et al., "Cross-Domain Few-Shot Semantic Segmentation", ECCV 2022).

DeepGlobe's satellite tiles, ISIC 2018's skin lesions and lungs in chest X-rays, in the folders that
PATNet's code reads (https://github.com/slei109/PATNet). They are evaluated on; models are trained
elsewhere. The fourth set, FSS-1000, is `fsdino.data.fss1000`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fsdino.data import sampling
from fsdino.data.disk import any_visible, read_gray, read_rgb, visible
from fsdino.data.episodes import EpisodeKey, Sample
from fsdino.data.lists import Lists
from fsdino.data.source import Found, MasksIncluded, Part, Places, evaluation_only
from fsdino.errors import DataError
from fsdino.progress import Report

EPISODES = 600
_FOREGROUND = 128
_PATNET = "https://github.com/slei109/PATNet"


@dataclass(frozen=True)
class Layout:
    """The folders and names of one set.

    Attributes:
        dataset: the set's name.
        class_names: names of the classes, of which the first has the number 1.
        images: folder of a class's images, relative to the root; "{}" is the class's number.
        image_end: what follows an image's stem in its name.
        masks: folder of their masks, likewise.
        mask_end: what follows that stem in the mask's name.
        places: possible places of the root, and the official archive.
        by_mask: whether the masks' names give the order that is drawn from, not the images'.
        stray: remedy for a mask with another end, where masks give the order.
    """

    dataset: str
    class_names: tuple[str, ...]
    images: str
    image_end: str
    masks: str
    mask_end: str
    places: Places
    by_mask: bool = False
    stray: str = ""


_DEEPGLOBE = Layout(
    "deepglobe",
    ("agriculture", "urban", "rangeland", "forest", "water", "barren"),
    "{}/test/origin",
    ".jpg",
    "{}/test/groundtruth",
    ".png",
    Places(
        ("Deepglobe",),
        "[1-6]/test/origin/*.jpg",
        f"the preprocessed Deepglobe folder, linked from {_PATNET}",
    ),
)
_ISIC = Layout(
    "isic",
    ("lesion 1", "lesion 2", "lesion 3"),
    "ISIC2018_Task1-2_Training_Input/{}",
    ".jpg",
    "ISIC2018_Task1_Training_GroundTruth",
    "_segmentation.png",
    Places(
        ("ISIC",),
        "ISIC2018_Task1-2_Training_Input/[1-3]/*.jpg",
        "ISIC2018_Task1_Training_GroundTruth.zip and ISIC2018_Task1-2_Training_Input.zip, "
        "https://challenge.isic-archive.com/data/#2018 (images go into the folders 1, 2 and 3 by "
        f"data/isic/class_id.csv of {_PATNET})",
    ),
)
_LUNG = Layout(
    "lung",
    ("lung",),
    "CXR_png",
    ".png",
    "masks",
    "_mask.png",
    Places(
        ("LungSegmentation", "Lung Segmentation", "data/Lung Segmentation"),
        "masks/*_mask.png",
        "the folder Lung Segmentation of "
        "https://www.kaggle.com/datasets/nikhilpandey360/chest-xray-masks-and-labels",
    ),
    by_mask=True,
    stray="PATNet cannot read others either: move them out of the folder, in the official archive "
    "all MCUCXR_*.png",
)
LAYOUTS: Mapping[str, Layout] = {each.dataset: each for each in (_DEEPGLOBE, _ISIC, _LUNG)}


@dataclass(frozen=True)
class CrossDomain(MasksIncluded):
    """One of the sets on disk; implements `fsdino.data.source.Source`.

    A class's id is its number in the layout less one. Samples are named like their images.

    Args:
        layout: one of `LAYOUTS`.
        root: has the folders of the layout.
    """

    layout: Layout
    root: Path

    folds = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.places.find(self.root) or self.root)

    @property
    def dataset(self) -> str:
        """Its name."""
        return self.layout.dataset

    @property
    def places(self) -> Places:
        """Its possible places below the root that the user names."""
        return self.layout.places

    @property
    def class_names(self) -> Mapping[int, str]:
        """Names of all classes."""
        return dict(enumerate(self.layout.class_names))

    def classes(self, fold: int | None, split: str) -> tuple[int, ...]:
        """Ids of all classes: each is novel.

        Raises:
            UsageError: another split than "val".
        """
        evaluation_only(self.dataset, split)
        return tuple(self.class_names)

    def lists(self, fold: int | None, split: str) -> Lists:
        """All images, by class and in the order of paths.

        Raises:
            UsageError: another split than "val".
            DataError: a class without images, an image without its mask or the reverse, or a mask
                that is not named like an image.
        """
        classes = self.classes(fold, split)
        items = [
            (f"{self._folders(class_id)[0]}/{stem}{self.layout.image_end}", class_id)
            for class_id in classes
            for stem in self._stems(class_id)
        ]
        return Lists(tuple(items), derived=False)

    def _folders(self, class_id: int) -> tuple[str, str]:
        """Folders of a class's images and masks, relative to the root."""
        number = class_id + 1
        return self.layout.images.format(number), self.layout.masks.format(number)

    def _sides(self, class_id: int) -> tuple[tuple[Path, str], tuple[Path, str]]:
        """Folder and names' end of what gives a class's order, and of its partners."""
        images, masks = (self.root / folder for folder in self._folders(class_id))
        sides = (images, self.layout.image_end), (masks, self.layout.mask_end)
        return (sides[1], sides[0]) if self.layout.by_mask else sides

    def _stems(self, class_id: int) -> list[str]:
        """A class's images without folder and end, in the order of the draws; errors of `lists`."""
        (folder, end), (other, other_end) = self._sides(class_id)
        names = _names(folder, end)
        if not names:
            raise DataError(f"{folder}: no files *{end}; get {self.places.archive}")
        stray = [name for name in names if not name.endswith(end)]
        if stray:
            raise DataError(
                f"{folder / stray[0]}: not named IMAGE{end}, as {len(stray) - 1} others; "
                f"{self.layout.stray}"
            )
        stems = [name.removesuffix(end) for name in names]
        present = set(_names(other, other_end))
        missing = [f"{stem}{other_end}" for stem in stems if f"{stem}{other_end}" not in present]
        if missing:
            raise DataError(
                f"{other / missing[0]}: missing, as {len(missing) - 1} others; each file in "
                f"{folder} needs one: get {self.places.archive}"
            )
        return stems

    def hsnet(
        self, lists: Lists, classes: Sequence[int], shots: int, episodes: int | None
    ) -> tuple[EpisodeKey, ...]:
        """PATNet's draws: classes take turns, query and supports are drawn."""
        return sampling.class_in_turn(classes, lists.by_class, shots, episodes or EPISODES)

    def prepare(self, folder: Path | None, report: Report) -> dict[str, Path]:
        """Nothing to make."""
        return {}

    def read(self, name: str, class_id: int, *, query: bool) -> Sample:
        """Read an image and its mask: from 128 on a pixel is foreground."""
        stem = Path(name).name.removesuffix(self.layout.image_end)
        path = self.root / self._folders(class_id)[1] / f"{stem}{self.layout.mask_end}"
        image = read_rgb(self.root / name)
        mask = read_gray(path, image.shape[:2]) >= _FOREGROUND
        if not mask.any():
            raise DataError(
                f"{path}: no pixel is foreground (128 or more); get {self.places.archive} again"
            )
        return Sample(image, mask, name, class_id)

    def described(self) -> dict[str, Any]:
        """Images of each class, to be compared with other copies: they decide the episodes."""
        counts = {
            name: len(_names(*self._sides(class_id)[0]))
            for class_id, name in self.class_names.items()
        }
        return {"drawn from": ", ".join(f"{name}: {count}" for name, count in counts.items())}

    def parts(self) -> list[Part]:
        """The required parts, and whether they exist."""
        found = []
        for title, end in (("images", self.layout.image_end), ("masks", self.layout.mask_end)):
            place = getattr(self.layout, title)
            folders = dict.fromkeys(place.format(c + 1) for c in self.class_names)
            there = sum(any_visible(self.root / folder, end) for folder in folders)
            path = f"{place.format(f'{{1..{len(self.class_names)}}}')}/*{end}"
            note = f"{there} of {len(folders)} folders" if len(folders) > 1 else ""
            found.append(Part(path, self.places.archive, True, there == len(folders), note))
        return found

    def pairs(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        """Every image, including those whose partner is missing."""
        for class_id in self.class_names:
            folder, end = self._sides(class_id)[0]
            for name in _names(folder, end):
                if name.endswith(end):
                    stem = name.removesuffix(end)
                    image = f"{self._folders(class_id)[0]}/{stem}{self.layout.image_end}"
                    yield image, partial(self._check, image, class_id)

    def _check(self, name: str, class_id: int) -> Found:
        self.read(name, class_id, query=True)
        return Found()


def _names(folder: Path, end: str) -> list[str]:
    """Names with the end's suffix, sorted; as in PATNet not those with a second dot."""
    suffix = f".{end.rpartition('.')[2]}"
    return [path.name for path in visible(folder, suffix) if path.name.count(".") == 1]
