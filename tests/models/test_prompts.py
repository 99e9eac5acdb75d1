"""The prompt generator: prototype cosine similarity, the sparse prompt, the fused dense maps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fsdino.models.prompts import DensePrompt, VisualPrompt, cosine_map, dense_maps
from tiny_models import tiny_config


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_cosine_map_by_hand() -> None:
    """Right angles, the same and the opposite direction, and lengths that must not matter."""
    tokens = torch.tensor([[3.0, 0.0], [0.0, 5.0], [-2.0, 0.0], [1.0, 1.0]])  # [N, C]
    tokens = tokens.T.reshape(1, 2, 2, 2)
    found = cosine_map(tokens, torch.tensor([[10.0, 0.0]]))
    expected = torch.tensor([[1.0, 0.0], [-1.0, math.sqrt(0.5)]])
    torch.testing.assert_close(found, expected[None, None])


def test_cosine_map_keeps_episodes_apart() -> None:
    """Each query is compared with its own episode's prototype."""
    tokens = torch.eye(2)[:, :, None, None]
    assert cosine_map(tokens, torch.eye(2)).flatten().tolist() == [1, 1]
    assert cosine_map(tokens, torch.eye(2).flip(0)).flatten().tolist() == [0, 0]


def test_cosine_map_of_an_empty_prototype_is_zero() -> None:
    """A support that is all foreground has a zero background prototype: no NaN."""
    assert cosine_map(torch.randn(1, 4, 3, 3), torch.zeros(1, 4)).abs().max() == 0


def test_cosine_map_stays_in_range_in_half_precision() -> None:
    """Computed in float32 whatever the tokens' type, so within [-1, 1]."""
    tokens = torch.randn(1, 64, 5, 5).to(torch.bfloat16)
    found = cosine_map(tokens, tokens[:, :, 0, 0])
    assert found.dtype == torch.float32
    assert found.abs().max() <= 1 + 1e-6
    assert found[0, 0, 0, 0] == pytest.approx(1)


def test_visual_prompt_has_the_published_size() -> None:
    """C -> 64 -> 256 for C = 768: 65,856 parameters, the order of the published 0.07 M."""
    prompt = VisualPrompt(768, 256, hidden=64, tokens=1)
    assert count(prompt) == (768 * 64 + 64) + (64 * 256 + 256) == 65_856


@pytest.mark.parametrize("tokens", [1, 3])
def test_visual_prompt_written_out(tokens: int) -> None:
    """A bottleneck MLP whose output is cut into tokens, one after another."""
    prompt = VisualPrompt(6, 4, hidden=5, tokens=tokens)
    prototype = torch.randn(2, 6)
    first, second = prompt.mlp[0], prompt.mlp[2]
    hidden = prototype @ first.weight.T + first.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    flat = hidden @ second.weight.T + second.bias
    expected = torch.stack([flat[:, 4 * t : 4 * t + 4] for t in range(tokens)], dim=1)
    torch.testing.assert_close(prompt(prototype), expected)


def test_dense_prompt_without_prior_is_one_convolution() -> None:
    """`comp`: a single 1x1 from the similarity map to the mask prompt."""
    prompt = DensePrompt(1, 256, with_prior=False)
    maps = torch.randn(2, 1, 3, 5)
    weight, bias = prompt.fuse.weight[:, 0, 0, 0], prompt.fuse.bias
    expected = maps * weight[:, None, None] + bias[:, None, None]
    assert count(prompt) == 512
    torch.testing.assert_close(prompt(maps), expected)


def test_dense_prompt_with_prior_is_a_small_head() -> None:
    """`full`: 129 maps (similarity and a prior of 128) to 256 channels at the token grid."""
    prompt = DensePrompt(129, 256, with_prior=True)
    assert count(prompt) == (129 * 128 * 9 + 128) + 2 * 128 + (128 * 256 + 256) == 181_888 + 128
    assert prompt(torch.randn(2, 129, 3, 5)).shape == (2, 256, 3, 5)


@pytest.mark.parametrize(
    ("changes", "maps"),
    [
        ({}, 1 + 8),
        ({"cosine_prompt": False}, 8),
        ({"correlation_prompt": False}, 1),
        ({"variant": "comp"}, 1),
        ({"variant": "comp", "correlation_prompt": True}, 1 + 8),
        ({"variant": "comp_frozen"}, 1),
    ],
)
def test_number_of_dense_maps(changes: dict[str, Any], maps: int) -> None:
    """The switches for PCS and the 4D correlation decide what is fused."""
    assert dense_maps(tiny_config(**changes)) == maps
