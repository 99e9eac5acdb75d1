"""PASCAL-Part from files in the authors' form."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import expected_matcher
from data_sets import HEIGHT, WIDTH, write_pascal_part
from expected_matcher import voc_mask, voc_name, voc_objects
from fsdino.commands.data.check import check
from fsdino.commands.data.prepare import prepare
from fsdino.data.catalog import check_episodes, open_episodes
from fsdino.data.pascal_part import ANNOTATIONS, INDEX, PascalPart
from fsdino.errors import DataError, UsageError
from training_work import CONFIG

CLASSES = (
    *("cat TAIL", "cat HEAD", "bird HEAD", "bird WING", "bottle CAP", "bottle BODY"),
    *("person HEAD", "person ARM", "bus WHEEL", "bus BODY", "aeroplane BODY"),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_pascal_part(tmp_path / "VOCdevkit" / "VOC2010")
    return tmp_path / "VOCdevkit" / "VOC2010"


def changed(file: Path, change: Callable[[Any], object]) -> None:
    """Change the content of a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def annotation(root: Path, n: int) -> Path:
    return root / ANNOTATIONS / f"{voc_name(n)}.json"


def sample_name(name: str, number: int) -> str:
    return f"JPEGImages/{name}.jpg#{number}"


@pytest.mark.parametrize(
    ("fold", "shots"), [(0, 1), (1, 1), (2, 1), (3, 1), (0, 3), (3, 3), (0, 5), (3, 5)]
)
def test_episodes_are_matchers(fold: int, shots: int, root: Path) -> None:
    """All of them, from a loader of its own that shares no code with this one."""
    episodes = open_episodes("pascal-part", fold=fold, shots=shots, root=root.parent.parent)
    expected = expected_matcher.pascal_part(root, fold, shots)
    assert len(episodes) == len(expected) > 20
    for i, (title, drawn) in enumerate(expected):
        found = episodes.key(i)
        assert episodes.class_names[found.class_id] == title
        assert found.names == tuple(sample_name(*one) for one in drawn)
    first = open_episodes("pascal-part", fold=fold, shots=shots, root=root, episodes=7)
    assert [first.key(i) for i in range(7)] == [episodes.key(i) for i in range(7)]
    provenance = episodes.provenance
    assert (provenance.dataset, provenance.lists, provenance.sampling, provenance.fold) == (
        "pascal-part", "published", "hsnet", fold,
    )  # fmt: skip


def test_objects_without_the_part_are_drawn_again() -> None:
    """The small files have images in which one object of a kind lacks a part of another's."""
    mixed = [
        n
        for n in range(expected_matcher.VOC_IMAGES)
        if len({"HEAD" in parts for kind, _, parts in voc_objects(n) if kind == "cat"}) == 2
    ]
    assert len(mixed) >= 3


def test_classes_are_those_with_images_in_both_lists(root: Path) -> None:
    """By hand: not aeroplane's tail, nor aeroplane's wing and cat's eye, of which a list is empty.

    Folds are in the order of their names, their classes in that of the file.
    """
    source = PascalPart(root)
    assert tuple(source.class_names.values()) == CLASSES
    assert [source.classes(fold, "val") for fold in range(4)] == [
        (0, 1, 2, 3), (4, 5), (6, 7), (8, 9, 10),
    ]  # fmt: skip
    total = [
        sum(
            len(expected_matcher.voc_listed(kind, part))
            for kind, parts in expected_matcher.VOC_PARTS[fold].items()
            for part in parts
            if part != "EYE"
        )
        for fold in expected_matcher.VOC_FOLDS
    ]
    assert list(source.index.listed) == total
    assert list(source.lists(3, "val").by_class) == [8, 9, 10]


def test_there_are_at_most_2500_episodes(root: Path) -> None:
    """Persons are in more images than that."""

    def longer(content: Any) -> None:
        part = content["person"]["object"]["person"]["part"]["ARM"]
        part["val"] = part["val"] * 250

    changed(root / INDEX, longer)
    assert PascalPart(root).index.listed[2] > 2500
    assert len(open_episodes("pascal-part", fold=2, root=root)) == 2500


