"""Marks become masks: of drawn pictures whose object is known, by models of any encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fsdino
from fsdino.models.segmenter import Segmenter
from tiny_models import tiny_model


@pytest.fixture(scope="module")
def photo() -> Segmenter:
    return fsdino.load()


def disc() -> tuple[np.ndarray, np.ndarray]:
    """A red disc on a green ground with a little noise, and where it is."""
    rows, columns = np.mgrid[:160, :200]
    inside = (rows - 70) ** 2 + (columns - 90) ** 2 < 45**2
    image = np.where(inside[..., None], (190, 50, 40), (60, 130, 70))
    noise = np.random.default_rng(0).integers(-15, 16, image.shape)
    return (image + noise).astype(np.uint8), inside


def iou(found: np.ndarray, true: np.ndarray) -> float:
    return float((found & true).sum() / (found | true).sum())


MARKS: dict[str, dict[str, Any]] = {
    "box": {"boxes": (45, 25, 136, 116)},
    "points": {"points": [(90, 70), (10, 10)], "labels": [1, 0]},
    "scribble": {"scribbles": np.zeros((160, 200), np.uint8)},
}
MARKS["scribble"]["scribbles"][70, 70:110] = 1
MARKS["scribble"]["scribbles"][150, 20:180] = 2


@pytest.mark.parametrize("kind", ["box"])
def test_a_mark_becomes_the_mask_of_the_object(photo: Segmenter, kind: str) -> None:
    image, inside = disc()
    found = photo.mark(image, **MARKS[kind])
    assert found.dtype == np.bool_ and found.shape == inside.shape
    assert iou(found, inside) > 0.9
    support = photo.encode_support(image, **MARKS[kind])
    assert support.same_as(photo.encode_support(image, found))


@pytest.mark.parametrize("kind", MARKS)
def test_models_with_a_vit_take_marks_too(kind: str) -> None:
    image, inside = disc()
    found = tiny_model().mark(image, **MARKS[kind])
    assert found.shape == inside.shape and found.any()
