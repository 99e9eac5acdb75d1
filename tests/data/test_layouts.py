"""How a folder of one's own is read: which files belong together, and what is refused."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_sets import VOC_COLOURS, picture, save_jpeg, save_labels
from fsdino.data.catalog import open_episodes
from fsdino.data.episodes import episode_hash
from fsdino.data.folder import Folder
from fsdino.errors import DataError, FsdinoError, UsageError
from own_folders import HALF, label_map, labelled, mask, photo, read, reading

# ------------------------------------------------------------------------------- class folders


@pytest.mark.parametrize(
    ("image", "masked"),
    [
        ("IMG_1.JPG", "IMG_1.PNG"),
        ("a.jpg", "a.PNG"),
        ("a.png", "a_mask.png"),
        ("a.jpg", "a_mask.png"),
        ("a.jpg", "a-mask.jpg"),
        ("a.JPEG", "a_MASK.TIF"),
        ("a.webp", "a_mask.bmp"),
        ("my cup 1.jpg", "my cup 1.png"),
        (unicodedata.normalize("NFC", "é.jpg"), unicodedata.normalize("NFD", "é.png")),
        (os.fsdecode(b"caf\xe9.jpg"), os.fsdecode(b"caf\xe9.png")),
        ("a.b.jpg", "a.b_mask.png"),
    ],
)
def test_a_mask_is_found_by_its_name(image: str, masked: str, tmp_path: Path) -> None:
    """Cameras write .JPG, Windows .PNG, macOS decomposed letters, tools NAME_mask."""
    photo(tmp_path / "cup" / image)
    mask(tmp_path / "cup" / masked)
    found = reading(tmp_path)
    assert found.layout == "class-folders" and dict(found.classes) == {0: "cup"}
    assert found.masks == {f"cup/{image}": f"cup/{masked}"}
    assert found.images == {0: (f"cup/{image}",)} and not found.unmarked[0]
    assert np.array_equal(read(Folder(tmp_path), f"cup/{image}", 0), HALF > 0)


def test_names_that_are_not_utf_8_are_drawn_from(tmp_path: Path) -> None:
    """Archives of other systems unpack to such names; hashes are over their bytes."""
    for i in range(2):
        folder = tmp_path / os.fsdecode(b"caf\xe9")
        photo(folder / os.fsdecode(b"\xfc%d.jpg" % i), i)
        mask(folder / os.fsdecode(b"\xfc%d.png" % i))
    episodes = open_episodes("folder", root=tmp_path, episodes=3)
    assert episodes[0].class_name == os.fsdecode(b"caf\xe9")
    assert len(episode_hash(episodes)) == len(episodes.provenance.lists_hash) == 64


def test_what_was_read_before_is_read_alike(tmp_path: Path) -> None:
    """An update must not change which episodes a folder's numbers were measured on.

    The hash was recorded with the version before layouts.
    """
    for name, count in (("dog", 4), ("cat", 3)):
        for i in range(count):
            save_jpeg(tmp_path / name / f"{i}.jpg", i, 30, 40)
            mask(tmp_path / name / f"{i}.png")
    photo(tmp_path / "dog" / "x_mask.bmp")  # an image of that name, with a mask of its own
    mask(tmp_path / "dog" / "x_mask.png")
    mask(tmp_path / "dog" / "orphan.png")
    photo(tmp_path / "dog" / "old" / "1.jpg")
    photo(tmp_path / "backup" / "dog" / "1.jpg")
    photo(tmp_path / "overview.jpg")
    episodes = open_episodes("folder", root=tmp_path, episodes=40, shots=2, seed=3)
    assert episode_hash(episodes) == RECORDED_EPISODES
    assert episodes.provenance.lists_hash == RECORDED_LISTS


RECORDED_EPISODES = "87c109eb3d33dc6a1e11d9ff6411571b815fad5a0d7562a4ff0c1d1c86b27543"
RECORDED_LISTS = "4067f8646b61fa8541fa806b56de97ce657940d6fb8c5e95215f0106b831237d"


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    """Silence about a file is a lie about the data."""
    for i in range(2):
        photo(tmp_path / "cup" / f"{i}.jpg")
        mask(tmp_path / "cup" / f"{i}.png")
    mask(tmp_path / "cup" / "orphan.png")
    (tmp_path / "cup" / "Thumbs.db").write_bytes(b"\xd0\xcf")
    (tmp_path / "cup" / "._0.jpg").write_bytes(b"\0\5\x16\7")
    (tmp_path / "cup" / ".fsdino-0123.png").write_bytes(b"")
    (tmp_path / "cup" / "notes.txt").write_text("x")
    photo(tmp_path / "cup" / "old" / "1.jpg")
    (tmp_path / "empty").mkdir()
    photo(tmp_path / "overview.jpg")
    found = reading(tmp_path)
    assert dict(found.classes) == {0: "cup"} and found.images[0] == ("cup/0.jpg", "cup/1.jpg")
    assert set(found.left_out) == {
        "cup/orphan.png", "cup/Thumbs.db", "cup/notes.txt", "cup/old", "empty", "overview.jpg",
    }  # fmt: skip


def test_nested_class_folders(tmp_path: Path) -> None:
    """Where no folder of the root has images, those below it are the classes."""
    for name in ("animals/dog", "animals/cat", "tools/saws/hacksaw"):
        photo(tmp_path / name / "a.jpg")
        mask(tmp_path / name / "a.png")
    found = reading(tmp_path)
    assert list(found.classes.values()) == ["animals/cat", "animals/dog", "tools/saws/hacksaw"]
    assert found.images[2] == ("tools/saws/hacksaw/a.jpg",)


def test_images_and_masks_in_folders_of_a_class(tmp_path: Path) -> None:
    """Some tools export a folder of images and one of masks for each class."""
    for name in ("cat", "dog"):
        photo(tmp_path / name / "images" / "a.png")
        mask(tmp_path / name / "masks" / "a.png")
    found = reading(tmp_path)
    assert found.layout == "class-folders" and list(found.classes.values()) == ["cat", "dog"]
    assert found.masks["dog/images/a.png"] == "dog/masks/a.png"


def test_a_label_map_in_a_class_folder_hints_at_the_layout(tmp_path: Path) -> None:
    """A mask has one class here."""
    photo(tmp_path / "street" / "a.jpg")
    save_labels(tmp_path / "street" / "a.png", label_map(0, 1, 2, 7), VOC_COLOURS)
    with pytest.raises(DataError, match=r"street.a\.png.*--layout labels"):
        Folder(tmp_path).read("street/a.jpg", 0, query=True)


# ----------------------------------------------------------------------------------- one class


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images", "masks"),
        ("imgs", "labels"),
        ("Images", "Annotations"),
        ("JPEGImages", "SegmentationClass"),
        ("img", "gt"),
    ],
)
@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("a.png", "a.png"), ("a.jpg", "a_mask.gif")])
def test_a_folder_of_images_and_one_of_masks(
    images: str, masks: str, names: tuple[str, str], tmp_path: Path
) -> None:
    """The most frequent layout of all: one class."""
    root = tmp_path / "cups"
    photo(root / images / names[0])
    mask(root / masks / names[1])
    mask(root / masks / "orphan.png")
    (root / "README.md").write_text("x")
    found = reading(root)
    assert found.layout == "pairs" and dict(found.classes) == {0: "cups"}
    assert found.masks == {f"{images}/{names[0]}": f"{masks}/{names[1]}"}
    assert set(found.left_out) == {f"{masks}/orphan.png", "README.md"}
    assert reading(root, layout="pairs").masks == found.masks
    source = Folder(root)
    assert np.array_equal(read(source, f"{images}/{names[0]}", 0), HALF > 0)


def test_jpeg_masks_and_subfolders(tmp_path: Path) -> None:
    """JPEG leaves gray around edges; parts of a data set lie in folders of one structure."""
    for i, part in enumerate(("train", "val")):
        photo(tmp_path / "images" / part / "a.jpg", i)
        mask(tmp_path / "masks" / part / "a.jpg", np.kron(HALF, np.ones((8, 1), np.uint8))[:30])
    (tmp_path / "classes.txt").write_text("1 cup\n")
    found = reading(tmp_path)
    assert found.layout == "pairs" and dict(found.classes) == {0: "cup"}
    assert found.images[0] == ("images/train/a.jpg", "images/val/a.jpg")
    assert read(Folder(tmp_path), "images/val/a.jpg", 0).mean() == 0.5


@pytest.mark.parametrize("end", [".png", "_mask.png", "-mask.jpg"])
def test_images_beside_their_masks_in_the_root(end: str, tmp_path: Path) -> None:
    """A single class needs no folder of its own."""
    for i in range(3):
        photo(tmp_path / f"{i}.jpg", i)
        mask(tmp_path / f"{i}{end}")
    found = reading(tmp_path)
    assert found.layout == "pairs" and found.images[0] == ("0.jpg", "1.jpg", "2.jpg")
    episodes = open_episodes("folder", root=tmp_path, episodes=5)
    assert episodes[0].query.mask.mean() == pytest.approx(0.5, abs=0.03)


# ------------------------------------------------------------------------------------- turned


@pytest.mark.parametrize("layout", ["class-folders", "labels"])
def test_a_turned_photograph_and_its_mask(
    layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Orientation 3 keeps the size: whether a mask without one is upright is a guess, and said."""
    folder, masks = ("cup", "cup") if layout == "class-folders" else ("images", "labels")
    values = label_map(0, 1, 0, 0) if layout == "class-folders" else label_map(0, 1, 2, 2)
    exif = Image.Exif()
    exif[0x0112] = 3
    for name, own in (("open", None), ("stated", exif)):
        path = tmp_path / folder / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture(0, 30, 40)).save(path, exif=exif)
        mask(tmp_path / masks / f"{name}.png", values)
        if own is not None:
            Image.fromarray(values).save(tmp_path / masks / f"{name}.png", exif=own)
    source = Folder(tmp_path, layout)
    class_id = min(source.class_names)
    stated = read(source, f"{folder}/stated.jpg", class_id)
    assert np.array_equal(stated, (values == 1)[::-1, ::-1]) and not caplog.records
    assert np.array_equal(read(source, f"{folder}/open.jpg", class_id), values == 1)
    assert [r for r in caplog.records if "open.png" in r.message and "is 3" in r.getMessage()]


