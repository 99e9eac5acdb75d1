"""Items are read in order, by any number of workers, and leave no trace in what is drawn."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset

from fsdino.training.reading import read_ahead


class Squares(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index * index


@pytest.mark.parametrize("workers", [0, 2])
def test_items_come_in_order(workers: int) -> None:
    """From any of them on, as a resumed run begins; torch's generator is as before."""
    state = torch.get_rng_state()
    assert list(read_ahead(Squares(), workers, range(3, 7))) == [9, 16, 25, 36]
    assert torch.equal(torch.get_rng_state(), state)
