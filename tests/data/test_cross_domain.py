"""The cross-domain sets in PATNet's layouts: its draws, its masks, and what is missing."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import expected_patnet
from fsdino.commands.data.check import check
from fsdino.commands.data.prepare import prepare
from fsdino.data.catalog import open_episodes, open_source
from fsdino.data.names import CROSS_DOMAIN
from fsdino.errors import DataError, UsageError

ISIC_IMAGES = "ISIC2018_Task1-2_Training_Input"


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    for write in expected_patnet.WRITERS.values():
        write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("dataset", CROSS_DOMAIN)
def test_episodes_are_drawn_as_published(dataset: str, shots: int, sets: Path) -> None:
    """All 600 of them: class, query and supports of a script that shares no code."""
    episodes = open_episodes(dataset, root=sets, shots=shots)
    expected = expected_patnet.episodes(sets, dataset, shots, 600)
    assert len(episodes) == 600 and episodes.fold is None
    keys = [episodes.key(i) for i in range(600)]
    assert [(key.class_id, list(key.names)) for key in keys] == expected
    assert len(set(keys)) > 20  # classes differ, and so do their episodes
    found = episodes.provenance
    assert (found.sampling, found.lists, found.mask_source) == ("hsnet", "published", "published")


def test_masks_give_the_order_of_lungs(sets: Path) -> None:
    """1_mask comes after 10_mask, but 1.png before 10.png: the other order is another draw."""
    items = open_source("lung", sets).lists(None, "val").items  # type: ignore[union-attr]
    names = [Path(name).stem.removeprefix("CHNCXR_") for name, _ in items]
    assert names == ["0001_0", "0001_1", "0323", "100", "10", "1", "2"]


@pytest.mark.parametrize("dataset", CROSS_DOMAIN)
@pytest.mark.parametrize("above", [True, False])
def test_the_root_may_be_the_folder_itself(dataset: str, above: bool, sets: Path) -> None:
    """Names, and so hashes, are the same."""
    root = sets if above else sets / expected_patnet.FOLDERS[dataset]
    episodes = open_episodes(dataset, root=root, episodes=7)
    name = episodes.key(6).query
    assert (sets / expected_patnet.FOLDERS[dataset] / name).is_file()
    assert episodes[6].query.name == name
    assert pickle.loads(pickle.dumps(episodes)).key(6) == episodes.key(6)


@pytest.mark.parametrize("dataset", CROSS_DOMAIN)
def test_brightness_from_128_on_is_foreground(dataset: str, sets: Path) -> None:
    """127 is background, and every class and folder finds its own mask."""
    source = open_source(dataset, sets)
    lists = source.lists(None, "val")  # type: ignore[union-attr]
    for class_id, names in lists.by_class.items():
        for name in names:
            sample = source.read(name, class_id, query=True)  # type: ignore[union-attr]
            mask = np.array(sample.mask)
            assert mask[5].all() and not mask[4].any() and not mask[12:].any()
            assert mask[6:12, 3:12].all() and not mask[6:12, :3].any()
            assert sample.image.shape == (24, 24, 3) and sample.ignore is None


@pytest.mark.parametrize("dataset", CROSS_DOMAIN)
def test_a_whole_set_passes_the_check(dataset: str, sets: Path) -> None:
    """Counts by class show at a glance whether folders are complete."""
    found = check(dataset, sets)
    assert found.passed and not found.bad and found.read == found.masked
    (fold,) = found.folds
    counts = {
        "deepglobe": [4, 5, 6, 7, 8, 9], "isic": [3, 4, 5], "lung": [7],
    }  # fmt: skip
    assert list(fold.classes.values()) == counts[dataset] and found.read == sum(counts[dataset])
    words = found.reading["drawn from"].split(", ")
    assert [int(word.rpartition(" ")[2]) for word in words] == counts[dataset]
    assert prepare(dataset, sets) == {}


def test_what_is_missing_is_named_with_its_archive(sets: Path) -> None:
    """One line: the file, how many more, and where it comes from."""
    masks = sets / "ISIC" / "ISIC2018_Task1_Training_GroundTruth"
    for path in sorted(masks.iterdir())[:2]:
        path.unlink()
    words = r"ISIC_0001000_segmentation\.png: missing, as 1 others; .*challenge\.isic-archive\.com"
    with pytest.raises(DataError, match=words):
        open_episodes("isic", root=sets)
    found = check("isic", sets)
    assert sorted(found.bad) == [f"{ISIC_IMAGES}/1/ISIC_000{n}.jpg" for n in ("1000", "1031")]
    assert not found.passed and found.read == 12 and found.masked == 10

    (sets / "LungSegmentation" / "CXR_png" / "CHNCXR_10.png").unlink()
    with pytest.raises(DataError, match=r"CHNCXR_10\.png: missing, as 0 others; .*kaggle"):
        open_episodes("lung", root=sets)

    shutil.rmtree(sets / "Deepglobe" / "4")
    with pytest.raises(DataError, match=r"4.test.origin: no files \*\.jpg; get the preprocessed"):
        open_episodes("deepglobe", root=sets)
    found = check("deepglobe", sets)
    assert [part.note for part in found.missing] == ["5 of 6 folders"] * 2
    assert "github.com/slei109/PATNet" in found.summary() and found.read == 32


def test_masks_with_another_name_are_refused(sets: Path) -> None:
    """The official archive has Montgomery's masks too, which PATNet's code cannot read."""
    masks = sets / "LungSegmentation" / "masks"
    for number in (1, 2):
        shutil.copy(masks / "CHNCXR_1_mask.png", masks / f"MCUCXR_000{number}_0.png")
    words = r"MCUCXR_0001_0\.png: not named IMAGE_mask\.png, as 1 others; .*move them out"
    with pytest.raises(DataError, match=words):
        open_episodes("lung", root=sets)
    assert not check("lung", sets).passed


def test_unsorted_skin_lesions_say_how_to_sort_them(sets: Path) -> None:
    """The official archive has one folder; the classes are a file of PATNet's."""
    folder = sets / "ISIC" / ISIC_IMAGES
    for path in folder.glob("*/*.jpg"):
        path.rename(folder / path.name)
    with pytest.raises(UsageError, match=r"no isic there .*folders 1, 2 and 3 by data/isic/class"):
        open_episodes("isic", root=sets)


