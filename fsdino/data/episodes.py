"""What an episode is.

An episode asks one question: given K support images in which a class is marked, where is that
class in the query image? All data sets give the same objects, so that training and evaluation do
not depend on the data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fsdino.errors import UsageError

NO_CLASS = -1  # id of a class that no data set has, as augmentation makes them

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_IMAGE_NDIM = 3


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with one class marked in it.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        mask: bool [H, W], True where the class is.
        name: identifies the image: its path, or the key a generator drew it from.
        class_id: the data set's own index of the class.
        ignore: bool [H, W], True for pixels without an annotation; None if all have one.

    Raises:
        UsageError: a shape or dtype other than the above.
    """

    image: Image
    mask: Mask
    name: str
    class_id: int
    ignore: Mask | None = None

    def __post_init__(self) -> None:
        shape, dtype = self.image.shape, self.image.dtype
        if len(shape) != _IMAGE_NDIM or shape[2] != 3 or dtype != np.uint8:
            raise UsageError(f"image of {self.name}: expected uint8 [H, W, 3], got {dtype} {shape}")
        for title, mask in (("mask", self.mask), ("ignore", self.ignore)):
            if mask is not None and (mask.shape != shape[:2] or mask.dtype != np.bool_):
                raise UsageError(
                    f"{title} of {self.name}: expected bool {shape[:2]} like its image, "
                    f"got {mask.dtype} {mask.shape}"
                )


@dataclass(frozen=True, eq=False)
class Episode:
    """One question: a query, its K supports (K >= 1), the class and the episode's index.

    Raises:
        UsageError: no support, or a sample marked with another class.
    """

    query: Sample
    supports: tuple[Sample, ...]
    class_id: int
    class_name: str
    index: int

    def __post_init__(self) -> None:
        if not self.supports:
            raise UsageError(f"episode {self.index} has no support; give at least one")
        for sample in (self.query, *self.supports):
            if sample.class_id != self.class_id:
                raise UsageError(
                    f"episode {self.index} asks for class {self.class_id}, "
                    f"but {sample.name} marks class {sample.class_id}"
                )

    @property
    def shots(self) -> int:
        """The number of supports, K."""
        return len(self.supports)


@dataclass(frozen=True)
class EpisodeKey:
    """Which images an episode is made of, known without reading a pixel.

    Attributes:
        class_id: the data set's own index of the class.
        query: the query's `Sample.name`.
        supports: the supports' `Sample.name`, in order.

    Names of files are relative to the data set's root, with "/" between folders, so that they are
    the same on all machines.
    """

    class_id: int
    query: str
    supports: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The query's name and the supports'."""
        return self.query, *self.supports


@dataclass(frozen=True)
class Provenance:
    """Where episodes come from, as every result records it.

    Attributes:
        dataset: its name in `fsdino.data.names.DATASETS`.
        fold: the fold that is held out of training; None if there are no folds.
        split: "val" (novel classes), "train" or "base_val" (base classes).
        sampling: "hsnet" (the published draws) or "seeded".
        lists: "published", "derived" (from the annotations) or "generated".
        lists_hash: SHA-256 over the lists that episodes are drawn from, hexadecimal.
        mask_source: "published", "rasterised" or "generated".
    """

    dataset: str
    fold: int | None
    split: str
    sampling: str
    lists: str
    lists_hash: str
    mask_source: str


@runtime_checkable
class Episodes(Protocol):
    """A sequence of episodes with its own random stream.

    Episode i is a pure function of (data set, fold, split, shots, seed, i): the number of
    workers, the order of access and the batch size change nothing.
    """

    @property
    def classes(self) -> tuple[int, ...]:
        """Ids of the classes that episodes are drawn from."""
        ...

    @property
    def class_names(self) -> Mapping[int, str]:
        """A readable name for each of `classes`."""
        ...

    @property
    def fold(self) -> int | None:
        """The fold whose classes are held out of training; None if there are no folds."""
        ...

    @property
    def shots(self) -> int:
        """Supports per episode, K."""
        ...

    @property
    def seed(self) -> int:
        """Key of the random stream."""
        ...

    @property
    def provenance(self) -> Provenance:
        """Which lists, masks and draws the episodes come from."""
        ...

    def __len__(self) -> int:
        """Return the number of episodes."""
        ...

    def __getitem__(self, index: int) -> Episode:
        """Return episode `index`; IndexError if it does not exist."""
        ...

    def key(self, index: int) -> EpisodeKey:
        """Return the key of episode `index`; IndexError if it does not exist."""
        ...


def episode_hash(episodes: Episodes) -> str:
    """Return a SHA-256 over the keys of all episodes in order, hexadecimal.

    Two results with equal hashes used the same episodes, on any machines and at any root paths.
    No pixel is read.
    """
    digest = hashlib.sha256()
    for index in range(len(episodes)):
        key = episodes.key(index)
        line = json.dumps([key.class_id, *key.names], ensure_ascii=False)
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")  # names of any bytes
    return digest.hexdigest()
