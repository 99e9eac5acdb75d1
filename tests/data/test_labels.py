"""Label maps of a folder: values, names of classes, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from data_sets import save_labels
from fsdino.data.catalog import open_episodes
from fsdino.data.folder import Folder
from fsdino.errors import DataError
from own_folders import label_map, labelled, mask, photo, reading


@pytest.mark.parametrize("palette", [False, True])
def test_label_maps_hold_several_classes(palette: bool, tmp_path: Path) -> None:
    """An image is one of each class in it; 255 is left out of a query's score."""
    maps = label_map(0, 3, 7, 255), label_map(0, 3), label_map(7, 0), label_map(0, 0)
    root = labelled(tmp_path, *maps, palette=palette)
    (root / "classes.txt").write_text("0 background\n3 cup of tea\n7 saucer\n9 spoon\n255 void\n")
    source = Folder(root)
    found = source.reading
    assert found.layout == "labels" and dict(found.classes) == {3: "cup of tea", 7: "saucer"}
    assert found.images == {
        3: ("images/0.jpg", "images/1.jpg"), 7: ("images/0.jpg", "images/2.jpg"),
    }  # fmt: skip
    assert found.left_out == {
        "images/3.jpg": "its label map holds no class",
        "class 9 spoon": "no label map has it",
    }
    query = source.read("images/0.jpg", 7, query=True)
    assert np.array_equal(query.mask, maps[0] == 7)
    assert query.ignore is not None and np.array_equal(query.ignore, maps[0] == 255)
    assert source.read("images/0.jpg", 7, query=False).ignore is None
    episodes = open_episodes("folder", root=root, episodes=6)
    assert {episodes[i].class_name for i in range(6)} == {"cup of tea", "saucer"}
    assert episodes.provenance.mask_source == "published"


def test_other_values_can_be_ignored_and_0_can_be_a_class(tmp_path: Path) -> None:
    """Not everybody counts from a background, or writes 255 around objects."""
    root = labelled(tmp_path, label_map(0, 1, 2, 255), label_map(1, 0))
    source = Folder(root, "labels", "2", "none")
    assert dict(source.reading.classes) == {0: "0", 1: "1", 255: "255"}
    sample = source.read("images/0.jpg", 255, query=True)
    assert sample.ignore is not None and sample.ignore.mean() == 0.25
    assert source.mask_source("val") == "published, ignore 2, background none"
    assert list(Folder(root, "labels", "none").reading.classes) == [1, 2, 255]
    no_border = Folder(root, "labels", "none").read("images/0.jpg", 1, query=True)
    assert no_border.ignore is None


@pytest.mark.parametrize(
    ("content", "background", "names"),
    [
        ("1 cup\n2 saucer\n", None, {1: "cup", 2: "saucer"}),
        ("\ufeff1: cup\r\n\r\n2: a saucer\r\n", None, {1: "cup", 2: "a saucer"}),
        ("cup\nsaucer\n", None, {1: "cup", 2: "saucer"}),
        ("background\ncup\nsaucer\n", None, {1: "cup", 2: "saucer"}),
        ("_background_\ncup\nsaucer\n", None, {1: "cup", 2: "saucer"}),
        ("table\ncup\nsaucer\n", "none", {0: "table", 1: "cup", 2: "saucer"}),
    ],
)
def test_class_names_with_and_without_values(
    content: str, background: str | None, names: dict[int, str], tmp_path: Path
) -> None:
    """Both kinds of classes.txt are found in the wild."""
    root = labelled(tmp_path, label_map(0, 1, 2, 2))
    (root / "classes.txt").write_text(content, encoding="utf-8")
    found = Folder(root, "labels", background=background).reading
    assert dict(found.classes) == names


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1 cup\n", r"labels.0\.png: the value 2 is not in .*classes\.txt; add a line"),
        ("1 cup\nsaucer\n", "'saucer' is not ID NAME like '1 cup'"),
        ("1 cup\n1 saucer\n", "1 saucer is repeated"),
        ("1 cup\n2 cup\n", "2 cup is repeated"),
        ("1 cup\n256 saucer\n", "256 is not a value from 0 to 255"),
        ("", "is empty"),
        ("1 cup\0\n", "holds NUL"),
    ],
)
def test_names_that_do_not_fit_are_refused(content: str, words: str, tmp_path: Path) -> None:
    """A wrong name is a wrong class."""
    root = labelled(tmp_path, label_map(0, 1, 2, 2))
    (root / "classes.txt").write_text(content)
    with pytest.raises(DataError, match=words):
        Folder(root, "labels").reading  # noqa: B018


def test_label_maps_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """Their images would be missing in each class; with skip_bad they are, and that is said."""
    root = labelled(tmp_path, *[label_map(0, 1, 2, 2)] * 4)
    damaged = root / "labels" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(DataError, match=r"labels.1\.png"):
        open_episodes("folder", root=root)
    episodes = open_episodes("folder", root=root, skip_bad=True, episodes=20)
    names = {name for i in range(20) for name in episodes.key(i).names}
    assert names == {"images/0.jpg", "images/2.jpg", "images/3.jpg"}


def test_label_maps_without_a_class_are_an_error(tmp_path: Path) -> None:
    """Masks of 0 and 255, read as label maps, hold background and ignored pixels alone."""
    root = labelled(tmp_path, label_map(0, 255), label_map(0, 255))
    words = "no label map has a class, with ignore 255, background 0; .*--layout pairs"
    with pytest.raises(DataError, match=words):
        Folder(root, "labels").lists(None, "val")
    assert len(Folder(root).lists(None, "val").items) == 2


def test_a_lossy_label_map_is_refused(tmp_path: Path) -> None:
    """JPEG turns the values at every edge into other classes."""
    photo(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "labels" / "a.jpg", label_map(0, 20, 40, 60))
    with pytest.raises(DataError, match=r"labels.a\.jpg: JPEG changes the values"):
        Folder(tmp_path, "labels").lists(None, "val")


def test_which_classes_are_where_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All label maps have to be read for it; a changed one is read again."""
    root = labelled(tmp_path, label_map(0, 1, 2, 2), label_map(0, 1))
    first = Folder(root).reading
    monkeypatch.setattr("fsdino.data.labels._values", None)
    assert Folder(root).reading == first
    monkeypatch.undo()
    save_labels(root / "labels" / "1.png", label_map(0, 5))
    os.utime(root / "labels" / "1.png", ns=(1, 1))
    assert list(Folder(root, "labels").reading.classes) == [1, 2, 5]


def test_label_maps_may_have_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """Their values are kept in the cache under a key of their names."""
    name = os.fsdecode(b"caf\xe9")
    photo(tmp_path / "images" / f"{name}.jpg")
    mask(tmp_path / "masks" / f"{name}.png", label_map(0, 1, 2, 255))
    assert list(reading(tmp_path).classes.values()) == ["1", "2"]
