"""Folders of labelled photographs, as people have them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fsdino
from fsdino.data import labelled
from fsdino.errors import DataError, UsageError
from fsdino.masks import read_mask

HEIGHT, WIDTH = 8, 10


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (90, 80, 70)).save(path)
    return path


def mask(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(box()).save(path)
    return path


def box() -> np.ndarray:
    flags = np.zeros((HEIGHT, WIDTH), bool)
    flags[1:5, 2:6] = True
    return flags


POINTS = [[2, 1], [6, 1], [6, 5], [2, 5]]


def labelme(path: Path, image: str, *labels: str, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    shapes = [{"label": label, "points": POINTS, "shape_type": "polygon"} for label in labels]
    data = {"imagePath": image, "imageHeight": size[0], "imageWidth": size[1], "shapes": shapes}
    path.write_text(json.dumps(data), encoding="utf-8")


def check(root: Path, **expected: list[str]) -> None:
    """Classes with their images; all masks are the box."""
    found = fsdino.read_labelled(root)
    assert {name: [i.name for i in part.images] for name, part in found.items()} == expected
    for part in found.values():
        assert len(part.masks) == len(part.images)
        assert all(np.array_equal(read_mask(m, (HEIGHT, WIDTH)), box()) for m in part.masks)


@pytest.mark.parametrize(
    ("image", "other"),
    [
        ("cat.jpg", "cat.png"),
        ("cat.jpg", "cat_mask.png"),
        ("cat.png", "cat-mask.png"),
        ("cat.jpg", "masks/cat.png"),
        ("cat.jpg", "Masks/cat_mask.png"),
        ("images/cat.jpg", "masks/cat.png"),
        ("images/a/cat.jpg", "masks/a/cat.png"),
    ],
)
def test_pairs(image: str, other: str, tmp_path: Path) -> None:
    """One class, in every layout; with a folder for each class, two."""
    for root in (tmp_path / "one", tmp_path / "two" / "cat", tmp_path / "two" / "dog"):
        photo(root / image)
        mask(root / other)
    check(tmp_path / "one", foreground=[Path(image).name])
    check(tmp_path / "two", cat=[Path(image).name], dog=[Path(image).name])


def test_images_without_a_mask_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And left out."""
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        photo(tmp_path / name)
    mask(tmp_path / "masks" / "b.png")
    with caplog.at_level(logging.WARNING, "fsdino.data"):
        check(tmp_path, foreground=["b.jpg"])
    assert "a.jpg" in caplog.text and "c.jpg" in caplog.text and "b.jpg" not in caplog.text


def test_labelme(tmp_path: Path) -> None:
    """A file for each image; images without a class are in none."""
    for name in ("a", "b", "c"):
        photo(tmp_path / f"{name}.jpg")
    labelme(tmp_path / "a.json", "a.jpg", "cat", "dog")
    labelme(tmp_path / "b.json", "b.jpg", "cat", "cat")
    labelme(tmp_path / "c.json", "c.jpg")
    check(tmp_path, cat=["a.jpg", "b.jpg"], dog=["a.jpg"])
    found = fsdino.read_labelled(tmp_path / "b.json")
    assert [*found] == ["cat"]


def test_labelme_files_in_a_folder_of_their_own(tmp_path: Path) -> None:
    """The path in them leads from their folder to the image, as LabelMe reads and writes it."""
    photo(tmp_path / "photos" / "sub" / "a.jpg")
    folder = tmp_path / "found" / "labelme"
    folder.mkdir(parents=True)
    labelme(folder / "a.json", "../../photos/sub/a.jpg", "cat")
    labelme(folder / "b.json", "..\\..\\photos\\sub\\a.jpg", "cat")
    check(folder / "a.json", cat=["a.jpg"])
    check(folder / "b.json", cat=["a.jpg"])
    (folder / "b.json").unlink()
    check(folder, cat=["a.jpg"])
    assert fsdino.read_labelled(folder)["cat"].images == [tmp_path / "photos" / "sub" / "a.jpg"]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "link").symlink_to(folder)  # `..` leads from where it points to
    check(tmp_path / "deep" / "er" / "link" / "a.json", cat=["a.jpg"])
    other = photo(tmp_path / "elsewhere" / "a.jpg")
    labelme(folder / "a.json", str(other), "cat")
    with pytest.raises(DataError, match=r"a\.jpg', which is not in"):
        fsdino.read_labelled(folder)
    (folder / "a.json").unlink()
    write_coco(folder / "x.json", "../../photos/sub/a.jpg")
    with pytest.raises(DataError, match=r"sub/a\.jpg', which is not in"):
        fsdino.read_labelled(folder)


