"""What an episode is, and how episodes become a batch of tensors.

An episode asks one question: given K support images in which a class is marked, where is that
class in the query image? Every data set of this package answers with the same objects, so that
training and evaluation need not know which one they read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch

from fsdino.errors import UsageError
from fsdino.resizing import nearest_mask, to_tensor

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
        ignore: bool [H, W], True where the annotation abstains; None where it never does.

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

    Names of files are relative to the data set's root, with "/" between folders, so that two
    machines agree on them.
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
        fold: the fold that is held out of training; None where there are no folds.
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
    """A sequence of episodes with a random stream of its own.

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
        """The fold whose classes are held out of training; None where there are no folds."""
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
        """Return episode `index`; IndexError when there is none."""
        ...

    def key(self, index: int) -> EpisodeKey:
        """Return what episode `index` is made of; IndexError when there is none."""
        ...


def episode_hash(episodes: Episodes) -> str:
    """Return a SHA-256 over the keys of all episodes in order, hexadecimal.

    Two results with equal hashes asked the same questions, on whichever machine, at whichever
    root path. No pixel is read.
    """
    digest = hashlib.sha256()
    for index in range(len(episodes)):
        key = episodes.key(index)
        line = json.dumps([key.class_id, *key.names], ensure_ascii=False)
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")  # names of any bytes
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Batch:
    """B episodes of K shots, at one image size.

    Attributes:
        support_images: float32 [B, K, 3, H, W] in [0, 1].
        support_masks: float32 [B, K, H, W], 0 or 1.
        query_images: float32 [B, 3, H, W] in [0, 1].
        query_masks: float32 [B, H, W], 0 or 1.
        query_ignore: bool [B, H, W], True where the query's annotation abstains.
        class_ids: int64 [B].
        indices: int64 [B], the episodes' own indices.
    """

    support_images: torch.Tensor
    support_masks: torch.Tensor
    query_images: torch.Tensor
    query_masks: torch.Tensor
    query_ignore: torch.Tensor
    class_ids: torch.Tensor
    indices: torch.Tensor

    def __len__(self) -> int:
        """Return the number of episodes, B."""
        return int(self.class_ids.shape[0])

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; `torch.utils.data.DataLoader` calls this."""
        return Batch(**{name: tensor.pin_memory() for name, tensor in vars(self).items()})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch on `device`."""
        moved: dict[str, Any] = {
            name: tensor.to(device, non_blocking=non_blocking)
            for name, tensor in vars(self).items()
        }
        return Batch(**moved)


def collate(
    episodes: Sequence[Episode], size: int | tuple[int, int], *, rounded: bool = False
) -> Batch:
    """Stretch episodes to one size and stack them.

    Images are resized bilinearly with antialiasing (`resizing.to_tensor`), masks as HSNet's
    evaluation does (`resizing.nearest_mask`). Samples of different sizes and aspect ratios may
    share a batch.

    Args:
        episodes: B >= 1 episodes, all with the same number of supports.
        size: (height, width) in pixels, or the side of a square.
        rounded: resize images by PIL, as torchvision's `Resize` before `ToTensor` does, which
            rounds them to 8 bits; otherwise they stay as exact as float32 is.

    Raises:
        UsageError: no episode, a size below 1, or episodes that differ in K.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise UsageError(f"size {size}: both sides must be at least 1 pixel")
    if not episodes:
        raise UsageError("cannot collate an empty list of episodes")
    shots = sorted({episode.shots for episode in episodes})
    if len(shots) > 1:
        raise UsageError(
            f"episodes of {shots} shots cannot share a batch; batch equal shots together"
        )
    target = (height, width)
    queries = [episode.query for episode in episodes]
    supports = [sample for episode in episodes for sample in episode.supports]
    by_shot = (len(episodes), shots[0])
    return Batch(
        support_images=_images(supports, target, rounded).unflatten(0, by_shot),
        support_masks=_masks([s.mask for s in supports], target).unflatten(0, by_shot),
        query_images=_images(queries, target, rounded),
        query_masks=_masks([query.mask for query in queries], target),
        query_ignore=_masks([_ignore(query) for query in queries], target) > 0,
        class_ids=torch.tensor([episode.class_id for episode in episodes]),
        indices=torch.tensor([episode.index for episode in episodes]),
    )


def _images(samples: Sequence[Sample], size: tuple[int, int], rounded: bool) -> torch.Tensor:
    """Return the samples' images, float32 [N, 3, H, W] in [0, 1]."""
    return torch.stack(
        [to_tensor(_rounded(s.image, size) if rounded else s.image, size) for s in samples]
    )


def _rounded(image: Image, size: tuple[int, int]) -> Image:
    """Return an image that PIL has resized, uint8 [h, w, 3]."""
    resized = PIL.Image.fromarray(image).resize(size[::-1], PIL.Image.Resampling.BILINEAR)
    return np.array(resized)


def _masks(masks: Sequence[Mask], size: tuple[int, int]) -> torch.Tensor:
    """Return masks, float32 [N, H, W], 0 or 1."""
    return torch.stack([nearest_mask(mask, size) for mask in masks])


def _ignore(sample: Sample) -> Mask:
    return np.zeros_like(sample.mask) if sample.ignore is None else sample.ignore
