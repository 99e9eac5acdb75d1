"""The demo as a whole: what it runs, in which order, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fsdino
from fsdino.bench import workloads
from fsdino.bench.workloads import Workload
from fsdino.commands.demo import drawings, run
from fsdino.commands.demo.run import Results, Settings
from fsdino.errors import FsdinoError, UsageError
from tiny_models import tiny_model

MINI = Workload("mini", batch=1, layers=2, grid=7, channels=16, block_channels=(4, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo")
    tiny_model(0).save_pretrained(path / "photo")
    tiny_model(1).save_pretrained(path / "drawn")
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(workloads.WORKLOADS, "mini", MINI)
        models = str(folder / "photo"), str(folder / "drawn")
        settings = Settings(*models, 2, 1, "mini", 1, "fsdino demo --out here")
        return run.run(settings, folder / "out")


def test_each_part_has_its_model(results):
    """Photographs by one, drawings by the other."""
    assert results.model.fingerprint() == tiny_model(0).fingerprint()
    assert results.drawn_model.fingerprint() == tiny_model(1).fingerprint()
    [expected, _] = drawings.answers(tiny_model(1), 2)
    for key, mask in expected.masks.items():
        assert np.array_equal(results.answers[0].masks[key], mask)
    support = fsdino.samples()["coins"]
    encoded = tiny_model(0).encode_support(support.image, support.mask)
    found = tiny_model(0).segment(fsdino.samples()["more-coins"].image, encoded).mask
    [answer] = [a for a in results.photographs if a.support.name == "coins"]
    assert np.array_equal(answer.masks[results.settings.model], found)


def test_photographs_come_first(results, folder, tmp_path, monkeypatch):
    """All are written when the first drawing begins."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(drawings, "answers", stop)
    with pytest.raises(KeyboardInterrupt):
        run.run(Settings(str(folder / "photo"), str(folder / "drawn")), tmp_path)
    assert len(list((tmp_path / "photographs").iterdir())) == 2 * len(fsdino.samples())
    assert 0 < results.first_seconds < results.seconds


def test_means_over_photographs(results):
    """Every photograph counts once, for each method."""
    for method, mean in results.mean_iou().items():
        values = [answer.iou[method] for answer in results.photographs]
        assert mean == pytest.approx(sum(values) / len(fsdino.samples()))


def test_files(results, folder):
    """Overlay and mask of every photograph, two overlays per episode, the numbers as JSON."""
    samples = fsdino.samples()
    names = {f"{name}-in-{sample.query}" for name, sample in samples.items()}
    photographs = folder / "out" / "photographs"
    expected = {f"{name}.jpg" for name in names} | {f"{name}_mask.png" for name in names}
    assert {path.name for path in photographs.iterdir()} == expected
    with Image.open(photographs / "coins-in-more-coins_mask.png") as image:
        [answer] = [a for a in results.photographs if a.support.name == "coins"]
        mask = answer.masks[results.settings.model]
        assert np.array_equal(np.asarray(image), mask * np.uint8(255))
    overlays = sorted(path.name for path in (folder / "out" / "overlays").iterdir())
    assert overlays == [f"{i:03d}-{shots}shot.png" for i in range(2) for shots in (1, 5)]
    with Image.open(folder / "out" / "overlays" / "000-1shot.png") as image:
        assert image.size == (140, 140)


def test_all_numbers_are_in_the_json(results, folder):
    """Of photographs, drawings and kernels, with both models' fingerprints."""
    data = json.loads((folder / "out" / "demo.json").read_text())
    methods = [results.settings.model, "training-free", "everything is foreground"]
    assert len(data["photographs"]) == len(fsdino.samples())
    for row, answer in zip(data["photographs"], results.photographs, strict=True):
        assert (row["support"], row["query"]) == (answer.support.name, answer.query.name)
        assert [entry["method"] for entry in row["iou"]] == methods
        assert row["quality"] == answer.quality
        assert [entry["iou"] for entry in row["iou"]] == list(answer.iou.values())
    assert [entry["method"] for entry in data["mean_iou"]] == methods
    assert data["fingerprint"] == tiny_model(0).fingerprint()
    assert data["drawn_fingerprint"] == tiny_model(1).fingerprint()
    assert data["data"] == "procedural-v1/fold3/val/0"
    assert len(data["episodes"]) == 2
    assert {(s["method"], s["shots"]) for s in data["scores"]} == {
        (method, shots) for method in ("FS-DINO", "training-free") for shots in (1, 5)
    }
    assert [len(way["fates"]) for way in data["ways"]] == [4, 4, 4]
    assert data["kernels"]["timings"][0]["name"] == "eager"
    assert data["first_seconds"] == results.first_seconds


@pytest.mark.parametrize("name", ["episodes", "pictures", "rounds"])
def test_numbers_below_one_are_refused(name, tmp_path):
    """Before anything is loaded or written."""
    with pytest.raises(UsageError, match=f"{name} must be at least 1, got 0"):
        run.run(Settings(**{name: 0}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model", "drawn_model"])
def test_unknown_models_are_refused(name, tmp_path):
    """Either one, before anything is segmented or written."""
    with pytest.raises(UsageError, match="unknown model 'nope'"):
        run.run(Settings(**{name: "nope"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(folder, tmp_path):
    """A file in its place is one line with the remedy."""
    (tmp_path / "out").write_text("mine")
    models = str(folder / "photo"), str(folder / "drawn")
    with pytest.raises(FsdinoError, match="a file is in its place; pass an --out that can be"):
        run.run(Settings(*models), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
