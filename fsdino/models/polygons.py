"""Polygons of masks: traced along pixel edges, simplified, and with holes cut open.

Coordinates are those of pixel edges: the pixel of row y and column x is the square from (x, y) to
(x + 1, y + 1). Vertices are whole numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import spatial

from fsdino.images import Flags

Points: TypeAlias = npt.NDArray[np.int64]

# Programs draw polygons differently along the edges: this leaves 0.97 for each of them.
_LEAST_IOU = 0.98
# Pixels that a simplified outline may be off, the coarsest first.
_TOLERANCES = (2.0, 1.5, 1.0, 0.75, 0.5)
_AT_ONCE = 2**22  # pairs of points whose distance is in memory
# Directions along pixel edges as (x, y), clockwise on the screen.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def polygon(mask: Flags) -> Points:
    """One polygon around a connected object, simplified as far as an IoU of 0.97 holds.

    Every object has one, a single pixel also: it has four corners. A hole is cut open: the polygon
    goes in to it and back the same way, along a line that has no area.

    Args:
        mask: bool [H, W], with one region at least; further ones are joined to it as holes are.

    Returns:
        int64 [P, 2]: vertices as (x, y); the last is joined to the first.
    """
    if mask.all():  # as most specks are
        height, width = mask.shape
        return np.array([(0, 0), (width, 0), (width, height), (0, height)], np.int64)
    exact = outlines(mask)
    if sum(map(len, exact)) > 8:  # a few corners are worth no search
        for tolerance in _TOLERANCES:
            rings = simplified(exact, tolerance)
            inside = filled(rings, (mask.shape[0], mask.shape[1]))
            if (inside & mask).sum() >= _LEAST_IOU * (inside | mask).sum():
                return bridged(rings)
    return bridged(exact)


def outlines(mask: Flags) -> list[Points]:
    """The corners of a mask's outlines, exactly along its pixels' edges.

    Args:
        mask: bool [H, W].

    Returns:
        For each outline int64 [P, 2], as (x, y): clockwise on the screen around regions of pixels
        that touch, also diagonally, and counterclockwise around their holes.
    """
    padded = np.pad(mask, 1)
    below, right = padded[1:, 1:-1], padded[1:-1, 1:]
    above, left = padded[:-1, 1:-1], padded[1:-1, :-1]
    # For each direction the straight lines that have the region on their right.
    sides = (below & ~above, (left & ~right).T, above & ~below, (right & ~left).T)
    starts, ends = [], []
    for direction, side in enumerate(sides):
        line, begin, end = _runs(side)
        pair = [np.stack([begin, line], axis=1), np.stack([end, line], axis=1)]
        if direction in (1, 3):
            pair = [points[:, ::-1] for points in pair]
        if direction in (2, 3):
            pair.reverse()
        starts.append(pair[0])
        ends.append(pair[1])
    directions = np.repeat(np.arange(4), [len(part) for part in starts])
    start, end = np.concatenate(starts), np.concatenate(ends)
    return _rings(start, _following(start, end, directions, mask.shape[1] + 1))


def _runs(flags: Flags) -> tuple[Points, Points, Points]:
    """Of the runs in rows of flags [H, W]: their rows, where they begin, and where they end."""
    changes = np.diff(np.pad(flags.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    lines, begins = np.nonzero(changes == 1)
    return lines, begins, np.nonzero(changes == -1)[1]


def _following(
    start: Points, end: Points, directions: npt.NDArray[np.int64], width: int
) -> npt.NDArray[np.int64]:
    """Of each line [S], the one that goes on where it ends.

    Where two pixels touch diagonally, two go on: the left turn, which leads on to the other pixel,
    keeps regions that touch diagonally in one outline.
    """
    keys = (start[:, 1] * width + start[:, 0]) * 4 + directions
    order = np.argsort(keys)
    ordered = keys[order]
    places = (end[:, 1] * width + end[:, 0]) * 4
    left = np.searchsorted(ordered, places + (directions - 1) % 4)
    right = np.searchsorted(ordered, places + (directions + 1) % 4)
    left = np.minimum(left, len(keys) - 1)
    is_left = ordered[left] == places + (directions - 1) % 4
    return order[np.where(is_left, left, np.minimum(right, len(keys) - 1))]


def _rings(start: Points, following: npt.NDArray[np.int64]) -> list[Points]:
    """Follow lines, each to the next one, around every outline."""
    after, seen = following.tolist(), bytearray(len(following))
    rings = []
    for first in range(len(after)):
        ring = []
        line = first
        while not seen[line]:
            seen[line] = 1
            ring.append(line)
            line = after[line]
        if ring:
            rings.append(start[ring])
    return rings


def simplified(rings: Sequence[Points], tolerance: float) -> list[Points]:
    """Rings [P, 2] by Ramer, Douglas and Peucker: no vertex left out is further off than allowed.

    The parts of all rings are split together, level by level: a ragged mask has 100,000 of them.

    Args:
        rings: vertices (x, y) of each.
        tolerance: distance in pixels.

    Returns:
        Some of each ring's vertices, in order; all of them where fewer than three would be left.
    """
    closed = np.concatenate([points for ring in rings for points in (ring, ring[:1])])
    lengths = np.array([len(ring) for ring in rings])
    begins = np.cumsum(lengths + 1) - lengths - 1
    ends = begins + lengths
    rests = closed - np.repeat(closed[begins], lengths + 1, axis=0)
    far = _first_highest((rests**2).sum(axis=1), begins)
    kept = np.zeros(len(closed), np.bool_)
    kept[begins] = kept[far] = True
    begins, ends = np.concatenate([begins, far]), np.concatenate([far, ends])
    while True:
        split = ends - begins >= 2
        begins, ends = begins[split], ends[split]
        if not len(begins):
            break
        worst, distance = _furthest(closed, begins, ends)
        beyond = distance > tolerance
        begins, ends, worst = begins[beyond], ends[beyond], worst[beyond]
        kept[worst] = True
        begins, ends = np.concatenate([begins, worst]), np.concatenate([worst, ends])
    flags = np.split(kept, np.cumsum(lengths + 1)[:-1])
    return [
        ring[flag[:-1]] if flag[:-1].sum() >= 3 else ring
        for ring, flag in zip(rings, flags, strict=True)
    ]


def _furthest(
    points: Points, begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Of the points between each begin and end, the furthest from the line between these."""
    counts = ends - begins - 1
    first = np.cumsum(counts) - counts
    places = np.arange(counts.sum()) + np.repeat(begins + 1 - first, counts)
    chord = points[ends] - points[begins]
    length = np.repeat(np.hypot(chord[:, 0], chord[:, 1]), counts)
    chord = np.repeat(chord, counts, axis=0)
    offsets = points[places] - np.repeat(points[begins], counts, axis=0)
    across = np.abs(offsets[:, 0] * chord[:, 1] - offsets[:, 1] * chord[:, 0]) / length
    along = (offsets[:, 0] * chord[:, 0] + offsets[:, 1] * chord[:, 1]) / length
    beyond = np.maximum(np.maximum(-along, along - length), 0)
    distance = np.hypot(across, beyond)  # to the segment, not to the line through it
    worst = _first_highest(distance, first)
    return places[worst], distance[worst]


