"""What a checkpoint takes of a run, and puts back."""

from __future__ import annotations

import pytest
import torch

from fsdino.errors import CheckpointError
from fsdino.training.state import pack, unpack


def test_a_checkpoint_of_another_model_is_refused() -> None:
    """By names and shapes; frozen parameters are neither kept nor asked for."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[1].parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tensors = {name: value.clone() for name, value in pack({"model": model}, optimizer).items()}
    assert {name for name in tensors if name.startswith("model.")} == {
        "model.1.weight", "model.1.bias",
    }  # fmt: skip
    kept = model[1].weight.detach().clone()
    optimizer.step()
    unpack(tensors, {"model": model}, optimizer)
    assert torch.equal(model[1].weight, kept) and optimizer.state[model[1].weight]["step"] == 1
    other = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 5))
    other[0].requires_grad_(False)
    with pytest.raises(CheckpointError, match="the checkpoint's model is another one"):
        unpack(tensors, {"model": other}, torch.optim.AdamW(other[1].parameters()))
