"""Masks without training: the scores written out, token by token."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.models import training_free
from fsdino.models.encoders import Features
from fsdino.models.shots import Shot, SupportFeatures, TokenFit
from fsdino.models.training_free import TrainingFree, prototype_score

LAYERS, CHANNELS = 2, 6


def plain(**changes: float) -> TrainingFree:
    return replace(TrainingFree((CHANNELS,) * LAYERS), **changes)


def features(last: Tensor, correlation: Tensor) -> Features:
    """All that the score reads."""
    return Features(torch.empty(0), last, (correlation,), torch.empty(0))


def random_case(
    shots: int, seed: int = 0, channels: int = CHANNELS, support_grid: tuple[int, int] = (4, 8)
) -> tuple[Features, list[Shot]]:
    """Two queries of 3 x 4 tokens, and shots of another grid, of 2 correlation layers."""
    generator = torch.Generator().manual_seed(seed)
    correlation = torch.randn(2, LAYERS, channels, 3, 4, generator=generator)
    query = features(torch.randn(2, channels, 3, 4), correlation)
    pairs = []
    for _ in range(shots):
        mask = torch.rand(2, *support_grid, generator=generator)
        mask[:, 0], mask[:, 1, ::3] = 1, 0
        tokens = torch.randn(2, LAYERS, channels, *support_grid, generator=generator)
        pairs.append(Shot((tokens + mask[:, None, None],), (mask,)))
    return query, pairs


def as_support(shots: list[Shot], fit: TokenFit) -> SupportFeatures:
    return SupportFeatures(torch.empty(0), torch.empty(0), shots, fit)


def test_prototype_score_by_hand() -> None:
    """Cosine to the foreground minus cosine to the background, in [-2, 2]."""
    tokens = torch.tensor([[4.0, 0.0, -1.0, 2.0], [0.0, 3.0, 0.0, 2.0]]).reshape(1, 2, 2, 2)
    query = features(tokens, tokens[:, None])
    foreground, background = torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    score = prototype_score(query, SupportFeatures(foreground, background, []))
    half = float(np.sqrt(0.5))
    expected = torch.tensor([[2.0, 0.0], [-2.0, 2 * half]])
    torch.testing.assert_close(score, expected[None, None])


def tokens_of(shots: list[Shot], b: int) -> tuple[np.ndarray, np.ndarray]:
    """All tokens [N, L, C] and shares [N] of an episode."""
    tokens = [s.correlation[0][b].double().numpy().reshape(LAYERS, -1, s.masks[0][b].numel())
              for s in shots]  # fmt: skip
    shares = [s.masks[0][b].double().numpy().ravel() for s in shots]
    return np.concatenate(tokens, 2).transpose(2, 0, 1), np.concatenate(shares)


def standard(tokens: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """[N, L, C], each token of each layer as long as the root of the number of channels."""
    tokens = (tokens - mean) / spread
    lengths = np.linalg.norm(tokens, axis=2, keepdims=True)
    return tokens / lengths * math.sqrt(tokens.shape[2])  # type: ignore[no-any-return]


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
        x = standard(tokens, mean, spread).reshape(len(tokens), -1) / math.sqrt(LAYERS)
        y = np.where(share >= 0.8, 1.0, np.where(share <= 0.2, -1.0, 0.0))
        w = np.where(y > 0, 1 / (y > 0).sum(), np.where(y < 0, 1 / (y < 0).sum(), 0.0))
        found = ridge_by_hand(x, y, w, 0.2)
        weight = fit.weight[b].numpy().ravel() * math.sqrt(LAYERS)
        assert weight == pytest.approx(found[:-1], abs=1e-4)
        assert float(fit.bias[b]) == pytest.approx(found[-1], abs=1e-4)

        size = support[0].masks[0][b].numel()
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


@pytest.mark.parametrize("channels", [6, 60], ids=["by channels", "by tokens"])
def test_objects_of_other_classes_are_background(channels: int) -> None:
    """Their clear tokens are 0.3 of it, each class the same; all else of the fit stays."""
    score = TrainingFree((channels,) * LAYERS)
    own, *others = (
        [shot[:1] for shot in random_case(n, seed, channels)[1]] for seed, n in enumerate((2, 1, 3))
    )
    fit = score.fit(own)
    found = score.fit_beside(fit, others)
    tokens, share = tokens_of(own, 0)
    mean, spread = tokens.mean(0), tokens.std(0)
    y = np.where(share >= 0.8, 1.0, np.where(share <= 0.2, -1.0, 0.0))
    w = np.where(y > 0, 1 / (y > 0).sum(), np.where(y < 0, 0.7 / (y < 0).sum(), 0.0))
    for shots in others:
        further, inside = tokens_of(shots, 0)
        further = further[inside >= 0.8]
        tokens = np.concatenate([tokens, further])
        y = np.concatenate([y, -np.ones(len(further))])
        w = np.concatenate([w, np.full(len(further), 0.15 / len(further))])
    x = standard(tokens, mean, spread).reshape(len(tokens), -1) / math.sqrt(LAYERS)
    expected = ridge_by_hand(x, y, w, 0.2)
    weight = found.weight[0].numpy().ravel() * math.sqrt(LAYERS)
    assert weight == pytest.approx(expected[:-1], abs=1e-4)
    assert float(found.bias) == pytest.approx(expected[-1], abs=1e-4)
    kept = replace(found, weight=fit.weight, bias=fit.bias)
    assert all(map(torch.equal, kept.tensors(), fit.tensors()))
    assert score.fit_beside(fit, []) is fit


def test_many_objects_of_other_classes_are_drawn_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many of each class as a bound allows; here two, the first and the middle one."""
    monkeypatch.setattr(training_free, "_MOST_OTHERS", 5)
    score = TrainingFree((CHANNELS,) * LAYERS)
    own, *others = ([shot[:1] for shot in random_case(1, seed)[1]] for seed in range(3))
    fewer = []
    for (shot,) in others:
        share = shot.masks[0]
        inside = (share.flatten() >= 0.8).nonzero().flatten()
        mask = torch.zeros(share.numel())
        mask[inside[[0, len(inside) // 2]]] = 1
        fewer.append([Shot(shot.correlation, (mask.view_as(share),))])
    fit = score.fit(own)
    found = score.fit_beside(fit, others)
    monkeypatch.undo()
    expected = score.fit_beside(fit, fewer)
    torch.testing.assert_close(found.weight, expected.weight)
    torch.testing.assert_close(found.bias, expected.bias)


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


def test_presence_is_that_of_the_four_best_tokens_above_the_background() -> None:
    """1 / (1 + exp(7 (1.25 - mean))), whatever the query's own tokens do to the cut."""
    query, support = random_case(1)
    score = plain()
    fit = score.fit(support)
    tokens, presence = replace(score, adapt=False, own=0.0).score(query, as_support(support, fit))
    before = (tokens[:, 0].flatten(1) + fit.levels[:, :1]).double().numpy()
    for b in range(2):
        mean = np.sort(before[b])[-4:].mean() - float(fit.levels[b, 2])
        assert float(presence[b]) == pytest.approx(1 / (1 + np.exp(7 * (1.25 - mean))), abs=1e-5)
    torch.testing.assert_close(score.score(query, as_support(support, fit))[1], presence)


def test_score_written_out() -> None:
    """The classifier plus the matches, over shots and views together, against loops."""
    query, support = random_case(2)
    view = random_case(1, seed=5)[1][0]
    score = plain(adapt=False, own=0.0)
    fit = score.fit([*support, view])
    found = score.score(query, as_support(support, fit))[0]
    for b in range(2):
        mean, spread = fit.mean[b].double().numpy(), 1 / fit.scale[b].double().numpy()
        tokens, share = tokens_of([*support, view], b)
        tokens = standard(tokens, mean, spread)
        sides = np.where(share >= 0.8, 1, np.where(share <= 0.2, -1, 0))
        asked = query.correlation[0][b].double().numpy().reshape(LAYERS, CHANNELS, -1)
        for n, token in enumerate(standard(asked.transpose(2, 0, 1), mean, spread)):
            linear = (token * fit.weight[b].double().numpy()).sum() + float(fit.bias[b])
            expected = linear + matches_by_hand(token, list(tokens), list(sides))
            expected -= float(fit.levels[b, 0])
            assert float(found[b, 0].flatten()[n]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_own_classifier_written_out(layers: int) -> None:
    """Seven tenths of the score, three of a classifier that the query's own tokens teach."""
    query, support = random_case(1, seed=4)
    more = torch.randn(2, 1, CHANNELS, 3, 4, generator=torch.Generator().manual_seed(9))
    tokens = torch.cat([query.correlation[0], more], 1)[:, :layers]
    query = features(query.last, tokens)
    shots = [
        Shot((torch.cat([s.correlation[0]] * 2, 1)[:, :layers],), (s.masks[0],)) for s in support
    ]
    score = TrainingFree((CHANNELS,) * layers)
    fit = score.fit(shots)
    before = replace(score, own=0.0).score(query, as_support(shots, fit))[0]
    found = score.score(query, as_support(shots, fit))[0]
    read = {1: [0], 2: [1], 3: [0, 2]}[layers]
    for b in range(2):
        said = before[b].double().numpy().ravel()
        x = tokens[b, read].double().numpy().reshape(len(read) * CHANNELS, -1).T
        x = (x - x.mean(0)) / x.std(0) / math.sqrt(len(read))
        clear = np.tanh(said / 0.6)
        sums = {side: max(1.0, (side * clear).clip(0).sum()) for side in (1, -1)}
        w = np.where(clear > 0, clear / sums[1], -clear / sums[-1])
        solved = ridge_by_hand(x, np.sign(clear), w, 1.0)
        expected = 0.7 * said + 0.3 * (x @ solved[:-1] + solved[-1])
        assert found[b].numpy().ravel() == pytest.approx(expected, abs=1e-4)


def own_score(tokens: Tensor, score: Tensor, widths: tuple[int, ...]) -> Tensor:
    return TrainingFree(widths)._own_score(tokens, score)


def test_own_classifier_solves_the_smaller_system() -> None:
    """Over tokens where those are fewer than channels: repeated channels change nothing."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(2, 1, 7, 3, 4, generator=generator)  # 12 tokens of 7 channels
    score = torch.randn(2, 12, generator=generator)
    by_channels = own_score(tokens, score, (7,))
    four = torch.cat([tokens / 2] * 4, 2)  # 28 channels; each is standardised again
    wide = TrainingFree((28,))
    torch.testing.assert_close(
        wide._own_score(four, score),
        own_score(four[:, :, torch.randperm(28, generator=generator)], score, (28,)),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip
    split = own_score(torch.cat([tokens] * 2, 1), score, (7, 7))  # two layers, of which one is read
    torch.testing.assert_close(split, by_channels, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [5, 20], ids=["by channels", "by tokens"])
def test_own_classifier_by_least_squares(channels: int) -> None:
    """Both systems against NumPy; channels that do not vary, and zeros of padding, are not rows."""
    generator = torch.Generator().manual_seed(6)
    tokens = torch.randn(1, 3, channels, 3, 4, generator=generator)
    tokens[:, 0, 1] = 2.5  # without variance
    tokens[:, 2, channels - 2 :] = 0  # padding
    score = torch.randn(1, 12, generator=generator)
    found = own_score(tokens, score, (channels, channels, channels - 2))
    first = np.delete(tokens[0, 0].double().numpy().reshape(channels, -1), 1, 0)
    x = np.concatenate([first, tokens[0, 2, :-2].double().numpy().reshape(channels - 2, -1)]).T
    x = (x - x.mean(0)) / x.std(0) / math.sqrt(2)
    clear = np.tanh(score[0].double().numpy() / 0.6)
    sums = {side: max(1.0, (side * clear).clip(0).sum()) for side in (1, -1)}
    w = np.where(clear > 0, clear / sums[1], -clear / sums[-1])
    solved = ridge_by_hand(x, np.sign(clear), w, 1.0)
    assert found[0].numpy() == pytest.approx(x @ solved[:-1] + solved[-1], abs=1e-4)


def test_own_classifier_of_one_side() -> None:
    """Where every token is background, the query teaches that and nothing else."""
    query, support = random_case(1)
    score = plain(adapt=False)
    fit = score.fit(support)
    low = replace(fit, bias=fit.bias - 50)
    before = replace(score, own=0.0).score(query, as_support(support, low))[0]
    found = score.score(query, as_support(support, low))[0]
    torch.testing.assert_close(found, 0.7 * before - 0.3, atol=1e-4, rtol=1e-4)


def test_own_classifier_does_not_learn_from_noise() -> None:
    """One token above the cut by a hair, of 400: it had half of all weight, and won."""
    tokens = torch.randn(1, 1, 16, 20, 20, generator=torch.Generator().manual_seed(0))
    score = torch.full((1, 400), -0.5)
    score[0, 7] = -1e-6
    below = own_score(tokens, score, (16,))
    score[0, 7] = 1e-6
    torch.testing.assert_close(own_score(tokens, score, (16,)), below, atol=1e-3, rtol=0)
    assert below.max() < 0


ROUNDED = pytest.mark.parametrize("rounded", [1 - 1e-6, 1 + 1e-6])  # as by other runtimes


@ROUNDED
@pytest.mark.parametrize("rest", [(0.2, 0.0), (0.5, 0.5)], ids=["a fifth", "the least"])
def test_rounding_does_not_choose_sides(rounded: float, rest: tuple[float, float]) -> None:
    """A box on a grid covers exact fifths, and several tokens least of all."""
    mask = torch.tensor([1.0, 0.8, *rest]).repeat(1, 4, 1)
    other = mask.clone()
    other[:, 0] *= rounded
    sides = training_free.sides_of(mask, 0.2)
    assert torch.equal(sides[0, 0], torch.tensor([1.0, 1, -1, -1]))
    assert torch.equal(sides, training_free.sides_of(other, 0.2))


@ROUNDED
def test_rounding_does_not_choose_folds(rounded: float) -> None:
    """A close-up's columns may lie between two strips."""
    _, shots = random_case(1)
    shot = shots[0][:1]
    columns = torch.tensor([0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.8, 0.9]).expand(4, 8)
    exact, other = (plain().fit([shot], [columns * factor]) for factor in (1, rounded))
    assert torch.equal(exact.levels, other.levels)


@ROUNDED
def test_rounding_does_not_choose_the_cut(rounded: float) -> None:
    """19 of 20 tokens are found above a threshold: 0.95 of the best IoU."""
    scores = torch.linspace(1, -1, 100)
    share = torch.cat([torch.ones(20), torch.zeros(80)])
    exact = training_free.levels_of(scores, share)
    assert exact[0] == pytest.approx(cut_by_hand(scores.numpy(), share.numpy()))
    other = training_free.levels_of(scores, share * torch.ones(100).where(scores < 0.9, rounded))
    assert torch.allclose(exact, other, atol=1e-5)


def test_own_matches_leave_out_a_tokens_own_part() -> None:
    """A support token that has no like outside of its strip finds no match, though it is there."""
    tokens = torch.full((1, 1, 4, 1, 8), 0.0)
    tokens[0, 0, 0], tokens[0, 0, 1, 0, ::2] = 1, 0.5
    tokens[0, 0, 2, 0, 0] = 9  # the first token is like itself alone
    mask = torch.tensor([[[1.0, 1, 0, 1, 0, 1, 0, 1]]])
    held, seen = (
        TrainingFree((4,), ridge=1e6, held_out=held_out)
        .fit([Shot((tokens,), (mask,))])
        .levels[0, 1]
        for held_out in (True, False)
    )
    assert float(seen - held) > 0.15  # one of five foreground tokens loses a match of weight 1


def test_adaptation_written_out() -> None:
    """Five rounds of expectation and maximisation on a query's scores, against plain loops."""
    query, support = random_case(1, seed=2)
    score = plain()
    fit = score.fit(support)
    raw = replace(score, adapt=False, own=0.0).score(query, as_support(support, fit))[0]
    found = replace(score, own=0.0).score(query, as_support(support, fit))[0]
    for b in range(2):
        cut, upper, lower, upper_spread, lower_spread, share = fit.levels[b].double().tolist()
        s = raw[b].double().numpy().ravel() + cut
        place = min(max((cut - lower) / (upper - lower), 0), 1)
        first = (upper, lower, share)
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


def test_levels_the_wrong_way_round_keep_the_cut_between_them() -> None:
    """A support that finds itself worse than the rest: every score was above the cut by far."""
    query, support = random_case(1)
    score = plain(own=0.0)
    fit = score.fit(support)
    wrong = torch.tensor([[3.0, 0.1, 0.4, 0.3, 0.3, 0.4]]).expand(2, -1)
    asked = as_support(support, replace(fit, levels=wrong))
    found = score.score(query, asked)[0].flatten(1)
    assert found.abs().max() < 3


def test_what_all_tokens_share_is_no_evidence() -> None:
    """A large common vector in every token changes nothing: it is subtracted."""
    query, support = random_case(1)
    common = 50 * torch.randn(CHANNELS, generator=torch.Generator().manual_seed(1))[:, None, None]
    score = plain()
    shifted = [Shot((s.correlation[0] + common,), (s.masks[0],)) for s in support]
    moved = features(query.last, query.correlation[0] + common)
    before = score.score(query, as_support(support, score.fit(support)))[0]
    after = score.score(moved, as_support(shifted, score.fit(shifted)))[0]
    torch.testing.assert_close(after, before, atol=2e-3, rtol=0)


def test_channels_of_zeros_change_nothing() -> None:
    """Layers that are padded to the widest score as they do alone."""
    query, support = random_case(1)
    score = plain()
    before = score.score(query, as_support(support, score.fit(support)))[0]
    wide = features(query.last, F.pad(query.correlation[0], (0, 0, 0, 0, 0, 4)))
    padded = [Shot((F.pad(s.correlation[0], (0, 0, 0, 0, 0, 4)),), (s.masks[0],)) for s in support]
    after = score.score(wide, as_support(padded, score.fit(padded)))[0]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


def test_episodes_of_a_batch_do_not_mix() -> None:
    query, support = random_case(2)
    score = plain()
    both = score.score(query, as_support(support, score.fit(support)))[0]
    for b in range(2):
        one = [s[b : b + 1] for s in support]
        alone = score.score(query[b : b + 1], as_support(one, score.fit(one)))[0]
        torch.testing.assert_close(alone[0], both[b], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("shots", [1, 2])
def test_support_with_one_side_only(share: float, shots: int) -> None:
    """A mask that covers all of the image, or nothing, gives finite scores."""
    query, support = random_case(shots)
    score = plain()
    only = [Shot((s.correlation[0],), (torch.full_like(s.masks[0], share),)) for s in support]
    fit = score.fit(only)
    assert all(bool(t.isfinite().all()) for t in fit.tensors())
    assert bool(score.score(query, as_support(only, fit))[0].isfinite().all())


def test_support_whose_tokens_are_all_alike() -> None:
    """An image of one colour tells nothing, and no score is NaN."""
    query, support = random_case(1)
    score = plain()
    same = [Shot((torch.ones_like(s.correlation[0]),), (s.masks[0],)) for s in support]
    assert bool(score.score(query, as_support(same, score.fit(same)))[0].isfinite().all())


def test_the_object_scores_above_the_rest() -> None:
    """A query that is the support itself: every token inside scores higher than any outside."""
    mask = torch.zeros(1, 5, 8)
    mask[:, 1:4, 1:6] = 1
    tokens = torch.randn(1, 16, 5, 8, generator=torch.Generator().manual_seed(3)) + mask[:, None]
    query = features(tokens, tokens[:, None])
    score = TrainingFree((16,))
    support = [Shot((tokens[:, None],), (mask,))]
    found = score.score(query, as_support(support, score.fit(support)))[0][0, 0]
    assert found[mask[0] == 1].min() > found[mask[0] == 0].max()


def test_half_precision_scores_are_float32() -> None:
    """Fit and scores are not left to bfloat16, and come near float32's."""
    query, support = random_case(1)
    score = plain()
    half = query.to(torch.bfloat16)
    shots = [Shot((s.correlation[0].to(torch.bfloat16),), (s.masks[0],)) for s in support]
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
