"""The training-free fit of exported graphs against that of the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fsdino.export import fitting
from fsdino.models.shots import Shot
from fsdino.models.training_free import TrainingFree


def drawn(images: int, side: int = 6) -> tuple[list[Tensor], list[Tensor]]:
    """Tokens [2, 8, side, side] with an object that differs from its background, and its share."""
    generator = torch.Generator().manual_seed(0)
    marks = torch.randn(2, 8, 1, 1, generator=generator)
    tokens, shares = [], []
    for _ in range(images):
        share = torch.zeros(side, side)
        share[1:4, 1:4] = 1
        share[4, 1:4] = 0.5
        noise = torch.randn(2, 8, side, side, generator=generator)
        tokens.append(noise + marks * share)
        shares.append(share)
    return tokens, shares


@pytest.mark.parametrize("images", [1, 2, 5])
def test_as_the_model_fits(images: int) -> None:
    score = TrainingFree((8, 6))  # the second layer is padded
    tokens, shares = drawn(images)
    for part in tokens:
        part[1, 6:] = 0
    shots = [Shot((t[None],), (s[None],)) for t, s in zip(tokens, shares, strict=True)]
    expected = score.fit(shots)
    places = torch.tensor([[float(k), 0, 1] for k in range(images)])
    found = fitting.fit(score, torch.stack(tokens), torch.stack(shares), places)
    for name in ("mean", "scale", "weight", "bias", "levels"):
        wanted = getattr(expected, name)
        assert getattr(found, name).shape == wanted.shape, name
        assert torch.allclose(getattr(found, name), wanted, atol=2e-5), name
    assert torch.allclose(found.tokens[0], torch.cat([shot.tokens for shot in expected.shots]))
    assert torch.equal(found.sides[0], torch.cat([shot.sides for shot in expected.shots]))


def test_a_mirrored_close_up_is_held_out_with_what_it_shows() -> None:
    score = TrainingFree((8, 8))
    tokens, shares = drawn(2)
    shots = [Shot((t[None],), (s[None],)) for t, s in zip(tokens, shares, strict=True)]
    across = (torch.arange(6) + 0.5) / 6
    whole, view = across.expand(6, 6), (0.1 + (1 - across) * 0.6).expand(6, 6)
    expected = score.fit(shots, [whole, view])
    places = torch.tensor([[0, 0, 1], [0, 0.7, 0.1]])
    found = fitting.fit(score, torch.stack(tokens), torch.stack(shares), places)
    assert torch.allclose(found.levels, expected.levels, atol=2e-5)
    apart = fitting.fit(score, torch.stack(tokens), torch.stack(shares), places[[0, 0]])
    assert not torch.allclose(apart.levels, expected.levels, atol=1e-3)


def test_a_side_that_only_one_photograph_has_is_not_held_out() -> None:
    score = TrainingFree((8, 8))
    tokens, shares = drawn(2)
    shares[1] = torch.zeros(6, 6)
    shots = [Shot((t[None],), (s[None],)) for t, s in zip(tokens, shares, strict=True)]
    places = torch.tensor([[0.0, 0, 1], [1, 0, 1]])
    found = fitting.fit(score, torch.stack(tokens), torch.stack(shares), places)
    assert torch.allclose(found.levels, score.fit(shots).levels, atol=2e-5)
