"""DAVIS-17 (Pont-Tuset et al. 2017): videos in which every object of every frame is marked."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from fsdino.data import lists as split_lists
from fsdino.data.disk import decode_data, read_labels, read_rgb, visible
from fsdino.data.episodes import Image, Provenance
from fsdino.data.lists import Lists
from fsdino.data.source import Found, Part, Places
from fsdino.errors import DataError, UsageError
from fsdino.files import open_regular
from fsdino.progress import Report

ARCHIVE = (
    "DAVIS-2017-trainval-480p.zip, "
    "https://data.vision.ee.ethz.ch/csergi/share/davis/DAVIS-2017-trainval-480p.zip"
)
SPLITS = ("train", "val")
_IGNORED = 255


@dataclass(frozen=True)
class Sequence:
    """A video.

    Attributes:
        name: name of its folder.
        frames: JPEG files in order.
        annotations: palette PNG files, one for each frame.
    """

    name: str
    frames: tuple[Path, ...]
    annotations: tuple[Path, ...]

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def frame(self, index: int) -> Image:
        """Read a frame, uint8 [H, W, 3].

        Raises:
            DataError: the file cannot be used.
        """
        return read_rgb(self.frames[index])

    def annotation(self, index: int) -> Image:
        """Read a frame's objects, uint8 [H, W]: 0 is background; 255, undecided, becomes 0.

        Raises:
            DataError: the file cannot be used, or its size differs from its frame's.
        """
        labels = read_labels(self.annotations[index], _size(self.frames[index]))
        return np.where(labels == _IGNORED, 0, labels).astype(np.uint8)

    @property
    def objects(self) -> tuple[int, ...]:
        """Indices of the objects in the first frame, in ascending order.

        Raises:
            DataError: the first frame has none.
        """
        found = tuple(int(value) for value in np.unique(self.annotation(0)) if value)
        if not found:
            raise DataError(f"{self.annotations[0]}: no object is marked; get {ARCHIVE} again")
        return found

    @property
    def palette(self) -> bytes:
        """The colours of the first annotation, 3 bytes each; empty where it has none."""
        palette = decode_data(self.annotations[0], "mask").getpalette()
        return bytes(palette or ())


@dataclass(frozen=True)
class Davis:
    """DAVIS-17 on disk.

    Args:
        root: folder with JPEGImages/480p, Annotations/480p and ImageSets/2017, or DAVIS/ with them.
    """

    root: Path

    dataset = "davis17"
    places = Places(("DAVIS",), "JPEGImages/480p", ARCHIVE)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.places.find(self.root) or self.root)

    def names(self, split: str = "val") -> tuple[str, ...]:
        """Names of a split's sequences, in the order of ImageSets/2017.

        Raises:
            UsageError: the list is missing, or the split is unknown.
            DataError: the list cannot be used.
        """
        if split not in SPLITS:
            raise UsageError(f"split {split!r}: DAVIS-17 has {' and '.join(SPLITS)}")
        file = self.root / "ImageSets" / "2017" / f"{split}.txt"
        if not file.is_file():
            raise UsageError(f"{file}: missing; it comes with {ARCHIVE}")
        return tuple(split_lists.read_names(file))

    def sequences(self, split: str = "val") -> tuple[Sequence, ...]:
        """A split's sequences; no pixel is read.

        Raises:
            UsageError: the list is missing, or the split is unknown.
            DataError: a sequence lacks frames or annotations.
        """
        return tuple(map(self._sequence, self.names(split)))

    def _sequence(self, name: str) -> Sequence:
        frames = tuple(visible(self.root / "JPEGImages" / "480p" / name, ".jpg"))
        annotations = tuple(visible(self.root / "Annotations" / "480p" / name, ".png"))
        if not frames:
            raise DataError(f"{self.root / 'JPEGImages/480p' / name}: no frame; get {ARCHIVE}")
        stems = {path.stem for path in annotations}
        missing = [path.stem for path in frames if path.stem not in stems]
        if missing or len(annotations) != len(frames):
            raise DataError(
                f"{self.root / 'Annotations/480p' / name}: {len(annotations)} annotations of "
                f"{len(frames)} frames{f', without {missing[0]}.png' if missing else ''}; get "
                f"{ARCHIVE} again"
            )
        return Sequence(name, frames, annotations)

    def provenance(self, split: str = "val") -> Provenance:
        """The origin of the sequences, as every result records it."""
        lists = Lists(tuple((name, 0) for name in self.names(split)), derived=False)
        return Provenance(
            dataset=self.dataset, fold=None, split=split, sampling="sequences",
            lists="published", lists_hash=lists.hash, mask_source="published",
        )  # fmt: skip

    def parts(self) -> list[Part]:
        """The required parts, and whether they exist."""
        needed = {
            "JPEGImages/480p": "", "Annotations/480p": "",
            "ImageSets/2017/val.txt": "to evaluate", "ImageSets/2017/train.txt": "to train",
        }  # fmt: skip
        return [
            Part(path, ARCHIVE, "train" not in path, (self.root / path).exists(), note)
            for path, note in needed.items()
        ]

    def prepare(self, folder: Path | None, report: Report) -> dict[str, Path]:
        """Nothing to make: DAVIS comes with masks and lists."""
        return {}

    def pairs(self) -> abc.Iterator[tuple[str, abc.Callable[[], Found]]]:
        """Every frame of the listed sequences."""
        for split in SPLITS:
            if (self.root / "ImageSets" / "2017" / f"{split}.txt").is_file():
                for name in self.names(split):
                    yield from self._frames(name)

    def _frames(self, name: str) -> abc.Iterator[tuple[str, abc.Callable[[], Found]]]:
        try:
            sequence = self._sequence(name)
        except DataError:
            yield f"JPEGImages/480p/{name}", _Missing(self, name)
            return
        for index, path in enumerate(sequence.frames):
            yield path.relative_to(self.root).as_posix(), _Check(sequence, index)


@dataclass(frozen=True)
class _Check:
    sequence: Sequence
    index: int

    def __call__(self) -> Found:
        self.sequence.frame(self.index)
        self.sequence.annotation(self.index)
        if self.index == 0:
            _ = self.sequence.objects  # the first frame is the support: it has to mark some
        return Found()


@dataclass(frozen=True)
class _Missing:
    source: Davis
    name: str

    def __call__(self) -> Found:
        self.source._sequence(self.name)  # names what is missing
        return Found()


def _size(path: Path) -> tuple[int, int]:
    """(H, W) of a frame, from the first bytes of its file."""
    try:
        with open_regular(path) as file, Pillow.open(file, formats=("JPEG",)) as image:
            return image.height, image.width
    except (OSError, ValueError):
        frame = decode_data(path, "frame")  # reports what is wrong
        return frame.height, frame.width
