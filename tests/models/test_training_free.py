"""Masks without training: the scores written out, token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.models.encoders import Features
from fsdino.models.supports import Shot, SupportFeatures
from fsdino.models.training_free import correspondence_score, prototype_score


def random_case(
    shots: int, seed: int = 0, grid: tuple[int, int] = (3, 4)
) -> tuple[Features, SupportFeatures]:
    """Two queries, and shots of another grid, of 6 channels and 2 correlation layers."""
    generator = torch.Generator().manual_seed(seed)
    correlation = torch.randn(2, 2, 6, *grid, generator=generator)
    query = Features(torch.empty(0), torch.randn(2, 6, *grid, generator=generator), correlation)
    pairs = [
        Shot(
            torch.randn(2, 2, 6, 2, 3, generator=generator),
            torch.rand(2, 2, 3, generator=generator),
        )
        for _ in range(shots)
    ]
    prototypes = torch.randn(2, 2, 6, generator=generator)
    return query, SupportFeatures(prototypes[0], prototypes[1], pairs)


def test_prototype_score_by_hand() -> None:
    """Cosine to the foreground minus cosine to the background, in [-2, 2]."""
    tokens = torch.tensor([[4.0, 0.0, -1.0, 2.0], [0.0, 3.0, 0.0, 2.0]]).reshape(1, 2, 2, 2)
    query = Features(tokens, tokens, tokens[:, None])
    foreground, background = torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    score = prototype_score(query, SupportFeatures(foreground, background, []))
    half = float(np.sqrt(0.5))
    expected = torch.tensor([[2.0, 0.0], [-2.0, 2 * half]])
    torch.testing.assert_close(score, expected[None, None])


def match_score(query: Tensor, support: Tensor, mask: Tensor) -> np.ndarray:
    """Loops over one query [L, C, h, w] and one shot: best matches, and votes of mutual ones."""
    h, w = query.shape[2:]
    unit_query = F.normalize(query, dim=1).flatten(2).numpy()
    unit_support = F.normalize(support, dim=1).flatten(2).numpy()
    similarity = np.maximum(np.einsum("lcn,lcm->lnm", unit_query, unit_support), 0).mean(0)
    foreground = mask.flatten().numpy() >= 0.5
    contrast, votes = np.zeros(h * w), np.zeros((h, w))
    for n, row in enumerate(similarity):
        best_inside = max((row[m] for m in np.flatnonzero(foreground)), default=0.0)
        best_outside = max((row[m] for m in np.flatnonzero(~foreground)), default=0.0)
        contrast[n] = best_inside - best_outside
        best = int(row.argmax())
        if int(similarity[:, best].argmax()) == n:
            votes[n // w, n % w] = 1 if foreground[best] else -1
    spread = np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            spread[i, j] = votes[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].sum() / 9
    return (contrast.reshape(h, w) + spread) / 2


@pytest.mark.parametrize("shots", [1, 3])
def test_correspondence_score_written_out(shots: int) -> None:
    """The mean of prototype, match and vote scores, averaged over shots, against plain loops."""
    query, support = random_case(shots)
    found = correspondence_score(query, support)
    prototypes = prototype_score(query, support)
    for b in range(2):
        matches = [
            match_score(query.correlation[b], shot.correlation[b], shot.mask[b])
            for shot in support.shots
        ]
        expected = (prototypes[b, 0].numpy() + 2 * np.mean(matches, axis=0)) / 3
        assert found[b, 0].numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_support_with_one_side_only(share: float) -> None:
    """A mask that covers all of the image, or no token by half, gives finite, one-sided matches."""
    query, support = random_case(1)
    shot = Shot(support.shots[0].correlation, torch.full((2, 2, 3), share))
    only = SupportFeatures(support.foreground, torch.zeros_like(support.background), [shot])
    matches = 3 * correspondence_score(query, only) - prototype_score(query, only)
    assert bool(matches.isfinite().all())
    assert bool((matches >= -1e-6).all() if share else (matches <= 1e-6).all())


def test_the_object_scores_above_the_rest() -> None:
    """A query that is the support itself: every token inside scores higher than any outside."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(1, 16, 5, 5, generator=generator)
    mask = torch.zeros(1, 5, 5)
    mask[:, 1:4, 1:4] = 1
    pooled = [torch.einsum("bchw,bhw->bc", tokens, m) / m.sum() for m in (mask, 1 - mask)]
    query = Features(tokens, tokens, tokens[:, None])
    support = SupportFeatures(pooled[0], pooled[1], [Shot(tokens[:, None], mask)])
    score = correspondence_score(query, support)[0, 0]
    assert score[mask[0] == 1].min() > score[mask[0] == 0].max()


def test_half_precision_scores_are_float32() -> None:
    """Sums over a thousand matches are not left to bfloat16, and come near float32's."""
    query, support = random_case(1)
    half = Features(*(x.to(torch.bfloat16) for x in (query.shallow, query.last, query.correlation)))
    shots = [Shot(s.correlation.to(torch.bfloat16), s.mask) for s in support.shots]
    found = prototype_score(half, support)
    assert found.dtype == torch.float32
    assert (found - prototype_score(query, support)).abs().max() < 0.02
    cast = SupportFeatures(support.foreground, support.background, shots)
    assert correspondence_score(half, cast).dtype == torch.float32
