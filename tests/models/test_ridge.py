"""Ridge regression: both systems against least squares on a stacked one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fsdino.models.ridge import Classifier, fitted_scores

TOKENS = 12
CHANNELS = pytest.mark.parametrize("channels", [5, 40], ids=["by channels", "by tokens"])


def by_hand(x: np.ndarray, y: np.ndarray, share: np.ndarray, ridge: float) -> np.ndarray:
    """Weights [D] and bias of [N, D], by least squares with the penalty as further rows."""
    rows = np.concatenate([x, np.ones((len(x), 1))], 1) * np.sqrt(share)[:, None]
    penalty = np.sqrt(ridge) * np.eye(x.shape[1], x.shape[1] + 1)
    target = np.concatenate([y * np.sqrt(share), np.zeros(x.shape[1])])
    return np.linalg.lstsq(np.concatenate([rows, penalty]), target, rcond=None)[0]


@CHANNELS
def test_fitted_scores_of_every_query(channels: int) -> None:
    """Soft weights, one of them 0, and sides of any size; queries do not mix."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, channels, TOKENS, generator=generator, dtype=torch.float64)
    sides = torch.randn(2, TOKENS, generator=generator, dtype=torch.float64)
    share = torch.rand(2, TOKENS, generator=generator, dtype=torch.float64)
    share[:, 3] = 0
    share = share / share.sum(1, keepdim=True)
    found = fitted_scores(tokens, sides, share, 0.7)
    for b in range(2):
        x = tokens[b].T.numpy()
        solved = by_hand(x, sides[b].numpy(), share[b].numpy(), 0.7)
        assert found[b].numpy() == pytest.approx(x @ solved[:-1] + solved[-1], abs=1e-9)


@CHANNELS
def test_a_fold_is_scored_by_the_others(channels: int) -> None:
    """Both sides weigh the same, side 0 nothing; fold -1 is scored by all tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(channels, TOKENS, generator=generator)
    sides = torch.tensor([1.0, -1, -1, 0, 1, -1, -1, 1, 0, -1, 1, -1])
    folds = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1, -1, -1, -1, -1])
    classifier = Classifier(tokens, sides, 0.2, layers=4)
    found = classifier.held_out(folds).numpy()
    x, y = tokens.T.numpy() / 2, sides.numpy()
    weights = np.where(y > 0, 1 / (y > 0).sum(), np.where(y < 0, 1 / (y < 0).sum(), 0.0))
    for fold in (-1, 0, 1):
        inside = folds.numpy() == fold
        left = weights * (~inside if fold >= 0 else 1)
        solved = by_hand(x, y, left / left.sum(), 0.2)
        assert found[inside] == pytest.approx(x[inside] @ solved[:-1] + solved[-1], abs=1e-5)
    weight, bias = classifier.solve()
    solved = by_hand(x, y, weights / weights.sum(), 0.2)
    assert 2 * weight.numpy() == pytest.approx(solved[:-1], abs=1e-5)
    assert float(bias) == pytest.approx(solved[-1], abs=1e-5)


def test_queries_together_on_two_threads() -> None:
    """Large systems of two queries, where PyTorch's own batches fail with oneMKL."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(2, 384, 400, generator=generator)
    sides = torch.randn(2, 400, generator=generator).sign()
    share = torch.full((2, 400), 1 / 400)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = fitted_scores(tokens, sides, share, 0.2)
    finally:
        torch.set_num_threads(threads)
    alone = [
        fitted_scores(tokens[n : n + 1], sides[n : n + 1], share[n : n + 1], 0.2) for n in (0, 1)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