@pytest.mark.parametrize("fold", range(4))
def test_images_and_masks_are_cropped_to_the_object(fold: int, root: Path) -> None:
    """The box is the values in their order, whatever their keys; what is outside is left out."""
    episodes = open_episodes("pascal-part", fold=fold, root=root, shots=2, episodes=40)
    clipped = 0
    for i in range(40):
        episode = episodes[i]
        part = episode.class_name.split()[1]
        for sample in (episode.query, *episode.supports):
            stem, number = sample.name.removeprefix("JPEGImages/").split(".jpg#")
            n, j = int(stem[5:]), int(number)
            _, (x0, y0, x1, y1), parts = voc_objects(n)[j]
            assert part in parts and sample.ignore is None
            with Image.open(root / "JPEGImages" / f"{stem}.jpg") as image:
                whole = np.array(image)
            clipped += x1 > WIDTH
            assert np.array_equal(sample.image, whole[y0:y1, x0:x1])
            assert np.array_equal(sample.mask, voc_mask(n, j, part)) and sample.mask.any()
    assert clipped


def test_without_a_number_it_is_the_first_object_that_has_the_part(root: Path) -> None:
    """Seeded episodes draw images alone."""
    n = next(
        n
        for n in range(expected_matcher.VOC_IMAGES)
        if [c for c in voc_objects(n) if c[0] == "cat"] and "HEAD" not in voc_objects(n)[0][2]
        and any(kind == "cat" and "HEAD" in parts for kind, _, parts in voc_objects(n))
    )  # fmt: skip
    j = next(j for j, o in enumerate(voc_objects(n)) if o[0] == "cat" and "HEAD" in o[2])
    assert j > 0
    found = PascalPart(root).read(f"JPEGImages/{voc_name(n)}.jpg", 1, query=True)
    assert np.array_equal(found.mask, voc_mask(n, j, "HEAD"))
    seeded = open_episodes("pascal-part", root=root, sampling="seeded", seed=3, episodes=8)
    assert [seeded[i].query.mask.any() for i in range(8)] == [True] * 8


def test_workers_get_little(root: Path) -> None:
    """A source is copied to each of them."""
    assert len(pickle.dumps(PascalPart(root))) < 1000


def test_the_check_passes_and_counts(root: Path) -> None:
    """Every image and every part is looked at; there is nothing to prepare."""
    found = check("pascal-part", root.parent)
    assert found.passed and not found.bad, found.summary()
    assert (
        found.read
        == found.masked
        == len({n for images in PascalPart(root).index.images for n in images})
    )
    assert [(fold.fold, fold.split, len(fold.classes)) for fold in found.folds] == [
        (0, "val", 4), (1, "val", 2), (2, "val", 2), (3, "val", 3),
    ]  # fmt: skip
    listed = PascalPart(root).index.listed
    assert found.reading["folds"].startswith(f"animals: 4 classes, {listed[0]} episodes; indoor: 2")
    assert prepare("pascal-part", root) == {}


def test_the_check_names_what_is_missing_or_damaged(root: Path) -> None:
    """An image, an annotation, the index; with the archive."""
    (root / "JPEGImages" / f"{voc_name(5)}.jpg").unlink()
    annotation(root, 6).unlink()
    annotation(root, 7).write_text("{")
    found = check("pascal-part", root)
    assert not found.passed and sorted(found.bad) == [
        f"JPEGImages/{voc_name(n)}.jpg" for n in (5, 6, 7)
    ]
    reasons = [found.bad[f"JPEGImages/{voc_name(n)}.jpg"] for n in (6, 7)]
    assert "cannot be read (No such file or directory); get pascal.zip, linked from" in reasons[0]
    assert "damaged (it is not JSON" in reasons[1] and "get it again: pascal.zip" in reasons[1]
    (root / INDEX).unlink()
    found = check("pascal-part", root)
    assert f"{INDEX} missing, download pascal.zip" in found.summary() and not found.problems


