"""LVIS-92i from files in the authors' form."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import expected_matcher
from data_sets import save_jpeg, write_lvis
from expected_matcher import HEIGHT, WIDTH, lvis_mask
from fsdino.commands.data.check import check
from fsdino.commands.data.prepare import prepare
from fsdino.data import coco_masks
from fsdino.data.catalog import check_episodes, open_episodes, open_source
from fsdino.data.lvis import Lvis
from fsdino.errors import DataError, FsdinoError, UsageError
from training_work import CONFIG


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_lvis(tmp_path / "LVIS")
    return tmp_path


def changed(root: Path, change: Callable[[dict[Any, Any]], object]) -> None:
    """Change the content of the small file."""
    file = root / "LVIS" / "lvis_val.pkl"
    content = pickle.loads(file.read_bytes())
    change(content)
    file.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize(("fold", "shots"), [(0, 1), (4, 1), (9, 1), (0, 3), (9, 3), (2, 5)])
def test_episodes_are_matchers(fold: int, shots: int, root: Path) -> None:
    """All 2,300, from a loader of its own that shares no code with this one."""
    episodes = open_episodes("lvis92i", fold=fold, shots=shots, root=root)
    expected = expected_matcher.lvis(root / "LVIS" / "lvis_val.pkl", fold, shots)
    assert len(episodes) == len(expected) == 2300
    for i, (key, names) in enumerate(expected):
        found = episodes.key(i)
        assert episodes.class_names[found.class_id] == f"category {key}"
        assert found.names == tuple(f"coco/{name}" for name in names)
    first = open_episodes("lvis92i", fold=fold, shots=shots, root=root, episodes=7)
    assert [first.key(i) for i in range(7)] == [episodes.key(i) for i in range(7)]
    provenance = episodes.provenance
    assert (provenance.dataset, provenance.lists, provenance.sampling, provenance.fold) == (
        "lvis92i", "published", "hsnet", fold,
    )  # fmt: skip


def test_classes_depend_on_the_shots(root: Path) -> None:
    """By hand: at every seventh place from 0 on there is a class with one image.

    At 1, 4, 8, 11, 15, 18 ... are those with more than five: fourteen, one for each fold.
    """
    many = [place for place in range(expected_matcher.LVIS_CLASSES) if place % 7]
    assert len(many) == 40
    one = Lvis(root)
    assert one.classes(0, "val") == (1, 12, 24, 36) == tuple(many[i] for i in (0, 10, 20, 30))
    assert one.classes(9, "val") == (11, 23, 34, 46) == tuple(many[i] for i in (9, 19, 29, 39))
    assert [Lvis(root, 5).classes(fold, "val") for fold in (0, 2, 5)] == [(1,), (8,), (18,)]
    found = [c for fold in range(10) for c in one.classes(fold, "val")]
    assert sorted(found) == many
    assert list(one.lists(3, "val").by_class) == list(one.classes(3, "val"))


def test_a_mask_is_the_union_of_polygons_and_runs(root: Path) -> None:
    """Of whole numbers and floats, and of pycocotools' bytes."""
    kinds = set()
    for fold in (0, 1, 5):
        episodes = open_episodes("lvis92i", fold=fold, root=root, shots=2, episodes=8)
        for i in range(8):
            episode = episodes[i]
            for sample in (episode.query, *episode.supports):
                assert sample.image.shape == (HEIGHT, WIDTH, 3) and sample.ignore is None
                assert np.array_equal(sample.mask, lvis_mask(episode.class_id, sample.name))
            kinds.add((episode.class_id % 2, episode.class_id % 5 == 0))
    assert len(kinds) == 4


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_any_protocol_of_pickle_is_read(protocol: int, tmp_path: Path, root: Path) -> None:
    """Bytes are a call to protocols 0 to 2, and no calls are made."""
    expected_matcher.write_lvis(tmp_path / "other" / "lvis_val.pkl", protocol)
    if protocol < 3:
        with pytest.raises(DataError, match=r"lvis_val\.pkl: names _codecs[. ]encode, which could"):
            Lvis(tmp_path / "other").lists(0, "val")
    else:
        expected = Lvis(root).annotations
        found = Lvis(tmp_path / "other").annotations
        assert (found.names, found.images) == (expected.names, expected.images)


