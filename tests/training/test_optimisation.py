"""Schedule, groups, and steps without a finite loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fsdino.errors import FsdinoError
from fsdino.training.optimisation import NanGuard, adamw, set_learning_rate, warmup_cosine


def test_schedule() -> None:
    """Linear to the peak, then half a cosine to 1 %: values by hand."""
    found = [warmup_cosine(step, 104, 4, 0.01) for step in (0, 1, 3, 4, 54, 103)]
    assert found == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.505, 0.01], abs=3e-4)
    assert warmup_cosine(0, 10, 0, 0.01) == 1.0
    assert [warmup_cosine(step, 104, 4, 1.0) for step in (0, 4, 103)] == [0.25, 1.0, 1.0]


def test_only_matrices_decay() -> None:
    """Biases and norms keep their size; what is frozen is left out."""
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    optimizer = adamw(model.parameters(), 1e-3, 0.1)
    decay, plain = optimizer.param_groups
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert [p.shape for p in decay["params"]] == [torch.Size([4, 3])]
    assert [p.shape for p in plain["params"]] == [torch.Size([4])] * 3
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_the_guard_counts_in_a_row() -> None:
    """A finite step between them resets the count; the total is kept."""
    guard = NanGuard(3, count=5)
    assert not guard.skips(0, 1.0, 1.0)
    assert guard.skips(1, math.nan, 1.0) and guard.skips(2, 1.0, math.inf)
    assert not guard.skips(3, 1.0, 1.0)
    assert guard.skips(4, math.nan, math.nan) and guard.skips(5, math.nan, 0.0)
    with pytest.raises(FsdinoError, match="3 consecutive steps had no finite loss, up to step 6"):
        guard.skips(6, math.inf, 1.0)
    assert guard.count == 5 + 5
