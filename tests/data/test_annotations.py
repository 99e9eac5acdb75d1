"""Polygons as pixels, and the files of annotation tools."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsdino.data.annotations import fill, read_shapes, read_yolo, yolo_names
from fsdino.errors import DataError

SIZE = (8, 10)


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def corners(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def test_a_polygon_has_the_pixels_whose_centre_is_inside() -> None:
    """By hand: boxes on and between pixels' borders, outside of the image, a hole, a triangle."""
    assert np.array_equal(fill(np.array(corners(2, 1, 6, 5)), SIZE), box(2, 1, 6, 5))
    assert np.array_equal(fill(np.array(corners(2.4, 1.4, 5.6, 4.6)), SIZE), box(2, 1, 6, 5))
    assert np.array_equal(fill(np.array(corners(2.6, 1.6, 5.4, 4.4)), SIZE), box(3, 2, 5, 4))
    assert np.array_equal(fill(np.array(corners(-5, -5, 3, 99)), SIZE), box(0, 0, 3, 8))
    hole = np.array([*corners(0, 0, 6, 6), [0, 0], *corners(2, 2, 4, 4), [2, 2]])
    assert np.array_equal(fill(hole, SIZE), box(0, 0, 6, 6) & ~box(2, 2, 4, 4))
    triangle = fill(np.array([[0, 0], [8, 0], [0, 8]]), SIZE)
    rows, columns = np.indices(SIZE)
    assert np.array_equal(triangle, rows + columns + 1 < 8)


def test_polygons_as_pycocotools_draws_them() -> None:
    """Up to the pixels on the outline, where COCO's code rounds in its own way."""
    api = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(0)
    turns = np.sort(random.uniform(0, 2 * np.pi, 30))
    radius = random.uniform(30, 60, 30)
    points = np.stack([80 + radius * np.cos(turns), 70 + radius * np.sin(turns)], 1)
    other = api.decode(api.merge(api.frPyObjects([points.ravel().tolist()], 140, 160))) > 0
    own = fill(points, (140, 160))
    assert (own & other).sum() / (own | other).sum() > 0.97


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "a.png"
    Image.new("RGB", SIZE[::-1]).save(path)
    return path


def read(root: Path, data: Any, pictures: list[Path]) -> dict[str, np.ndarray]:
    (root / "x.json").write_text(json.dumps(data), encoding="utf-8")
    found = read_shapes(root / "x.json", pictures, root)
    assert found is not None
    return {shape.label: shape.draw(SIZE) for shape in found[1]}


