"""Which tokens of one image are on a marked object: a classifier that is trained by itself.

The marks decide some tokens, and a prior says how likely the others are on the object. A ridge
classifier is fitted to both, its scores are added to the prior, and so on: tokens that look like
the decided background leave the object, and those that look like the object join it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.spatial import KDTree
from torch import Tensor

from fsdino.images import AnyArray
from fsdino.models.encoders import Features, middle

_COMPONENTS = 64  # principal components of the tokens that the classifier sees
_RIDGE = 2.0  # of the variance of a token
_ROUNDS = 10
_GAIN, _PRIOR = 5.0, 0.5  # what a score of 1, and the prior's log-odds, add to the log-odds
_LEAST = 0.05  # weight of a token that could be either
_SURE = 9.0  # log-odds of a decided token
_TINY = 1e-6

SEED_WEIGHT = 5.0  # of tokens with seeds, against others
_REACHES = (0.05, 0.08, 0.13, 0.2, 0.32, 0.5)  # of an object from its seeds, in longer sides
_BEYOND = 1.6  # reaches from which tokens are background
_SLOPE, _MOST = 3.0, 4.0
_BETWEEN = 4.0  # log-odds that a seed off the object takes from what is nearer to it
_ENOUGH = 8  # tokens with seeds off the object, from which they bound the object without a reach
# How far seeds off the object bound the reach, and gaps between seeds on it, as shares of them.
_SHORTER, _LONGER = 1.2, 0.5
_USUAL, _UNUSUAL = 0.05, 0.01  # an object's share of the image; the cost of others


def components(features: Features) -> Tensor:
    """The principal components of one image's tokens: [C, N] in float32, of every second layer.

    Each layer is standardised over the image's tokens, which removes what they all share, and its
    tokens then have one length, as in `TrainingFree`.
    """
    tokens = middle(features.correlation)
    layers = tokens.shape[1]
    chosen = range(layers)[1 - layers % 2 :: 2]
    raw = tokens[0, list(chosen)].float().flatten(2)  # [L, C, N]
    raw = raw - raw.mean(2, keepdim=True)
    spread = raw.square().mean(2, keepdim=True).sqrt()
    raw = raw / spread.where(spread > _TINY, torch.inf)
    length = (spread > _TINY).sum(1, keepdim=True).sqrt()  # [L, 1, 1]
    raw = raw * (length / raw.norm(dim=1, keepdim=True).clamp_min(_TINY))
    rows = raw.flatten(0, 1) / len(raw) ** 0.5
    rows = rows - rows.mean(1, keepdim=True)
    if len(rows) <= rows.shape[1]:
        _, axes = torch.linalg.eigh(rows @ rows.T)
        narrow: Tensor = axes[:, -_COMPONENTS:].T @ rows
        return narrow
    variances, axes = torch.linalg.eigh(rows.T @ rows)
    found: Tensor = (axes * variances.clamp_min(0).sqrt())[:, -_COMPONENTS:].T
    return found


def self_trained(
    tokens: Tensor, prior: Tensor, sides: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Log-odds [N] of tokens to be on the object.

    Args:
        tokens: [C, N], from `components`.
        prior: [N], log-odds of their places.
        sides: [N] in {-1, 0, 1}: decided to be off or on the object; 0 is to be found out.
        weight: [N], how much more than others tokens count in the fit; None counts all alike.
    """
    rows = torch.cat([tokens, tokens.new_ones(1, tokens.shape[1])])  # the last one is the bias
    penalty = torch.full((len(rows),), _RIDGE, device=rows.device)
    penalty[-1] = _TINY
    odds = torch.where(sides == 0, prior, _SURE * sides)
    for _ in range(_ROUNDS):
        target = (odds / 2).tanh()  # 2 p - 1
        shares = target.abs() + _LEAST
        if weight is not None:
            shares = shares * weight
        on = (target > 0).float()
        first, second = on * shares, (1 - on) * shares  # both sides weigh the same together
        shares = first / first.sum().clamp_min(_TINY) + second / second.sum().clamp_min(_TINY)
        weighted = rows * (shares / shares.sum())
        system = weighted @ rows.T + penalty.diag()
        score = torch.linalg.solve(system, weighted @ target) @ rows
        odds = torch.where(sides == 0, _GAIN * score + _PRIOR * prior, _SURE * sides)
    return odds


