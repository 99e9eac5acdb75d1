"""Formats of other tools, as pycocotools reads them or by hand."""

from __future__ import annotations

import json
import sys
import types
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from fsdino.errors import UsageError
from fsdino.models import exports
from fsdino.models.instances import find_instances
from fsdino.models.segmentation import Segmentation
from tiny_models import picture


def answer(labels: Any, names: tuple[str, ...], score: float = 0.75) -> Segmentation:
    """The answer whose labels are these; every pixel of a class has one probability."""
    labels = np.array(labels)
    maps = np.stack([np.where(labels == i, score, 0) for i in range(1, len(names) + 1)])
    picked = picture(*labels.shape)
    return Segmentation(picked, maps.astype(np.float32), names, 0.5, (1.0,) * len(names))


@pytest.fixture
def squares() -> Segmentation:
    """A cat with a hole, a dog of one pixel, and a cat that touches the first at a corner."""
    labels = np.zeros((8, 10), int)
    labels[1:6, 1:6] = 1
    labels[3, 3] = 0
    labels[6, 6] = 1
    labels[0, 9] = 2
    return answer(labels, ("cat", "dog"))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98, 1.0])
def test_coco_masks_are_those_of_pycocotools(seed: int, share: float) -> None:
    """The same text for the same pixels, and so read back pixel by pixel."""
    random = np.random.default_rng(seed)
    mask = random.random((int(random.integers(1, 60)), int(random.integers(1, 60)))) < share
    mask[-1, -1] = mask[0, 0] = True
    result = answer(mask.astype(int), ("cat",))
    whole = np.zeros(mask.shape, int)
    for part, instance in zip(result.to_coco(1), result.instances(), strict=True):
        expected = coco.encode(np.asfortranarray(instance.mask, np.uint8))
        assert part["segmentation"]["counts"] == expected["counts"].decode()
        assert part["segmentation"]["size"] == expected["size"]
        assert part["area"] == coco.area(expected)
        assert part["bbox"] == coco.toBbox(expected).tolist()
        whole += coco.decode(part["segmentation"])
    np.testing.assert_array_equal(whole, mask)


def test_coco_annotations_by_hand(squares: Segmentation) -> None:
    """Ids by class name; only plain data."""
    found = squares.to_coco(7, {"dog": 18, "cat": 17, "cow": 21}, first_id=5)
    assert json.loads(json.dumps(found)) == found
    assert [{k: v for k, v in part.items() if k != "segmentation"} for part in found] == [
        {
            "id": 5, "image_id": 7, "category_id": 17, "area": 25, "bbox": [1, 1, 6, 6],
            "iscrowd": 0, "score": 0.75,
        },
        {
            "id": 6, "image_id": 7, "category_id": 18, "area": 1, "bbox": [9, 0, 1, 1],
            "iscrowd": 0, "score": 0.75,
        },
    ]  # fmt: skip
    assert [part["category_id"] for part in squares.to_coco(7)] == [1, 2]
    with pytest.raises(UsageError, match=r"class 'dog' is not among categories \(cat\): add it"):
        squares.to_coco(7, {"cat": 1})


def test_yolo_by_hand(squares: Segmentation) -> None:
    """A pixel has four corners, of 10 x 8 pixels; numbers of classes are their places."""
    cat, dog = squares.to_yolo().splitlines()
    assert dog == "1 0.900000 0.000000 1.000000 0.000000 1.000000 0.125000 0.900000 0.125000"
    assert cat.split()[0] == "0"
    points = np.array(cat.split()[1:], float).reshape(-1, 2) * (10, 8)
    part = coco.frPyObjects([(points - 1e-9).clip(0).ravel().tolist()], 8, 10)
    np.testing.assert_array_equal(coco.decode(part)[:, :, 0] > 0, squares.instances()[0].mask)
    assert squares.to_yolo(["dog", "cow", "cat"]).splitlines()[0][:2] == "2 "
    assert squares.to_yolo(min_area=2).splitlines() == [cat]
    with pytest.raises(UsageError, match=r"class 'cat' is not among classes \(dog\): add it"):
        squares.to_yolo(["dog"])


