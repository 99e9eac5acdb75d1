"""COCO-20i from files in COCO's layout, with mask PNGs and without."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_sets import (
    HEIGHT,
    WIDTH,
    category,
    rectangle,
    save_jpeg,
    save_labels,
    stacked,
    write_coco,
)
from fsdino.data.catalog import open_episodes
from fsdino.data.coco import CLASS_NAMES, Coco
from fsdino.errors import DataError, UsageError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    write_coco(root / "COCO2014")
    return root


@pytest.fixture
def coco(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one's own, and a cache of one's own."""
    monkeypatch.setenv("FSDINO_CACHE", str(tmp_path / "cache"))
    shutil.copytree(original / "COCO2014", tmp_path / "COCO2014")
    return tmp_path


def nothing(done: int, total: int) -> None:
    """Reports to nobody."""


def test_folds_are_interleaved() -> None:
    """Fold i holds out the contiguous ids i, i + 4 ... i + 76."""
    source = Coco(Path("nowhere"))
    assert source.classes(1, "val") == tuple(range(1, 80, 4))
    assert len(source.classes(1, "train")) == 60 and 5 not in source.classes(1, "train")
    assert len(set(CLASS_NAMES)) == 80
    names = [CLASS_NAMES[c] for c in (0, 4, 15, 39, 40, 60, 79)]
    assert names == [
        "person", "airplane", "cat", "bottle", "wine glass", "dining table", "toothbrush",
    ]  # fmt: skip


