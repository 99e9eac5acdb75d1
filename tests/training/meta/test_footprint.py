"""Memory of an episode: counted right, and turned into a number of episodes."""

from __future__ import annotations

import torch
from torch import nn

from fsdino.training.meta.footprint import activation_bytes, episodes_that_fit, free_bytes


def test_activations_are_counted() -> None:
    """By hand: a linear layer keeps its input, a sigmoid its output; weights are not counted."""
    layer = nn.Linear(100, 200)
    x = torch.rand(50, 100)
    found = activation_bytes(lambda: layer(x).sigmoid().sum(), layer.parameters())
    assert found == 4 * (50 * 100 + 50 * 200)


def test_what_is_kept_twice_is_counted_once() -> None:
    """Views and repeated uses share their memory."""
    x = torch.rand(1000, requires_grad=True)

    def square() -> torch.Tensor:
        y = x.exp()  # keeps its result, and so does the product, twice
        return (y * y).sum()

    assert activation_bytes(square, [x]) == 4 * 1000


def test_episodes_that_fit() -> None:
    """80 % of 100 bytes hold four episodes of 10 with their gradients; at least one, or all."""
    assert episodes_that_fit(10, 100, 8) == 4
    assert episodes_that_fit(10, 100, 3) == 3
    assert episodes_that_fit(10, 100, 8, sharing=2) == 2
    assert episodes_that_fit(1000, 100, 8) == 1
    assert episodes_that_fit(10, None, 8) == 8


def test_the_system_tells_what_is_free() -> None:
    """On Linux; elsewhere it may not."""
    free = free_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**46
