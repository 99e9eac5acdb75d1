"""The benchmark of marks: its baselines, its clicks, its means and its record."""

from __future__ import annotations

import json
from pathlib import Path

import marks
import numpy as np
import pytest
from photo_pairs import Photograph
from PIL import Image

from tiny_models import tiny_model


def disc(side: int = 60, radius: int = 20) -> Photograph:
    rows, columns = np.mgrid[:side, :side]
    mask = (rows - side // 2) ** 2 + (columns - side // 2) ** 2 < radius**2
    image = np.where(mask[..., None], 200, 40).astype(np.uint8).repeat(3, 2)
    return Photograph(image, mask)


def test_objects_of_the_photographs() -> None:
    """The goals name five objects and the coins."""
    found = list(marks.own_objects())
    assert sum(thing.group == "photographs" for thing in found) == 5
    assert sum(thing.group == "coins" for thing in found) == 24
    assert all(thing.picture.mask.any() for thing in found)


def test_baselines_of_a_disc() -> None:
    """Area of a circle in its square: pi / 4; and an easy one for the walker."""
    picture = disc()
    box, size = marks.tight_box(picture.mask), picture.mask.shape
    x0, y0, x1, y1 = box
    assert (x1 - x0, y1 - y0) == (39, 39)
    assert marks.filled(box, size).sum() == 39 * 39
    share = marks.ellipse(box, size).sum() / (39 * 39)
    assert share == pytest.approx(np.pi / 4, abs=0.01)
    found = marks.walked(picture.image, box, 0.5, 1000.0)
    assert (found & picture.mask).sum() / (found | picture.mask).sum() > 0.95
    whole = np.ones((8, 9), bool)
    assert marks.walked(picture.image[:8, :9], (0, 0, 9, 8), 0.5, 130.0).all() and whole.all()


def test_clicks_go_to_the_middle_of_the_largest_error() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:31, 10:31] = True
    picture = Photograph(np.zeros((40, 60, 3), np.uint8), mask)
    assert marks.centre(mask) == (20, 20)
    found = mask.copy()
    found[10:31, 10:14] = False  # missing, 84 pixels
    found[5:16, 45:56] = True  # too much, 121 pixels
    assert marks.next_click(found, picture) == ((50, 10), 0)
    found[5:16, 45:56] = False
    point = marks.next_click(found, picture)
    assert point is not None and point[1] == 1 and point[0][0] in (11, 12)
    assert marks.next_click(mask, picture) is None
    ignoring = Photograph(picture.image, mask, ~mask)
    assert marks.next_click(mask | ~mask, ignoring) is None


def test_means_and_the_best_walker() -> None:
    """The gain is over the best of three means, of the walker at one setting for all objects."""
    names = {f"{marks.WALKER} 0.5 130": (10, 60), f"{marks.WALKER} 0.75 1000": (50, 40)}
    rows = [
        {
            "group": drive,
            "name": str(k),
            "box": {
                marks.FILLED: 40.0,
                marks.OVAL: 30.0,
                marks.OWN: 70.0,
                **{name: values[k] for name, values in names.items()},
            },
            **({"clicks": [10.0, 20.0, 30.0, 40.0, 50.0]} if k else {}),
        }
        for k, drive in enumerate(("A", "B"))
    ]
    found = marks.summaries(rows, ["A"])
    whole = found["road, all"]
    assert whole["walker_settings"] == ["0.75", "1000"] and whole["box"][marks.WALKER] == 45
    assert whole["gain"] == 25 and whole["objects"] == 2 and whole["objects_clicked"] == 1
    assert whole["clicks"] == [10, 20, 30, 40, 50]
    assert found["road, drives of the settings"]["clicks"] is None
    assert found["road, other drives"]["box"][marks.WALKER] == 60


def test_a_run_writes_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one frame, with a model too small to be right."""
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 20:45] = 8
    for part, array in (("images", np.full((40, 60, 3), 90, np.uint8)), ("labels", labels)):
        (tmp_path / part).mkdir()
        Image.fromarray(array).save(tmp_path / part / "A_1.png")
    monkeypatch.setattr(marks, "own_objects", lambda: iter(()))
    tiny_model().save_pretrained(tmp_path / "model")
    out = tmp_path / "out.json"
    arguments = ["--model", str(tmp_path / "model"), "--labels", str(tmp_path), "--drives", "A"]
    marks.main([*arguments, "--threads", "1", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["command"] == "python benchmarks/marks.py --model model --labels CAMVID --drives A"
    assert [row["name"] for row in found["objects"]] == ["A_1 car 1"]
    assert found["objects"][0]["box"][marks.FILLED] == 100
    assert len(found["objects"][0]["clicks"]) == 5
    assert set(found["means"]) == {"road, drives of the settings", "road, all"}
