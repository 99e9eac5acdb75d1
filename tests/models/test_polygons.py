"""Polygons: by hand, and drawn by other libraries, which know nothing of how they were made."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.path import Path as Outline
from pycocotools import mask as coco
from scipy import ndimage

from fsdino.models.polygons import bridged, filled, outlines, polygon, simplified

Flags = npt.NDArray[np.bool_]


def drawn(points: npt.NDArray[np.int64], size: tuple[int, int]) -> Flags:
    """bool [H, W]: as pycocotools draws a polygon."""
    parts = coco.frPyObjects([points.ravel().astype(float).tolist()], *size)
    return coco.decode(parts)[:, :, 0] > 0


def iou(one: Flags, other: Flags) -> float:
    return float((one & other).sum() / (one | other).sum())


def largest(mask: Flags) -> Flags:
    """Its largest region of pixels that touch, also diagonally, as it is in its box."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    place = int(np.bincount(labels.ravel())[1:].argmax())
    box = ndimage.find_objects(labels)[place]
    return labels[box] == place + 1


def blob(seed: int, size: int = 200, smooth: float = 6) -> Flags:
    random = np.random.default_rng(seed)
    return largest(ndimage.gaussian_filter(random.random((size, size)), smooth) > 0.5)


def noise(seed: int, size: int = 60, share: float = 0.6) -> Flags:
    return largest(np.random.default_rng(seed).random((size, size)) < share)


def ring(outer: int, inner: int) -> Flags:
    y, x = np.mgrid[-outer : outer + 1, -outer : outer + 1]
    return (x * x + y * y <= outer**2) & (x * x + y * y > inner**2)


def test_outlines_by_hand() -> None:
    """Clockwise around the object, counterclockwise around its hole."""
    mask = np.ones((3, 4), bool)
    mask[1, 1] = False
    outer, hole = outlines(mask)
    assert outer.tolist() == [[0, 0], [4, 0], [4, 3], [0, 3]]
    assert hole.tolist() in ([[2, 1], [1, 1], [1, 2], [2, 2]], [[1, 2], [2, 2], [2, 1], [1, 1]])
    assert polygon(np.ones((1, 1), bool)).tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]


@pytest.mark.parametrize("mask", [np.eye(2, dtype=bool), np.eye(2, dtype=bool)[::-1]])
def test_pixels_that_touch_diagonally_have_one_outline(mask: Flags) -> None:
    (outline,) = outlines(mask)
    assert len(outline) == 8
    np.testing.assert_array_equal(filled([outline], (2, 2)), mask)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_outlines_are_exact(seed: int, share: float) -> None:
    """All pixels and no others, on noise with holes within holes; a test by each centre."""
    mask = np.random.default_rng(seed).random((19, 23)) < share
    rings = outlines(mask)
    count = ndimage.label(mask, np.ones((3, 3)))[1]
    area = [
        int((r[:, 0] * np.roll(r[:, 1], -1) - np.roll(r[:, 0], -1) * r[:, 1]).sum()) for r in rings
    ]
    assert sum(twice > 0 for twice in area) == count
    assert sum(area) == 2 * mask.sum()
    rows, columns = np.mgrid[:19, :23]
    centres = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)
    times = sum(
        Outline(np.concatenate([r, r[:1]]), closed=True).contains_points(centres).astype(int)
        for r in rings
    )
    np.testing.assert_array_equal(times % 2 == 1, mask.ravel())
    np.testing.assert_array_equal(filled(rings, mask.shape), mask)


@pytest.mark.parametrize(
    "mask",
    [
        *(blob(seed) for seed in range(6)),
        *(blob(seed, 120, 2) for seed in range(4)),
        *(noise(seed) for seed in range(4)),
        ring(40, 25),
        ring(16, 15),
        np.ones((32, 32), bool),
        np.pad(ring(8, 3), 20, constant_values=True),
        ring(200, 100),
    ],
)
def test_polygons_keep_the_mask(mask: Flags) -> None:
    """An IoU of 0.97 as another library draws them, holes included."""
    points = polygon(mask)
    assert points.dtype.kind == "i"
    assert (points.min(axis=0) >= 0).all() and (points.max(axis=0) <= mask.shape[::-1]).all()
    assert iou(drawn(points, mask.shape), mask) >= 0.97
    assert iou(filled([points], mask.shape), mask) >= 0.97


def test_polygons_are_simple_where_the_outline_is() -> None:
    """A disk takes some dozens of vertices, of the hundreds along its pixels."""
    disk = ring(200, 0)
    assert len(outlines(disk)[0]) > 400
    assert 12 <= len(polygon(disk)) <= 80


@pytest.mark.parametrize("seed", range(4))
def test_a_bridge_has_no_area(seed: int) -> None:
    """Many holes: one polygon, whose signed area is that of the pixels exactly."""
    mask = noise(seed, 80, 0.85)
    rings = outlines(mask)
    assert len(rings) > 100
    points = bridged(rings)
    assert len(points) == sum(map(len, rings)) + 2 * (len(rings) - 1)
    x, y = points.T
    assert (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() == 2 * mask.sum()
    np.testing.assert_array_equal(filled([points], mask.shape), mask)


def test_a_bridge_is_short() -> None:
    """It ends at the nearest vertex to its left, though the ring's own are nearer: 400 of them."""
    turn = np.linspace(np.pi, 3 * np.pi, 400, endpoint=False)
    circle = np.stack([1000 + 50 * np.cos(turn), 50 * np.sin(turn)], axis=1).round().astype(int)
    square = np.array([(0, -100), (100, -100), (100, 10), (0, 10)])
    points = bridged([circle, square]).tolist()
    assert len(points) == 406
    assert points.count([100, 10]) == 2  # before the bridge and behind it
    place = points.index([100, 10])
    assert points[place + 1][0] == 950 or points[place - 1][0] == 950


def test_simplified_by_hand() -> None:
    """A vertex stays that is further off than allowed; a ring keeps three vertices at least."""
    ring = np.array([(0, 0), (5, 1), (10, 0), (10, 10), (0, 10)])
    other = np.array([(0, 0), (0, 9), (1, 20), (9, 20), (9, 0)])
    for tolerance, first, second in (
        (0.4, ring, other),
        (0.9, ring, other[[0, 2, 3, 4]]),
        (1, ring[[0, 2, 3, 4]], other[[0, 2, 3, 4]]),
        (100, ring, other),
    ):
        found = simplified([ring, other], tolerance)
        assert [points.tolist() for points in found] == [first.tolist(), second.tolist()]


@pytest.mark.parametrize("tolerance", [0.5, 1.5, 4])
def test_no_vertex_left_out_is_far(tolerance: float) -> None:
    """Of a ragged mask's outlines, each vertex is within the tolerance of the simplified ring."""
    noise = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal((80, 90)), 2)
    rings = outlines(noise > 0)
    for ring, few in zip(rings, simplified(rings, tolerance), strict=True):
        begins, ends = few[None], np.roll(few, -1, axis=0)[None]
        chord = ends - begins
        along = ((ring[:, None] - begins) * chord).sum(axis=2) / (chord**2).sum(axis=2)
        nearest = begins + np.clip(along, 0, 1)[..., None] * chord
        distance = np.linalg.norm(ring[:, None] - nearest, axis=2).min(axis=1)
        assert distance.max() <= tolerance + 1e-9
    assert sum(map(len, rings)) > sum(map(len, simplified(rings, tolerance)))
