"""Objects of a mask: by hand, and against a flood fill that visits pixel by pixel."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest

from fsdino.errors import UsageError
from fsdino.models.instances import Instance, find_instances

Flags = npt.NDArray[np.bool_]


def found(mask: Flags, **options: object) -> list[Instance]:
    return find_instances(mask, mask.astype(np.float32), "cat", **options)


def disks(size: int, *places: tuple[int, int, int]) -> Flags:
    """bool [size, size]: disks by centre (x, y) and radius."""
    y, x = np.mgrid[:size, :size]
    mask = np.zeros((size, size), np.bool_)
    for x0, y0, radius in places:
        mask |= (x - x0) ** 2 + (y - y0) ** 2 <= radius**2
    return mask


def flooded(mask: Flags) -> set[frozenset[tuple[int, int]]]:
    """The regions that touch along edges or corners, as sets of pixels."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = set()
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            region.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
        regions.add(frozenset(region))
    return regions


def test_objects_by_hand() -> None:
    """Pixels that touch at a corner are one object; boxes end just outside; top to bottom."""
    mask = np.array([[0, 0, 0, 1, 1], [1, 0, 0, 0, 0], [0, 1, 0, 0, 1]], bool)
    probability = np.array(
        [[0, 0, 0, 0.5, 0.75], [1, 0, 0, 0, 0], [0, 0.5, 0, 0, 0.625]], np.float32
    )
    objects = find_instances(mask, probability, "cat")
    assert [(o.box, o.area, o.score) for o in objects] == [
        ((3, 0, 5, 1), 2, 0.625),
        ((0, 1, 2, 3), 2, 0.75),
        ((4, 2, 5, 3), 1, 0.625),
    ]
    assert {(o.name, o.size) for o in objects} == {("cat", (3, 5))}
    np.testing.assert_array_equal(objects[1].crop, [[True, False], [False, True]])
    expected = np.zeros((3, 5), bool)
    expected[1, 0] = expected[2, 1] = True
    np.testing.assert_array_equal(objects[1].mask, expected)
    assert [o.area for o in find_instances(mask, probability, "cat", min_area=2)] == [2, 2]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_connected_objects_are_those_of_a_flood_fill(seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((37, 23)) < share
    objects = found(mask)
    pixels = [frozenset((int(y), int(x)) for y, x in np.argwhere(o.mask)) for o in objects]
    assert len(pixels) == len(set(pixels))
    assert set(pixels) == flooded(mask)
    for o, own in zip(objects, pixels, strict=True):
        rows, columns = zip(*own, strict=True)
        assert o.box == (min(columns), min(rows), max(columns) + 1, max(rows) + 1)
        assert o.area == len(own) == o.crop.sum()
        assert o.crop.shape == (o.box[3] - o.box[1], o.box[2] - o.box[0])


@pytest.mark.parametrize("split", ["connected", "watershed"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (6, 7)])
def test_an_empty_and_a_full_mask(split: str, shape: tuple[int, int]) -> None:
    assert found(np.zeros(shape, bool), split=split) == []
    (whole,) = found(np.ones(shape, bool), split=split)
    assert (whole.box, whole.score) == ((0, 0, shape[1], shape[0]), 1)
    assert whole.mask.all()


def test_a_watershed_cuts_touching_disks_at_the_neck() -> None:
    """Each disk keeps its pixels, but for those near the neck, also where they differ in size."""
    places = ((40, 40, 25), (77, 40, 14), (40, 90, 27))
    mask = disks(130, *places)
    assert len(found(mask)) == 1
    objects = found(mask, split="watershed")
    assert len(objects) == 3
    np.testing.assert_array_equal(sum(o.mask.astype(int) for o in objects), mask)
    for place in places:
        disk = disks(130, place)
        best = max(objects, key=lambda o: (o.mask & disk).sum())
        assert (best.mask & disk).sum() / (best.mask | disk).sum() > 0.95


@pytest.mark.parametrize(
    "mask",
    [
        disks(60, (30, 30, 22)),
        disks(60, (27, 30, 20), (33, 30, 20)),  # a shallow waist
        np.pad(np.ones((9, 50), bool), 5),  # one ridge with equal maxima
        np.pad(np.eye(40, dtype=bool), 3),
        np.pad(np.ones((30, 30), bool), 1) & (np.random.default_rng(0).random((32, 32)) < 0.98),
    ],
)
def test_a_watershed_leaves_one_object_whole(mask: Flags) -> None:
    """But for the last, a square with pinholes, it has no necks; that one keeps all pixels."""
    objects = found(mask, split="watershed")
    np.testing.assert_array_equal(sum(o.mask.astype(int) for o in objects), mask)
    assert len(objects) == 1 or (mask.shape == (32, 32) and len(objects) < 12)


@pytest.mark.parametrize("seed", range(6))
def test_a_watershed_only_splits(seed: int) -> None:
    """On noise its objects share no pixel, miss none, and each touches itself."""
    mask = np.random.default_rng(seed).random((41, 50)) < 0.7
    objects = found(mask, split="watershed")
    np.testing.assert_array_equal(sum(o.mask.astype(int) for o in objects), mask)
    assert all(len(flooded(o.mask)) == 1 for o in objects)


@pytest.mark.parametrize("split", ["connected", "watershed"])
def test_very_many_objects_take_seconds(split: str) -> None:
    """250,000 in 4 megapixels. Object by object over the image it would be hours."""
    mask = np.zeros((2000, 2000), bool)
    mask[::4, ::4] = True
    began = time.monotonic()
    objects = found(mask, split=split)
    assert (len(objects), sum(o.area for o in objects)) == (250_000, 250_000)
    assert time.monotonic() - began < 60


def test_objects_that_are_not_kept_hold_no_memory() -> None:
    """The runs of an object are a copy, not a part of those of all objects."""
    (large,) = found(np.pad(np.ones((5, 5), bool), ((0, 0), (0, 3))), min_area=2)
    assert large.runs.base is None


def test_wrong_settings_are_refused() -> None:
    mask = np.ones((2, 2), bool)
    with pytest.raises(UsageError, match="split 'sam' is unknown: choose from connected, wat"):
        found(mask, split="sam")
    with pytest.raises(UsageError, match="min_area must be at least 1 pixel, got 0"):
        found(mask, min_area=0)
