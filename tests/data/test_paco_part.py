"""PACO-Part from files in the authors' form."""

from __future__ import annotations

import dataclasses
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import expected_matcher
from data_sets import write_paco_part
from expected_matcher import paco_category, paco_images, paco_mask, paco_name, paco_objects
from fsdino.commands.data.check import check
from fsdino.commands.data.prepare import prepare
from fsdino.data.catalog import check_episodes, open_episodes, open_source
from fsdino.data.paco_part import TRAIN, VAL, PacoPart
from fsdino.errors import DataError, UsageError
from training_work import CONFIG


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_paco_part(tmp_path / "PACO-Part")
    return tmp_path / "PACO-Part"


def changed(root: Path, change: Callable[[Any], object], name: str = VAL) -> None:
    """Change the content of a small file."""
    content = pickle.loads((root / name).read_bytes())
    change(content)
    (root / name).write_bytes(pickle.dumps(content))


@pytest.mark.parametrize(("fold", "shots"), [(0, 1), (1, 1), (2, 1), (3, 1), (0, 3), (3, 5)])
def test_episodes_are_matchers(fold: int, shots: int, root: Path) -> None:
    """All 2,500, from a loader of its own that shares no code with this one."""
    episodes = open_episodes("paco-part", fold=fold, shots=shots, root=root.parent)
    expected = expected_matcher.paco_part(root, fold, shots)
    assert len(episodes) == len(expected) == 2500
    for i, (category, drawn) in enumerate(expected):
        found = episodes.key(i)
        assert episodes.class_names[found.class_id] == f"category {category}"
        assert found.names == tuple(f"coco/{name}#{number}" for name, number in drawn)
    first = open_episodes("paco-part", fold=fold, shots=shots, root=root, episodes=7)
    assert [first.key(i) for i in range(7)] == [episodes.key(i) for i in range(7)]
    provenance = episodes.provenance
    assert (provenance.dataset, provenance.lists, provenance.sampling, provenance.fold) == (
        "paco-part", "published", "hsnet", fold,
    )  # fmt: skip


def test_classes_follow_the_training_file_and_depend_on_the_shots(root: Path) -> None:
    """By hand: places f, f + 4, ... with more different images than shots.

    The image that a list has twice counts once: place 0 has one image, place 1 has six.
    """
    places = [place for place in range(448) if paco_images(place)]
    for shots in (1, 5):
        source = PacoPart(root, shots)
        many = [place for place in places if len(set(paco_images(place))) > shots]
        for fold in range(4):
            assert list(source.classes(fold, "val")) == [p for p in many if p % 4 == fold]
    assert len(set(paco_images(0))) == 1 and 0 not in PacoPart(root).classes(0, "val")
    assert len(paco_images(1)) == 7 and len(set(paco_images(1))) == 6
    assert PacoPart(root, 5).classes(1, "val")[0] == 1
    assert 1 not in PacoPart(root, 6).classes(1, "val")
    assert PacoPart(root).class_names[3] == f"category {paco_category(3)}"


@pytest.mark.parametrize("fold", range(4))
def test_images_and_masks_are_cropped_to_the_object(fold: int, root: Path) -> None:
    """Polygons and run lengths; the box of an object's first annotation, truncated after sums."""
    episodes = open_episodes("paco-part", fold=fold, root=root, shots=2, episodes=30)
    kinds = set()
    for i in range(30):
        episode = episodes[i]
        for sample in (episode.query, *episode.supports):
            name, number = sample.name.split("#")
            with Image.open(root / name) as image:
                whole = np.array(image)
            o = (int(number) - 9000) // 10
            assert np.array_equal(sample.image, whole[2 + 6 * o : 31 + 6 * o, 4 + 8 * o : 40])
            assert np.array_equal(sample.mask, paco_mask(int(number), episode.class_id))
            kinds.add((episode.class_id % 2, o))
    assert {o for _, o in kinds} == {0, 1, 2}


def test_without_a_number_it_is_the_first_object(root: Path) -> None:
    """Seeded episodes draw images alone."""
    source = PacoPart(root)
    n, first = next(
        (n, paco_objects(n, 1)[0]) for n in paco_images(1) if paco_objects(n, 1)[0] != 9000
    )
    found = source.read(f"coco/{paco_name(n)}", 1, query=True)
    assert np.array_equal(found.mask, paco_mask(first, 1))
    seeded = open_episodes("paco-part", root=root, sampling="seeded", seed=3, episodes=8)
    assert [seeded[i].query.mask.any() for i in range(8)] == [True] * 8


