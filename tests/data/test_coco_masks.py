"""COCO's masks drawn from its annotations: which pixels, in which order, and only once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_sets import HEIGHT, WIDTH, instances, rectangle
from fsdino.data import coco_masks
from fsdino.data.coco_masks import RASTERISED_FILE, Annotations, rasterise
from fsdino.errors import DataError, UsageError


def write(folder: Path, images: dict[int, list[tuple[int, object, float]]]) -> Path:
    file = folder / "instances_val2014.json"
    file.write_text(json.dumps(instances(images, "val2014")))
    return file


def stem(number: int) -> str:
    return f"COCO_val2014_{number:012d}"


def drawn(folder: Path, annotations: list[tuple[int, object, float]]) -> np.ndarray:
    rasterise(write(folder, {5: annotations}), [stem(5)], folder / "masks")
    with Image.open(folder / "masks" / f"{stem(5)}.png") as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_a_pixel_is_the_contiguous_class_plus_one(tmp_path: Path) -> None:
    """COCO's ids have gaps (80 classes, ids to 90); masks of the field count without them."""
    labels = drawn(
        tmp_path, [(0, rectangle(2, 3, 10, 20), 0.0), (79, rectangle(30, 40, 64, 72), 0.0)]
    )
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[2:10, 3:20] = 1
    expected[30:64, 40:72] = 80
    assert np.array_equal(labels, expected)


def test_later_annotations_lie_over_earlier_ones_crowds_included(tmp_path: Path) -> None:
    """The order decides whose pixel it is; run lengths go down the columns, from background."""
    crowd = {"size": [HEIGHT, WIDTH], "counts": [5 * HEIGHT, 4 * HEIGHT, (WIDTH - 9) * HEIGHT]}
    labels = drawn(
        tmp_path,
        [(10, rectangle(0, 0, 20, 72), 0.0), (40, crowd, 0.0), (3, rectangle(0, 6, 5, 30), 0.0)],
    )
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[0:20] = 11
    expected[:, 5:9] = 41
    expected[0:5, 6:30] = 4
    assert np.array_equal(labels, expected)


def test_one_object_of_several_polygons_and_degenerate_ones(tmp_path: Path) -> None:
    """An object behind a post has two outlines; two points are not an outline, nor a box."""
    outlines = [*rectangle(0, 0, 8, 8), *rectangle(0, 20, 8, 28), [40, 40, 60, 60]]
    labels = drawn(tmp_path, [(1, outlines, 0.0), (2, [[1, 1, 9, 9]], 0.0)])
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[0:8, 0:8] = expected[0:8, 20:28] = 2
    assert np.array_equal(labels, expected)


def test_an_image_without_annotations_is_background(tmp_path: Path) -> None:
    """COCO has images that show none of the 80 classes."""
    assert not drawn(tmp_path, []).any()


def test_a_cache_is_filled_up_and_not_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing 120,000 masks is interrupted sooner or later."""
    images = {n: [(n, rectangle(0, 0, 9, 9), 81.0)] for n in range(1, 6)}
    file, masks = write(tmp_path, images), tmp_path / "masks"
    calls = []

    def interrupt(done: int, total: int) -> None:
        calls.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rasterise(file, [stem(n) for n in images], masks, interrupt)
    assert calls == [(1, 5), (2, 5)]
    assert sorted(path.name for path in masks.iterdir()) == [
        f"{stem(1)}.png", f"{stem(2)}.png", RASTERISED_FILE,
    ]  # fmt: skip
    before = (masks / f"{stem(1)}.png").stat().st_mtime_ns
    assert rasterise(file, [stem(n) for n in images], masks) == 3
    assert (masks / f"{stem(1)}.png").stat().st_mtime_ns == before
    monkeypatch.setattr(coco_masks, "Annotations", None)  # a full cache parses no JSON
    assert rasterise(file, [stem(n) for n in images], masks) == 0


def test_pycocotools_missing_is_one_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most installations lack it until COCO is read."""
    file = write(tmp_path, {1: []})
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UsageError, match=r'pycocotools: pip install "fsdino\[train\]"'):
        rasterise(file, [stem(1)], tmp_path / "masks")
    assert not (tmp_path / "masks").exists()


