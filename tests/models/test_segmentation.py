"""Masks and labels of one answer, by hand."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsdino.errors import UsageError
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


def test_repr_is_a_line() -> None:
    """What was found, and where nothing was; many classes and strange names stay one line."""
    shown = repr(two_classes(0.93, 0.05))
    assert shown == (
        "Segmentation(2x2, cat: found, score 0.93, 75.0 % of the image; dog: not found, score 0.05)"
    )
    maps = np.ones((5, 1, 3), np.float32)
    many = Segmentation(picture(1, 3), maps, ("a\nb", "b", "c", "d", "e"), 0.5, (0.5,) * 5)
    assert "\n" not in repr(many)
    assert repr(many).startswith("Segmentation(1x3, 'a\\nb': found, score 0.50, 100.0 %")
    assert repr(many).endswith("; 2 more)")


def test_numpy_takes_it_as_its_mask() -> None:
    """By `asarray` and `array`, of any type; without a copy there is none."""
    result = two_classes(0.9, 0.8)
    assert np.asarray(result).dtype == np.bool_
    np.testing.assert_array_equal(np.asarray(result), result.mask)
    np.testing.assert_array_equal(np.array(result, np.float32), [[1, 0], [1, 1]])
    np.testing.assert_array_equal(result.__array__(np.dtype(np.uint8), copy=True), [[1, 0], [1, 1]])
    with pytest.raises(ValueError, match="copy"):
        result.__array__(copy=False)


def test_equality_is_identity_and_content_is_asked_for() -> None:
    """So that results can be in sets and compared without an error about arrays."""
    one, other = two_classes(0.9, 0.8), two_classes(0.9, 0.8)
    assert one == one and one != other and len({one, other}) == 2
    assert one.same_as(other)
    assert not one.same_as(two_classes(0.9, 0.7))
    assert not one.same_as(replace(other, names=("cat", "cow")))
    assert not one.same_as(replace(other, threshold=0.4))
    assert not one.same_as(replace(other, probabilities=other.probabilities / 2))
    assert not one.same_as(replace(other, image=255 - other.image))
    assert not one.same_as("cat")


def test_a_notebook_shows_the_overlay() -> None:
    """As it is where it is small, and smaller where it is not."""
    result = two_classes(0.9, 0.8)
    with Image.open(io.BytesIO(result._repr_png_())) as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(result.overlay()))
    maps = np.zeros((1, 30, 2048), np.float32)
    wide = Segmentation(picture(30, 2048), maps, ("cat",), 0.5, (0.9,))
    with Image.open(io.BytesIO(wide._repr_png_())) as shown:
        assert shown.size == (1024, 15)


def test_save(tmp_path: Path) -> None:
    """Labels in a palette, the overlay, and the numbers."""
    result = two_classes(0.9, 0.8)
    files = result.save(tmp_path / "new" / "out")
    assert [file.name for file in files] == ["mask.png", "overlay.jpg", "result.json"]
    assert sorted(files[0].parent.iterdir()) == sorted(files)
    with Image.open(files[0]) as mask, Image.open(files[1]) as drawn:
        assert mask.mode == "P" and drawn.size == (2, 2)
        np.testing.assert_array_equal(np.asarray(mask), result.labels)
    assert json.loads(files[2].read_text("utf-8")) == {
        "height": 2,
        "width": 2,
        "threshold": 0.5,
        "mask": "mask.png",
        "overlay": "overlay.jpg",
        "classes": [
            {"name": "cat", "label": 1, "score": 0.9, "found": True, "foreground": 0.5},
            {"name": "dog", "label": 2, "score": 0.8, "found": True, "foreground": 0.25},
        ],
    }


def test_save_of_one_class(tmp_path: Path) -> None:
    """0 and 255, again over what is there."""
    maps = np.float32([[[0.9, 0.1]]])
    result = Segmentation(picture(1, 2), maps, ("foreground",), 0.5, (0.9,))
    result.save(str(tmp_path))
    result.save(str(tmp_path))
    with Image.open(tmp_path / "mask.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), [[255, 0]])


def test_save_refuses(tmp_path: Path) -> None:
    """More classes than labels, and a file where the folder should be."""
    maps = np.zeros((256, 1, 1), np.float32)
    many = Segmentation(picture(1, 1), maps, tuple(map(str, range(256))), 0.5, (1.0,) * 256)
    with pytest.raises(UsageError, match="256 classes: at most 255"):
        many.save(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="save the result elsewhere"):
        two_classes(0.9, 0.8).save(tmp_path / "file")


def test_instances_are_those_of_the_labels() -> None:
    """Class by class, of the classes that were found; a pixel is in one object at most."""
    result = two_classes(0.9, 0.8)
    objects = [(o.name, o.box, o.area, round(o.score, 6)) for o in result.instances()]
    assert objects == [("cat", (0, 0, 2, 2), 2, 0.7), ("dog", (0, 1, 1, 2), 1, 0.7)]
    assert [o.name for o in two_classes(0.0, 0.8).instances()] == ["dog"]
    assert [o.area for o in result.instances(split="watershed", min_area=2)] == [2]
