"""Episodes over files: the same for any number of workers, on any machine."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from data_sets import write_fss, write_voc
from fsdino.data import disk
from fsdino.data.batches import collate
from fsdino.data.catalog import open_episodes
from fsdino.data.episodes import Episode, Episodes, episode_hash
from fsdino.data.source import FileEpisodes, Places


@pytest.fixture
def episodes(tmp_path: Path) -> Episodes:
    write_fss(tmp_path / "root", ["a", "b", "c", "d", "e", "f"])
    return open_episodes("fss1000", root=tmp_path / "root", shots=2, sampling="seeded", episodes=12)


def described(episode: Episode) -> tuple[object, ...]:
    samples = (episode.query, *episode.supports)
    return episode.index, episode.class_id, *((s.name, s.image.tobytes()) for s in samples)


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_workers_gives_the_same_episodes(episodes: Episodes, workers: int) -> None:
    """Workers get a copy each and take turns; a score must not depend on how many there are."""
    loader = DataLoader(
        episodes,  # type: ignore[arg-type]
        batch_size=5,
        num_workers=workers,
        collate_fn=lambda batch: [described(episode) for episode in batch],
    )
    found = [episode for batch in loader for episode in batch]
    assert found == [described(episodes[i]) for i in range(12)]


def test_episodes_survive_pickling_and_name_what_they_read(episodes: Episodes) -> None:
    """Started, not forked, workers get their copy pickled; hashes are over the names read."""
    copy = pickle.loads(pickle.dumps(episodes))
    assert episode_hash(copy) == episode_hash(episodes)
    for i in (11, 0):
        assert described(copy[i]) == described(episodes[i])
        key = episodes.key(i)
        assert key.names == (copy[i].query.name, *(s.name for s in copy[i].supports))
        assert key.class_id == copy[i].class_id
    for i in (-1, 12):
        with pytest.raises(IndexError, match=f"episode {i} of 12"):
            episodes[i]


def test_opening_reads_no_picture(episodes: Episodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, hash and provenance are asked for in every process, before any work."""
    monkeypatch.setattr(disk, "decode_file", None)
    assert isinstance(episodes, FileEpisodes) and isinstance(episodes, Episodes)
    assert len(episode_hash(episodes)) == 64
    with pytest.raises(TypeError):
        episodes[0]


def test_hashes_agree_between_machines(tmp_path: Path) -> None:
    """The same data and lists elsewhere, deeper or shallower, are the same questions."""
    write_voc(tmp_path / "here" / "VOC2012", tmp_path / "splits")
    write_voc(tmp_path / "there", tmp_path / "copied")
    found = [
        open_episodes("pascal5i", root=tmp_path / root, splits=tmp_path / splits, fold=3, shots=2)
        for root, splits in (("here", "splits"), ("there", "copied"))
    ]
    assert len({episode_hash(episodes) for episodes in found}) == 1
    assert len({episodes.provenance for episodes in found}) == 1


def test_ignored_pixels_reach_the_batch(tmp_path: Path) -> None:
    """PASCAL's 255 must be left out of the score, and nowhere else."""
    write_voc(tmp_path, tmp_path / "splits")
    episodes = open_episodes("pascal5i", root=tmp_path, splits=tmp_path / "splits", episodes=2)
    batch = collate([episodes[0], episodes[1]], 64)
    assert batch.query_ignore.any() and not torch.any(batch.query_ignore & (batch.query_masks > 0))


def test_places_are_tried_in_order(tmp_path: Path) -> None:
    """The root itself comes first; what was looked for can be said."""
    places = Places(("inner",), "*/1.jpg", "somewhere")
    assert places.find(tmp_path) is None and places.find(tmp_path / "nothing") is None
    (tmp_path / "inner" / "class").mkdir(parents=True)
    (tmp_path / "inner" / "class" / "1.jpg").touch()
    assert places.find(tmp_path) == tmp_path / "inner"
    assert places.tried() == "*/1.jpg, inner/*/1.jpg"
