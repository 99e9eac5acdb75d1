"""The order of images is a function of the seed alone, whoever reads them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from fsdino.models.config import ModelConfig
from fsdino.training.distillation.config import DistillConfig
from fsdino.training.distillation.corpus import ImageFile
from fsdino.training.distillation.pairs import Pair, TrainingPairs

FILES = [ImageFile(f"{i}.jpg", Path(f"{i}.jpg")) for i in range(10)]


class Names:
    """Stands in for the reader: says what it was asked for."""

    def read(self, file: ImageFile, size: int) -> tuple[str, int]:
        return file.key, size


def pairs_of(batch_size: int, epochs: tuple[int, ...], **options) -> TrainingPairs:
    config = DistillConfig(ModelConfig(), epochs=epochs, batch_size=batch_size)
    return TrainingPairs(Names(), FILES, config.stages(len(FILES)), batch_size, 3, **options)


def flat(batches: list[list[Pair]]) -> list[tuple[str, int]]:
    return [item for batch in batches for item in batch]


def test_each_stage_sees_every_image_once_an_epoch() -> None:
    """Coarse to fine; each epoch in another order; the last batch of a stage is filled up."""
    pairs = pairs_of(4, (2, 1, 1))
    assert len(pairs) == 5 + 3 + 3
    seen = flat([pairs[step] for step in range(len(pairs))])
    for size, first, epochs in ((126, 0, 2), (252, 20, 1), (518, 32, 1)):
        orders = []
        for epoch in range(epochs):
            part = seen[first + 10 * epoch : first + 10 * (epoch + 1)]
            assert Counter(part) == Counter((file.key, size) for file in FILES)
            orders.append(part)
        assert len({tuple(order) for order in orders}) == epochs


@pytest.mark.parametrize("count", [2, 4])
def test_processes_divide_each_step(count: int) -> None:
    """Together they see the images of one process, each its own."""
    alone = pairs_of(4, (1,))
    shares = [pairs_of(4, (1,), rank=rank, count=count) for rank in range(count)]
    for step in range(len(alone)):
        together = [share[step] for share in shares]
        assert sorted(flat(together)) == sorted(alone[step])
        assert {len(part) for part in together} == {4 // count}
