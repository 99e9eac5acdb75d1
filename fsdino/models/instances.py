"""The objects of a mask: connected regions, or regions that a watershed splits at their necks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fsdino.errors import UsageError, listed, shown
from fsdino.images import Flags

Split: TypeAlias = Literal["connected", "watershed"]

# Two parts are two objects if the neck between them is narrower than this share of the width of
# the smaller one, and by a pixel at least: the ragged outline of one object makes shallow necks.
_NECK, _LEAST_DEPTH = 0.75, 1.0


@dataclass(frozen=True, eq=False)
class Instance:
    """One object in an image of H x W pixels.

    Attributes:
        name: of its class.
        score: mean probability of the class within the object, 0 to 1.
        box: (x0, y0, x1, y1) in pixels; x1 and y1 lie just outside.
        area: number of its pixels.
        size: (H, W) of the image.
        runs: int64 [R, 2], its pixels column by column: where a run begins, counted down the
            columns from the top left pixel, and its length. No run goes on in the next column.

    Example:
        >>> import fsdino
        >>> coins, model = fsdino.samples()["coins"], fsdino.load()
        >>> support = model.encode_support(coins.image, coins.mask)
        >>> instances = model.segment(coins.image, {"coin": support}).instances(min_area=50)
        >>> first = instances[0]
        >>> len(instances), first.name, first.size
        (12, 'coin', (150, 384))
    """

    name: str
    score: float
    box: tuple[int, int, int, int]
    area: int
    size: tuple[int, int]
    runs: npt.NDArray[np.int64] = field(repr=False)

    @property
    def mask(self) -> Flags:
        """bool [H, W]: the object in the whole image; made from `runs` at every use."""
        mask = np.zeros(self.size, np.bool_)
        x0, y0, x1, y1 = self.box
        mask[y0:y1, x0:x1] = self.crop
        return mask

    @property
    def crop(self) -> Flags:
        """bool [y1 - y0, x1 - x0]: the object within its box."""
        x0, y0, x1, y1 = self.box
        height = y1 - y0
        columns, rows = np.divmod(self.runs[:, 0], self.size[0])
        begins = (columns - x0) * height + rows - y0
        steps = np.zeros((x1 - x0) * height + 1, np.int8)
        steps[begins] += 1
        steps[begins + self.runs[:, 1]] -= 1  # where the next run may begin, of the next column
        return steps[:-1].cumsum(dtype=np.int8).reshape(-1, height).T > 0


def check_split(split: str) -> None:
    """Refuse a way to tell objects apart that there is not.

    Raises:
        UsageError: neither "connected" nor "watershed".
    """
    if split not in get_args(Split):
        raise UsageError(f"split {shown(split)} is unknown: choose from {listed(get_args(Split))}")


def find_instances(
    mask: Flags,
    probability: npt.NDArray[np.float32],
    name: str,
    *,
    split: Split = "connected",
    min_area: int = 1,
) -> list[Instance]:
    """The objects of one class, from top to bottom.

    Args:
        mask: bool [H, W], the class's pixels.
        probability: float32 [H, W] in [0, 1], of the class.
        name: of the class.
        split: "connected" takes the regions whose pixels touch, also diagonally; "watershed" also
            cuts a region at its necks, between the maxima of the distance to its outline.
        min_area: number of pixels from which an object counts; of 1, every object does.

    Raises:
        UsageError: unknown `split`, `min_area` below 1.
    """
    check_split(split)
    if min_area < 1:
        raise UsageError(f"min_area must be at least 1 pixel, got {shown(min_area)}")
    split_up = _connected if split == "connected" else _watershed
    return list(_instances(split_up(mask), probability, name, min_area))


def _instances(
    labels: npt.NDArray[np.int32], probability: npt.NDArray[np.float32], name: str, min_area: int
) -> Iterator[Instance]:
    """The regions of labels [H, W]: 0 is background, and 1 to the highest label all occur.

    All regions are measured together: there may be 100,000 of them, and their boxes may be as
    large as the image.
    """
    height, width = labels.shape
    inside = labels > 0
    if not inside.any():
        return
    sums = np.bincount(labels[inside], weights=probability[inside])[1:]
    flat = labels.T.ravel()
    changes = np.empty(flat.size, np.bool_)
    changes[1:] = flat[1:] != flat[:-1]
    changes[::height] = True
    begins = np.flatnonzero(changes)
    lengths = np.diff(begins, append=flat.size)
    owners = flat[begins]
    order = np.argsort(owners, kind="stable")
    order = order[np.searchsorted(owners[order], 1) :]
    begins, lengths, owners = begins[order], lengths[order], owners[order]
    columns, rows = np.divmod(begins, height)
    first = np.flatnonzero(np.diff(owners, prepend=0))  # the first run of each region
    areas = np.add.reduceat(lengths, first)
    boxes = np.stack(
        [
            np.minimum.reduceat(columns, first),
            np.minimum.reduceat(rows, first),
            np.maximum.reduceat(columns, first) + 1,
            np.maximum.reduceat(rows + lengths, first),
        ],
        axis=1,
    )
    runs = np.stack([begins, lengths], axis=1)
    ends = np.append(first[1:], len(runs)).tolist()
    starts, scores = first.tolist(), np.clip(sums / areas, 0, 1).tolist()
    sizes, corners = areas.tolist(), boxes.tolist()
    for place in np.lexsort((boxes[:, 0], boxes[:, 1])).tolist():
        if sizes[place] < min_area:
            continue
        own = runs[starts[place] : ends[place]].copy()  # a view would keep the others in memory
        x0, y0, x1, y1 = corners[place]
        yield Instance(name, scores[place], (x0, y0, x1, y1), sizes[place], (height, width), own)


def _connected(mask: Flags) -> npt.NDArray[np.int32]:
    """Labels [H, W] of the regions whose pixels touch, also diagonally."""
    labels, _ = ndimage.label(mask, np.ones((3, 3), np.bool_), output=np.int32)
    return cast("npt.NDArray[np.int32]", labels)


def _watershed(mask: Flags) -> npt.NDArray[np.int32]:
    """Labels [H, W] of the regions that are left when touching ones are cut at their necks.

    Each pixel belongs to the maximum that the steepest ascent over its eight neighbours leads to;
    where several pixels are as high, the last one counts as the highest. Then maxima are joined
    over their passes, from the highest pass down, unless a neck lies between them.
    """
    padded = np.pad(mask, 1)  # what is outside of the image is not the object's
    width = padded.shape[1]
    pixels = np.flatnonzero(padded)
    labels = np.zeros(padded.size, np.int32)
    if not len(pixels):
        return labels.reshape(padded.shape)[1:-1, 1:-1]
    heights = ndimage.distance_transform_edt(padded).ravel()
    keys = np.rint(heights * heights).astype(np.int64)
    keys *= padded.size
    keys += np.arange(padded.size)
    best = keys[pixels]
    steps = (1, width - 1, width, width + 1)
    for step in (*steps, *(-step for step in steps)):
        np.maximum(best, keys[pixels + step], out=best)
    del keys
    numbers = labels  # of the object's pixels, by their place in the image
    numbers[pixels] = np.arange(len(pixels))
    above = numbers[best % padded.size]
    del best
    while True:
        further = above[above]
        if np.array_equal(further, above):
            break
        above = further
    peaks = np.flatnonzero(above == np.arange(len(above)))
    order = np.zeros(len(above), np.int32)
    order[peaks] = np.arange(len(peaks))
    basins = order[above]
    labels = np.zeros(padded.size, np.int32)
    labels[pixels] = basins + 1
    joined = _join(heights[pixels[peaks]], *_passes(labels, heights, pixels, steps))
    labels[pixels] = joined[basins] + 1
    return labels.reshape(padded.shape)[1:-1, 1:-1]


def _passes(
    labels: npt.NDArray[np.int32],
    heights: npt.NDArray[np.float64],
    pixels: npt.NDArray[np.intp],
    steps: tuple[int, ...],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Pairs of basins [P, 2] that touch, and the height of the pass between them [P]."""
    pairs, passes = [], []
    for step in steps:
        here, there = labels[pixels], labels[pixels + step]
        touching = (there > 0) & (here != there)
        both = np.stack([here[touching], there[touching]], axis=1).astype(np.int64) - 1
        pairs.append(np.sort(both, axis=1))
        near = pixels[touching]
        passes.append(np.minimum(heights[near], heights[near + step]))
    pair, height = np.concatenate(pairs), np.concatenate(passes)
    order = np.lexsort((-height, pair[:, 1], pair[:, 0]))
    pair, height = pair[order], height[order]
    highest = np.ones(len(pair), np.bool_)
    highest[1:] = (pair[1:] != pair[:-1]).any(axis=1)
    return pair[highest], height[highest]


def _join(
    peaks: npt.NDArray[np.float64],
    pairs: npt.NDArray[np.int64],
    passes: npt.NDArray[np.float64],
) -> npt.NDArray[np.int32]:
    """The object [B], from 0 on, of each basin; basins without a neck between them share one."""
    parents, tops = list(range(len(peaks))), peaks.tolist()

    def root(basin: int) -> int:
        while parents[basin] != basin:
            parents[basin] = parents[parents[basin]]
            basin = parents[basin]
        return basin

    order = np.argsort(-passes, kind="stable")
    for (one, other), height in zip(pairs[order].tolist(), passes[order].tolist(), strict=True):
        high, low = root(one), root(other)
        if high == low:
            continue
        if tops[high] < tops[low]:
            high, low = low, high
        if height >= _NECK * tops[low] or tops[low] - height < _LEAST_DEPTH:
            parents[low] = high
    found = np.array([root(basin) for basin in range(len(peaks))])
    return np.unique(found, return_inverse=True)[1].astype(np.int32)
