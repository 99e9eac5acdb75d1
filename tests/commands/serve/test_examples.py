"""Examples are marked, kept by name, saved and loaded, and no mistake loses any."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import fsdino
from fsdino.commands.serve import examples as limits
from fsdino.commands.serve.engine import Engine
from fsdino.commands.serve.examples import words
from fsdino.errors import CheckpointError, DataError, UsageError
from tiny_models import box_mask, picture, tiny_model

MODEL = "fsdino-photo"


@pytest.fixture(scope="module")
def tiny(models):
    """A model for what does not depend on the masks."""
    return Engine(str(models / "model"))


@pytest.fixture
def examples(session):
    return session.examples


@pytest.fixture
def cup():
    return fsdino.samples()["espresso-cup"]


def test_a_support_is_that_of_python(examples, engine, cup):
    """Two shots, marked by a file and by paint, give what `encode_support` gives."""
    mill = fsdino.samples()["teacup"]
    examples.open(cup.image)
    found = examples.mark_file(engine, MODEL, cup.mask)
    assert found.quality is not None and np.array_equal(found.mask, np.asarray(cup.mask) == 255)
    assert examples.keep(engine, MODEL, " cup ") == "cup"
    examples.open(mill.image)
    strokes = [{"kind": 1, "width": 90, "places": [[60, 60], [80, 70]]}]
    painted = examples.mark(engine, MODEL, {"tool": "paint", "strokes": strokes})
    examples.keep(engine, MODEL, "cup")
    model = fsdino.load(MODEL)
    expected = model.encode_support([cup.image, mill.image], [cup.mask, painted.mask])
    assert examples.supports(model)["cup"].same_as(expected)


def test_box_and_clicks_ask_the_model(examples, engine, cup):
    """The mask is that of `mark`."""
    examples.open(cup.image)
    found = examples.mark(engine, MODEL, {"tool": "box", "box": [140, 5, 365, 250]})
    expected = fsdino.load(MODEL).mark(cup.image, boxes=(140, 5, 365, 250))
    assert np.array_equal(found.mask, expected)


def test_a_click_on_nothing_is_an_instruction(examples, tiny, cup):
    examples.open(cup.image)
    examples.mark_file(tiny, tiny.default, cup.mask)
    assert "Click on" in examples.mark(tiny, tiny.default, {"tool": "click", "points": []})
    with pytest.raises(UsageError, match="nothing is marked"):
        examples.keep(tiny, tiny.default, "cup")


def test_mistakes_lose_nothing(examples, tiny, cup):
    """What is refused leaves photograph, mark and classes as they were."""
    with pytest.raises(UsageError, match="no photograph yet"):
        examples.mark(tiny, tiny.default, {"tool": "box"})
    examples.open(cup.image)
    marked = examples.mark_file(tiny, tiny.default, cup.mask)
    photograph = examples.photograph
    with pytest.raises(DataError, match="zip: no image"):
        examples.open(b"PK\x03\x04", "zip")
    with pytest.raises(UsageError, match="size"):
        examples.mark_file(tiny, tiny.default, Image.new("L", (7, 7), 255))
    for name, problem in (("", "no name"), ("/", "no name"), ("a" * 50, "at most 40")):
        with pytest.raises(UsageError, match=problem):
            examples.keep(tiny, tiny.default, name)
    assert examples.photograph is photograph and examples.marked is marked
    with pytest.raises(UsageError, match="not offered"):
        examples.mark_file(tiny, "another", cup.mask)
    examples.keep(tiny, tiny.default, "cup")
    assert [*examples.classes] == ["cup"]


def test_saved_and_loaded(examples, tiny, cup, tmp_path):
    """A file is a class of its own: no further shots, no second one of the name."""
    examples.open(cup.image)
    examples.mark_file(tiny, tiny.default, cup.mask)
    examples.keep(tiny, tiny.default, "cup")
    file = examples.save("cup")
    before = examples.classes["cup"].support
    with pytest.raises(UsageError, match="already"):
        examples.load(file, "cup")
    examples.remove("cup")
    examples.remove("cup")
    assert examples.load(file, "cup") == "cup"
    assert examples.classes["cup"].support.same_as(before)
    examples.mark_file(tiny, tiny.default, cup.mask)
    with pytest.raises(UsageError, match="no further examples"):
        examples.keep(tiny, tiny.default, "cup")
    (tmp_path / "bad").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError):
        examples.load(tmp_path / "bad", "bad")
    assert [*examples.classes] == ["cup"]


def test_another_model_encodes_again(examples, tiny, cup, tmp_path):
    """Photographs are at hand; a saved support is refused with the remedy."""
    other = tiny_model(1)
    with tiny.use(tiny.default) as own:
        pass
    examples.open(cup.image)
    examples.mark_file(tiny, tiny.default, cup.mask)
    examples.keep(tiny, tiny.default, "cup")
    assert examples.supports(other)["cup"].model_fingerprint == other.fingerprint()
    other.encode_support([picture(50, 60)], [box_mask(50, 60)]).save(tmp_path / "s.safetensors")
    examples.load(tmp_path / "s.safetensors", "saved")
    with pytest.raises(UsageError, match="'saved' was saved with another model"):
        examples.supports(own)


def test_limits(examples, tiny, cup, monkeypatch):
    monkeypatch.setattr(limits, "MOST_CLASSES", 1)
    monkeypatch.setattr(limits, "MOST_SHOTS", 1)
    examples.open(cup.image)
    examples.mark_file(tiny, tiny.default, cup.mask)
    examples.keep(tiny, tiny.default, "cup")
    examples.mark_file(tiny, tiny.default, cup.mask)
    with pytest.raises(UsageError, match="has 1 examples"):
        examples.keep(tiny, tiny.default, "cup")
    with pytest.raises(UsageError, match="1 classes already"):
        examples.keep(tiny, tiny.default, "saucer")


def test_words_for_a_quality():
    assert [words(q) for q in (0.95, 0.85, 0.7, 0.69, None)] == [
        "very good", "good", "fair", "poor", "not measured",
    ]  # fmt: skip
