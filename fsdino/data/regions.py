"""Regions of a photograph that stand out from the rest of it, found without labels.

A photograph is cut into superpixels (SLIC: Achanta et al., TPAMI 2012), which are merged pair by
pair where they differ least. Regions at several stages of the merging are kept if nothing else
in the photograph looks like them: only then is the meaning of their mask clear.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import PIL.Image

from fsdino.data.episodes import Image

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]

SIDE = 256  # longest side of the image that regions are found in, in pixels
SMALLEST, LARGEST = 0.002, 0.6  # share of the photograph that a region covers

_SUPERPIXELS = 320
_ROUNDS = 6
_COMPACTNESS = 8.0  # colour difference that counts like the distance between two superpixels
_TEXTURE = 1.0  # weight of the local contrast beside the colour
_WINDOW = 3  # pixels on each side, of the local contrast
_SIZE_POWER = 0.3  # how much large regions resist merging
_STAGES = (40, 24, 16, 10, 6, 4)  # regions that are left
_FIGURE_STAGES = _STAGES[-3:]  # where an object of several regions is looked for
_ALIKE = 5.0  # colour difference below which two superpixels look alike
_CONFUSABLE = 0.2  # look-alikes outside of a region, as a share of its area
_PARTS = 3  # regions that one class may unite
_SMOOTHING = 3  # passes
_KEPT = 0.75  # intersection over union with what smoothing leaves; less is scattered pixels
_FILLED = 0.01  # of a square as wide as the region is long, at least
_CUT = 0.25  # border pixels of a region, relative to the root of its area, that count as none
_SAME = 0.85  # intersection over union of two regions that count as one
_AT_BORDER = 0.04  # share of the photograph's border that makes a region background

# sRGB to CIE XYZ relative to the white point D65 (IEC 61966-2-1).
_XYZ = np.array(
    [
        [0.4124 / 0.9505, 0.3576 / 0.9505, 0.1805 / 0.9505],
        [0.2126, 0.7152, 0.0722],
        [0.0193 / 1.089, 0.1192 / 1.089, 0.9505 / 1.089],
    ],
    dtype=np.float32,
)


@dataclass(frozen=True, eq=False)
class Region:
    """A region of a photograph.

    Attributes:
        soft: uint8 [h, w], its mask at no more than `SIDE` pixels, smoothed; it lies where the
            value, interpolated, is above 127.5.
        box: (left, top, right, bottom) of its mask, as shares of width and height.
        share: of the photograph that it covers.
        whole: whether the photograph's border cuts off hardly anything.
        stage: the stage of the merging that it comes from; small ones have larger regions.
    """

    soft: npt.NDArray[np.uint8]
    box: tuple[float, float, float, float]
    share: float
    whole: bool
    stage: int


def find_regions(image: Image) -> list[Region]:
    """The regions of a photograph that nothing else in it looks like.

    Args:
        image: uint8 [H, W, 3].

    Returns:
        The regions, from `SMALLEST` to `LARGEST` of the photograph; none for a plain one. Equal
        images give equal regions.
    """
    scale = min(1.0, SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = np.asarray(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BOX))
    lab = _lab(small)
    pixels = np.concatenate([lab, _TEXTURE * _contrast(lab[..., :1])], axis=2)
    labels = _superpixels(lab)
    parts = _Parts.of(labels, pixels)
    found: list[Region] = []
    kept: list[Flags] = []
    for stage, members in _candidates(parts):
        area = float(parts.areas[members].sum() / labels.size)
        if not SMALLEST <= area <= LARGEST or any(_iou(members, k, parts) > _SAME for k in kept):
            continue
        kept.append(members)
        region = _region(members[labels], stage)
        if region is not None:
            found.append(region)
    return found


def _region(mask: Flags, stage: int) -> Region | None:
    """A region of a mask [h, w], smoothed; None if little is left of it."""
    smoothed = np.pad(mask.astype(np.float32), _SMOOTHING, mode="edge")
    for _ in range(_SMOOTHING):
        smoothed = _blur(smoothed)
    middle = slice(_SMOOTHING, -_SMOOTHING)
    soft = np.round(255 * smoothed[middle, middle]).astype(np.uint8)
    inside = soft > 127
    share = float(inside.mean())
    scattered = (inside & mask).sum() < _KEPT * (inside | mask).sum()
    if scattered or not SMALLEST <= share <= LARGEST:
        return None
    height, width = mask.shape
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if inside.sum() < _FILLED * max(np.ptp(rows) + 1, np.ptp(columns) + 1) ** 2:
        return None
    box = (
        float(columns[0] / width),
        float(rows[0] / height),
        float((columns[-1] + 1) / width),
        float((rows[-1] + 1) / height),
    )
    rim = (inside[0], inside[-1], inside[:, 0], inside[:, -1])
    whole = sum(int(side.sum()) for side in rim) <= _CUT * np.sqrt(inside.sum())
    return Region(soft, box, share, bool(whole), stage)


def _blur(plane: Floats) -> Floats:
    """Binomial weights 1, 2, 1 along both axes."""
    for axis in (0, 1):
        plane = (np.roll(plane, 1, axis) + 2 * plane + np.roll(plane, -1, axis)) / np.float32(4)
    return plane


def _lab(image: Image) -> Floats:
    """CIE L*a*b* [h, w, 3] of an sRGB image."""
    levels = np.arange(256) / 255
    table = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    xyz = table.astype(np.float32)[image] @ _XYZ.T
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = (root[..., i] for i in range(3))
    lab: Floats = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 2).astype(np.float32)
    return lab


def _contrast(plane: Floats) -> Floats:
    """Standard deviation [h, w, 1] around each pixel."""
    mean = _mean(plane)
    return np.sqrt(np.maximum(_mean(plane * plane) - mean * mean, 0))


def _mean(plane: Floats) -> Floats:
    """Mean over a square window around each pixel of [h, w, 1]."""
    width = 2 * _WINDOW + 1
    for axis in (0, 1):
        pads = [(0, 0)] * 3
        pads[axis] = (_WINDOW + 1, _WINDOW)
        sums = np.cumsum(np.pad(plane, pads, mode="edge"), axis, dtype=np.float64)
        upper, lower = np.split(sums, [width], axis)[1], np.split(sums, [-width], axis)[0]
        plane = ((upper - lower) / width).astype(np.float32)
    return plane


def _superpixels(lab: Floats) -> Labels:
    """Label each pixel with its superpixel, 0 to their number minus 1: k-means in colour and
    place, where a pixel chooses among the nine nearest cells of a grid."""
    height, width = lab.shape[:2]
    step = max(2.0, float(np.sqrt(height * width / _SUPERPIXELS)))
    rows, columns = max(1, round(height / step)), max(1, round(width / step))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    weight = np.float32(_COMPACTNESS / step)
    points = np.concatenate([lab, weight * x[..., None], weight * y[..., None]], 2).reshape(-1, 5)
    row = np.minimum((y * rows / height).astype(np.intp), rows - 1).ravel()
    column = np.minimum((x * columns / width).astype(np.intp), columns - 1).ravel()
    labels = row * columns + column
    for _ in range(_ROUNDS):
        centres = _means(labels, points, rows * columns)
        nearest = np.full(len(points), np.inf, np.float32)
        chosen = labels
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                cell = np.clip(row + down, 0, rows - 1) * columns
                cell += np.clip(column + right, 0, columns - 1)
                offset = points - centres[cell]
                distance = np.einsum("pc,pc->p", offset, offset)
                closer = distance < nearest
                nearest = np.where(closer, distance, nearest)
                chosen = np.where(closer, cell, chosen)
        labels = chosen
    return np.unique(labels, return_inverse=True)[1].reshape(height, width).astype(np.intp)


def _means(labels: Labels, points: Floats, count: int) -> Floats:
    """Mean of the points [p, c] of each label; labels without any are infinitely far away."""
    sizes = np.bincount(labels, minlength=count)
    sums = [np.bincount(labels, points[:, i], count) for i in range(points.shape[1])]
    means = np.stack(sums, 1) / np.maximum(sizes, 1)[:, None]
    means[sizes == 0] = 1e6
    return means.astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Parts:
    """N superpixels.

    Attributes:
        features: [N, 4], mean colour and local contrast.
        areas: [N], pixels.
        lengths: [N, N], pairs of neighbouring pixels that two superpixels share.
        edges: [N, N], sum of the colour differences across these.
        border: [N], pixels at the image's border.
    """

    features: Floats
    areas: Floats
    lengths: Floats
    edges: Floats
    border: Floats

    @classmethod
    def of(cls, labels: Labels, pixels: Floats) -> _Parts:
        """Measure the superpixels of an image with pixels [h, w, 4]."""
        count = int(labels.max()) + 1
        lengths, edges = (np.zeros(count * count) for _ in range(2))
        for one, other in (
            ((slice(None), slice(1, None)), (slice(None), slice(-1))),
            ((slice(1, None), slice(None)), (slice(-1), slice(None))),
        ):
            a, b = labels[one].ravel(), labels[other].ravel()
            apart = a != b
            change = pixels[one] - pixels[other]
            difference = np.sqrt((change * change).sum(2)).ravel()[apart]
            pairs = a[apart] * count + b[apart]
            lengths += np.bincount(pairs, minlength=count * count)
            edges += np.bincount(pairs, difference, count * count)
        square = (count, count)
        rim = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        return cls(
            _means(labels.ravel(), pixels.reshape(-1, pixels.shape[2]), count),
            np.bincount(labels.ravel(), minlength=count).astype(np.float32),
            _both_ways(lengths.reshape(square)),
            _both_ways(edges.reshape(square)),
            np.bincount(rim, minlength=count).astype(np.float32),
        )

    def stages(self) -> Iterator[tuple[int, Labels]]:
        """Merge; at each of `_STAGES`, the number of regions and each superpixel's region."""
        features, areas = self.features.copy(), self.areas.copy()
        lengths, edges = self.lengths.copy(), self.edges.copy()
        owner = np.arange(len(areas))
        costs = np.stack([_costs(i, features, areas, lengths, edges) for i in range(len(areas))])
        for left in range(len(areas), min(_STAGES) - 1, -1):
            if left in _STAGES:
                yield left, owner.copy()
            i, j = divmod(int(costs.argmin()), len(areas))
            if not np.isfinite(costs[i, j]):
                return
            total = areas[i] + areas[j]
            features[i] = (areas[i] * features[i] + areas[j] * features[j]) / total
            areas[i] = total
            for matrix in (lengths, edges):
                matrix[i] += matrix[j]
                matrix[:, i] = matrix[i]
                matrix[j] = matrix[:, j] = matrix[i, i] = 0
            owner[owner == j] = i
            costs[j] = costs[:, j] = np.inf
            costs[i] = costs[:, i] = _costs(i, features, areas, lengths, edges)


