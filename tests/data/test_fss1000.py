"""FSS-1000 from folders of classes, in both layouts that are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import expected_hsnet
from data_sets import write_fss
from fsdino.data.catalog import open_episodes
from fsdino.data.fss1000 import Fss1000
from fsdino.errors import DataError, UsageError

NAMES = [*expected_hsnet.FSS_TEST, "bird", "car", "hat", "mug", "owl"]


@pytest.fixture
def fss(tmp_path: Path) -> Path:
    write_fss(tmp_path / "FSS-1000", NAMES)
    expected_hsnet.write_lists(tmp_path / "splits")
    return tmp_path


@pytest.mark.parametrize("place", ["", "data", "FSS-1000", "FSS-1000/data"])
def test_both_layouts_give_the_same_names(place: str, tmp_path: Path) -> None:
    """Keys, and so hashes, must not depend on which copy somebody has."""
    write_fss(tmp_path / "root" / place, NAMES)
    expected_hsnet.write_lists(tmp_path / "splits")
    episodes = open_episodes("fss1000", root=tmp_path / "root", splits=tmp_path / "splits")
    assert len(episodes) == 40 and episodes.fold is None
    assert episodes.key(0).query == "Abacus/1.jpg"
    assert episodes[11].query.name == "ant/10.jpg"


def test_brightness_from_128_on_is_foreground(fss: Path) -> None:
    """Masks are RGB pictures with gray edges; 127 is background and 128 is not."""
    sample = Fss1000(fss, fss / "splits").read("bus/3.jpg", 7, query=True)
    expected = np.zeros((32, 32), bool)
    expected[9:24, 8:24] = True
    assert np.array_equal(sample.mask, expected)
    assert sample.ignore is None and sample.image.shape == (32, 32, 3)


def test_splits_by_class(fss: Path) -> None:
    """Ids count through trn, val and test; no class is in two of them."""
    source = Fss1000(fss, fss / "splits")
    assert [source.classes(None, split) for split in ("train", "base_val", "val")] == [
        (0, 1, 2), (3, 4), (5, 6, 7, 8),
    ]  # fmt: skip
    assert [source.class_names[c] for c in range(9)] == [
        "bird", "car", "mug", "hat", "owl", "Abacus", "ant", "bus", "zebra_cup",
    ]  # fmt: skip
    assert len(source.lists(None, "base_val").items) == 20
    (fss / "splits" / "fss" / "trn.txt").write_text("bird\nant\n")
    with pytest.raises(DataError, match="class ant is in FSS-1000's lists more than once"):
        Fss1000(fss, fss / "splits").lists(None, "train")


def test_without_lists_the_classes_are_divided_and_that_is_said(
    fss: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A division made here is not the published one."""
    caplog.set_level("INFO", logger="fsdino.data")
    source = Fss1000(fss)
    parts = [set(source.names[split]) for split in ("train", "base_val", "val")]
    assert [len(part) for part in parts] == [5, 2, 2] and set.union(*parts) == set(NAMES)
    assert "no --splits: dividing FSS-1000's classes" in caplog.text
    episodes = open_episodes("fss1000", root=fss)
    assert episodes.provenance.lists == "derived" and len(episodes) == 20


def test_each_test_image_once_and_no_more(fss: Path) -> None:
    """The protocol ends with the last image."""
    with pytest.raises(UsageError, match="episodes 41: protocol hsnet uses each of 40 images once"):
        open_episodes("fss1000", root=fss, splits=fss / "splits", episodes=41)
    options = {"root": fss, "splits": fss / "splits", "sampling": "seeded"}
    assert len(open_episodes("fss1000", episodes=41, **options)) == 41  # type: ignore[arg-type]


def test_bad_files_are_named(fss: Path) -> None:
    """A file that cannot be used must not become a score of zero."""
    source = Fss1000(fss, fss / "splits")
    mask = fss / "FSS-1000" / "bus" / "2.png"
    for size, level, words in (
        ((32, 32), 127, r"2\.png: no pixel is foreground"),
        ((31, 32), 200, r"2\.png: the mask is 31 × 32, its image 32 × 32"),
    ):
        Image.new("L", size, level).save(mask)
        with pytest.raises(DataError, match=words):
            source.read("bus/2.jpg", 7, query=True)
    mask.unlink()
    with pytest.raises(DataError, match=r"bus.2\.png: missing; get fewshot_data\.zip"):
        source.lists(None, "val")
    (fss / "splits" / "fss" / "test.txt").write_text("nowhere\n")
    with pytest.raises(DataError, match=r"nowhere.1\.jpg: missing"):
        Fss1000(fss, fss / "splits").lists(None, "val")
    (fss / "splits" / "fss" / "test.txt").write_text("../bus\n")
    with pytest.raises(DataError, match="leaves the data set's folder"):
        Fss1000(fss, fss / "splits").lists(None, "val")
