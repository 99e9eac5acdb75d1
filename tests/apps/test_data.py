"""Looking data sets over, and preparing them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_sets import save_jpeg, save_labels, stacked, write_coco, write_davis, write_fss, write_voc
from fsdino.apps import data
from fsdino.data.catalog import open_episodes
from fsdino.errors import UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FSDINO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("dataset", "archives"),
    [
        ("pascal5i", ["VOCtrainval_11-May-2012.tar, http://host.robots.ox.ac.uk"]),
        ("coco20i", ["http://images.cocodataset.org/zips/val2014.zip", "annotations_trainval2014"]),
        ("fss1000", ["https://github.com/HKUSTCV/FSS-1000"]),
        ("davis17", ["DAVIS-2017-trainval-480p.zip, https://data.vision.ee.ethz.ch"]),
        ("folder", ["CLASS/IMAGE.jpg"]),
    ],
)
def test_an_empty_root_says_what_to_fetch(
    dataset: str, archives: list[str], tmp_path: Path
) -> None:
    """Data that could not be found are the most asked question of the field."""
    found = data.check(dataset, tmp_path)
    assert not found.passed and found.missing and found.read == 0
    for archive in archives:
        assert archive in found.summary()


def test_a_whole_data_set_passes_with_counts(tmp_path: Path) -> None:
    """Counts by fold and class show at a glance whether lists and files belong together."""
    write_voc(tmp_path, tmp_path / "splits")
    found = data.check("pascal5i", tmp_path, tmp_path / "splits")
    assert found.passed and not found.bad and found.read == 72
    novel = found.folds[2]
    assert (novel.fold, novel.split, novel.derived, novel.missing) == (1, "val", False, 0)
    assert novel.classes == {"bus": 3, "car": 3, "cat": 3, "chair": 3, "cow": 3}
    assert json.loads(json.dumps(found.to_dict()))["folds"][2]["classes"]["bus"] == 3


def test_unreadable_and_mismatched_files_are_named(tmp_path: Path) -> None:
    """Every file is read, not only those of some episodes."""
    write_voc(tmp_path, tmp_path / "splits")
    image = tmp_path / "JPEGImages" / "2008_000100.jpg"
    image.write_bytes(image.read_bytes()[:500])
    save_labels(tmp_path / "SegmentationClassAug" / "2007_000020.png", stacked([6])[:-1])
    (tmp_path / "JPEGImages" / "2007_000042.jpg").unlink()
    found = data.check("pascal5i", tmp_path, tmp_path / "splits")
    assert set(found.bad) == {
        "JPEGImages/2008_000100.jpg", "JPEGImages/2007_000020.jpg", "JPEGImages/2007_000042.jpg",
    }  # fmt: skip
    assert "truncated" in found.bad["JPEGImages/2008_000100.jpg"]
    assert "72 × 63" in found.bad["JPEGImages/2007_000020.jpg"]
    assert not found.passed and "3 images cannot be used" in found.summary()


def test_listed_images_without_a_mask_are_counted(tmp_path: Path) -> None:
    """VOC alone lacks the masks of most training images; evaluation does not need them."""
    write_voc(tmp_path, tmp_path / "splits")
    for path in (tmp_path / "SegmentationClassAug").glob("2008_*.png"):
        path.unlink()
    found = data.check("pascal5i", tmp_path, tmp_path / "splits")
    assert found.passed and found.folds[1].missing == 27 and found.folds[0].missing == 0
    (tmp_path / "SegmentationClassAug" / "2007_000020.png").unlink()
    found = data.check("pascal5i", tmp_path, tmp_path / "splits")
    assert not found.passed and "listed images or their masks are not there" in found.summary()


def test_a_missing_list_is_a_problem(tmp_path: Path) -> None:
    """What cannot be counted must not look complete."""
    write_voc(tmp_path, tmp_path / "splits")
    (tmp_path / "splits" / "pascal" / "val" / "fold2.txt").unlink()
    found = data.check("pascal5i", tmp_path, tmp_path / "splits")
    assert not found.passed and "fold2.txt: no such split list" in found.summary()
    write_voc(tmp_path / "other", tmp_path / "lists")
    (tmp_path / "lists" / "pascal" / "trn" / "fold2.txt").unlink()
    assert data.check("pascal5i", tmp_path / "other", tmp_path / "lists").passed  # no training


def test_fss_davis_and_folders_pass(tmp_path: Path) -> None:
    """Each has parts and files of its own kind."""
    names = [f"class{i}" for i in range(6)]
    write_fss(tmp_path / "fss", names)
    (tmp_path / "splits" / "fss").mkdir(parents=True)
    for i, part in enumerate(("trn", "val", "test")):
        own = names[2 * i : 2 * i + 2]
        (tmp_path / "splits" / "fss" / f"{part}.txt").write_text("\n".join(own))
    found = data.check("fss1000", tmp_path / "fss", tmp_path / "splits")
    assert found.passed and found.read == 60
    assert found.folds[0].classes == {"class4": 10, "class5": 10}
    write_davis(tmp_path / "davis")
    assert data.check("davis17", tmp_path / "davis").read == 6
    assert data.check("davis17", tmp_path / "davis").passed
    for number in range(3):
        save_jpeg(tmp_path / "mine" / "cup" / f"{number}.jpg")
        save_labels(tmp_path / "mine" / "cup" / f"{number}.png", stacked([255]))
    save_labels(tmp_path / "mine" / "cup" / "2.png", stacked([0, 255]))
    found = data.check("folder", tmp_path / "mine")
    assert found.passed and found.folds[0].classes == {"cup": 3}
    (tmp_path / "davis" / "Annotations" / "480p" / "dogs" / "00001.png").unlink()
    found = data.check("davis17", tmp_path / "davis")
    assert list(found.bad) == ["JPEGImages/480p/dogs"] and not found.passed


def test_coco_is_checked_without_mask_pngs(tmp_path: Path) -> None:
    """COCO's annotations stand for the PNGs; deriving lists from them is a call of its own."""
    write_coco(tmp_path)
    found = data.check("coco20i", tmp_path)
    assert found.passed and not found.folds and "fsdino data prepare coco20i" in str(found.note)
    data.prepare("coco20i", tmp_path)
    (tmp_path / "val2014" / "COCO_val2014_000000000007.jpg").write_bytes(b"")
    found = data.check("coco20i", tmp_path)
    assert found.read == 320 and list(found.bad) == ["val2014/COCO_val2014_000000000007.jpg"]
    assert len(found.folds) == 8 and found.note is None
    assert set(found.folds[0].classes.values()) == {4}


