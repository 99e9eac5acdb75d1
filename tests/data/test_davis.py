"""DAVIS-17 from its folders: frames, objects, and what belongs to them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from data_sets import HEIGHT, VOC_COLOURS, WIDTH, save_labels, stacked, write_davis
from fsdino.data.davis import Davis
from fsdino.errors import DataError, UsageError


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    write_davis(tmp_path / "DAVIS")
    return tmp_path


def test_sequences_with_frames_in_order(davis: Path) -> None:
    """The first frame is the support, so its place matters."""
    for root in (davis, davis / "DAVIS"):
        bear, dogs = Davis(root).sequences()
        assert (bear.name, dogs.name, len(bear)) == ("bear", "dogs", 3)
        assert [path.name for path in bear.frames] == ["00000.jpg", "00001.jpg", "00002.jpg"]
        assert [path.name for path in bear.annotations] == ["00000.png", "00001.png", "00002.png"]
    assert pickle.loads(pickle.dumps(bear)) == bear


def test_annotations_are_objects_and_undecided_is_background(davis: Path) -> None:
    """Palette indices are objects; 255 becomes 0."""
    bear = Davis(davis).sequences()[0]
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[12:22, 10:20] = 1
    expected[30:40, 12:30] = 2
    assert np.array_equal(bear.annotation(2), expected) and bear.annotation(2).dtype == np.uint8
    assert bear.objects == (1, 2)
    assert bear.frame(1).shape == (HEIGHT, WIDTH, 3)


def test_the_palette_is_the_official_one(davis: Path) -> None:
    """Results are written in the colours of the annotations."""
    assert Davis(davis).sequences()[0].palette == bytes(VOC_COLOURS)


def test_provenance_is_over_the_listed_sequences(davis: Path) -> None:
    """A score over other videos is another benchmark."""
    before = Davis(davis).provenance()
    assert (before.dataset, before.fold, before.split) == ("davis17", None, "val")
    (davis / "DAVIS" / "ImageSets" / "2017" / "val.txt").write_text("dogs\n")
    assert Davis(davis).provenance().lists_hash != before.lists_hash
    assert [sequence.name for sequence in Davis(davis).sequences()] == ["dogs"]


def test_what_is_missing_or_bad_is_named(davis: Path) -> None:
    """Videos that come incomplete must not be scored on what is left."""
    source = Davis(davis)
    with pytest.raises(UsageError, match=r"train\.txt: missing; it comes with DAVIS-2017"):
        source.sequences("train")
    with pytest.raises(UsageError, match="split 'test'"):
        source.sequences("test")
    masks = davis / "DAVIS" / "Annotations" / "480p" / "dogs"
    save_labels(masks / "00001.png", stacked([1])[:-4])
    with pytest.raises(DataError, match=r"00001\.png: the mask is 72 × 60, its image 72 × 64"):
        source.sequences()[1].annotation(1)
    save_labels(masks / "00000.png", stacked([]))
    with pytest.raises(DataError, match=r"00000\.png: no object is marked"):
        assert source.sequences()[1].objects
    (masks / "00001.png").unlink()
    with pytest.raises(DataError, match=r"dogs: 2 annotations of 3 frames, without 00001\.png"):
        source.sequences()
    lists = davis / "DAVIS" / "ImageSets" / "2017" / "val.txt"
    lists.write_text("cat\n")
    with pytest.raises(DataError, match="cat: no frame; get DAVIS-2017"):
        source.sequences()
    lists.write_text("../../secret\n")
    with pytest.raises(DataError, match="leaves the data set's folder"):
        source.sequences()
