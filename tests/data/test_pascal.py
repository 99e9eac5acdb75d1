"""PASCAL-5i from files in VOC's layout: which pixels, which classes, which errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_sets import (
    HEIGHT,
    VOC_COLOURS,
    WIDTH,
    picture,
    save_jpeg,
    save_labels,
    stacked,
    write_voc,
)
from fsdino.data.pascal import CLASS_NAMES, LEAK_SAFE_FOLDS, Pascal
from fsdino.errors import DataError, UsageError


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    write_voc(tmp_path / "VOC2012", tmp_path / "splits")
    return tmp_path


QUERY = "JPEGImages/2007_000020.jpg"  # class 6 in rows 0..31, class 7 below; 255 in row 31


@pytest.mark.parametrize("masks", ["SegmentationClassAug", "SegmentationClass"])
def test_pixels_of_one_class_and_ignored_pixels(masks: str, tmp_path: Path) -> None:
    """255 is left out of a query's score and is background in a support, as published."""
    write_voc(tmp_path / "VOC2012", tmp_path / "splits", masks)
    source = Pascal(tmp_path, tmp_path / "splits")
    query, support = (source.read(QUERY, 6, query=query) for query in (True, False))
    rows = np.arange(HEIGHT)[:, None] * np.ones(WIDTH, int)
    for sample in (query, support):
        assert np.array_equal(sample.mask, rows < 31)
        assert (sample.name, sample.class_id) == (QUERY, 6)
    assert query.ignore is not None and np.array_equal(query.ignore, rows == 31)
    assert support.ignore is None
    assert np.array_equal(source.read(QUERY, 7, query=True).mask, rows >= 32)
    assert query.image.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(query.image.astype(int) - picture(9)).max() <= 8  # JPEG's loss, channels in order


def test_augmented_masks_come_first_and_voc_fills_the_gaps(voc: Path) -> None:
    """Copies hold both folders; SegmentationClassAug is what published numbers use."""
    other = voc / "VOC2012" / "SegmentationClass" / "2007_000020.png"
    save_labels(other, stacked([7, 6], 255), VOC_COLOURS)
    source = Pascal(voc, voc / "splits")
    assert source.read(QUERY, 6, query=True).mask[0, 0]
    (voc / "VOC2012" / "SegmentationClassAug" / "2007_000020.png").unlink()
    assert source.read(QUERY, 6, query=True).mask[HEIGHT - 1, 0]


