"""Checking data sets, and preparing them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from data_sets import (
    save_jpeg,
    save_labels,
    stacked,
    write_coco,
    write_davis,
    write_fss,
    write_lvis,
    write_paco_part,
    write_pascal_part,
    write_voc,
)
from fsdino.commands.data.check import check
from fsdino.commands.data.prepare import prepare
from fsdino.data.catalog import open_episodes
from fsdino.data.episodes import episode_hash
from fsdino.errors import DataError, UsageError


@pytest.mark.parametrize(
    ("dataset", "archives"),
    [
        ("pascal5i", ["VOCtrainval_11-May-2012.tar, http://host.robots.ox.ac.uk"]),
        ("coco20i", ["http://images.cocodataset.org/zips/val2014.zip", "annotations_trainval2014"]),
        ("fss1000", ["https://github.com/HKUSTCV/FSS-1000"]),
        ("lvis92i", ["lvis.zip, linked from", "/zips/val2017.zip", "/zips/train2017.zip"]),
        ("deepglobe", ["linked from https://github.com/slei109/PATNet"]),
        ("isic", ["ISIC2018_Task1_Training_GroundTruth.zip", "https://challenge.isic-archive.com"]),
        ("lung", ["https://www.kaggle.com/datasets/nikhilpandey360/chest-xray-masks-and-labels"]),
        (
            "pascal-part",
            ["pascal.zip, linked from", "VOC/voc2010/VOCtrainval_03-May-2010.tar"],
        ),
        ("paco-part", ["paco.zip, linked from", "/zips/val2017.zip", "/zips/train2017.zip"]),
        ("davis17", ["DAVIS-2017-trainval-480p.zip, https://data.vision.ee.ethz.ch"]),
        ("folder", ["CLASS/IMAGE.jpg"]),
    ],
)
def test_an_empty_root_says_what_to_fetch(
    dataset: str, archives: list[str], tmp_path: Path
) -> None:
    """Data that could not be found are the most asked question of the field."""
    found = check(dataset, tmp_path)
    assert not found.passed and found.missing and found.read == 0
    for archive in archives:
        assert archive in found.summary()


def test_a_whole_data_set_passes_with_counts(tmp_path: Path) -> None:
    """Counts by fold and class show at a glance whether lists and files belong together."""
    write_voc(tmp_path, tmp_path / "splits")
    found = check("pascal5i", tmp_path, tmp_path / "splits")
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
    found = check("pascal5i", tmp_path, tmp_path / "splits")
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
    found = check("pascal5i", tmp_path, tmp_path / "splits")
    assert found.passed and found.folds[1].missing == 27 and found.folds[0].missing == 0
    (tmp_path / "SegmentationClassAug" / "2007_000020.png").unlink()
    found = check("pascal5i", tmp_path, tmp_path / "splits")
    assert not found.passed and "listed images or their masks are not there" in found.summary()


def test_a_missing_list_is_a_problem(tmp_path: Path) -> None:
    """What cannot be counted must not look complete."""
    write_voc(tmp_path, tmp_path / "splits")
    (tmp_path / "splits" / "pascal" / "val" / "fold2.txt").unlink()
    found = check("pascal5i", tmp_path, tmp_path / "splits")
    assert not found.passed and "fold2.txt: no such split list" in found.summary()
    write_voc(tmp_path / "other", tmp_path / "lists")
    (tmp_path / "lists" / "pascal" / "trn" / "fold2.txt").unlink()
    assert check("pascal5i", tmp_path / "other", tmp_path / "lists").passed  # no training


def test_fss_davis_and_folders_pass(tmp_path: Path) -> None:
    """Each has parts and files of its own kind."""
    names = [f"class{i}" for i in range(6)]
    write_fss(tmp_path / "fss", names)
    (tmp_path / "splits" / "fss").mkdir(parents=True)
    for i, part in enumerate(("trn", "val", "test")):
        own = names[2 * i : 2 * i + 2]
        (tmp_path / "splits" / "fss" / f"{part}.txt").write_text("\n".join(own))
    found = check("fss1000", tmp_path / "fss", tmp_path / "splits")
    assert found.passed and found.read == 60
    assert found.folds[0].classes == {"class4": 10, "class5": 10}
    write_davis(tmp_path / "davis")
    assert check("davis17", tmp_path / "davis").read == 6
    assert check("davis17", tmp_path / "davis").passed
    for number in range(3):
        save_jpeg(tmp_path / "mine" / "cup" / f"{number}.jpg")
        save_labels(tmp_path / "mine" / "cup" / f"{number}.png", stacked([255]))
    save_labels(tmp_path / "mine" / "cup" / "2.png", stacked([0, 255]))
    found = check("folder", tmp_path / "mine")
    assert found.passed and found.folds[0].classes == {"cup": 3}
    (tmp_path / "davis" / "Annotations" / "480p" / "dogs" / "00001.png").unlink()
    found = check("davis17", tmp_path / "davis")
    assert list(found.bad) == ["JPEGImages/480p/dogs"] and not found.passed


def test_coco_is_checked_without_mask_pngs(tmp_path: Path) -> None:
    """COCO's annotations stand for the PNGs; deriving lists from them is a call of its own."""
    write_coco(tmp_path)
    found = check("coco20i", tmp_path)
    assert found.passed and not found.folds and "fsdino data prepare coco20i" in str(found.note)
    prepare("coco20i", tmp_path)
    (tmp_path / "val2014" / "COCO_val2014_000000000007.jpg").write_bytes(b"")
    found = check("coco20i", tmp_path)
    assert found.read == 320 and list(found.bad) == ["val2014/COCO_val2014_000000000007.jpg"]
    assert len(found.folds) == 8 and found.note is None
    assert set(found.folds[0].classes.values()) == {4}


