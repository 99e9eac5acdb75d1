"""From log-odds of tokens to a mask that follows the edges of the image.

A random walker (Grady, PAMI 2006), whose seeds are soft: in a picture of bounded size, each pixel's
probability is drawn to that of its token and its colour, and to its neighbours' where no edge lies
between them. The colours of object and background are learned from the result in turn.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

from fsdino.images import Flags, Pixels
from fsdino.models.refinement import refine
from fsdino.resizing import area_share, to_tensor

Floats: TypeAlias = npt.NDArray[np.floating[Any]]

_SIDE = 192  # of the picture that is walked on, at most
_FINE_SIDE = 1024  # of the picture whose edges the mask follows, at most
_ROUNDS = 3
# Weights of the log-odds of tokens and of colours; seeds say more of colours than a box does.
_IN_BOX, _SEEDED = (0.5, 0.5), (0.25, 2.0)
_MOST_TOKENS, _MOST_COLOURS = 6.0, 4.0  # of log-odds
_OFF, _ON = -8.0, 8.0  # log-odds of pixels that are decided
_SEED, _REACH = 8.0, 0.06  # log-odds at seeds, and how far they go, as a share of the longer side
_PULL, _PULL_SIDE = 0.03, 128  # of a pixel's own odds against its neighbours', at this side
_EDGE, _LEAST_LINK = 2.0, 1e-3
_BINS, _BLUR, _LEAST_SHARE = 12, 1.0, 1e-4  # of the histograms of colours, per channel
_STEPS, _EXACT = 200, 1e-3  # of conjugate gradients


def to_pixels(
    image: Pixels,
    odds: Tensor,
    allowed: Flags | None = None,
    seeds: tuple[Flags, Flags] | None = None,
) -> Flags:
    """The pixels of the object.

    Args:
        image: uint8 [H, W, 3].
        odds: [h, w], log-odds of its tokens.
        allowed: bool [H, W], pixels that may be on the object; None allows all.
        seeds: bool [H, W] each, pixels that are on the object, and pixels that are not.

    Returns:
        bool [H, W].
    """
    height, width = image.shape[:2]
    size = _bounded((height, width), _SIDE)
    colours = _colours(image, size)
    inside = True if allowed is None else area_share(allowed, size).numpy() > 0.5
    places = odds.float().clamp(-_MOST_TOKENS, _MOST_TOKENS)[None, None]
    by_tokens, by_colours = _IN_BOX if seeds is None else _SEEDED
    unary = by_tokens * F.interpolate(places, size, mode="bilinear")[0, 0].numpy()
    if seeds is not None:
        unary = unary + _near(seeds, size)
    links = _links(colours)
    pull = _PULL * min(_PULL_SIDE / max(size), 1) ** 2
    found = np.where(inside, _sigmoid(unary), 0)
    for _ in range(_ROUNDS):
        total = unary + by_colours * _colour_odds(colours, found)
        total = np.where(inside, np.clip(total, _OFF, _ON), _OFF)
        found = np.where(inside, _walked(links, _sigmoid(total), pull), 0)
    mask = _enlarged(found.astype(np.float32), image)
    return mask if allowed is None else mask & allowed


def _bounded(size: tuple[int, int], side: int) -> tuple[int, int]:
    """A size of the same shape, no side of which is longer than `side`."""
    scale = min(side / max(size), 1)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def _near(seeds: tuple[Flags, Flags], size: tuple[int, int]) -> Floats:
    """Log-odds [h, w] of pixels near to seeds."""
    found = np.zeros(size, np.float32)
    reach = _REACH * max(size)
    for flags, side in zip(seeds, (_SEED, -_SEED), strict=True):
        if flags.any():
            away = ndimage.distance_transform_edt(area_share(flags, size).numpy() == 0)
            found += (side * np.exp(-np.square(away / reach))).astype(np.float32)
    return found


def _sigmoid(odds: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-odds))
    return found


def _colours(image: Pixels, size: tuple[int, int]) -> Floats:
    """Luma and two chromas, [h, w, 3] in float32."""
    small = Image.fromarray(image).resize(size[::-1], Image.Resampling.BOX)
    return np.asarray(small.convert("YCbCr"), np.float32)


def _links(colours: Floats) -> tuple[Floats, Floats]:
    """How strongly pixels are tied to those at their right [h, w - 1], and below [h - 1, w]."""
    across = np.square(colours[:, 1:] - colours[:, :-1]).sum(2)
    down = np.square(colours[1:] - colours[:-1]).sum(2)
    mean = (across.sum() + down.sum()) / max(across.size + down.size, 1) + 1e-6
    return tuple(np.exp(-_EDGE / mean * part) + _LEAST_LINK for part in (across, down))


def _colour_odds(colours: Floats, found: Floats) -> Floats:
    """Log of how much likelier each pixel's colour is on the object than off it: [h, w]."""
    low, high = colours.min((0, 1)), colours.max((0, 1))
    cells = ((colours - low) / np.maximum(high - low, 1) * (_BINS - 1e-3)).astype(np.int64)
    places = (cells[..., 0] * _BINS + cells[..., 1]) * _BINS + cells[..., 2]
    shares = []
    for weight in (found, 1 - found):
        counts = np.bincount(places.ravel(), weight.ravel(), _BINS**3).reshape((_BINS,) * 3)
        blurred = ndimage.gaussian_filter(counts, _BLUR, mode="constant")
        shares.append(blurred / max(blurred.sum(), 1e-6) + _LEAST_SHARE)
    odds: Floats = np.log(shares[0] / shares[1]).ravel()[places]
    return np.clip(odds, -_MOST_COLOURS, _MOST_COLOURS)


def _walked(links: tuple[Floats, Floats], prior: Floats, pull: float) -> Floats:
    """The probabilities x that minimise sum link (x_i - x_j)^2 + pull sum (x - prior)^2.

    By conjugate gradients with Jacobi's preconditioner.
    """
    across, down = links
    diagonal = np.full_like(prior, pull)
    diagonal[:, 1:] += across
    diagonal[:, :-1] += across
    diagonal[1:] += down
    diagonal[:-1] += down

    def product(x: Floats) -> Floats:
        y = diagonal * x
        y[:, 1:] -= across * x[:, :-1]
        y[:, :-1] -= across * x[:, 1:]
        y[1:] -= down * x[:-1]
        y[:-1] -= down * x[1:]
        return y

    found = prior.copy()
    rest = pull * prior - product(found)
    step = rest / diagonal
    direction, gain = step, float((rest * step).sum())
    enough = _EXACT * pull * float(np.linalg.norm(prior))
    for _ in range(_STEPS):
        if float(np.linalg.norm(rest)) <= enough:
            break
        moved = product(direction)
        length = gain / float((direction * moved).sum())
        found = found + length * direction
        rest = rest - length * moved
        step = rest / diagonal
        gain, last = float((rest * step).sum()), gain
        direction = step + gain / last * direction
    return found


def _enlarged(found: Floats, image: Pixels) -> Flags:
    """Where probabilities [h, w] are at least one half, at the image's size and along its edges."""
    size = (image.shape[0], image.shape[1])
    fine = _bounded(size, _FINE_SIDE)
    if fine == found.shape:
        return found >= 0.5
    guide = to_tensor(image, fine)[None]
    score = refine(torch.from_numpy(found - 0.5)[None, None], guide)[0, 0].numpy()
    if fine == size:
        return score >= 0
    large = Image.fromarray(score).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(large) >= 0