def test_without_pngs_masks_are_drawn_for_the_episodes_and_kept(
    coco: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The mask PNGs are the field's most asked-for file: COCO's own annotations suffice."""
    lists = {c: [f"val2014/COCO_val2014_{c + 1 + i:012d}.jpg" for i in (0, 80)] for c in range(80)}
    lists = {c: names if c % 4 == 2 else [] for c, names in lists.items()}
    lists[2].append("val2014/COCO_val2014_000000000076.jpg")  # class 2 is the lower one of 75, 2
    (coco / "lists" / "coco" / "val").mkdir(parents=True)
    (coco / "lists" / "coco" / "val" / "fold2.pkl").write_bytes(pickle.dumps(lists))
    caplog.set_level("INFO", logger="fsdino.data")
    options = {"fold": 2, "shots": 2, "episodes": 6, "root": coco, "splits": coco / "lists"}
    episodes = open_episodes("coco20i", **options)  # type: ignore[arg-type]
    assert episodes.provenance.mask_source == "rasterised"
    assert episodes.provenance.lists == "published"
    drawn = sorted((coco / "cache").rglob("val2014/*.png"))
    keys = [episodes.key(i) for i in range(6)]
    assert len(drawn) == len({name for key in keys for name in key.names})
    for i in range(6):
        episode = episodes[i]
        assert episode.class_id % 4 == 2
        for sample in (episode.query, *episode.supports):
            assert sample.ignore is None and sample.image.shape == (HEIGHT, WIDTH, 3)
            number = int(sample.name[-16:-4]) - 1
            upper = number % 80 == episode.class_id
            expected = np.zeros((HEIGHT, WIDTH), bool)
            expected[:32] = upper
            expected[32:] = not upper
            expected[:4, :4] = False  # a third annotation lies over both
            assert np.array_equal(sample.mask, expected)
    caplog.clear()
    again = open_episodes("coco20i", **options)  # type: ignore[arg-type]
    assert not caplog.records and [again.key(i) for i in range(6)] == keys


def test_pngs_that_came_with_the_data_come_first(coco: Path) -> None:
    """Published numbers used published masks; the result says which."""
    for path in (coco / "COCO2014" / "val2014").iterdir():
        labels = stacked([int(path.stem[-3:]) % 80 + 1])
        save_labels(coco / "COCO2014" / "annotations" / "val2014" / f"{path.stem}.png", labels)
    source = Coco(coco)
    assert source.mask_source("val") == "published"
    sample = source.read("val2014/COCO_val2014_000000000012.jpg", 12, query=True)
    assert sample.mask.all()


def test_prepared_masks_and_lists_are_found_through_splits(coco: Path) -> None:
    """Who has no room in the home folder names another, and passes it as --splits."""
    made = Coco(coco).prepare(coco / "out", nothing)
    assert {title: path.relative_to(coco).as_posix() for title, path in made.items()} == {
        "masks of train2014": "out/annotations/train2014",
        "masks of val2014": "out/annotations/val2014",
        "lists": "out",
    }
    assert len(list((coco / "out" / "annotations" / "train2014").glob("*.png"))) == 160
    assert not list((coco / "cache").rglob("*.png"))
    options = {"fold": 1, "root": coco, "splits": coco / "out", "sampling": "seeded"}
    for split in ("train", "base_val", "val"):
        episodes = open_episodes("coco20i", split=split, **options)  # type: ignore[arg-type]
        assert (episodes.provenance.mask_source, episodes.provenance.lists) == (
            "rasterised", "derived",
        )  # fmt: skip
        assert episodes[0].query.mask.any()
        assert episodes[0].query.name.startswith("train2014" if split == "train" else "val2014")
    assert not list((coco / "cache").rglob("*.png"))


def test_masks_moved_to_the_data_stay_rasterised(coco: Path) -> None:
    """Moving files must not turn them into the published ones."""
    Coco(coco).prepare(coco / "out", nothing)
    moved = coco / "COCO2014" / "annotations" / "val2014"
    (coco / "out" / "annotations" / "val2014").rename(moved)
    assert Coco(coco).mask_source("val") == "rasterised"


def test_derived_lists_are_those_of_the_masks(coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Class c fills half of four images of val2014; in two more it is a speck."""
    caplog.set_level("INFO", logger="fsdino.data")
    lists = Coco(coco).lists(3, "val")
    assert lists.derived and caplog.text.count("deriving COCO-20i's lists from the masks") == 1
    assert {class_id: len(names) for class_id, names in lists.by_class.items()} == dict.fromkeys(
        range(3, 80, 4), 4
    )
    numbers = [int(name[-16:-4]) for name in lists.by_class[11]]
    assert numbers == [5, 12, 85, 92]
    caplog.clear()
    assert Coco(coco).lists(3, "val").items == lists.items and not caplog.records


def test_what_later_annotations_hide_is_not_listed(coco: Path) -> None:
    """A table that is marked after the cups on it leaves nothing of them to be found."""
    file = coco / "COCO2014" / "annotations" / "instances_val2014.json"
    data = json.loads(file.read_text())
    hiding = {**data["annotations"][0], "segmentation": rectangle(0, 0, HEIGHT, WIDTH)}
    data["annotations"].append({**hiding, "category_id": category(60)})
    file.write_text(json.dumps(data))
    lists = Coco(coco).lists(0, "val").by_class
    name = "val2014/COCO_val2014_000000000001.jpg"  # was of class 0
    assert name in lists[60] and name not in lists[0]
    assert open_episodes("coco20i", root=coco, episodes=40)[39].query.mask.any()


def test_other_annotations_get_masks_and_lists_of_their_own(coco: Path) -> None:
    """A cache that outlives its annotations would serve old masks."""
    before = Coco(coco).lists(3, "val").items
    file = coco / "COCO2014" / "annotations" / "instances_val2014.json"
    data = json.loads(file.read_text())
    data["annotations"] = data["annotations"][:-3]
    file.write_text(json.dumps(data))
    assert Coco(coco).lists(3, "val").items != before


def test_missing_parts_are_named_with_their_archive(coco: Path) -> None:
    """Each part is a download of its own."""
    root = coco / "COCO2014"
    (root / "annotations" / "instances_train2014.json").unlink()
    with pytest.raises(UsageError, match=r"instances_train2014\.json is missing: get annot.*zip"):
        Coco(coco).lists(0, "train")
    (root / "annotations" / "instances_val2014.json").unlink()
    with pytest.raises(UsageError, match=r"no mask PNGs and .*instances_val2014\.json is missing"):
        Coco(coco).mask_source("val")


def test_bad_files_are_named(coco: Path) -> None:
    """A file that cannot be used must not become a score of zero."""
    name = "val2014/COCO_val2014_000000000012.jpg"
    path = coco / "COCO2014" / "annotations" / "val2014" / "COCO_val2014_000000000012.png"

    def fails(words: str) -> None:
        with pytest.raises(DataError, match=words):
            Coco(coco).read(name, 11, query=True)

    save_labels(path, stacked([12, 200]))
    fails(r"012\.png: the value 200 is not a class; .* rasterised")
    save_labels(path, stacked([13]))
    fails(r"012\.png: no pixel of class 11 \(value 12\)")
    save_labels(path, stacked([12]))
    save_jpeg(coco / "COCO2014" / name, 0, 60, 72)
    fails(r"012\.png: the mask is 72 × 64, its image 72 × 60")
    Image.new("L", (72, 64), 90).save(coco / "COCO2014" / name)
    sample = Coco(coco).read(name, 11, query=True)
    assert (sample.image == 90).all()  # some of COCO's pictures are gray
    path.unlink()
    save_labels(path.with_name("other.png"), stacked([12]))
    fails(r"012\.png\).*no such file")