def from_seeds(tokens: Tensor, sides: Tensor) -> Tensor:
    """Log-odds [h, w] of the object that some tokens are on, on the CPU; positive in one region.

    How far it reaches from its seeds is not known: of several reaches, the one is taken whose
    object differs most from what is around it, and least within.

    Args:
        tokens: [C, N], from `components`.
        sides: [h, w], 1 for tokens with seeds on the object, -1 for those with others, else 0.
    """
    flags = sides.cpu().numpy()
    near = _away(flags > 0)
    other = _away(flags < 0)
    prior = _BETWEEN * (other - near) / (other + near + _TINY)
    weight = 1 + (SEED_WEIGHT - 1) * np.abs(flags)
    if (flags < 0).sum() >= _ENOUGH:
        return _connected(_asked(tokens, prior, flags, weight), flags)
    best, most = None, -np.inf
    unit = F.normalize(tokens, dim=0).cpu().view(-1, *flags.shape)
    for reach in _reaches(flags):
        own = _SLOPE * (1 - near / reach) + np.where(other < reach, prior.clip(max=0), 0)
        decided = np.where((near > _BEYOND * reach) & (flags == 0), -1, flags)
        odds = _connected(_asked(tokens, own.clip(-_MOST, _MOST), decided, weight), flags)
        worth = _standing_out(unit, odds > 0)
        if worth > most:
            best, most = odds, worth
    assert best is not None
    return best


def _away(flags: AnyArray) -> AnyArray:
    """Distances [h, w] in tokens from those that are set; far away where there is none."""
    if not flags.any():
        return np.full(flags.shape, 1e6, np.float32)
    found: AnyArray = ndimage.distance_transform_edt(~flags).astype(np.float32)
    return found


def _reaches(flags: AnyArray) -> list[float]:
    """Reaches in tokens that the seeds allow; one at least."""
    on, off = (np.argwhere(side) for side in (flags > 0, flags < 0))
    least, most = 0.0, np.inf
    if len(on) > 1:
        least = _LONGER * float(KDTree(on).query(on, 2)[0][:, 1].max())
    if len(off):
        most = _SHORTER * float(np.median(KDTree(on).query(off)[0]))
    known = [reach * max(flags.shape) for reach in _REACHES]
    return [reach for reach in known if least <= reach <= most] or [
        min(max(least, known[0]), max(most, known[0]))
    ]


def _asked(tokens: Tensor, prior: AnyArray, sides: AnyArray, weight: AnyArray) -> Tensor:
    given = (torch.from_numpy(part.astype(np.float32)).flatten() for part in (prior, sides, weight))
    return self_trained(tokens, *(t.to(tokens.device) for t in given)).view(sides.shape).cpu()


def _connected(odds: Tensor, sides: AnyArray) -> Tensor:
    """Log-odds that are positive only in regions with seeds on the object."""
    labels, _ = ndimage.label(odds.numpy() > 0)
    touched = np.isin(labels, np.unique(labels[sides > 0]))
    return odds.where(torch.from_numpy(touched & (labels > 0)), odds.clamp_max(-_TINY))


def _standing_out(unit: Tensor, inside: Tensor) -> float:
    """How much neighbours differ across a region's border, more than within it.

    Args:
        unit: [C, h, w], tokens of length 1.
        inside: bool [h, w].
    """
    border, within = [], []
    for axis in (0, 1):
        count = inside.shape[axis] - 1
        first, second = (unit.narrow(axis + 1, start, count) for start in (0, 1))
        differ = 1 - (first * second).sum(0)
        one, two = (inside.narrow(axis, start, count) for start in (0, 1))
        border.append(differ[one != two])
        within.append(differ[one & two])
    outer, inner = torch.cat(border), torch.cat(within)
    if not len(outer):
        return -1.0
    mean = float(outer.mean())
    inner_mean = (float(inner.sum()) + mean) / (len(inner) + 1)
    return mean - inner_mean - _UNUSUAL * abs(float((inside.float().mean() / _USUAL).log()))