# ---------------------------------------------------------------------------------- ambiguous


def test_two_masks_of_an_image_are_refused(tmp_path: Path) -> None:
    """Whichever is taken, somebody meant the other one."""
    photo(tmp_path / "cup" / "a.jpg")
    mask(tmp_path / "cup" / "a.png")
    mask(tmp_path / "cup" / "a_mask.png")
    with pytest.raises(DataError, match=r"a\.jpg: has 2 masks, .*a\.png, .*a_mask\.png; keep one"):
        reading(tmp_path)
    for name in ("a_mask.png", "a-mask.png"):
        mask(tmp_path / "two" / "masks" / name)
    photo(tmp_path / "two" / "images" / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: has 2 masks"):
        reading(tmp_path / "two")


def test_two_images_of_a_mask_are_refused(tmp_path: Path) -> None:
    """The mask is of one of them."""
    photo(tmp_path / "images" / "a.jpg")
    photo(tmp_path / "images" / "a.png")
    mask(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match=r"masks.a\.png: matches several images"):
        reading(tmp_path)


def test_folders_that_fit_two_layouts_are_refused(tmp_path: Path) -> None:
    """What was found is listed, and --layout decides."""
    photo(tmp_path / "cup" / "a.jpg")
    mask(tmp_path / "cup" / "a.png")
    photo(tmp_path / "images" / "b.jpg")
    mask(tmp_path / "masks" / "b.png")
    with pytest.raises(
        DataError, match=r"class folders \(cup\) and a folder of images.*pass --layout"
    ):
        reading(tmp_path)
    assert reading(tmp_path, layout="pairs").images == {0: ("images/b.jpg",)}
    assert reading(tmp_path, layout="class-folders").images[0] == ("cup/a.jpg",)
    mask(tmp_path / "labels" / "b.png")
    with pytest.raises(DataError, match="images/ with labels/, images/ with masks/"):
        reading(tmp_path)


def test_masks_that_mean_one_class_or_two_are_refused(tmp_path: Path) -> None:
    """1 in one file and 255 in another: one class written in two ways, or class 1 and ignored."""
    root = labelled(tmp_path, label_map(0, 1), label_map(0, 255))
    with pytest.raises(DataError, match=r"the values 1 \(.*\) and 255 \(.*--layout pairs or --lay"):
        reading(root)
    assert reading(root, layout="pairs").images == {0: ("images/0.jpg", "images/1.jpg")}
    assert reading(root, layout="labels").images == {1: ("images/0.jpg",)}


def test_parts_of_a_data_set_are_not_classes(tmp_path: Path) -> None:
    """train/ and val/ with images and masks in each would be classes of that name."""
    for part in ("train", "val"):
        photo(tmp_path / part / "images" / "a.jpg")
        mask(tmp_path / part / "masks" / "a.png")
    with pytest.raises(DataError, match=r"train, val look like parts.*--root .*train"):
        reading(tmp_path)
    for part in ("train", "val"):
        photo(tmp_path / "nested" / part / "dog" / "a.jpg")
        mask(tmp_path / "nested" / part / "dog" / "a.png")
    with pytest.raises(DataError, match="look like parts"):
        reading(tmp_path / "nested")


@pytest.mark.parametrize("layout", ["auto", "pairs", "labels", "class-folders"])
def test_images_without_a_mask_are_named_or_left_out(layout: str, tmp_path: Path) -> None:
    """An image that nobody marked must not vanish."""
    for i in range(3):
        folder = "cup" if layout == "class-folders" else "images"
        photo(tmp_path / folder / f"{i}.jpg", i)
        if i:
            mask(tmp_path / (folder if folder == "cup" else "masks") / f"{i}.png", label_map(0, 1))
    options = {"root": tmp_path, "layout": layout, "episodes": 9}
    with pytest.raises(DataError, match=r"1 images have no mask, such as .*0\.jpg"):
        open_episodes("folder", **options)  # type: ignore[arg-type]
    episodes = open_episodes("folder", skip_bad=True, **options)  # type: ignore[arg-type]
    assert not any("0.jpg" in name for i in range(9) for name in episodes.key(i).names)


def test_special_files_are_not_opened(tmp_path: Path) -> None:
    """A pipe named like an image would be waited for without end."""
    for i in range(2):
        photo(tmp_path / "cup" / f"{i}.jpg", i)
        mask(tmp_path / "cup" / f"{i}.png")
    os.mkfifo(tmp_path / "cup" / "2.jpg")
    (tmp_path / "cup" / "3.jpg").symlink_to("/dev/zero")
    found = reading(tmp_path)
    assert found.images[0] == ("cup/0.jpg", "cup/1.jpg")
    assert {"cup/2.jpg", "cup/3.jpg"} <= set(found.left_out)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layout": "folders"}, "layout 'folders': choose one of auto, class-folders"),
        ({"ignore": "x"}, "ignore 'x': choose a value from 0 to 255"),
        ({"ignore": "256"}, "ignore 256: choose a value"),
        ({"ignore": "-1"}, "ignore '-1': choose a value"),
        ({"ignore": "0"}, "ignore 0: this is the background"),
        ({"background": "1"}, "background 1: choose 0 or none"),
        ({"ignore": "255"}, "--ignore and --background are for label maps.*class-folders"),
    ],
)
def test_settings_that_cannot_be_meant(
    settings: dict[str, str], words: str, tmp_path: Path
) -> None:
    """No option is without effect."""
    photo(tmp_path / "cup" / "a.jpg")
    mask(tmp_path / "cup" / "a.png")
    with pytest.raises(UsageError, match=words):
        open_episodes("folder", root=tmp_path, **settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="only for your own folder"):
        open_episodes("pascal5i", root=tmp_path, **settings)  # type: ignore[arg-type]
    with pytest.raises(FsdinoError, match="only for your own folder"):
        open_episodes("procedural", **settings)  # type: ignore[arg-type]


def test_subfolders_that_may_be_classes_are_refused(tmp_path: Path) -> None:
    """images/cat and images/dog as one class would be trained on without a word."""
    for name in ("cat", "dog"):
        photo(tmp_path / "images" / name / "a.jpg")
        mask(tmp_path / "masks" / name / "a.png")
    with pytest.raises(DataError, match=r"cat, dog, which may be classes .*--layout pairs"):
        reading(tmp_path)
    assert len(reading(tmp_path, layout="pairs").images[0]) == 2


def test_a_link_to_a_class_is_not_another_class(tmp_path: Path) -> None:
    """One object under two names would be asked for as two; a link to elsewhere is a class."""
    for folder in (tmp_path / "root" / "cup", tmp_path / "elsewhere"):
        photo(folder / "a.jpg")
        mask(folder / "a.png")
    (tmp_path / "root" / "beaker").symlink_to("cup")
    (tmp_path / "root" / "plate").symlink_to(tmp_path / "elsewhere")
    found = reading(tmp_path / "root")
    assert list(found.classes.values()) == ["cup", "plate"]
    assert found.left_out == {"beaker": "a link to cup"}