def test_polygons_are_kept_packed(root: Path) -> None:
    """Millions of coordinates; workers get the folder's name, and no file."""
    source = PacoPart(root)
    [one, *_] = source.annotations.objects(
        paco_category(1), f"coco/{paco_name(paco_images(1)[0])}"
    ).values()
    assert type(one.segmentations[0][0]).__name__ == "array"
    assert len(pickle.dumps(source)) < 1000


def test_reading_the_training_file_takes_less_than_3_gb(root: Path) -> None:
    """PACO has half a million parts of LVIS's objects: 6 kB for each, with 100 points each here."""
    count = 2000

    def grow(content: Any) -> None:
        for n in range(count // 10):
            content["img2anno"][n] = [
                {
                    "category_id": paco_category(n),
                    "obj_ann_id": 10 * n + i,
                    "obj_bbox": [1.5 + i, 2.5, 3.5, 4.5],
                    "segmentation": [[float(n + i + j) for j in range(200)]],
                    "iscrowd": 0,
                    "area": 20.5 + n,
                }
                for i in range(10)
            ]

    changed(root, grow, TRAIN)
    tracemalloc.start()
    found = PacoPart(root).categories
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 448 and kept < 1e6
    assert (root / TRAIN).stat().st_size > 1800 * count
    assert peak < 3e9 * count / 5e5


def test_the_check_passes_and_counts(root: Path) -> None:
    """Every image and every segmentation is looked at; there is nothing to prepare."""
    found = check("paco-part", root.parent)
    assert found.passed and not found.bad, found.summary()
    assert found.read == len({n for place in range(448) for n in paco_images(place)})
    counts = [len(PacoPart(root).classes(fold, "val")) for fold in range(4)]
    assert [(fold.fold, len(fold.classes)) for fold in found.folds] == list(enumerate(counts))
    assert found.reading["classes"].startswith(f"{sum(counts)} of 448 have more than 1 image, ")
    assert prepare("paco-part", root) == {}


def test_the_check_names_what_is_missing_or_damaged(root: Path) -> None:
    """An image, a segmentation, a file; with the archive."""
    first = f"coco/{paco_name(paco_images(1)[0])}"

    def spoil(content: Any) -> None:
        entries = content["img2anno"][paco_images(1)[0] + 500]
        one = next(one for one in entries if one["category_id"] == paco_category(1))
        one["segmentation"] = [[0.0, 0, 1e9, 0, 5, 5]]

    changed(root, spoil)
    found = check("paco-part", root)
    assert list(found.bad) == [first]
    assert f"category {paco_category(1)} in {first} is damaged (x 1000000000.0" in found.summary()
    (root / first).unlink()
    assert list(check("paco-part", root).bad) == [first]
    (root / TRAIN).unlink()
    found = check("paco-part", root)
    assert f"{TRAIN} missing, download paco.zip" in found.summary() and not found.problems


def test_missing_files_name_what_to_download(root: Path, tmp_path: Path) -> None:
    """Before anything is read."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no paco-part there .*PACO-Part/paco/.*get paco\.zip"):
        open_episodes("paco-part", root=tmp_path / "empty")
    image = open_episodes("paco-part", root=root, fold=1).key(0).query.partition("#")[0]
    (root / image).unlink()
    with pytest.raises(
        DataError, match=r"jpg: missing, with 0 other images .*data check paco-part"
    ):
        open_episodes("paco-part", root=root, fold=1)
    (root / TRAIN).unlink()
    with pytest.raises(UsageError, match=r"train\.pkl: no such file; get paco\.zip, linked"):
        open_episodes("paco-part", root=root)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda js: js.clear(), "but the file is {} and not a filled dict"),
        (lambda js: js.pop("cid2img"), "but 'cid2img' is None and not a filled dict"),
        (lambda js: js["cid2img"].update({3: {}}), "but category 3 has the images {}"),
        (lambda js: js["cid2img"].update({3: [{}]}), "but an image of 3 is {} and not"),
        (lambda js: js["cid2img"].update({3: [{1: 7}]}), "but the path 7 is not a text"),
        (lambda js: js["cid2img"].update({3: [{1: "c/d.jpg"}]}), r"but coco/c/d\.jpg is None"),
        (lambda js: js["cid2img"].update({3: [{1: "c/d#2"}]}), "but the name 'c/d#2' holds '#'"),
        (
            lambda js: js["cid2img"].update({3: [{1: "c/d.jpg"}, {2: "c/d.jpg"}]}),
            "but two images are named 'coco/c/d.jpg'",
        ),
        (
            lambda js: js["img2anno"][paco_images(1)[0] + 500][0].update(obj_ann_id="x"),
            "has the category .* and the object 'x'",
        ),
    ],
)
def test_another_form_is_one_error(change: Callable[[Any], object], words: str, root: Path) -> None:
    """LVIS's file has the same ending and another form."""
    changed(root, change)
    with pytest.raises(DataError, match=f"val.pkl: expected {{'cid2img.*{words}.*; get paco.zip"):
        PacoPart(root).lists(0, "val")
    assert len(check("paco-part", root).problems) == 1


@pytest.mark.parametrize("name", ["../a.jpg", "//a.jpg", "b/a\\b.jpg", "c/a\n.jpg", "a.jpg"])
def test_names_stay_in_the_root(name: str, root: Path) -> None:
    """The file comes from a stranger's drive."""
    changed(root, lambda content: content["cid2img"].update({3: [{1: name}]}))
    with pytest.raises(DataError, match=r"val\.pkl: .*fix or replace"):
        PacoPart(root).lists(0, "val")


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ([1.0, 2, 3], r"obj_bbox is array\('d', \[1.0, 2.0, 3.0\]\) and not x, y, w and h"),
        (["1", 2, 3, 4], r"obj_bbox is \['1', 2, 3, 4\], which are not numbers"),
        ([1e999, 2.0, 3.0, 4.0], "obj_bbox has the value inf"),
        ([80.0, 2.0, 3.0, 4.0], "the box 80, 2, 83, 6 of its object covers nothing of the image"),
    ],
)
def test_damaged_boxes_are_one_error(box: list[Any], words: str, root: Path) -> None:
    """The category, the image, the reason, and what to get."""
    n = paco_images(1)[0]

    def spoil(content: Any) -> None:
        for one in content["img2anno"][n + 500]:
            one["obj_bbox"] = box

    changed(root, spoil)
    with pytest.raises(DataError, match=rf"{n}\.jpg is damaged \({words}.*paco\.zip"):
        PacoPart(root).read(f"coco/{paco_name(n)}", 1, query=True)


