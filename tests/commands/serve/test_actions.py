"""What the page does: parts that change, and mistakes after which everything is still there."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

import clip_files
from fsdino.commands.serve.actions import Actions
from fsdino.commands.serve.engine import Engine
from fsdino.errors import DataError, UsageError


@pytest.fixture(scope="module")
def tiny(models):
    """Actions with a tiny model: its masks do not matter here."""
    return Actions(Engine(str(models / "model")))


@pytest.fixture
def model(tiny):
    return tiny.engine.default


@pytest.fixture
def clip(tmp_path):
    return clip_files.write_clip(tmp_path / "clip.mp4", clip_files.moving(6), codec="mpeg4")


def test_a_first_visit(tiny, session, model):
    """One click marks, keeps and chooses; the search then gives results."""
    parts = tiny.try_out(session, model, {"sample": "coins"})
    assert set(parts) == {"marker", "preview", "classes", "queries"}
    assert "Quality of this example" in parts["preview"] and "coins" in parts["classes"]
    *_, last = tiny.search(session, model)
    assert last["running"] is False and "more-coins.png" in last["results"]
    assert session.run.key in last["download"]
    again = tiny.show(session, 0.9)
    assert "threshold=0.9" in again["results"] and "threshold=0.9" in again["download"]
    tiny.try_out(session, model, {"sample": "coins"})  # again: the same class and photograph
    assert [*session.examples.classes] == ["coins"] and len(session.queries) == 1


def test_a_mark_that_was_not_added_is_used(tiny, session, model):
    """Who marks and searches at once has shown what to look for."""
    sample = tiny.samples["coins"]
    tiny.open(session, sample.image_file, "coins.png")
    tiny.mark_file(session, model, sample.mask_file)
    tiny.add(session, [(sample.image_file, "a.png")])
    *_, last = tiny.search(session, model)
    assert [*session.examples.classes] == ["object"] and "a.png" in last["results"]


def test_mistakes(tiny, session, model, tmp_path):
    """Each is a UsageError or DataError with words for the visitor."""
    with pytest.raises(UsageError, match="no photographs yet"):
        next(tiny.search(session, model))
    tiny.add_shipped(session)
    with pytest.raises(UsageError, match="no example yet"):
        next(tiny.search(session, model))
    for data in (None, {}, {"sample": "../../etc/passwd"}):
        with pytest.raises(UsageError, match="no such photograph"):
            tiny.try_out(session, model, data)
    with pytest.raises(UsageError, match="gone; drop the file again"):
        tiny.open(session, tmp_path / "gone.png", "gone.png")
    with pytest.raises(UsageError, match="threshold must lie"):
        tiny.show(session, 1.0)
    with pytest.raises(UsageError, match="no video yet"):
        tiny.mark_frame(session)
    assert len(session.queries) == 5


def test_marks_of_the_photograph_before_do_not_count(tiny, session, model):
    sample = tiny.samples["coins"]
    tiny.open(session, sample.image_file, "a")
    before = session.examples.photograph.key
    tiny.open(session, sample.image_file, "b")
    assert tiny.mark(session, model, {"photo": before, "tool": "paint"}) == {}
    assert session.examples.marked is None


def test_a_video(tiny, session, model, clip):
    """Its first frame is marked, and the archive has what `fsdino video` writes."""
    assert "64 × 48" in tiny.open_clip(session, clip, "clip.mp4")["clip"]
    assert clip.exists()
    assert tiny.mark_frame(session)["tab"] == "images"
    assert session.examples.photograph.size == (48, 64)
    box = {"kind": 1, "width": 16, "places": [[10, 15], [20, 25]]}
    key = session.examples.photograph.key
    tiny.mark(session, model, {"photo": key, "tool": "paint", "strokes": [box]})
    tiny.keep(session, model, "box")
    *_, last = tiny.follow(session, model)
    assert last["filming"] is False and "of 6 frames" in last["film"]
    with zipfile.ZipFile(session.film.archive()) as archive:
        names = set(archive.namelist())
    assert {"overlay.mp4", "annotations.json", "results.jsonl"} < names
    assert len([name for name in names if name.startswith("masks/")]) == 6


def test_a_video_that_is_stopped(tiny, session, model, clip):
    """The frames so far are a whole result."""
    tiny.open_clip(session, clip, "clip.mp4")
    tiny.try_out(session, model, {"sample": "coins"})
    steps = tiny.follow(session, model)
    next(steps)
    tiny.stop(session)
    *_, last = steps
    assert "of 1 frames" in last["film"] and session.film.overlay.stat().st_size > 0


def test_what_is_no_video(tiny, session, tmp_path):
    """It is named as the visitor named it, and nothing of it stays."""
    (tmp_path / "a.mp4").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(DataError, match=r"clip evil\.mp4") as error:
        tiny.open_clip(session, tmp_path / "a.mp4", "evil.mp4")
    assert str(session.folder) not in str(error.value)
    assert session.clip is None and not [*session.folder.iterdir()]


def test_models(models):
    """Only those that are offered, of which two stay in memory."""
    engine = Engine(str(models / "model"))
    assert engine.names[0] == engine.default and "fsdino-photo" in engine.names
    with pytest.raises(UsageError, match="not offered"), engine.use("/etc"):
        pass
    for name in engine.names[:3]:
        with engine.use(name) as loaded:
            assert np.isfinite(loaded.config.threshold)
    assert [*engine._loaded] == [*engine.names[1:3]]
