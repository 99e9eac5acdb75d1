"""COCO's masks drawn from its annotations: which pixels, in which order, and only once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_sets import HEIGHT, WIDTH, instances, rectangle
from fsdino.data import coco_masks
from fsdino.data.coco_masks import RASTERISED_FILE, Annotations, rasterise
from fsdino.errors import DataError, UsageError


def write(folder: Path, images: dict[int, list[tuple[int, object, float]]]) -> Path:
    file = folder / "instances_val2014.json"
    file.write_text(json.dumps(instances(images, "val2014")))
    return file


def stem(number: int) -> str:
    return f"COCO_val2014_{number:012d}"


def drawn(folder: Path, annotations: list[tuple[int, object, float]]) -> np.ndarray:
    rasterise(write(folder, {5: annotations}), [stem(5)], folder / "masks")
    with Image.open(folder / "masks" / f"{stem(5)}.png") as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_a_pixel_is_the_contiguous_class_plus_one(tmp_path: Path) -> None:
    """COCO's ids have gaps (80 classes, ids to 90); masks of the field count without them."""
    labels = drawn(
        tmp_path, [(0, rectangle(2, 3, 10, 20), 0.0), (79, rectangle(30, 40, 64, 72), 0.0)]
    )
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[2:10, 3:20] = 1
    expected[30:64, 40:72] = 80
    assert np.array_equal(labels, expected)


def test_later_annotations_lie_over_earlier_ones_crowds_included(tmp_path: Path) -> None:
    """The order decides whose pixel it is; run lengths go down the columns, from background."""
    crowd = {"size": [HEIGHT, WIDTH], "counts": [5 * HEIGHT, 4 * HEIGHT, (WIDTH - 9) * HEIGHT]}
    labels = drawn(
        tmp_path,
        [(10, rectangle(0, 0, 20, 72), 0.0), (40, crowd, 0.0), (3, rectangle(0, 6, 5, 30), 0.0)],
    )
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[0:20] = 11
    expected[:, 5:9] = 41
    expected[0:5, 6:30] = 4
    assert np.array_equal(labels, expected)


def test_one_object_of_several_polygons_and_degenerate_ones(tmp_path: Path) -> None:
    """An object behind a post has two outlines; two points are no outline (nor a box)."""
    outlines = [*rectangle(0, 0, 8, 8), *rectangle(0, 20, 8, 28), [40, 40, 60, 60]]
    labels = drawn(tmp_path, [(1, outlines, 0.0), (2, [[1, 1, 9, 9]], 0.0)])
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[0:8, 0:8] = expected[0:8, 20:28] = 2
    assert np.array_equal(labels, expected)


def test_an_image_without_annotations_is_background(tmp_path: Path) -> None:
    """COCO has images that show none of the 80 classes."""
    assert not drawn(tmp_path, []).any()


def test_a_cache_is_filled_up_and_not_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing 120,000 masks is interrupted sooner or later."""
    images = {n: [(n, rectangle(0, 0, 9, 9), 81.0)] for n in range(1, 6)}
    file, masks = write(tmp_path, images), tmp_path / "masks"
    calls = []

    def interrupt(done: int, total: int) -> None:
        calls.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rasterise(file, [stem(n) for n in images], masks, interrupt)
    assert calls == [(1, 5), (2, 5)]
    assert sorted(path.name for path in masks.iterdir()) == [
        f"{stem(1)}.png", f"{stem(2)}.png", RASTERISED_FILE,
    ]  # fmt: skip
    before = (masks / f"{stem(1)}.png").stat().st_mtime_ns
    assert rasterise(file, [stem(n) for n in images], masks) == 3
    assert (masks / f"{stem(1)}.png").stat().st_mtime_ns == before
    monkeypatch.setattr(coco_masks, "Annotations", None)  # a full cache parses no JSON
    assert rasterise(file, [stem(n) for n in images], masks) == 0


def test_pycocotools_missing_is_one_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most installations lack it until COCO is read."""
    file = write(tmp_path, {1: []})
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UsageError, match=r'pycocotools: pip install "fsdino\[train\]"'):
        rasterise(file, [stem(1)], tmp_path / "masks")
    assert not (tmp_path / "masks").exists()


def test_damaged_annotations_are_named(tmp_path: Path) -> None:
    """A JSON file that ended early, other classes, an image or outline that is not there."""
    file = write(tmp_path, {1: [(0, {"size": [3, 3], "counts": "?"}, 0.0)]})
    with pytest.raises(DataError, match=r"annotation 100 is damaged"):
        Annotations(file).labels(stem(1))
    with pytest.raises(DataError, match="knows no image COCO_val2014_000000000009"):
        Annotations(file).labels(stem(9))
    file.write_text(file.read_text()[:-9])
    with pytest.raises(DataError, match=r"instances_val2014\.json: damaged"):
        Annotations(file)
    file.write_text('{"images": [], "annotations": [], "categories": [{"id": 1}]}')
    with pytest.raises(DataError, match="1 classes, COCO has 80"):
        Annotations(file)
    with pytest.raises(UsageError, match=r"no such file.*annotations_trainval2014"):
        Annotations(tmp_path / "nothing.json")
