"""docs/prelabelling.md: its example, and that its code runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fsdino
from fsdino.models.segmentation import Segmentation
from fsdino.yaml_files import read_yaml
from tiny_models import box_mask, picture, tiny_model

DOCS = Path(__file__).resolve().parent.parent / "docs"


def answer() -> Segmentation:
    """A cat, a rectangle with a window, beside a dog, a triangle; 80 x 60 pixels."""
    maps = np.zeros((2, 60, 80), np.float32)
    maps[0, 10:40, 5:35] = 0.875
    maps[0, 20:30, 15:25] = 0
    y, x = np.mgrid[:60, :80]
    maps[1] = np.where((x >= 45) & (y <= 50) & (x - 45 <= y - 10), 0.75, 0)
    return Segmentation(picture(60, 80), maps, ("cat", "dog"), 0.5, (1.0, 1.0))


def test_the_example_is_what_is_written() -> None:
    """And its polygons surround the objects' pixels, read as Label Studio's format says."""
    stored = json.loads((DOCS / "label-studio-tasks.json").read_text(encoding="utf-8"))
    assert stored == [answer().to_label_studio("/data/local-files/?d=photos/1.jpg")]
    cat, dog = stored[0]["predictions"][0]["result"]
    assert cat["value"]["polygonlabels"] == ["cat"]
    assert dog["value"]["polygonlabels"] == ["dog"]
    for part, area in ((cat, 30 * 30 - 10 * 10), (dog, answer().instances()[1].area)):
        x, y = np.array(part["value"]["points"]).T * [[0.8], [0.6]]
        twice = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum()
        assert twice / 2 == pytest.approx(area, rel=0.03)


def code(word: str) -> str:
    """The guide's Python block with a word."""
    text = (DOCS / "prelabelling.md").read_text(encoding="utf-8")
    (found,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if word in b]
    return found


def test_a_data_set_of_ultralytics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image has the label file of its own name, also where names occur in two folders."""
    monkeypatch.chdir(tmp_path)
    Path("found/yolo").mkdir(parents=True)
    rows = []
    for query, name in (("photos/1.jpg", "1"), ("photos/sub/1.jpg", "1-jpg"), ("other/2.png", "2")):
        Path(query).parent.mkdir(parents=True, exist_ok=True)
        Path(query).write_text(f"pixels of {query}")
        Path(f"found/yolo/{name}.txt").write_text(f"labels of {query}")
        rows.append({"query": str(tmp_path / query), "mask": f"masks/{name}.png"})
    Path("found/results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("found/classes.txt").write_text("cat\ndog\n")
    exec(code("data.yaml"), dict[str, Any]())
    pairs = {
        image.read_text().split()[-1]: Path(f"dataset/labels/{image.stem}.txt").read_text()
        for image in Path("dataset/images").iterdir()
    }
    assert pairs == {
        query: f"labels of {query}" for query in ("photos/1.jpg", "photos/sub/1.jpg", "other/2.png")
    }
    data = read_yaml(Path("dataset/data.yaml"))
    assert data is not None and data["names"] == ["cat", "dog"]
    assert data["path"] == str(tmp_path / "dataset") and data["train"] == "images"


def test_the_guides_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model in the place of the default, on pictures of its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fsdino, "load", tiny_model)
    Path("photos").mkdir()
    for seed, name in enumerate(("a", "b", "photos/1", "photos/a&b #1")):
        Image.fromarray(picture(40, 50, seed)).save(f"{name}.jpg")
    for name in "ab":
        Image.fromarray(box_mask(40, 50)).save(f"{name}.png")
    exec(code("to_label_studio"), dict[str, Any]())
    tasks = json.loads(Path("tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        f"/data/local-files/?d=photos/{name}.jpg" for name in ("1", "a%26b%20%231")
    ]
    labels = {
        part["value"]["polygonlabels"][0]
        for task in tasks
        for part in task["predictions"][0]["result"]
    }
    assert labels and labels <= {"cat", "dog"}