def test_damaged_annotations_are_named(tmp_path: Path) -> None:
    """A JSON file that ended early, other classes, an image or outline that is not there."""
    file = write(tmp_path, {1: [(0, {"size": [3, 3], "counts": "?"}, 0.0)]})
    with pytest.raises(DataError, match=r"annotation 100 is damaged"):
        Annotations(file).labels(stem(1))
    with pytest.raises(DataError, match="has no image COCO_val2014_000000000009"):
        Annotations(file).labels(stem(9))
    whole = file.read_text()
    for content in (whole[:-9], "[" * 200_000, "[]", "3", '{"images": [3]}', whole + "x", "\xff"):
        file.write_text(content, encoding="latin-1")
        with pytest.raises(DataError, match=r"instances_val2014\.json: damaged"):
            Annotations(file)
    file.write_text('{"images": [], "annotations": [], "categories": [{"id": 1}]}')
    with pytest.raises(DataError, match="1 classes, COCO has 80"):
        Annotations(file)
    with pytest.raises(UsageError, match=r"no such file.*annotations_trainval2014"):
        Annotations(tmp_path / "nothing.json")


SQUARE = [[0, 0, 9, 0, 9, 9, 0, 9]]
PIXELS = HEIGHT * WIDTH
HALVES = [PIXELS // 2, PIXELS - PIXELS // 2]


def outline(size: object, counts: object) -> dict[str, object]:
    return {"size": size, "counts": counts}


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (outline([HEIGHT, WIDTH], [5, 4]), r"its runs have 9 pixels, its image 4,608"),
        (outline([HEIGHT, WIDTH], []), "its runs have 0 pixels"),
        (outline([HEIGHT, WIDTH], [*HALVES, 1]), "its runs have 4,609 pixels"),
        (outline([HEIGHT, WIDTH], [PIXELS + 1, -1]), "a run of 4609 pixels"),
        (outline([HEIGHT, WIDTH], [-1, PIXELS + 1]), "a run of -1 pixels"),
        (outline([HEIGHT, WIDTH], [2.5, PIXELS - 2.5]), "a run of 2.5 pixels"),
        (outline([HEIGHT, WIDTH], ["a"]), "a run of 'a' pixels"),
        (outline([HEIGHT, WIDTH], [2**63, 1]), "a run of 9223372036854775808 pixels"),
        (outline([HEIGHT, WIDTH], [int("9" * 50)]), r"a run of 9{50} pixels"),
        (outline([HEIGHT, WIDTH], [0] * (2 * PIXELS + 3)), "too long"),
        (outline([HEIGHT, WIDTH], None), "counts is neither a list nor a text"),
        (outline([HEIGHT, WIDTH], "01"), "its runs have 1 pixels"),
        (outline([HEIGHT, WIDTH], "0" * 99), "its runs have 0 pixels"),
        (outline([HEIGHT, WIDTH], "oooooooooooo"), "holds 'o' where run lengths do not"),
        (outline([HEIGHT, WIDTH], "\u2028"), "where run lengths do not"),
        (outline([HEIGHT, WIDTH], "?O"), "a run of -1 pixels"),
        (outline([HEIGHT, WIDTH], "o"), "ends within a number"),
        (outline([WIDTH, HEIGHT], HALVES), r"size .* is not \[64, 72\]"),
        (outline([2**31, 2**31], [2**62]), r"is not \[64, 72\], that of its image"),
        (outline([64.0, 72.0], HALVES), r"is not \[64, 72\]"),
        (outline("6472", HALVES), r"is not \[64, 72\]"),
        ({"counts": HALVES}, r"size None is not \[64, 72\]"),
        ({}, "size None"),
        (None, "the segmentation is not an object"),
        ("rle", "the segmentation is not an object"),
        ([[0, 0, 1e9, 0, 9, 9]], "x 1000000000.0 of a polygon is far outside an image of 72 × 64"),
        ([[0, 0, 9, -1e9, 9, 9]], "y -1000000000.0 of a polygon is far outside"),
        ([[0, 0, 9, 0, 9, 129]], "y 129 of a polygon is far outside"),
        ([[0, 0, 9, 0, 9, float("nan")]], "y nan of a polygon"),
        ([[0, 0, float("inf"), 0, 9, 9]], "x inf of a polygon"),
        ([[0, 0, 10**400, 0, 9, 9]], r"x 10+\.\.\.0+ of a polygon"),
        ([[0, 0, "9", 0, 9, 9]], "x '9' of a polygon"),
        ([[0, 0, True, 0, 9, 9]], "x True of a polygon"),
        ([[0, 0, 9, 0, 9, 9, 1]], "a polygon has 7 coordinates"),
        ([0, 0, 9, 0, 9, 9], "a polygon is not a list"),
        ([{"size": [1, 1], "counts": "x"}], "a polygon is not a list"),
        ([[0, 0, 72, 64] * 30_000], "the edges of a polygon have .* pixels altogether"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_annotations_are_checked_before_they_are_drawn(
    segmentation: object, words: str, tmp_path: Path
) -> None:
    """pycocotools fills what runs leave out from memory, and crashes on sizes and coordinates."""
    file = write(tmp_path, {1: [(0, segmentation, 0.0)]})
    annotations = Annotations(file)
    for call in (annotations.labels, lambda name: annotations.check(name, (HEIGHT, WIDTH))):
        with pytest.raises(
            DataError,
            match=rf"instances_val2014\.json: annotation 100 is damaged \(.*{words}.*get annot",
        ):
            call(stem(1))


@pytest.mark.parametrize("seed", range(8))
def test_run_lengths_equal_pycocotools(seed: int) -> None:
    """Text that pycocotools compressed, of noise, of objects, of nothing and of everything."""
    from pycocotools import mask as api

    rng = np.random.default_rng(seed)
    mask = rng.random((37 + seed, 300)) < (0.5, 0.001, 0.0, 1.0)[seed % 4]
    mask[5:20, 40 : 40 + 30 * seed] = True
    encoded = api.encode(np.asfortranarray(mask.astype(np.uint8)))
    segmentation = {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    counts = coco_masks.run_lengths(segmentation, mask.shape)
    assert np.array_equal(coco_masks._fill(counts, mask.shape), mask)


def test_points_a_little_outside_are_drawn(tmp_path: Path) -> None:
    """COCO has outlines that leave the image by some pixels."""
    labels = drawn(tmp_path, [(4, [[-3.5, -2, WIDTH + 8.25, -2, WIDTH + 8.25, 10, -3.5, 10]], 0.0)])
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:10] = 5
    assert np.array_equal(labels, expected)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("images", {"height": 2**31, "width": 2**31}, "too large for an image"),
        ("images", {"height": 0}, "height 0 of image 1 is not a whole number from 1 on"),
        ("images", {"height": -5}, "height -5 of image 1"),
        ("images", {"height": 64.0}, "height 64.0 of image 1"),
        ("images", {"height": True}, "height True of image 1"),
        ("images", {"width": None}, "width None of image 1"),
        ("images", {"id": "1"}, "id '1' of image '1'"),
        ("images", {"file_name": 7}, "file_name of image 1 is not a text"),
        ("annotations", {"image_id": 9}, "annotation 100 is damaged .image_id 9 is not that"),
        ("annotations", {"image_id": "1"}, "annotation 100 is damaged .image_id '1' is not that"),
        ("annotations", {"image_id": [1]}, "annotation 100 is damaged .image_id"),
        ("annotations", {"category_id": 45}, "annotation 100 is damaged .category_id 45"),
        ("annotations", {"category_id": {}}, "annotation 100 is damaged .category_id"),
        ("annotations", {"iscrowd": 7}, "annotation 100 is damaged .iscrowd 7"),
        ("categories", {"id": "1"}, "id '1' of a category"),
        ("categories", {"id": 2}, "79 classes, COCO has 80"),
    ],
)
def test_entries_are_checked_when_the_file_is_read(
    part: str, change: dict[str, object], words: str, tmp_path: Path
) -> None:
    """Ids that match nothing would leave masks empty, and sizes take all memory."""
    data = instances({1: [(0, SQUARE, 0.0)]}, "val2014")
    data[part][0].update(change)
    file = tmp_path / "instances_val2014.json"
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=rf"instances_val2014\.json: .*{words}.*; get "):
        Annotations(file)


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_a_missing_part_is_named(part: str, tmp_path: Path) -> None:
    """Other files of COCO (captions, keypoints) look alike."""
    data = instances({1: [(0, SQUARE, 0.0)]}, "val2014")
    del data[part]
    file = tmp_path / "instances_val2014.json"
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=f'"{part}" is not a list'):
        Annotations(file)


def test_one_image_twice_is_refused(tmp_path: Path) -> None:
    """Which entry's annotations are its own?"""
    for change, words in (({}, "has the file name of image 1"), ({"file_name": "b.jpg"}, "one id")):
        data = instances({1: [(0, SQUARE, 0.0)]}, "val2014")
        data["images"].append({**data["images"][0], **change})
        file = tmp_path / "instances_val2014.json"
        file.write_text(json.dumps(data))
        with pytest.raises(DataError, match=words):
            Annotations(file)


def test_an_image_of_another_size_than_its_entry_is_found(tmp_path: Path) -> None:
    """Resized copies of COCO are around; their masks would be of another size."""
    annotations = Annotations(write(tmp_path, {1: [(0, SQUARE, 0.0)]}))
    annotations.check(stem(1), (HEIGHT, WIDTH))
    with pytest.raises(DataError, match="is 72 × 64 there, and the image is 36 × 32"):
        annotations.check(stem(1), (32, 36))
