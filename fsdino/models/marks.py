"""Boxes, points and scribbles become masks.

The image is segmented by itself: `mark_tokens` tells the tokens on the object from the others, in
a close-up where the object is small, and `mark_pixels` brings them to the edges of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from fsdino.errors import DataError
from fsdino.images import Flags, Pixels
from fsdino.models.encoders import Features
from fsdino.models.mark_arguments import BACKGROUND, OBJECT, Box, Marks, window
from fsdino.models.mark_pixels import to_pixels
from fsdino.models.mark_tokens import SEED_WEIGHT, components, from_seeds, self_trained
from fsdino.resizing import area_share

Encode: TypeAlias = Callable[[Sequence[Pixels]], list[Features]]
Window: TypeAlias = tuple[slice, slice]

_MARGIN, _LEAST_MARGIN = 0.35, 4  # around a box, as a share of its longer side, and in pixels
_OUTSIDE = 0.1  # share of a token in the box, below which it is outside
# A prior for boxes: a superellipse of this exponent is even odds, at this share of the box.
_ROUND, _REACH, _SLOPE, _MOST = 3.0, 0.95, 2.0, 4.0
_FIRST, _AGAIN = 0.5, 6.0  # of that prior and of the first mask, in the second prior
_GAP, _LEAST_EDGE = 3, 2.0  # pixels across an outline, whose colours differ by so much on average
_WHOLE = 0.6  # share of the image from which a close-up shows no more
_KEPT = 0.25  # of the log-odds in the whole image, which are the prior in the close-up


def to_mask(image: Pixels, marks: Marks, encode: Encode) -> Flags:
    """The mask of what is marked in an image.

    Args:
        image: uint8 [H, W, 3].
        marks: of this image, checked.
        encode: the tokens of images.

    Returns:
        bool [H, W], neither empty nor full.

    Raises:
        DataError: the marks find nothing.
    """
    if marks.boxes:
        found = np.zeros(image.shape[:2], np.bool_)
        for box in marks.boxes:
            found |= _in_box(image, box, encode)
    else:
        found = _from_seeds(image, *_seeds(marks, image.shape[:2]), encode)
    if not _stands_out(image, found):
        raise DataError(
            f"{marks.argument} of {marks.name}: nothing is found there that differs from its "
            "surroundings; mark the middle of the object, add points or a scribble on it, or pass "
            "a mask"
        )
    return found


def _stands_out(image: Pixels, mask: Flags) -> bool:
    """Whether colours differ across a mask's outline: on an empty ground, it is anywhere."""
    differences = []
    for axis in (0, 1):
        pixels, flags = image.swapaxes(0, axis), mask.swapaxes(0, axis)
        border = flags[:-_GAP] != flags[_GAP:]
        first, second = (part[border].astype(np.int16) for part in (pixels[:-_GAP], pixels[_GAP:]))
        differences.append(np.abs(first - second).max(1, initial=0))
    outline = np.concatenate(differences)
    return bool(outline.size) and float(outline.mean()) >= _LEAST_EDGE


def _in_box(image: Pixels, box: Box, encode: Encode) -> Flags:
    """The object that a box is drawn around."""
    rows, columns = window(box)
    around = _wider((rows, columns))
    crop = np.ascontiguousarray(image[around])
    inside = np.zeros(image.shape[:2], np.bool_)
    inside[rows, columns] = True
    [features] = encode([crop])
    shares = area_share(inside[around], features.grid).flatten()
    distance = _box_distances((rows, columns), around, crop.shape, features.grid)
    prior = (_SLOPE * (_REACH - distance)).clamp(-_MOST, _MOST)
    sides = -(shares < _OUTSIDE).float()
    mask = to_pixels(crop, _odds(features, prior, sides), inside[around])
    # Once more, with tokens that know where the edges and the colours are.
    prior = _FIRST * prior + _AGAIN * (2 * area_share(mask, features.grid).flatten() - 1)
    mask = to_pixels(crop, _odds(features, prior, sides), inside[around])
    found = np.zeros(image.shape[:2], np.bool_)
    found[around] = mask
    return found


def _odds(features: Features, prior: Tensor, sides: Tensor, weight: Tensor | None = None) -> Tensor:
    """Log-odds [h, w] of an image's tokens, on the CPU."""
    device = features.last.device
    if weight is not None:
        weight = weight.to(device)
    odds = self_trained(components(features), prior.to(device), sides.to(device), weight)
    return odds.view(features.grid).cpu()


