"""Masks without training: the scores written out, token by token."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.models.encoders import Features
from fsdino.models.supports import Shot, SupportFeatures, TokenFit
from fsdino.models.training_free import TrainingFree, prototype_score

LAYERS, CHANNELS = 2, 6


def plain(**changes: float) -> TrainingFree:
    return replace(TrainingFree((CHANNELS,) * LAYERS), **changes)


def random_case(
    shots: int, seed: int = 0, channels: int = CHANNELS, support_grid: tuple[int, int] = (4, 8)
) -> tuple[Features, list[Shot]]:
    """Two queries of 3 x 4 tokens, and shots of another grid, of 2 correlation layers."""
    generator = torch.Generator().manual_seed(seed)
    correlation = torch.randn(2, LAYERS, channels, 3, 4, generator=generator)
    query = Features(torch.empty(0), torch.randn(2, channels, 3, 4), correlation)
    pairs = []
    for _ in range(shots):
        mask = torch.rand(2, *support_grid, generator=generator)
        mask[:, 0], mask[:, 1, ::3] = 1, 0
        tokens = torch.randn(2, LAYERS, channels, *support_grid, generator=generator)
        pairs.append(Shot(tokens + mask[:, None, None], mask))
    return query, pairs


def as_support(shots: list[Shot], fit: TokenFit, views: tuple[Shot, ...] = ()) -> SupportFeatures:
    return SupportFeatures(torch.empty(0), torch.empty(0), shots, fit, views)


def test_prototype_score_by_hand() -> None:
    """Cosine to the foreground minus cosine to the background, in [-2, 2]."""
    tokens = torch.tensor([[4.0, 0.0, -1.0, 2.0], [0.0, 3.0, 0.0, 2.0]]).reshape(1, 2, 2, 2)
    query = Features(tokens, tokens, tokens[:, None])
    foreground, background = torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    score = prototype_score(query, SupportFeatures(foreground, background, []))
    half = float(np.sqrt(0.5))
    expected = torch.tensor([[2.0, 0.0], [-2.0, 2 * half]])
    torch.testing.assert_close(score, expected[None, None])


def tokens_of(shots: list[Shot], b: int) -> tuple[np.ndarray, np.ndarray]:
    """All tokens [N, L, C] and shares [N] of an episode."""
    tokens = [s.correlation[b].double().numpy().reshape(LAYERS, -1, s.mask[b].numel())
              for s in shots]  # fmt: skip
    shares = [s.mask[b].double().numpy().ravel() for s in shots]
    return np.concatenate(tokens, 2).transpose(2, 0, 1), np.concatenate(shares)


def ridge_by_hand(x: np.ndarray, y: np.ndarray, w: np.ndarray, penalty: float) -> np.ndarray:
    """Weights and bias of a weighted ridge regression, by least squares on a stacked system."""
    w = w / w.sum()
    rows = np.concatenate([x, np.ones((len(x), 1))], 1) * np.sqrt(w)[:, None]
    shrink = np.sqrt(penalty) * np.eye(x.shape[1], x.shape[1] + 1)
    system = np.concatenate([rows, shrink])
    target = np.concatenate([y * np.sqrt(w), np.zeros(x.shape[1])])
    return np.linalg.lstsq(system, target, rcond=None)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("channels", [6, 60], ids=["by channels", "by tokens"])
@pytest.mark.parametrize("shots", [1, 2])
def test_fit_written_out(channels: int, shots: int) -> None:
    """Standardising, the classifier and its held-out scores, against NumPy's least squares."""
    _, support = random_case(shots, channels=channels)
    score = TrainingFree((channels,) * LAYERS, matches=0.0)
    fit = score.fit(support)
    for b in range(2):
        tokens, share = tokens_of(support, b)
        mean, spread = tokens.mean(0), tokens.std(0)
        assert fit.mean[b].numpy() == pytest.approx(mean, abs=1e-5)
        assert fit.scale[b].numpy() == pytest.approx(1 / spread, rel=1e-4)
        x = ((tokens - mean) / spread).reshape(len(tokens), -1) / math.sqrt(LAYERS)
        y = np.where(share >= 0.8, 1.0, np.where(share <= 0.2, -1.0, 0.0))
        w = np.where(y > 0, 1 / (y > 0).sum(), np.where(y < 0, 1 / (y < 0).sum(), 0.0))
        found = ridge_by_hand(x, y, w, 0.2)
        weight = fit.weight[b].numpy().ravel() * math.sqrt(LAYERS)
        assert weight == pytest.approx(found[:-1], abs=1e-4)
        assert float(fit.bias[b]) == pytest.approx(found[-1], abs=1e-4)

        size = support[0].mask[b].numel()
        strips = np.tile(np.arange(8) // 2, 4)  # four strips of two columns
        folds = strips if shots == 1 else np.arange(len(x)) // size
        held = np.empty(len(x))
        for fold in np.unique(folds):
            out = folds == fold
            part = ridge_by_hand(x[~out], y[~out], w[~out], 0.2)
            held[out] = x[out] @ part[:-1] + part[-1]
        levels = fit.levels[b].numpy()
        upper, lower = np.average(held, weights=share), np.average(held, weights=1 - share)
        spreads = [math.sqrt(np.average((held - level) ** 2, weights=part))
                   for level, part in ((upper, share), (lower, 1 - share))]  # fmt: skip
        expected = [cut_by_hand(held, share), upper, lower, *spreads, share.mean()]
        assert levels == pytest.approx(expected, abs=1e-4)


def cut_by_hand(scores: np.ndarray, share: np.ndarray) -> float:
    """Middle of the thresholds whose soft IoU is within 5 % of the best.

    Where even everything is, they end at the mean of the background.
    """
    ious = {}
    for cut in scores:
        inside = scores >= cut
        ious[cut] = share[inside].sum() / (inside.sum() + share[~inside].sum())
    good = [cut for cut, iou in ious.items() if iou >= 0.95 * max(ious.values())]
    least = min(good)
    if least == scores.min():
        least = np.average(scores, weights=1 - share)
    return float(max(good) + least) / 2


def matches_by_hand(query: np.ndarray, support: list[np.ndarray], sides: list[np.ndarray]) -> float:
    """One query token [L, C] against tokens [M, L, C]: best inside minus best outside."""
    total = 0.0
    for layer in range(LAYERS):
        best = {1: 0.0, -1: 0.0}
        for token, side in zip(support, sides, strict=True):
            a, b = query[layer], token[layer]
            cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
            if side:
                best[int(side)] = max(best[int(side)], float(cosine))
        total += best[1] - best[-1]
    return total / LAYERS


def test_presence_is_that_of_the_four_best_tokens_before_the_cut() -> None:
    """1 / (1 + exp(2 (0.4 - mean))), whatever the query's own tokens do to the cut."""
    query, support = random_case(1)
    score = plain()
    fit = score.fit(support)
    tokens, presence = replace(score, adapt=False).score(query, as_support(support, fit))
    before = (tokens[:, 0].flatten(1) + fit.levels[:, :1]).double().numpy()
    for b in range(2):
        mean = np.sort(before[b])[-4:].mean()
        assert float(presence[b]) == pytest.approx(1 / (1 + np.exp(2 * (0.4 - mean))), abs=1e-5)
    torch.testing.assert_close(score.score(query, as_support(support, fit))[1], presence)


def test_score_written_out() -> None:
    """The classifier plus twice the matches, over shots and views together, against loops."""
    query, support = random_case(2)
    view = random_case(1, seed=5)[1][0]
    score = plain(adapt=False)
    fit = score.fit([*support, view])
    found = score.score(query, as_support(support, fit, (view,)))[0]
    for b in range(2):
        mean, scale = fit.mean[b].double().numpy(), fit.scale[b].double().numpy()
        tokens, share = tokens_of([*support, view], b)
        tokens = (tokens - mean) * scale
        sides = np.where(share >= 0.8, 1, np.where(share <= 0.2, -1, 0))
        asked = query.correlation[b].double().numpy().reshape(LAYERS, CHANNELS, -1)
        for n, token in enumerate((asked.transpose(2, 0, 1) - mean) * scale):
            linear = (token * fit.weight[b].double().numpy()).sum() + float(fit.bias[b])
            expected = linear + 2 * matches_by_hand(token, list(tokens), list(sides))
            expected -= float(fit.levels[b, 0])
            assert float(found[b, 0].flatten()[n]) == pytest.approx(expected, abs=1e-4)


def test_own_matches_leave_out_a_tokens_own_part() -> None:
    """A support token that has no like outside of its strip finds no match, though it is there."""
    tokens = torch.full((1, 1, 4, 1, 8), 0.0)
    tokens[0, 0, 0], tokens[0, 0, 1, 0, ::2] = 1, 0.5
    tokens[0, 0, 2, 0, 0] = 9  # the first token is like itself alone
    mask = torch.tensor([[[1.0, 1, 0, 1, 0, 1, 0, 1]]])
    held, seen = (
        TrainingFree((4,), ridge=1e6, held_out=held_out).fit([Shot(tokens, mask)]).levels[0, 1]
        for held_out in (True, False)
    )
    assert float(seen - held) > 0.3  # one of five foreground tokens loses a match of weight 2


def test_adaptation_written_out() -> None:
    """Five rounds of expectation and maximisation on a query's scores, against plain loops."""
    query, support = random_case(1, seed=2)
    score = plain()
    fit = score.fit(support)
    raw = replace(score, adapt=False).score(query, as_support(support, fit))[0]
    found = score.score(query, as_support(support, fit))[0]
    for b in range(2):
        cut, upper, lower, upper_spread, lower_spread, share = fit.levels[b].double().tolist()
        s = raw[b].double().numpy().ravel() + cut
        place, first = (cut - lower) / (upper - lower), (upper, lower, share)
        prior = 0.025 * len(s)
        for _ in range(5):
            up = share * np.exp(-(((s - upper) / upper_spread) ** 2) / 2) / upper_spread
            down = (1 - share) * np.exp(-(((s - lower) / lower_spread) ** 2) / 2) / lower_spread
            p = up / (up + down)
            upper = ((p * s).sum() + prior * first[0]) / (p.sum() + prior)
            lower = (((1 - p) * s).sum() + prior * first[1]) / ((1 - p).sum() + prior)
            share = 0.9 * p.mean() + 0.1 * first[2]
        expected = s - (lower + place * (upper - lower))
        assert found[b].numpy().ravel() == pytest.approx(expected, abs=1e-4)


def test_what_all_tokens_share_is_no_evidence() -> None:
    """A large common vector in every token changes nothing: it is subtracted."""
    query, support = random_case(1)
    common = 50 * torch.randn(CHANNELS, generator=torch.Generator().manual_seed(1))[:, None, None]
    score = plain()
    shifted = [Shot(s.correlation + common, s.mask) for s in support]
    moved = Features(query.shallow, query.last, query.correlation + common)
    before = score.score(query, as_support(support, score.fit(support)))[0]
    after = score.score(moved, as_support(shifted, score.fit(shifted)))[0]
    torch.testing.assert_close(after, before, atol=2e-3, rtol=0)


def test_channels_of_zeros_change_nothing() -> None:
    """Layers that are padded to the widest score as they do alone."""
    query, support = random_case(1)
    score = plain()
    before = score.score(query, as_support(support, score.fit(support)))[0]
    wide = Features(query.shallow, query.last, F.pad(query.correlation, (0, 0, 0, 0, 0, 4)))
    padded = [Shot(F.pad(s.correlation, (0, 0, 0, 0, 0, 4)), s.mask) for s in support]
    after = score.score(wide, as_support(padded, score.fit(padded)))[0]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


def test_episodes_of_a_batch_do_not_mix() -> None:
    query, support = random_case(2)
    score = plain()
    both = score.score(query, as_support(support, score.fit(support)))[0]
    for b in range(2):
        one = [Shot(s.correlation[b : b + 1], s.mask[b : b + 1]) for s in support]
        alone = score.score(query[b : b + 1], as_support(one, score.fit(one)))[0]
        torch.testing.assert_close(alone[0], both[b], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("shots", [1, 2])
def test_support_with_one_side_only(share: float, shots: int) -> None:
    """A mask that covers all of the image, or nothing, gives finite scores."""
    query, support = random_case(shots)
    score = plain()
    only = [Shot(s.correlation, torch.full_like(s.mask, share)) for s in support]
    fit = score.fit(only)
    assert all(bool(t.isfinite().all()) for t in fit.tensors())
    assert bool(score.score(query, as_support(only, fit))[0].isfinite().all())


def test_support_whose_tokens_are_all_alike() -> None:
    """An image of one colour tells nothing, and no score is NaN."""
    query, support = random_case(1)
    score = plain()
    same = [Shot(torch.ones_like(s.correlation), s.mask) for s in support]
    assert bool(score.score(query, as_support(same, score.fit(same)))[0].isfinite().all())


def test_the_object_scores_above_the_rest() -> None:
    """A query that is the support itself: every token inside scores higher than any outside."""
    tokens = torch.randn(1, 16, 5, 8, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(1, 5, 8)
    mask[:, 1:4, 1:6] = 1
    query = Features(tokens, tokens, tokens[:, None])
    score = TrainingFree((16,))
    support = [Shot(tokens[:, None], mask)]
    found = score.score(query, as_support(support, score.fit(support)))[0][0, 0]
    assert found[mask[0] == 1].min() > found[mask[0] == 0].max()


def test_half_precision_scores_are_float32() -> None:
    """Fit and scores are not left to bfloat16, and come near float32's."""
    query, support = random_case(1)
    score = plain()
    half = Features(*(x.to(torch.bfloat16) for x in (query.shallow, query.last, query.correlation)))
    shots = [Shot(s.correlation.to(torch.bfloat16), s.mask) for s in support]
    found = score.score(half, as_support(shots, score.fit(shots)))[0]
    assert found.dtype == torch.float32
    exact = score.score(query, as_support(support, score.fit(support)))[0]
    assert (found - exact).abs().max() < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        again: Tensor = score.score(query, as_support(support, score.fit(support)))[0]
    assert torch.equal(again, exact)
    prototypes = prototype_score(
        half, SupportFeatures(torch.ones(2, CHANNELS), -torch.ones(2, CHANNELS), [])
    )
    assert prototypes.dtype == torch.float32
