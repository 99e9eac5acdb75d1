"""The drawn episodes: frozen, reproducible, and each split of the classes that it may have."""

from __future__ import annotations

import numpy as np
import pytest

from fsdino.data.episodes import Episode
from fsdino.data.procedural.classes import CLASSES, FOLDS, VERSION
from fsdino.data.procedural.episodes import (
    ProceduralEpisodes,
    Split,
    fingerprint,
    render_sample,
)
from fsdino.errors import UsageError

FROZEN = {"1": "9c39103459c1fed6ed436bd7ae63c179729857290c431184f68aba3828c1e6c6"}


def pixels(episode: Episode) -> list[bytes]:
    samples = (episode.query, *episode.supports)
    return [part.tobytes() for s in samples for part in (s.image, s.mask)]


def test_pictures_are_those_of_the_recorded_version() -> None:
    """Recorded results name a version; its pictures must never change under that name."""
    assert fingerprint() == FROZEN[VERSION]


def test_an_episode_depends_on_its_key_alone() -> None:
    """Workers read episodes in any order, from objects of their own, of any length."""
    forward = ProceduralEpisodes(1, "train", 2, seed=5, episodes=40, image_size=48)
    backward = ProceduralEpisodes(1, "train", 2, seed=5, episodes=400, image_size=48)
    np.random.seed(1)
    first = [pixels(forward[i]) for i in range(6)]
    np.random.seed(2)
    assert [pixels(backward[i]) for i in reversed(range(6))][::-1] == first


@pytest.mark.parametrize("change", ["seed", "split", "fold", "index"])
def test_every_part_of_the_key_matters(change: str) -> None:
    """Streams that coincide would leak validation episodes into training."""
    split: Split = "base_val" if change == "split" else "train"
    episodes = ProceduralEpisodes(int(change == "fold"), split, 1, int(change == "seed"))
    other = episodes[int(change == "index")]
    assert pixels(other)[0] != pixels(ProceduralEpisodes(0, "train", 1, 0)[0])[0]


def test_more_shots_extend_fewer_shots() -> None:
    """1-shot and 5-shot scores are compared on equal queries and growing support sets."""
    one = ProceduralEpisodes(3, "val", 1, image_size=40)
    five = ProceduralEpisodes(3, "val", 5, image_size=40)
    for index in (0, 7, 30):
        assert pixels(one[index]) == pixels(five[index])[:4]
        assert len(five[index].supports) == 5


def test_all_pictures_of_an_episode_differ_and_have_unique_names() -> None:
    """A support equal to the query would give the answer away."""
    episodes = ProceduralEpisodes(2, "val", 5, image_size=32)
    samples = [s for i in range(8) for s in (episodes[i].query, *episodes[i].supports)]
    assert len({s.image.tobytes() for s in samples}) == len(samples)
    assert len({s.name for s in samples}) == len(samples)


def test_splits_divide_the_classes_by_fold() -> None:
    """Training must never draw a held-out class."""
    seen = []
    for fold in range(FOLDS):
        held_out = ProceduralEpisodes(fold, "val").classes
        assert held_out == tuple(range(24 * fold, 24 * fold + 24))
        seen += held_out
        for split in ("train", "base_val"):
            base = ProceduralEpisodes(fold, split).classes  # type: ignore[arg-type]
            assert sorted(base + held_out) == list(range(CLASSES))
    assert sorted(seen) == list(range(CLASSES)) and CLASSES >= 96


def test_classes_take_turns() -> None:
    """A class never drawn would count as zero in mIoU."""
    episodes = ProceduralEpisodes(1, "val", image_size=32)
    rounds = [[episodes[i].class_id for i in range(s, s + 24)] for s in (0, 24)]
    assert all(sorted(drawn) == list(episodes.classes) for drawn in rounds)
    assert rounds[0] != rounds[1]
    names = episodes.class_names
    assert len(set(names.values())) == 24 and episodes[3].class_name == names[episodes[3].class_id]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fold": 4}, "fold 4"),
        ({"fold": -1}, "fold -1"),
        ({"split": "test"}, "split 'test'"),
        ({"shots": 0}, "shots 0"),
        ({"seed": -1}, "seed -1"),
        ({"episodes": 0}, "episodes 0"),
        ({"image_size": 31}, "image_size 31"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, object], message: str) -> None:
    """A wrong fold that silently works trains on the classes it is tested on."""
    with pytest.raises(UsageError, match=message):
        ProceduralEpisodes(**({"fold": 0, "split": "val"} | arguments))  # type: ignore[arg-type]


def test_indices_end_where_len_says() -> None:
    """Iteration protocols and samplers rely on IndexError."""
    episodes = ProceduralEpisodes(0, "val", episodes=3, image_size=32)
    assert len(list(episodes)) == len(episodes) == 3  # type: ignore[call-overload]
    for index in (3, -1):
        with pytest.raises(IndexError, match=str(index)):
            episodes[index]


def test_keys_name_what_will_be_drawn() -> None:
    """The episode hash is over keys; a key that names other pictures would vouch for nothing."""
    episodes = ProceduralEpisodes(3, "val", 2, seed=4, episodes=30, image_size=32)
    for index in (0, 29):
        episode, key = episodes[index], episodes.key(index)
        assert (key.class_id, key.query) == (episode.class_id, episode.query.name)
        assert key.supports == tuple(support.name for support in episode.supports)
    for index in (30, -1):
        with pytest.raises(IndexError, match=str(index)):
            episodes.key(index)


def test_provenance_names_generator_and_fold() -> None:
    """A result on drawn pictures must not pass for one on another fold, split or version."""
    found = ProceduralEpisodes(2, "base_val", image_size=32).provenance
    assert (found.dataset, found.fold, found.split) == ("procedural", 2, "base_val")
    assert (found.lists, found.mask_source) == ("generated", "generated")
    assert found.lists_hash == FROZEN[VERSION]


def test_render_sample_refuses_unknown_classes_and_negative_keys() -> None:
    """Errors must name the argument, not come from inside the random generator."""
    with pytest.raises(UsageError, match="class_id 96"):
        render_sample(96, (0,))
    with pytest.raises(UsageError, match="key"):
        render_sample(0, (-1,))
    with pytest.raises(UsageError, match="image_size"):
        render_sample(0, (0,), 8)
