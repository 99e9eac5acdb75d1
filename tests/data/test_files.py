"""Episodes over files: the same for any worker, and labels from whatever PNG holds them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data_sets import VOC_COLOURS, save_labels, stacked, write_fss, write_voc
from fsdino.data import files
from fsdino.data.batches import collate
from fsdino.data.catalog import open_episodes
from fsdino.data.episodes import Episode, Episodes, episode_hash
from fsdino.data.files import FileEpisodes, Places, content_key, file_key, read_gray, read_labels
from fsdino.errors import DataError


@pytest.fixture
def episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Episodes:
    monkeypatch.setenv("FSDINO_CACHE", str(tmp_path / "cache"))
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
    monkeypatch.setattr(files, "decode_file", None)
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


@pytest.mark.parametrize("mode", ["palette", "gray", "16 colours", "rgb gray", "16 bit"])
def test_labels_from_any_png_that_holds_them(mode: str, tmp_path: Path) -> None:
    """Copies differ in the PNG's type, not in the labels."""
    labels, path = stacked([0, 3, 15]), tmp_path / "labels.png"
    if mode == "palette":
        save_labels(path, labels, VOC_COLOURS)
    elif mode == "gray":
        save_labels(path, labels)
    elif mode == "16 colours":
        save_labels(path, labels, VOC_COLOURS[:48])
        assert path.read_bytes()[24] == 4  # bits in a pixel
    elif mode == "rgb gray":
        Image.fromarray(np.repeat(labels[:, :, None], 3, axis=2)).save(path)
    else:
        Image.fromarray(labels.astype(np.uint16)).save(path)
    assert np.array_equal(read_labels(path, labels.shape), labels)


def test_pictures_are_no_labels(tmp_path: Path) -> None:
    """Colours instead of labels would be read as classes that nobody marked."""
    path = tmp_path / "labels.png"
    Image.new("RGB", (4, 4), (128, 0, 0)).save(path)
    with pytest.raises(DataError, match="RGB image has no class labels"):
        read_labels(path)
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(path)
    with pytest.raises(DataError, match="no class labels"):
        read_labels(path)
    with pytest.raises(DataError, match=r"nothing\.png.*fsdino data check"):
        read_gray(tmp_path / "nothing.png", (4, 4))


def test_keys_of_files_follow_their_content(tmp_path: Path) -> None:
    """What was derived from files must not be used for others."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(bytes(300_000))
    other.write_bytes(bytes(299_999) + b"x")
    assert content_key(one) != content_key(other)
    assert file_key([one]) != file_key([other]) != file_key([one, other])
    copied = tmp_path / "copied"
    copied.write_bytes(bytes(300_000))
    assert content_key(one) == content_key(copied)


def test_places_are_tried_in_order(tmp_path: Path) -> None:
    """The root itself comes first; what was looked for can be said."""
    places = Places(("inner",), "*/1.jpg", "somewhere")
    assert places.find(tmp_path) is None and places.find(tmp_path / "nothing") is None
    (tmp_path / "inner" / "class").mkdir(parents=True)
    (tmp_path / "inner" / "class" / "1.jpg").touch()
    assert places.find(tmp_path) == tmp_path / "inner"
    assert places.tried() == "*/1.jpg, inner/*/1.jpg"