def write_coco(file: Path, *names: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {"id": k, "file_name": name, "height": HEIGHT, "width": WIDTH}
        for k, name in enumerate(names)
    ]
    notes = [
        {"id": k, "image_id": k, "category_id": 1, "segmentation": [np.ravel(POINTS).tolist()]}
        for k in range(len(names))
    ]
    data = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "cat"}]}
    file.write_text(json.dumps(data), encoding="utf-8")


def test_coco_as_cvat_exports_it(tmp_path: Path) -> None:
    """Images lie beside the folder of the annotations, one level down."""
    for name in ("a.jpg", "b.jpg"):
        photo(tmp_path / "images" / "default" / name)
    file = tmp_path / "annotations" / "instances_default.json"
    write_coco(file, "a.jpg", "b.jpg")
    check(tmp_path, cat=["a.jpg", "b.jpg"])
    check(file, cat=["a.jpg", "b.jpg"])


def test_coco_beside_masks_with_the_images_names(tmp_path: Path) -> None:
    """As Datumaro 1.13 exports the format "coco": panoptic masks lie with the annotations."""
    photo(tmp_path / "images" / "default" / "a.png")
    mask(tmp_path / "annotations" / "panoptic_default" / "a.png")
    file = tmp_path / "annotations" / "instances_default.json"
    write_coco(file, "a.png")
    check(file, cat=["a.png"])
    assert fsdino.read_labelled(file)["cat"].images[0].parent.name == "default"


