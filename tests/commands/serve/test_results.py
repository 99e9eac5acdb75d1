"""Results on the page and in its archive are those that Python and the command line give."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

import fsdino
from fsdino.commands.serve import results
from fsdino.commands.serve.queries import Queries
from fsdino.models.fsdino import FSDINO

MODEL = "fsdino-photo"


@pytest.fixture(scope="module")
def visit(engine, tmp_path_factory):
    """Two classes, three photographs of which one is damaged, and the run over them."""
    from fsdino.commands.serve.sessions import Session

    session = Session(tmp_path_factory.mktemp("results") / "visit", 5)
    samples = fsdino.samples()
    for name in ("espresso-cup", "post-mill"):
        session.examples.open(samples[name].image)
        session.examples.mark_file(engine, MODEL, samples[name].mask)
        session.examples.keep(engine, MODEL, name)
    for name in ("teacup", "log-mill"):
        session.queries.add_shipped(samples[name].image_file)
    damaged = session.folder.parent / "damaged.jpg"
    damaged.write_bytes(samples["teacup"].image_file.read_bytes()[:900])
    session.queries.add([(damaged, "../damaged.jpg")])
    *_, session.run = results.search(
        engine, MODEL, session.examples, session.queries, session.new_folder(None)
    )
    return session


def expected(session, name: str, threshold: float):
    model = fsdino.load(MODEL)
    image = fsdino.samples()[name].image_file
    return model.segment(image, session.examples.supports(model), threshold=threshold)


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_any_threshold_without_the_model(visit, threshold, monkeypatch):
    """The answer at a threshold is that of `segment` with it, and costs no encoder pass."""
    wanted = expected(visit, "teacup", threshold)
    monkeypatch.setattr(FSDINO, "encode_list", None)
    assert visit.run.results[0].at(threshold).same_as(wanted)
    with Image.open(io.BytesIO(visit.run.results[0].overlay(threshold))) as picture:
        assert picture.size == wanted.overlay().size


def test_a_damaged_photograph_is_said(visit):
    """The others are searched, and the reason names the file by its harmless name."""
    assert [result.query[0] for result in visit.run.results] == ["teacup.jpg", "log-mill.jpg"]
    assert visit.run.failed.keys() == {"damaged.jpg"}
    assert visit.run.failed["damaged.jpg"].startswith("corrupt or truncated")
    assert str(visit.folder) not in visit.run.failed["damaged.jpg"]


def test_the_archive(visit):
    """Masks, overlays and annotations; pycocotools reads the same pixels as the mask has."""
    wanted = expected(visit, "log-mill", 0.6)
    with zipfile.ZipFile(visit.run.archive(0.6)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    pairs = {f"{d}/{n}" for d in ("masks", "overlays") for n in ("teacup", "log-mill")}
    assert {str(Path(name).with_suffix("")) for name in content} >= pairs
    with Image.open(io.BytesIO(content["masks/log-mill.png"])) as mask:
        assert np.array_equal(np.asarray(mask), wanted.labels)
    data = json.loads(content["annotations.json"])
    [number] = [i["id"] for i in data["images"] if i["file_name"] == "log-mill.jpg"]
    found = np.zeros(wanted.labels.shape, int)
    for annotation in data["annotations"]:
        if annotation["image_id"] == number:
            found += annotation["category_id"] * coco.decode(annotation["segmentation"])
    assert np.array_equal(found, wanted.labels)
    assert content["classes.txt"] == b"espresso-cup\npost-mill\n"
    assert content["yolo/log-mill.txt"].decode() == wanted.to_yolo()
    labelme = json.loads(content["labelme/log-mill.json"])
    assert labelme == wanted.to_labelme("../log-mill.jpg")
    said = json.loads(content["results.json"])
    assert said["threshold"] == 0.6 and said["failed"][0]["query"] == "damaged.jpg"
    row = said["queries"][1]
    assert content[row["mask"]] and content[row["overlay"]]
    score = row["classes"]["post-mill"]["score"]
    assert score == pytest.approx(wanted.scores[1], abs=1e-4)


def test_stopping_keeps_what_was_found(visit, engine, tmp_path):
    queries = Queries(tmp_path, 5)
    for sample in fsdino.samples().values():
        queries.add_shipped(sample.image_file)
    runs = results.search(engine, MODEL, visit.examples, queries, tmp_path)
    run = next(runs)
    next(runs)
    run.stopped.set()
    *_, last = runs
    assert last is run and len(run.results) == 1 and run.done == 1 and run.total == 5
    run.close()
    assert not tmp_path.exists()


def test_no_room(visit, engine, tmp_path, monkeypatch):
    """What no longer fits is named, and what was found stays."""
    first = fsdino.samples()["teacup"].image
    monkeypatch.setattr(results, "MOST_BYTES", first.width * first.height * 11)
    folder = tmp_path / "run"
    folder.mkdir()
    *_, run = results.search(engine, MODEL, visit.examples, [*visit.queries], folder)
    assert len(run.results) == 1
    assert "no more room" in run.failed["log-mill.jpg"]
