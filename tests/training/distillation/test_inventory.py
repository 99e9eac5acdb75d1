"""What a run knows of its images is taken from a file only where it is still true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fsdino.training.distillation.inventory import Inventory, read_inventory

HASHES = {"encoder": "a", "teacher": "b", "images": "c"}
FOUND = Inventory({"one.jpg": "11", "two.jpg": "22"}, {"bad.jpg": "it ends early"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "images.json"
    FOUND.write(path, HASHES)
    return path


def test_it_comes_back(path: Path) -> None:
    """With the images of all processes, which add up."""
    assert read_inventory(path, HASHES, {"11", "22", "33"}) == FOUND
    both = Inventory({"zero.jpg": "00"})
    both.add(FOUND)
    assert both.contents.keys() == {"zero.jpg", "one.jpg", "two.jpg"}
    assert both.unreadable == FOUND.unreadable


def test_what_no_longer_holds(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another teacher, an embedding that is gone, no file: nothing is said of them."""
    assert read_inventory(path, {**HASHES, "teacher": "x"}, {"11", "22"}) is None
    assert read_inventory(path, HASHES, {"11"}) is None
    assert read_inventory(path.with_name("other.json"), HASHES, {"11", "22"}) is None
    assert caplog.text == ""


@pytest.mark.parametrize("change", ["cut", "changed", "list"])
def test_damage_is_named(path: Path, caplog: pytest.LogCaptureFixture, change: str) -> None:
    """And not believed, also where it is still valid JSON."""
    text = path.read_text()
    data = json.loads(text)
    data["images"]["one.jpg"] = "22"
    path.write_text({"cut": text[:50], "changed": json.dumps(data), "list": "[]"}[change])
    assert read_inventory(path, HASHES, {"11", "22"}) is None
    assert f"{path} is damaged" in caplog.text