def test_missing_files_name_what_to_download(root: Path, tmp_path: Path) -> None:
    """Before anything is read."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no pascal-part there .*\.json\); get pascal\.zip"):
        open_episodes("pascal-part", root=tmp_path / "empty")
    with pytest.raises(UsageError, match=r"image\.json: no such file; get pascal\.zip, linked"):
        PascalPart(tmp_path / "empty").lists(0, "val")
    image = open_episodes("pascal-part", root=root, fold=1).key(0).query.partition("#")[0]
    (root / image).unlink()
    with pytest.raises(
        DataError, match=r"\d\.jpg: missing, with 0 other images .*data check pascal-part"
    ):
        open_episodes("pascal-part", root=root, fold=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one: one.update(bndbox={"xmin": 1, "ymin": 2, "xmax": 3}), "bndbox has 3 values"),
        (lambda one: one.update(bndbox=[1, 2, 3, 4]), r"bndbox is \[1, 2, 3, 4\] and not a filled"),
        (
            lambda one: one.update(bndbox=dict(zip("abcd", ["x", 2, 3, 4], strict=True))),
            "bndbox has the value 'x'",
        ),
        (
            lambda one: one.update(bndbox=dict(zip("abcd", [90, 2, 99, 4], strict=True))),
            "the box 90, 2, 99, 4 of its object covers nothing of the image of 72 × 64",
        ),
        (
            lambda one: one["parts"][0].update(mask=[]),
            r'"mask" of [A-Z]* of object 0 is \[\] and not',
        ),
        (
            lambda one: one["parts"][0]["mask"][0].update(size=[8, 9]),
            r"size \[8, 9\] is not \[64, 72\]",
        ),
        (lambda one: one["parts"][0]["mask"][0].update(counts="zz"), "run|ends within"),
        (lambda one: one.update(parts=None), "object 0 has the name 'cat' and the parts None"),
        (lambda one: one["parts"][0].update(name=3), "a part of object 0 has the name 3"),
    ],
)
def test_damaged_annotations_are_one_error(
    change: Callable[[Any], object], words: str, root: Path
) -> None:
    """The file, the reason, and what to get."""
    n = next(n for n in range(48) if voc_objects(n)[0][0] == "cat" and voc_objects(n)[0][2])
    changed(annotation(root, n), lambda content: change(content["object"][0]))
    source = PascalPart(root)
    part = voc_objects(n)[0][2][0]
    class_id = CLASSES.index(f"cat {part}")
    with pytest.raises(
        DataError, match=rf"{voc_name(n)}\.json: damaged \(.*({words}).*pascal\.zip"
    ):
        source.read(sample_name(voc_name(n), 0), class_id, query=True)
    assert list(check("pascal-part", root).bad) == [f"JPEGImages/{voc_name(n)}.jpg"]


def test_what_no_episode_draws_need_not_be_usable(root: Path) -> None:
    """Objects of other kinds have no parts in the authors' files, or odd boxes."""
    n = next(n for n in range(48) if voc_objects(n)[0][0] == "cat" and voc_objects(n)[0][2])
    others = [{"name": "table"}, {"name": "boat", "bndbox": 3, "parts": [{"name": "X"}]}]
    changed(annotation(root, n), lambda content: content["object"].extend(others))
    assert check("pascal-part", root).passed
    part = voc_objects(n)[0][2][0]
    found = PascalPart(root).read(
        sample_name(voc_name(n), 0), CLASSES.index(f"cat {part}"), query=True
    )
    assert np.array_equal(found.mask, voc_mask(n, 0, part))