def png(mask: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(mask).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def test_labelme(picture: Path, tmp_path: Path) -> None:
    """Polygons, rectangles from any corner, circles and masks; the path as Windows writes it."""
    shapes = [
        {"label": "polygon", "points": corners(2, 1, 6, 5), "shape_type": "polygon"},
        {"label": "rectangle", "points": [[6, 5], [2, 1]], "shape_type": "rectangle"},
        {"label": "circle", "points": [[5, 4], [5, 6.2]], "shape_type": "circle"},
        {
            "label": "mask",
            "points": [[2, 1], [4, 3]],
            "shape_type": "mask",
            "mask": png(np.ones((2, 2), bool)),
        },
    ]
    data = {"imagePath": "..\\images\\a.png", "imageHeight": 8, "imageWidth": 10, "shapes": shapes}
    found = read(tmp_path, data, [picture])
    assert np.array_equal(found["polygon"], box(2, 1, 6, 5))
    assert np.array_equal(found["rectangle"], box(2, 1, 6, 5))
    assert np.array_equal(found["mask"], box(2, 1, 4, 3))
    rows, columns = np.indices(SIZE) + 0.5
    assert np.array_equal(found["circle"], np.hypot(rows - 4, columns - 5) < 2.2)


def test_labelme_oriented_rectangle(picture: Path, tmp_path: Path) -> None:
    """As LabelMe 6.3.1 saves one: four corners, which need not be upright."""
    shape = {
        "label": "tilted", "points": [[5.0, 0.5], [8.5, 4.0], [5.0, 7.5], [1.5, 4.0]],
        "group_id": None, "description": "", "shape_type": "oriented_rectangle", "flags": {},
        "mask": None,
    }  # fmt: skip
    data = {
        "version": "6.3.1", "flags": {}, "shapes": [shape], "imagePath": "images/a.png",
        "imageData": None, "imageHeight": 8, "imageWidth": 10,
    }  # fmt: skip
    rows, columns = np.indices(SIZE) + 0.5
    expected = np.abs(rows - 4) + np.abs(columns - 5) < 3.5
    assert np.array_equal(read(tmp_path, data, [picture])["tilted"], expected)


def coco(segmentation: Any, **changes: Any) -> dict[str, Any]:
    image = {"id": 7, "file_name": "a.png", "height": 8, "width": 10}
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "segmentation": segmentation}
    return {
        "images": [{**image, **changes}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [annotation],
    }


def test_coco(picture: Path, tmp_path: Path) -> None:
    """Several polygons, and run lengths down the columns, as a list and as text."""
    two = [np.ravel(corners(*c)).tolist() for c in ((2, 1, 6, 5), (7, 0, 9, 2))]
    expected = box(2, 1, 6, 5) | box(7, 0, 9, 2)
    assert np.array_equal(read(tmp_path, coco(two), [picture])["cat"], expected)
    counts = [16 + 1, 4, 4, 4, 4, 4, 4, 4, 8 * 10 - 45]
    runs = {"size": [8, 10], "counts": counts}
    assert np.array_equal(read(tmp_path, coco(runs), [picture])["cat"], box(2, 1, 6, 5))
    api = pytest.importorskip("pycocotools.mask")
    text = api.encode(np.asfortranarray(box(2, 1, 6, 5).astype(np.uint8)))["counts"].decode()
    runs = {"size": [8, 10], "counts": text}
    assert np.array_equal(read(tmp_path, coco(runs), [picture])["cat"], box(2, 1, 6, 5))


def test_yolo(picture: Path, tmp_path: Path) -> None:
    """Shares of the image's own size; names from a list, an object, or a text file."""
    file = tmp_path / "a.txt"
    file.write_text("1 0.2 0.125 0.6 0.125 0.6 0.625 0.2 0.625\n\n", encoding="utf-8")
    [shape] = read_yolo(file, picture, {1: "cat"})
    assert shape.label == "cat" and np.array_equal(shape.draw(SIZE), box(2, 1, 6, 5))
    assert read_yolo(file, picture, {})[0].label == "1"
    assert yolo_names([tmp_path]) == {}
    (tmp_path / "classes.txt").write_text("dog\ncat\n", encoding="utf-8")
    assert yolo_names([tmp_path / "none", tmp_path]) == {0: "dog", 1: "cat"}
    for names in ("[dog, cat]", "{0: dog, 1: cat}"):
        (tmp_path / "data.yaml").write_text(f"path: x\nnames: {names}\n", encoding="utf-8")
        assert yolo_names([tmp_path]) == {0: "dog", 1: "cat"}
    (tmp_path / "data.yaml").write_text("nc: 2\n", encoding="utf-8")
    with pytest.raises(DataError, match="no names of classes"):
        yolo_names([tmp_path])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.2 0.2", ": line 1 has a box and no outline: export polygons"),
        ("0 0.5 0.5 0.2", "not a class and a polygon"),
        ("0 1 1 8 8 1 8", "outside of"),
        ("cat 0 0 1 1 0 1", "damaged"),
        ("0 0 0 1 nan 0 1", "not pairs of numbers"),
    ],
)
def test_yolo_that_is_something_else(line: str, words: str, picture: Path, tmp_path: Path) -> None:
    """Boxes have as many numbers as no polygon; all errors name the file."""
    (tmp_path / "a.txt").write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=rf"a\.txt.*{words}"):
        read_yolo(tmp_path / "a.txt", picture, {})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"imagePath": "b.png", "shapes": []}, "names the image 'b.png', which is not in"),
        ({"imagePath": "a.png", "shapes": [{"label": "x"}]}, "no 'points'"),
        (
            {
                "imagePath": "a.png",
                "shapes": [{"label": "x", "points": [[0, 0], [1, 1]], "shape_type": "line"}],
            },
            "a 'line' of 2 points, which has no area; draw a polygon",
        ),
        ({"imagePath": "a.png", "shapes": [{"label": "x", "points": [[0, "a"]]}]}, "damaged"),
        (coco([]), ": annotation 1 has a box and no outline: export polygons or masks, or pass"),
        (coco("polygon"), "neither polygons nor run lengths"),
        (coco([[0, 0, 1]]), "damaged"),
        (coco([[0, 0, 1, 1, 1, 0]], file_name="b.png"), "names the image 'b.png'"),
        (coco([[0, 0, 1, 1, 1, 0]], id=8), "image_id or a category_id that the file lacks"),
        (coco([[0, 0, 1, 1, 1e9, 0]]), "far outside any image"),
    ],
)
def test_damaged_files_are_named(data: Any, words: str, picture: Path, tmp_path: Path) -> None:
    """With what is wrong in them."""
    with pytest.raises(DataError, match=rf"x\.json.*{words}"):
        read(tmp_path, data, [picture])


def test_other_json_is_left_alone(tmp_path: Path) -> None:
    """Settings of a tool are no annotations."""
    for text in ("[1, 2]", '{"version": 1}', '{"images": 3}'):
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        assert read_shapes(tmp_path / "x.json", [], tmp_path) is None