def test_labelme_by_hand(squares: Segmentation) -> None:
    found = squares.to_labelme("../photos/a.jpg", min_area=1)
    assert json.loads(json.dumps(found)) == found
    assert {k: v for k, v in found.items() if k != "shapes"} == {
        "version": "5.5.0", "flags": {}, "imagePath": "../photos/a.jpg", "imageData": None,
        "imageHeight": 8, "imageWidth": 10,
    }  # fmt: skip
    assert [shape["label"] for shape in found["shapes"]] == ["cat", "dog"]
    assert found["shapes"][1] == {
        "label": "dog", "points": [[9, 0], [10, 0], [10, 1], [9, 1]], "shape_type": "polygon",
        "group_id": None, "description": "", "flags": {}, "mask": None,
    }  # fmt: skip


def test_label_studio_by_hand(squares: Segmentation) -> None:
    found = squares.to_label_studio("/data/a.jpg", to_name="photo", min_area=1)
    assert json.loads(json.dumps(found)) == found
    assert found["data"] == {"photo": "/data/a.jpg"}
    (prediction,) = found["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("fsdino", 0.75)
    assert prediction["result"][1] == {
        "id": "object-2", "type": "polygonlabels", "from_name": "label", "to_name": "photo",
        "original_width": 10, "original_height": 8, "image_rotation": 0, "score": 0.75,
        "value": {
            "points": [[90, 0], [100, 0], [100, 12.5], [90, 12.5]], "closed": True,
            "polygonlabels": ["dog"],
        },
    }  # fmt: skip


class Detections:
    """What supervision.Detections is given."""

    def __init__(self, **parts: Any) -> None:
        self.__dict__ |= parts


def test_supervision(squares: Segmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of the shapes that it checks, also for no object."""
    stub = types.ModuleType("supervision")
    stub.Detections = Detections  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", stub)
    found: Any = squares.to_supervision()
    np.testing.assert_array_equal(found.xyxy, [[1, 1, 7, 7], [9, 0, 10, 1]])
    np.testing.assert_array_equal(found.mask, [i.mask for i in squares.instances()])
    assert found.confidence.tolist() == [0.75, 0.75]
    assert found.class_id.tolist() == [0, 1]
    assert found.data["class_name"].tolist() == ["cat", "dog"]
    nothing: Any = squares.to_supervision(min_area=100)
    assert nothing.xyxy.shape == (0, 4) and nothing.mask.shape == (0, 8, 10)
    assert nothing.confidence.shape == nothing.class_id.shape == (0,)
    monkeypatch.setattr(exports, "_MOST_MASKS", 159)
    with pytest.raises(UsageError, match=r"2 masks of 8 x 10 pixels are too many .* min_area"):
        squares.to_supervision()


def test_supervision_missing(squares: Segmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UsageError, match="package supervision: pip install supervision"):
        squares.to_supervision()


def test_no_object_at_all() -> None:
    nothing = answer(np.zeros((4, 5)), ("cat",))
    assert (nothing.to_coco(1), nothing.to_yolo()) == ([], "")
    assert nothing.to_labelme("a.jpg")["shapes"] == []
    assert nothing.to_label_studio("a.jpg")["predictions"][0]["result"] == []


def test_settings_reach_the_objects(squares: Segmentation) -> None:
    """Every format has those of `instances`."""
    bad: Any = "sam"
    for write in (
        lambda: squares.to_coco(1, split=bad),
        lambda: squares.to_yolo(split=bad),
        lambda: squares.to_labelme(split=bad),
        lambda: squares.to_label_studio("a.jpg", split=bad),
        lambda: squares.to_supervision(split=bad),
    ):
        with pytest.raises(UsageError, match="split 'sam' is unknown"):
            write()


def test_polygons_of_objects_lie_where_the_objects_are() -> None:
    """In coordinates of the image, not of the object's box."""
    mask = np.zeros((50, 60), bool)
    mask[20:30, 33:45] = True
    (instance,) = find_instances(mask, mask.astype(np.float32), "cat")
    assert exports.outline(instance).tolist() == [[33, 20], [45, 20], [45, 30], [33, 30]]
