"""Benchmarks by name: what is opened, and what is refused with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_sets import write_davis, write_voc
from fsdino.data.catalog import open_episodes, open_source
from fsdino.data.davis import Davis
from fsdino.data.names import DATASETS, ON_DISK
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.errors import DataError, UsageError


@pytest.fixture
def voc(tmp_path: Path) -> dict[str, Any]:
    write_voc(tmp_path / "VOC2012", tmp_path / "splits")
    return {"dataset": "pascal5i", "root": tmp_path, "splits": tmp_path / "splits"}


def test_every_data_set_is_documented() -> None:
    """By a row of the first table in docs/data.md."""
    text = (Path(__file__).resolve().parents[2] / "docs/data.md").read_text(encoding="utf-8")
    rows = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    assert sorted(row.split("`")[1] for row in rows) == sorted(DATASETS)


def test_what_a_result_records_of_its_episodes(voc: dict[str, Any]) -> None:
    """Numbers are compared by these fields."""
    episodes = open_episodes(**voc, fold=3, shots=5)
    found = episodes.provenance
    assert (found.dataset, found.fold, found.split) == ("pascal5i", 3, "val")
    assert (found.sampling, found.lists, found.mask_source) == ("hsnet", "published", "published")
    assert len(found.lists_hash) == 64 and len(episodes) == 1000
    assert (episodes.shots, episodes.seed, episodes.fold) == (5, 0, 3)
    assert episodes.classes == (16, 17, 18, 19, 20)
    leak_safe = open_episodes(**{**voc, "dataset": "pascal5i-leak-safe"}, fold=3)
    assert leak_safe.provenance.dataset == "pascal5i-leak-safe"
    assert leak_safe.classes == (5, 8, 10, 14)


def test_training_and_validation_share_no_image(voc: dict[str, Any]) -> None:
    """base_val watches training on the same classes, but not on the same images."""
    by_split = {}
    for split in ("train", "base_val"):
        episodes = open_episodes(**voc, split=split, sampling="seeded", episodes=60)
        assert episodes.classes == tuple(range(6, 21))
        by_split[split] = {name for i in range(60) for name in episodes.key(i).names}
        assert episodes.provenance.split == split
    assert not by_split["train"] & by_split["base_val"]


def test_missing_images_are_found_before_the_first_is_read(voc: dict[str, Any]) -> None:
    """An evaluation that ends after an hour for want of a file has wasted the hour."""
    (voc["root"] / "VOC2012" / "JPEGImages" / "2007_000000.jpg").unlink()
    with pytest.raises(DataError, match=r"2007_000000\.jpg: missing, with 0 other.*data check"):
        open_episodes(**voc, fold=0)
    episodes = open_episodes(**voc, fold=0, skip_bad=True)
    bad = [i for i in range(20) if "JPEGImages/2007_000000.jpg" in episodes.key(i).names]
    with pytest.raises(DataError, match=r"2007_000000\.jpg"):
        episodes[bad[0]]


def test_a_class_without_images_is_an_error(voc: dict[str, Any]) -> None:
    """Scored over four classes, five-class mIoU is another number."""
    file = voc["splits"] / "pascal" / "val" / "fold0.txt"
    lines = [line for line in file.read_text().split() if line[-1] not in "45"]
    file.write_text("\n".join(lines))
    for sampling in ("hsnet", "seeded"):
        with pytest.raises(DataError, match="class 4 has 0, class 5 has 0 images, an episode"):
            open_episodes(**voc, fold=0, sampling=sampling)


def test_generated_episodes_need_no_root() -> None:
    """The procedural set is opened by name like the others."""
    episodes = open_episodes("procedural", fold=3, shots=2, seed=5, episodes=7, image_size=40)
    expected = ProceduralEpisodes(3, "val", 2, 5, 7, 40)
    assert [episodes.key(i) for i in range(7)] == [expected.key(i) for i in range(7)]
    assert len(open_episodes("procedural")) == 1000
    assert episodes.provenance.sampling == "seeded"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"dataset": "pascal"}, "no data set 'pascal' on disk: choose one of pascal5i"),
        ({"root": None}, "pass --root"),
        ({"root": Path("nowhere")}, "--root nowhere: no such folder"),
        ({"root": Path("/")}, r"no pascal5i there .*VOC2012/JPEGImages.*get VOCtrainval"),
        ({"splits": Path("nowhere")}, "--splits nowhere: no such folder"),
        ({"fold": 4}, "fold 4: PASCAL-5i has the folds 0..3"),
        ({"fold": None}, "fold None"),
        ({"split": "test"}, "split 'test': choose one of train, val, base_val"),
        ({"shots": 0}, "shots 0"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 1}, "seed 1: the draws of hsnet start from 0; use sampling seeded"),
        ({"episodes": 0}, "episodes 0"),
        ({"sampling": "random"}, "sampling 'random': choose hsnet or seeded"),
        ({"image_size": 64}, "image_size is for generated episodes"),
        ({"dataset": "davis17"}, "davis17 is scored video by video"),
        ({"dataset": "folder", "fold": 2}, "fold 2: folder has no folds; pass --fold 0"),
        ({"dataset": "procedural", "fold": 9}, "fold 9"),
        ({"dataset": "procedural", "split": "test"}, "split 'test'"),
        ({"dataset": "procedural", "episodes": 0}, "episodes 0"),
        ({"dataset": "procedural", "image_size": 0}, "image_size 0"),
    ],
)
def test_arguments_that_cannot_be_meant(
    changed: dict[str, Any], words: str, voc: dict[str, Any]
) -> None:
    """A default that silently takes the place of a mistake gives another benchmark's number."""
    with pytest.raises(UsageError, match=words):
        open_episodes(**{**voc, **changed})


def test_every_name_opens_a_data_set(tmp_path: Path) -> None:
    """The names that commands offer are the names that are known."""
    assert set(DATASETS) == {*ON_DISK, "procedural"}
    write_davis(tmp_path)
    assert isinstance(open_source("davis17", tmp_path), Davis)
    for name in ON_DISK:
        source = open_source(name, tmp_path, incomplete=True)
        assert source.dataset == name and source.parts()
