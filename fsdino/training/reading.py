"""How both stages read: ahead of the training, in worker processes, to the same results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from fsdino.training.interrupt import leave_to_trainer

Item = TypeVar("Item")


def read_ahead(
    items: Dataset[Item], workers: int, numbers: Sequence[int], ahead: int = 2
) -> Iterator[Item]:
    """Items of a dataset, in order.

    Args:
        items: each is what one step needs.
        workers: processes that read; 0 reads in this one.
        numbers: which items.
        ahead: items that each worker has ready.
    """
    loader: DataLoader[Item] = DataLoader(
        items,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        worker_init_fn=leave_to_trainer,
        # A loader draws a seed whenever it starts, on which nothing here depends. From torch's own
        # generator it would draw once more in a resumed run than in an unbroken one.
        generator=torch.Generator().manual_seed(0),
    )
    return iter(loader)