@pytest.mark.parametrize("place", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_the_root_may_be_the_folder_or_above_it(place: str, tmp_path: Path) -> None:
    """Names in keys start at the same folder wherever the data lie, so that hashes agree."""
    write_voc(tmp_path / place, tmp_path / "splits")
    assert Pascal(tmp_path).read(QUERY, 6, query=True).name == QUERY


def test_the_stored_rows_count_and_not_the_cameras_orientation(voc: Path) -> None:
    """VOC's masks follow the stored picture; turning one of the two would mismatch them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = voc / "VOC2012" / QUERY
    Image.fromarray(picture(3)).save(path, exif=exif)
    assert Pascal(voc).read(QUERY, 6, query=True).image.shape == (HEIGHT, WIDTH, 3)


def test_folds_are_contiguous_and_named_as_in_voc() -> None:
    """Fold i holds out VOC's ids 5i + 1 .. 5i + 5."""
    source = Pascal(Path("nowhere"))
    assert [source.classes(fold, "val") for fold in range(4)] == [
        (1, 2, 3, 4, 5),
        (6, 7, 8, 9, 10),
        (11, 12, 13, 14, 15),
        (16, 17, 18, 19, 20),
    ]
    assert [source.class_names[c] for c in (1, 5, 11, 15, 20)] == [
        "aeroplane", "bottle", "diningtable", "person", "tvmonitor",
    ]  # fmt: skip


def test_leak_safe_folds_follow_coco() -> None:
    """A model trained on COCO-20i's fold i has seen every PASCAL class that fold i trains on.

    Expected: COCO's name for each class, by COCO's own order of ids, modulo 4.
    """
    in_coco = {
        "aeroplane": 4, "bicycle": 1, "bird": 14, "boat": 8, "bottle": 39, "bus": 5, "car": 2,
        "cat": 15, "chair": 56, "cow": 19, "diningtable": 60, "dog": 16, "horse": 17,
        "motorbike": 3, "person": 0, "pottedplant": 58, "sheep": 18, "sofa": 57, "train": 6,
        "tvmonitor": 62,
    }  # fmt: skip
    for fold in range(4):
        novel = tuple(i for i, name in enumerate(CLASS_NAMES, 1) if in_coco[name] % 4 == fold)
        assert LEAK_SAFE_FOLDS[fold] == novel
        assert Pascal(Path("nowhere"), leak_safe=True).classes(fold, "val") == novel


def test_leak_safe_lists_take_lines_of_several_files(voc: Path) -> None:
    """Fold 0 holds out classes 1, 4 | 9 | 11, 12, 15 | of three of the published files."""
    source = Pascal(voc, voc / "splits", leak_safe=True)
    assert set(source.lists(0, "val").by_class) == {1, 4, 9, 11, 12, 15}
    assert not set(source.lists(0, "train").by_class) & {1, 4, 9, 11, 12, 15}


def test_derived_lists_find_the_classes_in_the_masks(voc: Path) -> None:
    """Without HSNet's lists the masks tell; VOC's own val set keeps validation images apart."""
    derived, published = Pascal(voc), Pascal(voc, voc / "splits")
    for split in ("val", "train", "base_val"):
        found, expected = derived.lists(2, split), published.lists(2, split)
        assert found.derived and not expected.derived
        assert sorted(found.items) == sorted(expected.items)


def test_derived_lists_leave_tiny_regions_out(voc: Path) -> None:
    """A support of some pixels says nothing about its class."""
    labels = stacked([6, 7], 255)
    labels[32:] = 0
    labels[32:60, :WIDTH] = 7  # 28 * 72 = 2016 pixels, fewer than 2048
    save_labels(voc / "VOC2012" / "SegmentationClassAug" / "2007_000020.png", labels)
    items = Pascal(voc).lists(1, "val").items
    assert (QUERY, 6) in items and (QUERY, 7) not in items


def test_derived_lists_are_made_once_and_again_when_masks_change(
    voc: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Reading twelve thousand masks takes minutes; stale lists would be wrong for ever."""
    caplog.set_level("INFO", logger="fsdino.data")
    Pascal(voc).lists(0, "val")
    Pascal(voc).lists(1, "train")
    assert caplog.text.count("deriving PASCAL-5i's lists") == 1
    name = "2007_000099"
    save_jpeg(voc / "VOC2012" / "JPEGImages" / f"{name}.jpg")
    save_labels(voc / "VOC2012" / "SegmentationClassAug" / f"{name}.png", stacked([9]))
    with (voc / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").open("a") as file:
        file.write(f"{name}\n")
    assert (f"JPEGImages/{name}.jpg", 9) in Pascal(voc).lists(1, "val").items
    assert caplog.text.count("deriving PASCAL-5i's lists") == 2


def test_lists_need_vocs_val_set_to_be_derived(voc: Path) -> None:
    """Guessing which images validate would train on them."""
    (voc / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(UsageError, match=r"val\.txt is missing.*VOCtrainval.*or pass --splits"):
        Pascal(voc).lists(0, "val")


def test_bad_files_are_named(voc: Path) -> None:
    """A file that cannot be used must not become a score of zero."""
    source = Pascal(voc, voc / "splits")
    mask, image = source._mask("2007_000020"), voc / "VOC2012" / QUERY
    whole = mask.read_bytes()

    def fails(words: str) -> None:
        with pytest.raises(DataError, match=words):
            source.read(QUERY, 6, query=True)

    save_labels(mask, stacked([6])[:-1])
    fails(r"2007_000020\.png: the mask is 72 × 63, its image 72 × 64")
    save_labels(mask, stacked([7]))
    fails(r"2007_000020\.png: no pixel of class 6")
    save_labels(mask, stacked([6, 38]))
    fails(r"2007_000020\.png: the value 38 is not a class of VOC")
    Image.fromarray(picture(0)).save(mask)
    fails(r"2007_000020\.png: a RGB image has no class labels")
    mask.write_bytes(whole[:50])
    fails(r"2007_000020\.png.*corrupt or truncated")
    mask.unlink()
    fails(r"2007_000020\.png: missing, and so is .*VOCtrainval.*SBD")
    mask.write_bytes(whole)
    image.write_bytes(image.read_bytes()[:600])
    fails(r"2007_000020\.jpg.*corrupt or truncated")
    image.unlink()
    fails(r"2007_000020\.jpg.*no such file")