def _wider(spans: Window) -> Window:
    """A window and its surroundings."""
    longer = max(span.stop - span.start for span in spans)
    margin = max(round(_MARGIN * longer), _LEAST_MARGIN)
    rows, columns = (slice(max(span.start - margin, 0), span.stop + margin) for span in spans)
    return rows, columns


def _box_distances(
    box: Window, around: Window, shape: Sequence[int], grid: Sequence[int]
) -> Tensor:
    """Of each token [N] of a crop from the box's middle: 1 on the superellipse in the box."""
    parts = []
    for span, whole, length, count in zip(box, around, shape, grid, strict=False):
        centres = (torch.arange(count) + 0.5) * (length / count) + whole.start
        half = (span.stop - span.start) / 2
        parts.append(((centres - span.start - half) / half).abs() ** _ROUND)
    found: Tensor = (parts[0][:, None] + parts[1][None]).flatten() ** (1 / _ROUND)
    return found


# ------------------------------------------------------------------------------ points, scribbles


def _seeds(marks: Marks, size: tuple[int, ...]) -> tuple[Flags, Flags]:
    """Pixels that are on the object, and pixels that are not: bool [H, W] each."""
    if marks.scribble is not None:
        return marks.scribble == OBJECT, marks.scribble == BACKGROUND
    seeds = np.zeros((2, *size), np.bool_)
    for (x, y), label in zip(marks.points, marks.labels, strict=True):
        seeds[0 if label else 1, int(y), int(x)] = True
    return seeds[0], seeds[1]


def _from_seeds(image: Pixels, on: Flags, off: Flags, encode: Encode) -> Flags:
    """The object on which some pixels lie."""
    size = (image.shape[0], image.shape[1])
    [features] = encode([image])
    tokens = components(features)
    odds = from_seeds(tokens, _sides(on, off, features.grid).to(tokens.device))
    around = _close_up(odds, on)
    if around is not None:
        image, on, off = np.ascontiguousarray(image[around]), on[around], off[around]
        [features] = encode([image])
        prior = _KEPT * _cut(odds, around, size, features.grid).flatten()
        sides = _sides(on, off, features.grid).flatten()
        odds = _odds(features, prior, sides, 1 + (SEED_WEIGHT - 1) * sides.abs())
    mask = to_pixels(image, odds, None, (on, off)) | on
    labels, _ = ndimage.label(mask)
    touched = np.isin(labels, np.unique(labels[on]))
    if around is None:
        return touched
    found = np.zeros(size, np.bool_)
    found[around] = touched
    return found


def _sides(on: Flags, off: Flags, grid: tuple[int, int]) -> Tensor:
    """[h, w]: 1 for tokens with seeds on the object, -1 for those with others, else 0."""
    return (area_share(on, grid) - area_share(off, grid)).sign()


def _close_up(odds: Tensor, on: Flags) -> Window | None:
    """A window around the object and its seeds; None where it is nearly the whole image."""
    flags = (odds > 0).numpy()
    spans = []
    for axis in (0, 1):
        cells, pixels = (np.flatnonzero(part.any(1 - axis)) for part in (flags, on))
        length = on.shape[axis]
        scale = length / flags.shape[axis]
        start = min(int(cells[0] * scale), int(pixels[0]))
        stop = max(math.ceil((cells[-1] + 1) * scale), int(pixels[-1]) + 1)
        spans.append(slice(start, stop))
    rows, columns = (
        slice(span.start, min(span.stop, length))
        for span, length in zip(_wider((spans[0], spans[1])), on.shape, strict=True)
    )
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return None if area >= _WHOLE * on.size else (rows, columns)


def _cut(odds: Tensor, around: Window, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Log-odds [h, w] of the whole image at the places of a crop's tokens."""
    places = []
    for span, length, count in zip(around, size, grid, strict=True):
        centres = span.start + (torch.arange(count) + 0.5) * ((span.stop - span.start) / count)
        places.append(2 * centres / length - 1)
    rows, columns = torch.meshgrid(*places, indexing="ij")
    where = torch.stack([columns, rows], 2)[None]
    limited = odds.clamp(-2 * _MOST, 2 * _MOST)[None, None]
    found = F.grid_sample(limited, where, padding_mode="border", align_corners=False)
    return found[0, 0]