def test_where_cocos_masks_come_from_is_said(tmp_path: Path) -> None:
    """Images without masks were said to be read with them."""
    write_coco(tmp_path)
    found = check("coco20i", tmp_path)
    assert (found.read, found.masked) == (320, 0)
    assert found.reading == {
        f"masks of {year}": "rasterised of 0 of 160 images; the others will be, from "
        f"annotations/instances_{year}.json"
        for year in ("train2014", "val2014")
    }
    prepare("coco20i", tmp_path)
    found = check("coco20i", tmp_path)
    assert found.passed and (found.read, found.masked) == (320, 320)
    assert found.reading["masks of val2014"].startswith("rasterised from annotations/")
    for image in (tmp_path / "val2014").iterdir():
        labels = stacked([int(image.stem[-3:]) % 80 + 1])
        save_labels(tmp_path / "annotations" / "val2014" / f"{image.stem}.png", labels)
    found = check("coco20i", tmp_path)
    assert found.reading["masks of val2014"] == "published, of 160 of 160 images"


def test_cocos_annotations_are_checked(tmp_path: Path) -> None:
    """Rasterising them fails after an hour, or worse."""
    write_coco(tmp_path)
    file = tmp_path / "annotations" / "instances_val2014.json"
    whole = json.loads(file.read_text())
    whole["annotations"][4]["segmentation"] = [[0, 0, 1e9, 0, 9, 9]]
    file.write_text(json.dumps(whole))
    found = check("coco20i", tmp_path)
    assert not found.passed and len(found.bad) == 1
    assert f"annotation {whole['annotations'][4]['id']} is damaged" in next(
        iter(found.bad.values())
    )
    for content in ("[" * 200_000, file.read_text()[:-5], "{}"):
        file.write_text(content)
        found = check("coco20i", tmp_path)
        assert not found.passed and "instances_val2014.json: damaged" in found.summary()
        assert found.read == 320


def test_what_evaluation_refuses_does_not_pass(tmp_path: Path) -> None:
    """A class with a single image is refused: the check has to say so, before the evaluation."""
    write_coco(tmp_path / "coco")
    for number in (76, 78, 85, 156, 158):  # of the six that show an airplane
        (tmp_path / "coco" / "val2014" / f"COCO_val2014_{number:012d}.jpg").unlink()
    found = check("coco20i", tmp_path / "coco")
    assert not found.passed and "val2014 has too few images of airplane 1: an" in found.summary()
    made = prepare("coco20i", tmp_path / "coco")
    found = check("coco20i", tmp_path / "coco")
    with pytest.raises(DataError) as refused:
        open_episodes("coco20i", root=tmp_path / "coco", fold=0)
    assert f"fold 0: {refused.value}" in found.problems and made
    for name, count in (("cup", 2), ("saucer", 1)):
        for number in range(count):
            save_jpeg(tmp_path / "mine" / name / f"{number}.jpg")
            save_labels(tmp_path / "mine" / name / f"{number}.png", stacked([0, 255]))
    found = check("folder", tmp_path / "mine")
    assert not found.passed and "class 1 has 1 images, an episode needs two" in found.summary()
    assert "(1 is saucer): add images" in found.summary()


def test_a_mask_without_its_listed_class_does_not_pass(tmp_path: Path) -> None:
    """Evaluation stops at such an image."""
    write_voc(tmp_path, tmp_path / "splits")
    file = tmp_path / "splits" / "pascal" / "val" / "fold0.txt"
    name = file.read_text().splitlines()[0].partition("__")[0]
    save_labels(tmp_path / "SegmentationClassAug" / f"{name}.png", stacked([20]))
    found = check("pascal5i", tmp_path, tmp_path / "splits")
    assert not found.passed and "2 listed images have no pixel of their class" in found.summary()
    assert name in found.summary()


