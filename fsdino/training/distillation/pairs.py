"""What a step of distillation sees: images for the student, the teacher's embeddings of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fsdino.errors import DataError, FsdinoError
from fsdino.images import Pixels
from fsdino.resizing import to_tensor
from fsdino.training.distillation.architecture import Architecture
from fsdino.training.distillation.config import Stage
from fsdino.training.distillation.corpus import ImageFile
from fsdino.training.distillation.embeddings import EmbeddingCache, content_hash


@dataclass(frozen=True)
class Pair:
    """An image for both.

    Attributes:
        file: where it comes from.
        image: float32 [3, s, s] in [0, 1], for the student.
        extent: height and width of the image in cells of the teacher's grid.
        target: float16 [C, h, w]; None where it is not known.
        shape: of the target that belongs to the image, where there is a cache.
        scaled: the teacher's input, where there is no cache.
        error: why the image cannot be used; it counts nothing then.
    """

    file: ImageFile
    image: Tensor
    extent: tuple[float, float] = (1.0, 1.0)
    target: Tensor | None = None
    scaled: Pixels | None = None
    error: str = ""
    shape: tuple[int, int, int] | None = None


class PairReader:
    """Reads images, in the trainer or in a worker.

    Args:
        architecture: the teacher's.
        cache: of its embeddings, if there is one.
        contents: SHA-256 of the images' contents when the embeddings were computed, by name.
    """

    def __init__(
        self,
        architecture: Architecture,
        cache: EmbeddingCache | None,
        contents: Mapping[str, str],
    ) -> None:
        self.architecture, self.cache, self.contents = architecture, cache, contents

    def read(self, file: ImageFile, size: int) -> Pair:
        """An image at a side in pixels; one that cannot be read is black, with the reason."""
        try:
            raw = file.read()
            pixels = file.decode(raw)
            extent = self.architecture.extent((pixels.shape[0], pixels.shape[1]))
            image = to_tensor(pixels, (size, size))
            if self.cache is None:
                return Pair(file, image, extent, scaled=self.architecture.scale(pixels))
            if content_hash(raw) != self.contents[file.name]:
                raise DataError(f"{file.name}: has changed since its embedding was computed")
            shape = self.architecture.channels, *self.architecture.grid(pixels.shape[:2])
            found = self.cache.get(self.contents[file.name], shape)
            return Pair(file, image, extent, found, shape=shape)
        except FsdinoError as error:
            return Pair(file, torch.zeros(3, size, size), error=str(error))


class TrainingPairs(Dataset[list[Pair]]):
    """One process's pairs of each step: a pure function of files, stages, seed and step.

    Args:
        reader: reads them.
        files: the images, in an order of their own.
        stages: the schedule.
        batch_size: images of a step, of all processes together.
        seed: of the order; every epoch has another.
        rank, count: this process among those that share each step.
    """

    def __init__(
        self,
        reader: PairReader,
        files: Sequence[ImageFile],
        stages: Sequence[Stage],
        batch_size: int,
        seed: int,
        rank: int = 0,
        count: int = 1,
    ) -> None:
        self.reader, self.files, self.stages = reader, files, stages
        self.batch_size, self.seed, self.rank, self.count = batch_size, seed, rank, count

    def __len__(self) -> int:
        return self.stages[-1].last

    def __getitem__(self, step: int) -> list[Pair]:
        number, stage = next((n, s) for n, s in enumerate(self.stages) if step < s.last)
        first = (step - stage.first) * self.batch_size
        return [
            self.reader.read(self._file(number, first + i), stage.image_size)
            for i in range(self.rank, self.batch_size, self.count)
        ]

    def _file(self, stage: int, position: int) -> ImageFile:
        epoch, place = divmod(position, len(self.files))
        order = _order(len(self.files), self.seed, stage, epoch)
        return self.files[int(order[place])]


class HeldOutPairs(Dataset[list[Pair]]):
    """One process's held-out pairs at one size, in batches."""

    def __init__(
        self, reader: PairReader, files: Sequence[ImageFile], image_size: int, batch_size: int
    ) -> None:
        self.reader, self.files = reader, files
        self.image_size, self.batch_size = image_size, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.files) / self.batch_size)

    def __getitem__(self, index: int) -> list[Pair]:
        if index >= len(self):
            raise IndexError(index)
        first = index * self.batch_size
        files = self.files[first : first + self.batch_size]
        return [self.reader.read(file, self.image_size) for file in files]


@lru_cache(maxsize=4)
def _order(images: int, seed: int, stage: int, epoch: int) -> npt.NDArray[np.int64]:
    order: npt.NDArray[np.int64] = np.random.default_rng((seed, stage, epoch)).permutation(images)
    return order
