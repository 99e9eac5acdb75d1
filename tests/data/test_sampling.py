"""The draws: the published ones exactly, the seeded ones fair and independent of order."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import expected_hsnet
from fsdino.data.coco import Coco
from fsdino.data.episodes import EpisodeKey
from fsdino.data.fss1000 import Fss1000
from fsdino.data.pascal import Pascal
from fsdino.data.sampling import Seeded, hsnet_by_class, hsnet_in_turn
from fsdino.errors import DataError

# Class, then query and supports. Printed by `python tests/expected_hsnet.py`, which shares no code
# with the package; there, the lists.
PASCAL_FOLD_1_ONE_SHOT = [
    (6, "20 30"),
    (7, "20 30"),
    (8, "22 32"),
    (9, "22 32"),
    (10, "24 28"),
    (6, "25 20"),
    (7, "26 20"),
    (8, "26 22"),
    (9, "28 22"),
    (10, "28 34"),
    (6, "30 25"),
    (7, "30 20"),
]
PASCAL_FOLD_2_FIVE_SHOTS = [
    (11, "40 50 50 50 50 45"),
    (12, "40 46 46 50 50 50"),
    (13, "42 52 46 52 52 52"),
    (14, "42 48 48 48 52 52"),
]
COCO_FOLD_0_ONE_SHOT = [
    (72, "721 720"),
    (16, "162 163"),
    (76, "765 761"),
    (24, "243 244"),
    (24, "244 241"),
    (4, "45 43"),
    (12, "126 124"),
    (4, "40 45"),
]
COCO_FOLD_3_FIVE_SHOTS = [
    (75, "3755 3752 3754 3750 3752 3750"),
    (71, "3711 3712 3712 3712 3712 3712"),
    (11, "3114 3115 3110 3111 3110 3113"),
    (43, "3431 3432 3432 3432 3432 3430"),
]
FSS_ONE_SHOT = [
    (5, "Abacus/1 Abacus/3"),
    (5, "Abacus/10 Abacus/4"),
    (5, "Abacus/2 Abacus/3"),
    (5, "Abacus/3 Abacus/7"),
    (5, "Abacus/4 Abacus/6"),
    (5, "Abacus/5 Abacus/2"),
    (5, "Abacus/6 Abacus/4"),
    (5, "Abacus/7 Abacus/1"),
    (5, "Abacus/8 Abacus/2"),
    (5, "Abacus/9 Abacus/10"),
    (6, "ant/1 ant/5"),
    (6, "ant/10 ant/5"),
]
FSS_FIVE_SHOTS = [
    (5, "Abacus/1 Abacus/3 Abacus/4 Abacus/3 Abacus/7 Abacus/6"),
    (5, "Abacus/10 Abacus/2 Abacus/4 Abacus/1 Abacus/8 Abacus/2"),
    (5, "Abacus/2 Abacus/10 Abacus/5 Abacus/5 Abacus/6 Abacus/1"),
]

POOLS = {3: tuple("abcdef"), 8: tuple("uv"), 9: tuple("qrstuvwxyz")}


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    expected_hsnet.write_lists(tmp_path / "lists")
    return tmp_path / "lists"


def short(keys: tuple[EpisodeKey, ...]) -> list[tuple[int, str]]:
    return [(key.class_id, " ".join(map(expected_hsnet.short, key.names))) for key in keys]


@pytest.mark.parametrize(
    ("fold", "shots", "expected"),
    [(1, 1, PASCAL_FOLD_1_ONE_SHOT), (2, 5, PASCAL_FOLD_2_FIVE_SHOTS)],
)
def test_pascal_is_drawn_as_published(
    splits: Path, fold: int, shots: int, expected: list[tuple[int, str]]
) -> None:
    """Published mIoU is over exactly these episodes; one other draw changes all that follow."""
    source = Pascal(splits, splits)
    lists, classes = source.lists(fold, "val"), source.classes(fold, "val")
    assert short(source.hsnet(lists, classes, shots, len(expected))) == expected
    keys = source.hsnet(lists, classes, shots, None)
    assert len(keys) == 1000
    assert keys[0].query == f"JPEGImages/2007_{20 * fold:06d}.jpg"


@pytest.mark.parametrize(
    ("fold", "shots", "expected"), [(0, 1, COCO_FOLD_0_ONE_SHOT), (3, 5, COCO_FOLD_3_FIVE_SHOTS)]
)
def test_coco_is_drawn_as_published(
    splits: Path, fold: int, shots: int, expected: list[tuple[int, str]]
) -> None:
    """Class, query and supports come from one stream, in this order."""
    source = Coco(splits, splits)
    lists, classes = source.lists(fold, "val"), source.classes(fold, "val")
    assert short(source.hsnet(lists, classes, shots, len(expected))) == expected
    assert len(source.hsnet(lists, classes, shots, None)) == 1000


@pytest.mark.parametrize(("shots", "expected"), [(1, FSS_ONE_SHOT), (5, FSS_FIVE_SHOTS)])
def test_fss_is_drawn_as_published(
    splits: Path, tmp_path: Path, shots: int, expected: list[tuple[int, str]]
) -> None:
    """Queries come in the order of paths (1, 10, 2), supports by number (1, 2, 3)."""
    for name in expected_hsnet.FSS_TEST:
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(1, 11):
            (tmp_path / "data" / name / f"{number}.jpg").touch()
            (tmp_path / "data" / name / f"{number}.png").touch()
    source = Fss1000(tmp_path, splits)
    lists, classes = source.lists(None, "val"), source.classes(None, "val")
    assert short(source.hsnet(lists, classes, shots, len(expected))) == expected
    keys = source.hsnet(lists, classes, shots, None)
    assert len({key.query for key in keys}) == len(keys) == 40


def test_the_draws_leave_the_global_generator_alone() -> None:
    """A sampler that seeds or reads NumPy's global state changes, and is changed by, its caller."""
    np.random.seed(5)
    expected = np.random.RandomState(5).rand()
    first = hsnet_by_class([3, 9], POOLS, 2, 20)
    assert np.random.rand() == expected
    assert hsnet_by_class([3, 9], POOLS, 2, 20) == first


