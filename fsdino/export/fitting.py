"""What the training-free score fits to its supports, in a graph of fixed structure.

The same fit as `fsdino.models.training_free.TrainingFree.fit`, for any number of images: all folds
are solved beside each other, by conjugate gradients, which need products with the tokens only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fsdino import ops
from fsdino.export.lowering import conjugate_gradients
from fsdino.export.shots import StackedFit
from fsdino.models import training_free
from fsdino.models.ridge import even_weights
from fsdino.models.training_free import TrainingFree


def fit(score: TrainingFree, tokens: Tensor, share: Tensor, places: Tensor) -> StackedFit:
    """Fit the classifier and the threshold to the supports of one episode.

    Args:
        score: what to fit.
        tokens: correlation layers of M images, [M, L, C, h, w].
        share: [M, h, w] of foreground in each token.
        places: [M, 3], for each image the number of its photograph, and the columns that its left
            and right edges have in it, as shares of the width.

    Returns:
        With B = 1.
    """
    rows = tokens.float().permute(1, 2, 0, 3, 4).flatten(2)  # [L, C, N]
    mean, spread = rows.mean(2), rows.std(2, correction=0)
    scale = torch.where(spread > training_free.TINY, 1 / spread.clamp_min(training_free.TINY), 0)
    unit = training_free.standardise(tokens, mean[None], scale[None])  # [M, L, C, h, w]
    sides = training_free.sides_of(share, score.border)  # [M, h, w]
    folds, inside = _folds(places, sides)
    # L and C first: PyTorch 2.11 exports no flattening of them after that of M, which varies.
    flat = unit.flatten(1, 2).transpose(0, 1).flatten(1)  # [L * C, N]
    by_fold, weight, bias = _solved(flat, sides.flatten(), inside, score.ridge, len(score.widths))
    scores = torch.where(folds < 0, by_fold[-1], (by_fold[:-1] * inside).sum(0))
    if score.matches:
        scores = scores + score.matches * _own_matches(score, unit, sides, folds)
    levels = training_free.levels_of(scores, share.flatten().float())
    return StackedFit(
        mean[None], scale[None], weight.view_as(scale)[None], bias[None], levels[None],
        tokens=unit[None], sides=sides[None],
    )  # fmt: skip


def _folds(places: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """Fold of each token [N], -1 where it is in none, and bool [F, N], which are in each of F.

    The folds of `training_free`: photographs, or strips of a single one. One without which a side
    would have no tokens is none.

    Args:
        places: see `fit`.
        sides: [M, h, w].
    """
    count, _, width = sides.shape
    across = (torch.arange(width) + 0.5) / width
    photograph, left, right = places.unbind(1)
    across = torch.where((left > right)[:, None], 1 - across, across)
    least, length = torch.minimum(left, right), (right - left).abs()
    column = least[:, None] + across * length[:, None]  # [M, w]
    single = photograph.max() == photograph.min()
    strips = training_free.strips_of(column)
    chosen = torch.where(single, strips, photograph[:, None].expand_as(strips))
    folds = chosen[:, None].expand_as(sides).flatten()
    numbers = torch.arange(count + training_free.FOLDS - 1, dtype=folds.dtype)
    inside = folds == numbers[:, None]
    flat = sides.flatten()
    above, below = ((side & ~inside).any(1) for side in (flat > 0, flat < 0))
    inside = inside & (above & below)[:, None]
    return torch.where(inside.any(0), folds, -1.0), inside


def _solved(
    tokens: Tensor, sides: Tensor, inside: Tensor, ridge: float, layers: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Classifiers without each of F folds, and with all tokens.

    Args:
        tokens: standardised, [D, N].
        sides: [N].
        inside: bool [F, N], which tokens are in each fold.
        ridge: strength of the penalty.
        layers: L, see `ridge.Classifier`.

    Returns:
        Scores [F + 1, N] of the tokens by each of them, the last by all; weights [D] and bias []
        of the last.
    """
    root = layers**0.5
    tokens = tokens / root
    kept = torch.cat([~inside, torch.ones_like(inside[:1])])  # [F + 1, N]
    weights = even_weights(sides) * kept
    share = (weights / weights.sum(1, keepdim=True).clamp_min(training_free.TINY)).mT  # [N, F + 1]
    level = sides @ share  # [F + 1]
    mean = tokens @ share  # [D, F + 1]

    target = share * (sides[:, None] - level)
    right = tokens @ target - mean * target.sum(0)
    found = conjugate_gradients(_covariance, right, tokens, share, mean, right.new_tensor(ridge))
    bias = level - (mean * found).sum(0)
    scores = (tokens.mT @ found + bias).mT
    return scores, found[:, -1] / root, bias[-1]


def _covariance(x: Tensor, tokens: Tensor, share: Tensor, mean: Tensor, ridge: Tensor) -> Tensor:
    """Centred and weighted covariances, each with its column of x [D, F], and the penalty.

    Args:
        x: [D, F].
        tokens: [D, N].
        share: [N, F], weights of the tokens.
        mean: [D, F], the weighted means of the tokens.
        ridge: [], strength of the penalty.
    """
    along = share * (tokens.mT @ x - (mean * x).sum(0))
    return tokens @ along - mean * along.sum(0) + ridge * x


def _own_matches(score: TrainingFree, tokens: Tensor, sides: Tensor, folds: Tensor) -> Tensor:
    """Best foreground minus best background match of the supports' own tokens: [N].

    Matches within a token's fold are left out. One layer after another: each compares all tokens
    with all.

    Args:
        score: what is fitted.
        tokens: standardised, [M, L, C, h, w].
        sides: [M, h, w].
        folds: [N], -1 where a token is in none.
    """
    same = (folds[:, None] == folds) & (folds >= 0)[:, None]  # [N, N]
    flat = tokens.permute(1, 2, 0, 3, 4).flatten(2)  # [L, C, N]
    weight = sides.flatten()[None, None]
    contrasts = []
    for layer, width in enumerate(score.widths):
        line = flat[layer, :width][None, None, :, None]  # [1, 1, C, 1, N]
        volume = ops.correlation4d(line, line, weight)[0, 0, 0, :, 0]  # [N, N]
        signed = volume.masked_fill(same, 0)
        contrasts.append(signed.amax(1).clamp_min(0) - (-signed.amin(1)).clamp_min(0))
    return torch.stack(contrasts).mean(0)