def test_polygons_are_kept_packed(root: Path) -> None:
    """LVIS has millions of coordinates; and nothing but the packed ones is kept."""
    source = Lvis(root)
    [[polygon]] = next(iter(source.annotations.images[2].values()))
    assert type(polygon).__name__ == "array" and polygon.itemsize == 8
    assert polygon.tolist() == [0, 0, 30, 0, 30, 20, 0, 20]
    assert len(pickle.dumps(source)) < 1000  # workers read the file, or share it


def test_the_check_passes_and_counts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every image and every segmentation is looked at; there is nothing to prepare."""
    found = check("lvis92i", root)
    assert found.passed and not found.bad, found.summary()
    names = {
        n for p in range(expected_matcher.LVIS_CLASSES) for n in expected_matcher.lvis_images(p)
    }
    assert found.read == found.masked == len(names)
    assert [(fold.fold, fold.split, len(fold.classes)) for fold in found.folds] == [
        (fold, "val", 4) for fold in range(10)
    ]
    assert found.reading["classes"].startswith(
        "40 of 47 have more than 1 image, 4 in each of 10 folds"
    )
    assert prepare("lvis92i", root) == {}


def test_the_check_names_what_is_missing_or_damaged(root: Path) -> None:
    """An image, a segmentation; with the archive."""
    first = expected_matcher.lvis_images(3)[0]
    (root / "LVIS" / "coco" / first).unlink()
    found = check("lvis92i", root)
    assert not found.passed and list(found.bad) == [f"coco/{first}"]
    save_jpeg(root / "LVIS" / "coco" / first, 0, HEIGHT, WIDTH)
    key, name = 2 * 37 % 101, expected_matcher.lvis_images(2)[0]

    def spoil(content: dict[Any, Any]) -> None:
        content[key][name]["annotations"][0]["segmentation"] = [[0.0, 0, 1e9, 0, 5, 5]]

    changed(root, spoil)
    found = check("lvis92i", root)
    assert list(found.bad) == [f"coco/{name}"]
    assert f"category {key} in {name} is damaged (x 1000000000.0 of a polygon" in found.summary()
    with pytest.raises(DataError, match="is damaged"):
        Lvis(root).read(f"coco/{name}", 2, query=True)
    (root / "LVIS" / "lvis_val.pkl").unlink()
    found = check("lvis92i", root / "LVIS")
    assert "lvis_val.pkl missing, download lvis.zip" in found.summary() and not found.problems


def test_missing_files_name_what_to_download(root: Path, tmp_path: Path) -> None:
    """Before anything is read."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no lvis92i there .*LVIS/lvis_val\.pkl.*get lvis\.zip"):
        open_episodes("lvis92i", root=tmp_path / "empty")
    with pytest.raises(UsageError, match=r"lvis_val\.pkl: no such file; get lvis\.zip, linked"):
        Lvis(tmp_path / "empty").lists(0, "val")
    image = open_episodes("lvis92i", root=root, fold=1).key(0).query
    (root / "LVIS" / image).unlink()
    with pytest.raises(DataError, match=r"jpg: missing, with 0 other images .*data check lvis92i"):
        open_episodes("lvis92i", root=root, fold=1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1], r"but the file is \[1\] and not a filled dict"),
        ({}, "but the file is {} and not a filled dict"),
        ({1: ["a.jpg"]}, r"but category 1 is \['a.jpg'\] and not a filled dict"),
        ({1: {2: {}}}, "but the name 2 of category 1 is not a text"),
        ({1: {"a.jpg": []}}, r"but 'a.jpg' of category 1 is \[\] and not a filled dict"),
        ({1: {"a.jpg": {"annos": [1]}}}, "the annotations of 'a.jpg' of category 1 is None"),
        ({1: {"a.jpg": {"annotations": []}}}, r"the annotations of 'a.jpg' of category 1 is \[\]"),
        ({1: {"a.jpg": {"annotations": [5]}}}, "an annotation of 'a.jpg' of category 1 is 5"),
        ({1: {"a.jpg": {"annotations": [{"segmentation": 7}]}}}, "a segmentation of .* is 7"),
    ],
)
def test_another_form_is_one_error(content: object, words: str, tmp_path: Path) -> None:
    """PACO's file has the same ending and another form."""
    (tmp_path / "lvis_val.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=f"expected {{class: .*{words}.*; get lvis.zip"):
        Lvis(tmp_path).lists(0, "val")
    found = check("lvis92i", tmp_path)
    assert len(found.problems) == 1 and "expected {class: " in found.summary()
    assert [part.path for part in found.missing] == ["coco/train2017", "coco/val2017"]


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "a//b.jpg", "a\\b.jpg", "a\n.jpg"])
def test_names_stay_in_the_root(name: str, tmp_path: Path) -> None:
    """The file comes from a stranger's drive."""
    content = {1: {name: {"annotations": [{"segmentation": [[0, 0, 1, 0, 1, 1]]}]}}}
    (tmp_path / "lvis_val.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"lvis_val\.pkl: .*fix or replace"):
        Lvis(tmp_path).lists(0, "val")


def test_classes_with_too_few_images_are_told(root: Path) -> None:
    """Ten folds need ten classes; the largest have seven images."""
    with pytest.raises(DataError, match="7 classes have more than 6 images, ten folds need ten"):
        open_episodes("lvis92i", root=root, shots=6)


def test_an_empty_mask_is_scored_but_no_support(root: Path) -> None:
    """As a query the authors' code scores it; there is nothing to learn from it."""
    name = expected_matcher.lvis_images(2)[0]

    def spoil(content: dict[Any, Any]) -> None:
        content[2 * 37 % 101][name]["annotations"][0]["segmentation"] = [[3.0, 3, 3, 3, 3, 3]]

    changed(root, spoil)
    assert not Lvis(root).read(f"coco/{name}", 2, query=True).mask.any()
    with pytest.raises(
        DataError, match=r"category 74 covers no pixel of coco/.*cannot be a support"
    ):
        Lvis(root).read(f"coco/{name}", 2, query=False)


def test_it_is_for_evaluation_only(root: Path) -> None:
    """Its base classes stand in another file, which no table trains on."""
    for split in ("train", "base_val"):
        with pytest.raises(UsageError, match="lvis92i is for evaluation only"):
            open_episodes("lvis92i", root=root, split=split, sampling="seeded")
    with pytest.raises(
        UsageError, match="data 'lvis92i' is evaluated on and never trained on: choose pascal5i"
    ):
        dataclasses.replace(CONFIG, data="lvis92i", root=str(root))


@pytest.mark.parametrize("fold", [-1, 10, None])
def test_there_are_ten_folds_and_no_lists(fold: int | None, root: Path) -> None:
    """Fold -1 would be another one, and lists would have no effect."""
    with pytest.raises(UsageError, match=f"fold {fold}: LVIS-92i has the folds 0..9"):
        check_episodes("lvis92i", root=root, fold=fold)
    with pytest.raises(UsageError, match=r"--splits .*: lvis92i has no split lists"):
        open_source("lvis92i", root, root)


def test_polygons_without_pycocotools_name_the_extra(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not installed by default."""
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    assert coco_masks.outline([], (2, 2))().sum() == 0
    with pytest.raises(FsdinoError, match=r'polygons needs pycocotools: pip install "fsdino\[tr'):
        Lvis(root).read(f"coco/{expected_matcher.lvis_images(2)[0]}", 2, query=True)
