"""A COCO file as pycocotools reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

import fsdino
from fsdino.errors import UsageError
from fsdino.models.segmentation import Segmentation
from tiny_models import picture


def answer(height: int, width: int, seed: int, *names: str) -> Segmentation:
    maps = np.random.default_rng(seed).random((len(names), height, width), dtype=np.float32)
    return Segmentation(picture(height, width), maps, names, 0.6, (1.0,) * len(names))


def test_pycocotools_reads_the_file(tmp_path: Path) -> None:
    """All its tables, and each class's pixels, of images with different classes."""
    results = {
        "a.jpg": answer(20, 30, 0, "cat", "dog"),
        "x/b.png": answer(31, 17, 1, "dog", "cow"),
        "c.jpg": answer(5, 6, 2, "cat"),
    }
    content = fsdino.export_coco(results)
    (tmp_path / "all.json").write_text(json.dumps(content))
    coco = COCO(tmp_path / "all.json")
    names = {c["name"]: c["id"] for c in coco.loadCats(coco.getCatIds())}
    assert names == {"cat": 1, "dog": 2, "cow": 3}
    images = coco.loadImgs(coco.getImgIds())
    assert [(i["file_name"], i["height"], i["width"]) for i in images] == [
        ("a.jpg", 20, 30), ("x/b.png", 31, 17), ("c.jpg", 5, 6),
    ]  # fmt: skip
    assert sorted(coco.anns) == list(range(1, len(content["annotations"]) + 1))
    for image, result in zip(images, results.values(), strict=True):
        for number, name in enumerate(result.names, 1):
            found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"], catIds=names[name]))
            masks = sum(coco.annToMask(part).astype(int) for part in found)
            np.testing.assert_array_equal(masks, result.labels == number)


def test_own_ids_and_settings() -> None:
    """From pairs that come one by one, which a generator makes."""
    pairs = ((name, answer(20, 30, 0, "cat", "dog")) for name in ("a.jpg", "b.jpg"))
    content = fsdino.export_coco(pairs, {"dog": 18, "cat": 17, "cow": 21}, min_area=9)
    assert [(c["name"], c["id"]) for c in content["categories"]] == [
        ("dog", 18), ("cat", 17), ("cow", 21),
    ]  # fmt: skip
    assert {part["category_id"] for part in content["annotations"]} <= {17, 18}
    assert min(part["area"] for part in content["annotations"]) >= 9
    assert {part["image_id"] for part in content["annotations"]} == {1, 2}


def test_what_is_refused() -> None:
    one = answer(4, 4, 0, "cat")
    with pytest.raises(UsageError, match=r"file name 'a.jpg' occurs twice"):
        fsdino.export_coco([("a.jpg", one), ("a.jpg", one)])
    with pytest.raises(UsageError, match=r"class 'cat' is not among categories \(dog\)"):
        fsdino.export_coco({"a.jpg": one}, {"dog": 1})