def test_hidden_leftovers_are_no_data(tmp_path: Path, cache: Path) -> None:
    """macOS, editors and killed writes leave hidden files; none of them is a fault."""
    write_coco(tmp_path / "coco")
    write_voc(tmp_path / "voc", tmp_path / "splits")
    write_davis(tmp_path / "davis")
    write_fss(tmp_path / "fss", ["a", "b", "c", "d"])
    write_lvis(tmp_path / "lvis")
    write_pascal_part(tmp_path / "parts")
    write_paco_part(tmp_path / "paco-parts")
    save_jpeg(tmp_path / "mine" / "cup" / "1.jpg")
    save_jpeg(tmp_path / "mine" / "cup" / "2.jpg")
    for number in (1, 2):
        save_labels(tmp_path / "mine" / "cup" / f"{number}.png", stacked([0, 255]))
    prepare("coco20i", tmp_path / "coco")
    for folder in [path for path in tmp_path.rglob("*") if path.is_dir()]:
        for name in ("._x.jpg", "._x.png", ".fsdino-0123456789.png", ".DS_Store", "._1.jpg"):
            (folder / name).write_bytes(b"\0\5\x16\7")
        (folder / ".fsdino-0123").mkdir()
        (folder / ".fsdino-0123" / "content.png").write_bytes(b"")
    for dataset, name in (
        ("coco20i", "coco"), ("davis17", "davis"), ("fss1000", "fss"), ("folder", "mine"),
        ("lvis92i", "lvis"), ("pascal-part", "parts"), ("paco-part", "paco-parts"),
    ):  # fmt: skip
        found = check(dataset, tmp_path / name)
        assert found.passed and not found.bad, found.summary()
        assert not any("/." in line or line.startswith(".") for line in found.reading)
        prepare(dataset, tmp_path / name)
    found = check("pascal5i", tmp_path / "voc", tmp_path / "splits")
    assert found.passed and found.read == 72


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_few_classes_of_fss_are_read_and_tested_on(count: int, tmp_path: Path) -> None:
    """A part of the data set is what people try first."""
    names = [os.fsdecode(b"caf\xe9"), *"bcd"][:count]
    write_fss(tmp_path, names)
    found = check("fss1000", tmp_path)
    assert found.passed and found.read == 10 * count
    assert json.loads(json.dumps(found.to_dict()))["read"] == 10 * count
    assert sum(found.folds[0].classes.values()) >= 10
    made = prepare("fss1000", tmp_path, tmp_path / "lists")
    for splits in (None, made["lists"]):
        episodes = open_episodes("fss1000", root=tmp_path, splits=splits)
        assert len(episodes) >= 10 and len(episode_hash(episodes)) == 64
        assert episodes[0].query.mask.any()
    if count > 1:
        assert open_episodes("fss1000", split="train", sampling="seeded", root=tmp_path)[0]


def test_a_class_of_fss_without_its_first_image_is_named(tmp_path: Path) -> None:
    """Classes were found by 1.jpg, and those without it were passed over."""
    write_fss(tmp_path, ["a", "b", "c", "d"])
    (tmp_path / "c" / "1.jpg").unlink()
    found = check("fss1000", tmp_path)
    assert not found.passed and list(found.bad) == ["c/1.jpg"] and found.read == 40


def test_a_first_frame_without_objects_does_not_pass(tmp_path: Path) -> None:
    """It is the support of its video."""
    write_davis(tmp_path)
    first = sorted((tmp_path / "Annotations" / "480p" / "dogs").iterdir())[0]
    with Image.open(first) as image:
        size = image.size
    Image.new("L", size).save(first)
    found = check("davis17", tmp_path)
    assert not found.passed and "no object is marked" in found.summary()


def test_special_files_are_bad_and_do_not_stop_the_check(tmp_path: Path) -> None:
    """A pipe is waited for without end, a device never ends."""
    write_davis(tmp_path / "davis")
    frame = sorted((tmp_path / "davis" / "JPEGImages" / "480p" / "dogs").iterdir())[1]
    frame.unlink()
    frame.symlink_to("/dev/zero")
    write_voc(tmp_path / "voc", tmp_path / "splits")
    image = tmp_path / "voc" / "JPEGImages" / "2007_000020.jpg"
    image.unlink()
    os.mkfifo(image)
    assert not check("davis17", tmp_path / "davis").passed
    found = check("pascal5i", tmp_path / "voc", tmp_path / "splits")
    assert list(found.bad) == ["JPEGImages/2007_000020.jpg"]


def test_how_a_folder_is_read_is_told(tmp_path: Path) -> None:
    """Layout, images by class, and what is left out with the reason."""
    for number in range(3):
        save_jpeg(tmp_path / "images" / f"{number}.jpg", number)
        save_labels(tmp_path / "labels" / f"{number}.png", stacked([0, 1, 2][: number + 1]))
    (tmp_path / "classes.txt").write_text("1 cup\n2 saucer\n")
    (tmp_path / "README").write_text("x")
    found = check("folder", tmp_path, ignore="none")
    assert found.reading == {
        "layout": "labels",
        "values": "ignore none, background 0",
        "images by class": {"cup": 2, "saucer": 1},
        "left out": {
            "README": "beside the images and masks",
            "images/0.jpg": "its label map holds no class",
        },
    }
    assert not found.passed and "(2 is saucer)" in found.summary()
    with pytest.raises(UsageError, match="layout: only for your own folder"):
        check("pascal5i", tmp_path, layout="labels")