def _first_highest(values: npt.NDArray[Any], begins: npt.NDArray[np.int64]) -> Points:
    """Where the highest value of each part lies, the first of equals; parts begin at `begins`."""
    highest = np.maximum.reduceat(values, begins)
    counts = np.diff(begins, append=len(values))
    equal = np.flatnonzero(values == np.repeat(highest, counts))
    found: Points = equal[np.searchsorted(equal, begins)]
    return found


def filled(rings: Sequence[Points], size: tuple[int, int]) -> Flags:
    """bool [H, W]: the pixels whose centres an odd number of rings surrounds."""
    height, width = size
    ends = np.concatenate([np.concatenate([ring[1:], ring[:1]]) for ring in rings])
    begins = np.concatenate(list(rings))
    low, high = np.minimum(begins[:, 1], ends[:, 1]), np.maximum(begins[:, 1], ends[:, 1])
    counts = high - low
    edges = np.repeat(np.arange(len(begins)), counts)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts, counts) + low[edges]
    begin, end = begins[edges], ends[edges]
    slopes = (end[:, 0] - begin[:, 0]) / (end[:, 1] - begin[:, 1])
    crossings = begin[:, 0] + (rows + 0.5 - begin[:, 1]) * slopes
    columns = np.ceil(crossings - 0.5).astype(np.int64)  # the first centre on their right
    places = rows * (width + 1) + np.clip(columns, 0, width)
    times = np.bincount(places, minlength=height * (width + 1)).reshape(height, width + 1)
    odd = (times[:, :width] & 1).astype(np.bool_)
    inside: Flags = np.logical_xor.accumulate(odd, axis=1)
    return inside


def bridged(rings: Sequence[Points]) -> Points:
    """One polygon [P, 2] of several rings: each is joined to another by a line there and back.

    From left to right, the leftmost vertex of each is joined to the nearest vertex of those before.
    """
    ordered = sorted(rings, key=lambda ring: ring.min(axis=0).tolist())
    if len(ordered) == 1:
        return ordered[0]
    ordered = [np.roll(ring, -int(np.lexsort(ring.T[::-1])[0]), axis=0) for ring in ordered]
    points = np.concatenate(ordered)
    begins = np.cumsum([0, *map(len, ordered)])
    vertices = list(range(len(points)))  # of the polygon; those on a bridge occur again
    after = [vertex + 1 for vertex in vertices]  # of each, the place of the next one
    after[int(begins[1]) - 1] = 0
    nearest = _nearest_before(points, begins[1:-1]).tolist()
    for near, (begin, end) in zip(nearest, itertools.pairwise(begins[1:].tolist()), strict=True):
        back = len(vertices)
        vertices += [begin, near]
        after += [back + 1, after[near]]
        after[near], after[end - 1] = begin, back
    path, place = [0], after[0]
    while place != 0:
        path.append(vertices[place])
        place = after[place]
    found: Points = points[path]
    return found


def _nearest_before(points: Points, asked: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Of each asked point, the nearest one of those that stand before it in the list.

    Among its nearest points most are its own ring's, so that more and more are looked at.
    """
    tree = spatial.cKDTree(points)
    found = np.full(len(asked), -1)
    count = 8
    while (left := np.flatnonzero(found < 0)).size:
        count = min(count, len(points))
        for part in np.array_split(left, -(-len(left) * count // _AT_ONCE)):
            near = tree.query(points[asked[part]], k=np.arange(1, count + 1))[1]
            before = near < asked[part, None]
            first = before.argmax(axis=1)
            rows = np.arange(len(part))
            found[part] = np.where(before[rows, first], near[rows, first], -1)
        count *= 8
    return found