def test_unusable_masks_are_named(sets: Path) -> None:
    """A file that cannot be used must not become a score of zero."""
    mask = sets / "Deepglobe" / "1" / "test" / "groundtruth" / "9_01.png"
    source = open_source("deepglobe", sets)
    for size, level, words in (
        ((24, 24), 127, r"9_01\.png: no pixel is foreground"),
        ((23, 24), 200, r"9_01\.png: the mask is 23 × 24, its image 24 × 24"),
    ):
        Image.new("L", size, level).save(mask)
        with pytest.raises(DataError, match=words):
            source.read("1/test/origin/9_01.jpg", 0, query=True)  # type: ignore[union-attr]
        assert list(check("deepglobe", sets).bad) == ["1/test/origin/9_01.jpg"]


@pytest.mark.parametrize("dataset", CROSS_DOMAIN)
def test_nothing_but_evaluation(dataset: str, sets: Path) -> None:
    """Training on them would not be cross-domain."""
    for split in ("train", "base_val"):
        with pytest.raises(UsageError, match=f"{dataset} is for evaluation only"):
            open_episodes(dataset, root=sets, split=split)
    with pytest.raises(UsageError, match=f"{dataset} has no split lists"):
        open_episodes(dataset, root=sets, splits=sets)
    with pytest.raises(UsageError, match=f"fold 1: {dataset} has no folds"):
        open_episodes(dataset, root=sets, fold=1)


def test_other_seeds_are_seeded(sets: Path) -> None:
    """They are other episodes, and say so."""
    episodes = open_episodes("isic", root=sets, sampling="seeded", seed=3, episodes=30)
    assert episodes.provenance.sampling == "seeded" and len(episodes) == 30
    assert {episodes.key(i).class_id for i in range(3)} == {0, 1, 2}
