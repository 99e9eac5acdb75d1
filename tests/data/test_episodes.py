"""Episodes refuse invalid values, and their hash says which questions they ask."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fsdino.data.episodes import Episodes, Sample, episode_hash
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.errors import UsageError
from plain_episodes import episode, sample


def test_episode_needs_supports_of_its_own_class() -> None:
    """A support that marks another class asks another question."""
    with pytest.raises(UsageError, match="no support"):
        episode()
    with pytest.raises(UsageError, match="class 4"):
        episode(sample(class_id=4))


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.bool_)),
        (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.bool_)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.bool_)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)),
    ],
)
def test_sample_refuses_other_shapes_and_dtypes(
    image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
) -> None:
    """A mask of 0 and 255, or of another size, must not pass for a bool mask."""
    with pytest.raises(UsageError, match="expected"):
        Sample(image, mask, "wrong", 0)


def test_drawn_episodes_follow_the_protocol() -> None:
    """Training and evaluation only know the protocol."""
    episodes = ProceduralEpisodes(0, "val", episodes=2, image_size=32)
    assert isinstance(episodes, Episodes)


def test_episode_hash_is_over_classes_and_names_in_order() -> None:
    """Users compare hashes of results made on different machines: the format must not drift."""
    episodes = ProceduralEpisodes(0, "val", 2, seed=7, episodes=3, image_size=32)
    lines = ""
    for index in range(3):
        name = f"procedural-v1/fold0/val/7/{index}"
        names = ", ".join(f'"{name}/{role}@32"' for role in ("query", "support1", "support2"))
        lines += f"[{episodes[index].class_id}, {names}]\n"
    assert episode_hash(episodes) == hashlib.sha256(lines.encode()).hexdigest()