def _both_ways(matrix: npt.NDArray[np.float64]) -> Floats:
    return (matrix + matrix.T).astype(np.float32)


def _costs(i: int, features: Floats, areas: Floats, lengths: Floats, edges: Floats) -> Floats:
    """Cost of merging region i with each other one [N]; infinite for regions that do not touch."""
    difference = features - features[i]
    across = edges[i] / np.maximum(lengths[i], 1)
    distance = np.sqrt((difference * difference).sum(1)) + across
    size = areas * areas[i] / (areas + areas[i])
    return np.where(lengths[i] > 0, distance * size**_SIZE_POWER, np.inf).astype(np.float32)


def _candidates(parts: _Parts) -> Iterator[tuple[int, Flags]]:
    """(stage, members among the superpixels) of regions and unions that nothing else looks like."""
    offset = parts.features[:, None] - parts.features[None]
    alike = (offset * offset).sum(2) < _ALIKE**2
    for stage, owner in parts.stages():
        groups = [owner == region for region in np.unique(owner)]
        for group in groups:
            members = _united(group, groups, alike, parts)
            if members is not None:
                yield stage, members
        if stage in _FIGURE_STAGES:
            figure = _figure(groups, parts)
            if figure.any() and _confusion(figure, alike, parts).sum() <= _CONFUSABLE * (
                parts.areas[figure].sum()
            ):
                yield stage, figure