def test_supports_may_repeat_but_never_are_the_query() -> None:
    """A support equal to the query gives the answer away; of two images one is left, five times."""
    for key in hsnet_in_turn([("u", 8), ("v", 8)], POOLS, 5, 6):
        assert set(key.supports) == {"u", "v"} - {key.query} and len(key.supports) == 5


@pytest.mark.parametrize("images", [(), ("a",), ("a", "a")])
def test_a_class_with_one_image_is_an_error(images: tuple[str, ...]) -> None:
    """The published loop would draw for ever."""
    pools = {**POOLS, 4: images}
    count = len(set(images))
    with pytest.raises(DataError, match=f"class 4 has {count} images"):
        hsnet_in_turn([("a", 4)], pools, 1, 1)
    with pytest.raises(DataError, match=f"class 4 has {count} images"):
        hsnet_by_class([3, 4], pools, 1, 1)
    with pytest.raises(DataError, match=f"class 4 has {count} images"):
        Seeded(pools, "val", 1, 0, 1)
    with pytest.raises(DataError, match="no class"):
        Seeded({}, "val", 1, 0, 1)


def test_a_seeded_key_depends_on_its_own_index_alone() -> None:
    """Workers ask in any order, from copies of their own, for runs of any length."""
    keys = Seeded(POOLS, "val", 3, 7, 50)
    copy = pickle.loads(pickle.dumps(Seeded(POOLS, "val", 3, 7, 5000)))
    assert [copy[i] for i in reversed(range(50))][::-1] == list(keys)
    with pytest.raises(IndexError, match="episode 50 of 50"):
        keys[50]


@pytest.mark.parametrize("change", ["seed", "split"])
def test_seeded_streams_differ(change: str) -> None:
    """Equal streams would validate on what was trained on, and make seeds no repetitions."""
    one = Seeded(POOLS, "train", 1, 0, 60)
    other = Seeded(POOLS, "base_val" if change == "split" else "train", 1, change == "seed", 60)
    assert list(one) != list(other)


def test_seeded_classes_take_turns_and_images_are_drawn_evenly() -> None:
    """A class that is never drawn counts as zero in mIoU."""
    keys = Seeded(POOLS, "val", 1, 0, 3000)
    for start in range(0, 300, 3):
        assert sorted(keys[start + i].class_id for i in range(3)) == [3, 8, 9]
    assert len({tuple(keys[start + i].class_id for i in range(3)) for start in (0, 3, 6, 9)}) > 1
    queries = Counter(key.query for key in keys if key.class_id == 3)
    assert set(queries) == set("abcdef") and min(queries.values()) > 120  # 167 expected


def test_seeded_supports_differ_and_grow_with_the_shots() -> None:
    """1-shot and 5-shot are compared on equal queries; repeats are left to classes too small."""
    one, five = Seeded(POOLS, "val", 1, 0, 90), Seeded(POOLS, "val", 5, 0, 90)
    for few, many in zip(one, five, strict=True):
        assert (few.class_id, few.query) == (many.class_id, many.query)
        assert many.supports[:1] == few.supports
        assert many.query not in many.supports
        assert len(set(many.supports)) == (1 if many.class_id == 8 else 5)