def test_another_number_of_categories_is_refused(root: Path) -> None:
    """Folds count on all of them."""
    changed(root, lambda content: content["cid2img"].pop(paco_category(5)), TRAIN)
    with pytest.raises(DataError, match=r"train\.pkl: has 447 categories, PACO-Part has 448"):
        PacoPart(root).lists(0, "val")


def test_files_that_do_not_fit_together_are_told(root: Path) -> None:
    """An image is listed for a category of which it has no annotation; or too few are."""
    n = paco_images(1)[1]

    def forget(content: Any) -> None:
        entries = content["img2anno"][n + 500]
        entries[:] = [one for one in entries if one["category_id"] != paco_category(1)]
        entries.append({"category_id": 1, "obj_ann_id": 1})

    changed(root, forget)
    words = rf"val\.pkl: has no object with category {paco_category(1)} in coco/.*; get paco\.zip"
    with pytest.raises(DataError, match=words):
        open_episodes("paco-part", fold=1, root=root)
    assert list(check("paco-part", root).bad) == [f"coco/{paco_name(n)}"]
    with pytest.raises(DataError, match="no category of fold 0 has more than 9 images: use fewer"):
        open_episodes("paco-part", root=root, shots=9)


def test_an_empty_mask_is_scored_but_no_support(root: Path) -> None:
    """As a query the authors' code scores it; there is nothing to learn from it."""
    n = paco_images(1)[0]

    def spoil(content: Any) -> None:
        for one in content["img2anno"][n + 500]:
            one["segmentation"] = [[3.0, 3, 3, 3, 3, 3]]

    changed(root, spoil)
    assert not PacoPart(root).read(f"coco/{paco_name(n)}", 1, query=True).mask.any()
    with pytest.raises(DataError, match=r"covers no pixel of coco/.*cannot be a support"):
        PacoPart(root).read(f"coco/{paco_name(n)}", 1, query=False)


def test_it_is_for_evaluation_only(root: Path) -> None:
    """Of its training file only the order is read."""
    for split in ("train", "base_val"):
        with pytest.raises(UsageError, match="paco-part is for evaluation only"):
            open_episodes("paco-part", root=root, split=split, sampling="seeded")
    with pytest.raises(UsageError, match="data 'paco-part' is evaluated on and never trained on"):
        dataclasses.replace(CONFIG, data="paco-part", root=str(root))
    with pytest.raises(UsageError, match=r"--splits .*: paco-part has no split lists"):
        open_source("paco-part", root, root)


@pytest.mark.parametrize("fold", [-1, 4, None])
def test_there_are_four_folds(fold: int | None, root: Path) -> None:
    """Fold -1 would be another one."""
    with pytest.raises(UsageError, match=f"fold {fold}: PACO-Part has the folds 0..3"):
        check_episodes("paco-part", root=root, fold=fold)