def test_coco_is_prepared_once_and_then_found(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Masks, lists and an index, in the cache, where evaluation looks for them."""
    write_coco(tmp_path / "data")
    made = data.prepare("coco20i", tmp_path / "data")
    assert set(made) == {"masks of train2014", "masks of val2014", "lists", "index"}
    assert all(cache in path.parents and path.exists() for path in made.values())
    index = json.loads(made["index"].read_text())
    assert index["folds"][0]["classes"]["person"] == 4 and len(index["folds"]) == 8
    caplog.set_level("INFO", logger="fsdino.data")
    caplog.clear()
    assert data.prepare("coco20i", tmp_path / "data") == made
    episodes = open_episodes("coco20i", root=tmp_path / "data", split="base_val", fold=2)
    assert episodes.provenance.lists_hash and not caplog.records


def test_prepared_lists_are_read_as_derived_ones(tmp_path: Path) -> None:
    """Lists that were written here must not pass for HSNet's."""
    write_voc(tmp_path / "voc", tmp_path / "published")
    made = data.prepare("pascal5i", tmp_path / "voc", tmp_path / "out")
    assert made == {"lists": tmp_path / "out", "index": tmp_path / "out" / "index.json"}
    options = {"root": tmp_path / "voc", "fold": 3, "episodes": 5}
    found = open_episodes("pascal5i", splits=tmp_path / "out", **options)  # type: ignore[arg-type]
    assert found.provenance.lists == "derived"
    write_fss(tmp_path / "fss", [f"class{i}" for i in range(8)])
    made = data.prepare("fss1000", tmp_path / "fss", tmp_path / "division")
    found = open_episodes("fss1000", root=tmp_path / "fss", splits=tmp_path / "division")
    assert found.provenance.lists == "derived"
    assert data.prepare("folder", tmp_path / "fss") == {}


def test_prepare_needs_the_data(tmp_path: Path) -> None:
    """Nothing is made from nothing."""
    with pytest.raises(UsageError, match=r"no coco20i there.*annotations_trainval2014"):
        data.prepare("coco20i", tmp_path)
