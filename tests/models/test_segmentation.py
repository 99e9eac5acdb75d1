"""Masks and labels of one answer, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsdino.models import segmentation
from fsdino.models.segmentation import Segmentation
from tiny_models import picture


def two_classes(*scores: float) -> Segmentation:
    """Two maps of 2 x 2 pixels."""
    probabilities = np.array([[[0.9, 0.2], [0.6, 0.5]], [[0.8, 0.3], [0.7, 0.1]]], np.float32)
    return Segmentation(picture(2, 2), probabilities, ("cat", "dog"), 0.5, scores)


def test_segmentation_by_hand() -> None:
    """The class of the highest probability where that passes the threshold, else background."""
    result = two_classes(0.9, 0.8)
    np.testing.assert_array_equal(result.probability, np.float32([[0.9, 0.3], [0.7, 0.5]]))
    np.testing.assert_array_equal(result.mask, [[True, False], [True, True]])
    np.testing.assert_array_equal(result.labels, [[1, 0], [2, 1]])
    assert result.mask.dtype == np.bool_
    assert result.probability.dtype == np.float32


@pytest.mark.parametrize(
    ("scores", "found", "mask", "labels"),
    [
        ((0.1, 0.7), (True, True), [[1, 0], [1, 1]], [[1, 0], [2, 1]]),
        ((0.09, 0.7), (False, True), [[1, 0], [1, 0]], [[2, 0], [2, 0]]),
        ((0.7, 0.0), (True, False), [[1, 0], [1, 1]], [[1, 0], [1, 1]]),
        ((0.0, 0.0), (False, False), [[0, 0], [0, 0]], [[0, 0], [0, 0]]),
    ],
)
def test_a_class_that_is_not_found_has_no_pixel(
    scores: tuple[float, float], found: tuple[bool, bool], mask: list[Any], labels: list[Any]
) -> None:
    """Below 0.1; another class may take its pixels, and the probability stays as it is."""
    result = two_classes(*scores)
    assert (result.scores, result.score) == (scores, max(scores))
    assert (result.founds, result.found) == (found, any(found))
    np.testing.assert_array_equal(result.mask, np.array(mask, bool))
    np.testing.assert_array_equal(result.labels, labels)
    np.testing.assert_array_equal(result.probability, np.float32([[0.9, 0.3], [0.7, 0.5]]))


@pytest.mark.parametrize("names", [1, 3, 300])
def test_compact_labels(names: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as over all pixels at once, band by band, in as few bytes as the labels need."""
    monkeypatch.setattr(segmentation, "_BAND", 20)
    random = np.random.default_rng(0)
    maps = random.random((names, 7, 9), dtype=np.float32)
    result = Segmentation(picture(7, 9), maps, tuple(map(str, range(names))), 0.7, (1.0,) * names)
    expected = np.where(maps.max(0) >= 0.7, maps.argmax(0) + 1, 0)
    assert np.array_equal(result.labels, expected)
    assert np.array_equal(result.compact_labels(), expected)
    assert result.compact_labels().itemsize == (1 if names < 256 else 2)


def test_overlay_is_a_picture_of_the_querys_size() -> None:
    """Background pixels stay as they were; one class has no legend."""
    both = two_classes(0.9, 0.8)
    overlay = Segmentation(both.image, both.probabilities[:1], ("cat",), 0.55, (0.9,)).overlay()
    assert isinstance(overlay, Image.Image)
    assert overlay.size == (2, 2)
    assert tuple(np.asarray(overlay)[0, 1]) == tuple(picture(2, 2)[0, 1])
    assert tuple(np.asarray(overlay)[0, 0]) != tuple(picture(2, 2)[0, 0])


def test_instances_are_those_of_the_labels() -> None:
    """Class by class, of the classes that were found; a pixel is in one object at most."""
    result = two_classes(0.9, 0.8)
    objects = [(o.name, o.box, o.area, round(o.score, 6)) for o in result.instances()]
    assert objects == [("cat", (0, 0, 2, 2), 2, 0.7), ("dog", (0, 1, 1, 2), 1, 0.7)]
    assert [o.name for o in two_classes(0.0, 0.8).instances()] == ["dog"]
    assert [o.area for o in result.instances(split="watershed", min_area=2)] == [2]