@pytest.mark.parametrize("folders", [("images/train", "labels/train"), ("x/images", "x/labels")])
def test_yolo_segments(folders: tuple[str, str], tmp_path: Path) -> None:
    """Beside each other or in two folders; named by data.yaml."""
    images, labels = (tmp_path / name for name in folders)
    photo(images / "a.jpg")
    labels.mkdir(parents=True)
    line = " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in POINTS)
    (labels / "a.txt").write_text(f"1 {line}\n", encoding="utf-8")
    (tmp_path / "data.yaml").write_text("names: [dog, cat]\n", encoding="utf-8")
    (tmp_path / "readme.txt").write_text("exported", encoding="utf-8")
    check(tmp_path, cat=["a.jpg"])
    (labels / "b.txt").write_text(f"1 {line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"b\.txt belongs to the image .*b\.jpg, which is not in"):
        fsdino.read_labelled(tmp_path)


def test_captions_are_not_segments(tmp_path: Path) -> None:
    """Text beside an image is read only if it begins as segments do."""
    photo(tmp_path / "a.jpg")
    mask(tmp_path / "masks" / "a.png")
    (tmp_path / "a.txt").write_text("1 cat on a table", encoding="utf-8")
    check(tmp_path, foreground=["a.jpg"])
    (tmp_path / "a.txt").write_text("1 0.2 0.1 0.6 0.1 0.6 0.6", encoding="utf-8")
    with pytest.raises(DataError, match=r"several kinds \(YOLO, masks\)"):
        fsdino.read_labelled(tmp_path)


def test_labelme_files_apart_from_their_images(tmp_path: Path) -> None:
    """A relative path may lead out of the folder, as LabelMe and `fsdino segment` write it."""
    image = photo(tmp_path / "photos" / "a.jpg")
    folder = tmp_path / "found" / "labelme"
    folder.mkdir(parents=True)
    labelme(folder / "a.json", "../../photos/a.jpg", "cat")
    for place in (folder, folder / "a.json"):
        assert fsdino.read_labelled(place)["cat"].images == [image]
    labelme(folder / "a.json", str(image), "cat")
    with pytest.raises(DataError, match=r"names the image .*, which is not in"):
        fsdino.read_labelled(folder)


def two_masks(root: Path) -> None:
    photo(root / "a.jpg")
    mask(root / "a.png")
    mask(root / "a_mask.png")


def two_masks_apart(root: Path) -> None:
    photo(root / "a.jpg")
    mask(root / "masks" / "a.png")
    mask(root / "masks" / "a_mask.png")


def two_kinds(root: Path) -> None:
    photo(root / "a.jpg")
    mask(root / "a.png")
    labelme(root / "a.json", "a.jpg", "cat")


def two_files(root: Path) -> None:
    photo(root / "a.jpg")
    labelme(root / "a.json", "a.jpg", "cat")
    labelme(root / "b.json", "a.jpg", "cat")


def missing_image(root: Path) -> None:
    photo(root / "a.jpg")
    write_coco(root / "x.json", "a.jpg", "b.jpg")


def other_size(root: Path) -> None:
    photo(root / "a.jpg")
    labelme(root / "a.json", "a.jpg", "cat", size=(WIDTH, HEIGHT))


def several_images(root: Path) -> None:
    photo(root / "one" / "a.jpg")
    photo(root / "two" / "a.jpg")
    write_coco(root / "x.json", "a.jpg")


def mask_folders(root: Path) -> None:
    photo(root / "a.jpg")
    mask(root / "masks" / "a.png")
    mask(root / "gt" / "a.png")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (two_masks, r"a\.jpg: has 2 masks, .*a\.png, .*a_mask\.png; keep one"),
        (two_masks_apart, r"a\.jpg: has 2 masks, .*a\.png, .*a_mask\.png; keep one"),
        (two_kinds, r"labels of several kinds \(LabelMe, masks\): pass the annotation file"),
        (two_files, r"a\.jpg has two annotation files, .*a\.json and .*b\.json: keep one"),
        (missing_image, r"x\.json names the image 'b\.jpg', which is not in .*: put it there"),
        (other_size, r"a\.json: a\.jpg is 8 × 10 there, and the image is 10 × 8; annotate"),
        (several_images, r"names the image 'a\.jpg', which could be .*one.*two.*: keep one"),
        (mask_folders, r"several folders of masks, gt, masks: keep one"),
    ],
)
def test_bad_input_is_one_line(make: Any, words: str, tmp_path: Path) -> None:
    """That names the file and says what to do."""
    make(tmp_path)
    with pytest.raises(DataError, match=words) as error:
        fsdino.read_labelled(tmp_path)
    assert "\n" not in str(error.value)


def test_nothing_to_read(tmp_path: Path) -> None:
    """An empty folder, photographs alone, another JSON file, no folder."""
    with pytest.raises(UsageError, match=r"no labelled image found; it needs NAME\.jpg with"):
        fsdino.read_labelled(tmp_path)
    photo(tmp_path / "a.jpg")
    (tmp_path / "settings.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="no labelled image found"):
        fsdino.read_labelled(tmp_path)
    with pytest.raises(UsageError, match="neither a LabelMe nor a COCO file"):
        fsdino.read_labelled(tmp_path / "settings.json")
    with pytest.raises(UsageError, match="no such file or folder"):
        fsdino.read_labelled(str(tmp_path / "none"))


def test_annotations_without_a_shape(tmp_path: Path) -> None:
    """As Label Studio 1.23 exports brushes to COCO: the error says that the file was read."""
    photo(tmp_path / "a.jpg")
    write_coco(tmp_path / "result.json")
    for path in (tmp_path, tmp_path / "result.json"):
        with pytest.raises(UsageError, match="the COCO annotations have no polygon and no mask"):
            fsdino.read_labelled(path)


def test_the_number_of_images_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any mask is drawn."""
    monkeypatch.setattr(labelled, "MOST_IMAGES", 2)
    for name in ("a", "b", "c"):
        photo(tmp_path / f"{name}.jpg")
        labelme(tmp_path / f"{name}.json", f"{name}.jpg", "cat")
    with pytest.raises(DataError, match="cat has 3 labelled images, at most 2 make a support"):
        fsdino.read_labelled(tmp_path)