def test_an_image_without_its_listed_object_is_told(root: Path) -> None:
    """The authors' loader stops there, too."""
    n = next(n for n in range(48) if [o[0] for o in voc_objects(n)] == ["cat"])

    def rename(content: Any) -> None:
        content["object"][0]["name"] = "dog"

    changed(annotation(root, n), rename)
    found = check("pascal-part", root)
    assert found.bad and "has no such object for cat" in found.summary()
    with pytest.raises(DataError, match=r"json: has no such object for cat .*, which all_obj_part"):
        open_episodes("pascal-part", root=root)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda js: js.clear(), "but the file is {} and not a filled dict"),
        (lambda js: js.pop("person"), "but person is None and not a filled dict"),
        (lambda js: js["person"].update(object=3), '"object" of person is 3'),
        (lambda js: js["person"]["object"]["person"].pop("part"), "person is {} and not"),
        (
            lambda js: js["person"]["object"]["person"]["part"]["ARM"].update(val=[3]),
            r"person ARM has a list \[3\]",
        ),
        (
            lambda js: js["person"]["object"].update(
                person={"part": {"A+B": {"train": ["a"], "val": ["a"]}}}
            ),
            r"person A\+B holds '\+'",
        ),
        (
            lambda js: js["person"]["object"].update(
                person={"part": {"A": {"train": ["a"], "val": []}}}
            ),
            "person has no class with images in train and val",
        ),
        (
            lambda js: js["person"]["object"].update(
                person={"part": {"A": {"train": ["a"], "val": ["b#1"]}}}
            ),
            "the name 'b#1' holds '#'",
        ),
    ],
)
def test_another_index_is_one_error(
    change: Callable[[Any], object], words: str, root: Path
) -> None:
    """The form that was expected, and what to get."""
    changed(root / INDEX, change)
    with pytest.raises(DataError, match=f"{INDEX}: expected {{fold: .*{words}.*; get pascal.zip"):
        PascalPart(root).lists(0, "val")
    assert len(check("pascal-part", root).problems) == 1


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a\\b", "a\n"])
def test_names_stay_in_the_root(name: str, root: Path) -> None:
    """The index comes from a stranger's drive."""

    def spoil(content: Any) -> None:
        content["person"]["object"]["person"]["part"]["ARM"]["val"] = [name]

    changed(root / INDEX, spoil)
    with pytest.raises(DataError, match=r"image\.json: .*fix or replace"):
        PascalPart(root).lists(0, "val")


def test_too_few_images_are_told(root: Path) -> None:
    """The authors' loader would draw forever."""
    with pytest.raises(
        DataError, match=r"has \d+ different images, an episode needs 41: use fewer"
    ):
        open_episodes("pascal-part", root=root, shots=40)

    def forget(content: Any) -> None:
        for one in content["object"]:
            one["parts"] = []

    for n in range(expected_matcher.VOC_IMAGES):
        changed(annotation(root, n), forget)
    with pytest.raises(DataError, match="10000 draws found 0 of 2 images with an object that can"):
        open_episodes("pascal-part", root=root)


def test_an_empty_mask_is_scored_but_no_support(root: Path) -> None:
    """As a query the authors' code scores it; there is nothing to learn from it."""
    n = next(n for n in range(48) if voc_objects(n)[0][0] == "cat" and voc_objects(n)[0][2])
    part = voc_objects(n)[0][2][0]

    def spoil(content: Any) -> None:
        for one in content["object"][0]["parts"]:
            one["mask"] = [{"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}]

    changed(annotation(root, n), spoil)
    name, class_id = sample_name(voc_name(n), 0), CLASSES.index(f"cat {part}")
    assert not PascalPart(root).read(name, class_id, query=True).mask.any()
    with pytest.raises(DataError, match=f"cat {part} covers no pixel of object 0, which cannot be"):
        PascalPart(root).read(name, class_id, query=False)


def test_it_is_for_evaluation_only(root: Path) -> None:
    """Its training images are listed, but no table trains on them."""
    for split in ("train", "base_val"):
        with pytest.raises(UsageError, match="pascal-part is for evaluation only"):
            open_episodes("pascal-part", root=root, split=split, sampling="seeded")
    with pytest.raises(UsageError, match="data 'pascal-part' is evaluated on and never trained on"):
        dataclasses.replace(CONFIG, data="pascal-part", root=str(root))
    with pytest.raises(UsageError, match=r"--splits .*: pascal-part has no split lists"):
        open_episodes("pascal-part", fold=0, root=root, splits=root)


@pytest.mark.parametrize("fold", [-1, 4, None])
def test_there_are_four_folds(fold: int | None, root: Path) -> None:
    """Fold -1 would be another one."""
    with pytest.raises(UsageError, match=f"fold {fold}: PASCAL-Part has the folds 0..3"):
        check_episodes("pascal-part", root=root, fold=fold)