def _confusion(members: Flags, alike: Flags, parts: _Parts) -> Floats:
    """Area [N] of the superpixels outside of a region that look like one of its own."""
    confused: Floats = parts.areas * (alike[members].any(0) & ~members)
    return confused


def _united(group: Flags, groups: list[Flags], alike: Flags, parts: _Parts) -> Flags | None:
    """A region with those that look like it; None if look-alikes remain."""
    members = group
    for united in range(1, _PARTS + 1):
        confused = _confusion(members, alike, parts)
        if confused.sum() <= _CONFUSABLE * parts.areas[members].sum():
            return members
        if united < _PARTS:
            shares = [float(confused[g].sum() / parts.areas[g].sum()) for g in groups]
            best = int(np.argmax(shares))
            if shares[best] < 1 / 2:
                return None
            members = members | groups[best]
    return None


def _figure(groups: list[Flags], parts: _Parts) -> Flags:
    """The largest connected part outside of all regions at the border."""
    least = _AT_BORDER * parts.border.sum()
    inner = np.zeros(len(parts.areas), np.bool_)
    for group in groups:
        if parts.border[group].sum() < least:
            inner |= group
    best, rest = np.zeros_like(inner), inner.copy()
    while rest.any():
        part = np.zeros_like(inner)
        part[np.flatnonzero(rest)[0]] = True
        while True:
            grown = part | (rest & (parts.lengths[part] > 0).any(0))
            if (grown == part).all():
                break
            part = grown
        rest &= ~part
        if parts.areas[part].sum() > parts.areas[best].sum():
            best = part
    return best


def _iou(one: Flags, other: Flags, parts: _Parts) -> float:
    return float(parts.areas[one & other].sum() / parts.areas[one | other].sum())
