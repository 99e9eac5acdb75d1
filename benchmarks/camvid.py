"""Frames with labels in CamVid's 11 classes, and which of them are asked about which.

A folder has `images/DRIVE_NUMBER.jpg` (or .png) and `labels/DRIVE_NUMBER.png`, whose pixels are the
index of a class in `CLASSES` (CamVid as SegNet uses it: Brostow et al., 2009; Badrinarayanan et
al., 2017).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from photo_pairs import Photograph

from fsdino.errors import DataError, UsageError
from fsdino.images import decode_file, read_image

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist", "unlabelled",
)  # fmt: skip
IGNORED = CLASSES.index("unlabelled")
MAIN = ("sky", "building", "road", "pavement", "tree", "car")
SMALL = ("pole", "sign", "pedestrian")
COVER = 2.0  # percent of a frame from which it shows a class of MAIN
SMALL_COVER = 0.3  # the same for SMALL, of which hardly a frame shows 2 %
SUPPORTS, QUERIES = 8, 12  # per class, and per support at most


@dataclass(frozen=True)
class Frames:
    """Labelled frames in the order of their names.

    Attributes:
        names: of the files, without suffix.
        drives: what each name begins with, up to the first "_".
        images: uint8 [H, W, 3] each.
        labels: uint8 [H, W] each.
        sha256: of all files.
    """

    names: tuple[str, ...]
    drives: tuple[str, ...]
    images: tuple[npt.NDArray[np.uint8], ...]
    labels: tuple[npt.NDArray[np.uint8], ...]
    sha256: str

    def cover(self) -> npt.NDArray[np.float64]:
        """Percent of each frame that each class covers: [frames, classes]."""
        counts = [np.bincount(x.ravel(), minlength=len(CLASSES)) / x.size for x in self.labels]
        return 100 * np.stack(counts)

    def photograph(self, frame: int, class_id: int) -> Photograph:
        """A frame with the mask of one class."""
        labels = self.labels[frame]
        return Photograph(self.images[frame], labels == class_id, labels == IGNORED)


@dataclass(frozen=True)
class Draw:
    """One support and what it is asked about; frames by their place in `Frames`.

    Attributes:
        class_id: place in `CLASSES`.
        shots: the support, and then the further shots, all of the support's drive.
        queries: frames that show the class.
        without: frames that do not have one pixel of it.
    """

    class_id: int
    shots: tuple[int, ...]
    queries: tuple[int, ...]
    without: tuple[int, ...]


def read_frames(folder: Path, drives: Sequence[str] | None = None) -> Frames:
    """Read a folder, or the frames of some of its drives.

    Raises:
        UsageError: a part of the folder or a drive is missing.
        DataError: a frame without labels, or labels that do not fit.
    """
    for part in ("images", "labels"):
        if not (folder / part).is_dir():
            raise UsageError(f"--labels {folder}: there is no folder {part}/; it needs both "
                             "images/DRIVE_NUMBER.jpg and labels/DRIVE_NUMBER.png")  # fmt: skip
    files = [p for p in sorted((folder / "images").iterdir()) if p.suffix in (".jpg", ".png")]
    known = sorted({_drive(file) for file in files})
    if not files:
        raise UsageError(f"--labels {folder}: images/ holds no .jpg or .png files")
    for drive in drives or ():
        if drive not in known:
            raise UsageError(f"unknown drive {drive!r} in {folder}: choose from {', '.join(known)}")
    kept = [file for file in files if drives is None or _drive(file) in drives]
    digest = hashlib.sha256()
    pictures, labels = [], []
    for file in kept:
        answer = folder / "labels" / f"{file.stem}.png"
        pictures.append(read_image(file))
        labels.append(_read_labels(answer, (pictures[-1].shape[0], pictures[-1].shape[1])))
        for part in (file, answer):
            digest.update(part.read_bytes())
    return Frames(
        tuple(file.stem for file in kept),
        tuple(_drive(file) for file in kept),
        tuple(pictures),
        tuple(labels),
        digest.hexdigest(),
    )


def _drive(file: Path) -> str:
    return file.stem.partition("_")[0]


def _read_labels(file: Path, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    if not file.is_file():
        raise DataError(f"{file}: this frame's labels are missing; add them, or remove its image")
    labels = np.asarray(decode_file(file, "labels"))
    if labels.shape != size:
        raise DataError(f"{file}: labels of shape {list(labels.shape)}; the image's is {size}")
    if labels.max() > IGNORED:
        raise DataError(f"{file}: label {labels.max()}; they must be 0 to {IGNORED}")
    return labels.astype(np.uint8)


def draw(
    cover: npt.NDArray[np.float64],
    drives: Sequence[str],
    shots: int,
    *,
    support_drives: Sequence[str] | None = None,
    query_drives: Sequence[str] | None = None,
) -> list[Draw]:
    """Supports and queries of every class, by numpy's RandomState(0).

    Per class `SUPPORTS` of the frames that show it, each with up to `QUERIES` others. The further
    shots and the frames without the class have generators of their own, so that one shot is drawn
    alike for any number of them. A support whose drive has too few frames for its shots is
    left out.

    Args:
        cover: percent of each frame that each class covers, [frames, classes].
        drives: of each frame.
        shots: K; all K of a support are of one drive.
        support_drives, query_drives: where they come from; None takes all.
    """
    generator, further, absent = (np.random.RandomState(0) for _ in range(3))
    names = np.asarray(drives)
    may_support = np.isin(names, drives if support_drives is None else support_drives)
    may_query = np.isin(names, drives if query_drives is None else query_drives)
    found = []
    for name in (*MAIN, *SMALL):
        class_id = CLASSES.index(name)
        shows = cover[:, class_id] > (COVER if name in MAIN else SMALL_COVER)
        empty = np.flatnonzero(may_query & (cover[:, class_id] == 0))
        for support in generator.permutation(np.flatnonzero(shows & may_support))[:SUPPORTS]:
            own = shows & may_support & (names == names[support])
            own[support] = False
            more = further.permutation(np.flatnonzero(own))[: shots - 1]
            chosen = (int(support), *map(int, more))
            others = np.flatnonzero(shows & may_query)
            others = generator.permutation(others[others != support])
            queries = [int(q) for q in others if q not in chosen][:QUERIES]
            without = tuple(map(int, absent.permutation(empty)[:QUERIES]))
            if len(chosen) == shots and queries:
                found.append(Draw(class_id, chosen, tuple(queries), without))
    return found
