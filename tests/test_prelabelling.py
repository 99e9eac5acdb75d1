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


def test_the_guides_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model in the place of the default, on pictures of its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fsdino, "load", tiny_model)
    Path("photos").mkdir()
    for seed, name in enumerate(("a", "b", "photos/1", "photos/2")):
        Image.fromarray(picture(40, 50, seed)).save(f"{name}.jpg")
    for name in "ab":
        Image.fromarray(box_mask(40, 50)).save(f"{name}.png")
    text = (DOCS / "prelabelling.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, dict[str, Any]())
    tasks = json.loads(Path("tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        f"/data/local-files/?d=photos/{number}.jpg" for number in (1, 2)
    ]
    labels = {
        part["value"]["polygonlabels"][0]
        for task in tasks
        for part in task["predictions"][0]["result"]
    }
    assert labels and labels <= {"cat", "dog"}
