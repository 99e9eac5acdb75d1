"""Boxes, points and scribbles become masks.

The image is segmented by itself: a ridge classifier on the encoder's tokens is fitted to those that
the marks decide, and its scores are brought to the image's edges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from fsdino.errors import DataError
from fsdino.images import Flags, Pixels
from fsdino.models.encoders import Features
from fsdino.models.mark_arguments import BACKGROUND, OBJECT, Box, Marks, window
from fsdino.models.refinement import refine
from fsdino.models.ridge import Classifier
from fsdino.resizing import area_share, to_tensor

Encode = Callable[[Sequence[Pixels]], list[Features]]

_RIDGE = 0.2
_ROUNDS = 4
_CLEAR = 0.9


def to_mask(image: Pixels, marks: Marks, encode: Encode) -> Flags:
    """The mask of what is marked in an image.

    Args:
        image: uint8 [H, W, 3].
        marks: of this image, checked.
        encode: the tokens of images.

    Returns:
        bool [H, W], with at least one pixel.

    Raises:
        DataError: the marks find nothing.
    """
    [features] = encode([image])
    features.check(marks.name)
    found = np.zeros(image.shape[:2], np.bool_)
    if marks.boxes:
        for box in marks.boxes:
            found |= _in_box(image, features, box)
    else:
        found = _around(image, features, *_seeds(marks, found.shape))
    if not found.any():
        raise DataError(
            f"{marks.argument} of {marks.name}: nothing is found there; mark the object's middle, "
            "add points or a scribble on it, or paint a mask"
        )
    return found


def _inside(box: Box, size: tuple[int, ...]) -> Flags:
    flags = np.zeros(size, np.bool_)
    flags[window(box)] = True
    return flags


def _in_box(image: Pixels, features: Features, box: Box) -> Flags:
    """The object that a box is drawn around."""
    inside = _inside(box, image.shape[:2])
    share = area_share(inside, features.grid)
    height, width = inside.shape
    rows, columns = np.ogrid[0.5:height, 0.5:width]
    x0, y0, x1, y1 = box
    oval = ((columns - (x0 + x1) / 2) / ((x1 - x0) / 2)) ** 2
    oval = oval + ((rows - (y0 + y1) / 2) / ((y1 - y0) / 2)) ** 2
    prior = area_share((oval < 1) & inside, features.grid)
    sides = (prior >= min(0.9, float(prior.max()))).float() - (share <= 0.1).float()
    for _ in range(_ROUNDS):
        score = _scores(features, sides)
        sides = torch.where(share <= 0.1, -1.0, score.sign())
        if not (sides > 0).any():
            break
    return (_pixels(image, score) > 0) & inside


def _seeds(marks: Marks, size: tuple[int, ...]) -> tuple[Flags, Flags]:
    """Pixels that are on the object, and pixels that are not."""
    if marks.scribble is not None:
        return marks.scribble == OBJECT, marks.scribble == BACKGROUND
    seeds = np.zeros((2, *size), np.bool_)
    for (x, y), label in zip(marks.points, marks.labels, strict=True):
        seeds[0 if label else 1, int(y), int(x)] = True
    return seeds[0], seeds[1]


def _around(image: Pixels, features: Features, on: Flags, off: Flags) -> Flags:
    """The object on which some pixels lie."""
    inside, outside = (area_share(seeds, features.grid) > 0 for seeds in (on, off))
    rim = torch.ones(features.grid, dtype=torch.bool)
    rim[1:-1, 1:-1] = False
    sides = inside.float() - ((outside | rim) & ~inside).float()
    mask = _pixels(image, _scores(features, sides)) > 0
    labels, _ = ndimage.label(mask)
    touched = np.unique(labels[on])
    return np.isin(labels, touched[touched > 0]) | on


def _scores(features: Features, sides: Tensor) -> Tensor:
    """Scores [h, w] of a classifier fitted to the tokens with a side."""
    raw = features.correlation[0].float().flatten(2)
    raw = (raw - raw.mean(2, keepdim=True)) / raw.std(2, keepdim=True).clamp_min(1e-6)
    tokens = raw.flatten(0, 1)
    weight, bias = Classifier(tokens, sides.flatten().to(tokens.device), _RIDGE, len(raw)).solve()
    return (weight @ tokens + bias).view(features.grid).cpu()


def _pixels(image: Pixels, score: Tensor) -> np.ndarray:
    """Scores at the image's size."""
    guide = to_tensor(image, (image.shape[0], image.shape[1]))
    return refine(score[None, None], guide[None])[0, 0].numpy()
