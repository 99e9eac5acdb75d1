"""What a step sees: base classes, of any data set, each episode once in all processes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from data_sets import write_coco, write_fss, write_photographs, write_voc
from fsdino.data.catalog import open_episodes
from fsdino.data.episodes import NO_CLASS
from fsdino.errors import UsageError
from fsdino.processes import Processes
from fsdino.training.meta.steps import Steps, part
from training_work import CONFIG, FROZEN


def test_training_data_has_no_novel_class() -> None:
    """No class of the held-out fold is ever trained on."""
    for fold in range(4):
        config = dataclasses.replace(CONFIG, fold=fold, steps=30, augment=0.0)
        steps = Steps(config)
        seen = {int(c) for step in range(30) for c in steps[step].batch.class_ids}
        assert seen and not seen & set(range(24 * fold, 24 * fold + 24))
        assert set(steps.classes) == set(range(96)) - set(range(24 * fold, 24 * fold + 24))


# Classes that fold 1 holds out, by hand: VOC's 6..10, and every fourth of COCO from 1 on.
@pytest.mark.parametrize("data", ["pascal5i", "coco20i", "fss1000"])
def test_base_classes_of_benchmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    """Mixed K from the lists on disk; validation shares no image with what is trained on."""
    monkeypatch.setenv("FSDINO_CACHE", str(tmp_path / "cache"))
    root, splits = tmp_path / "root", tmp_path / "splits"
    if data == "pascal5i":
        write_voc(root, splits)
        held_out, fold = {6, 7, 8, 9, 10}, 1
    elif data == "coco20i":
        write_coco(root)
        held_out, fold = set(range(1, 80, 4)), 1
    else:
        write_fss(root, [f"class {i:03d}" for i in range(25)])
        held_out, fold = set(), 0
    config = dataclasses.replace(
        FROZEN, data=data, root=str(root), fold=fold, images_per_step=6, shots=(1, 2), steps=12,
        splits=str(splits) if data == "pascal5i" else None,
    )  # fmt: skip
    steps = Steps(config)
    shots, names = set(), set()
    for step in map(steps.__getitem__, range(12)):
        shots.add(step.batch.support_masks.shape[1])
        assert not held_out & set(step.batch.class_ids.tolist())
        assert step.batch.query_images.shape[2] in (32, 40) and step.batch.query_masks.max() == 1
        names |= {name for episode in step.names for name in episode}
    assert shots == {1, 2}
    kept_out = open_episodes(
        data, split="base_val", fold=fold, sampling="seeded", root=root, episodes=40,
        splits=splits if data == "pascal5i" else None,
    )  # fmt: skip
    assert not names & {name for i in range(40) for name in kept_out.key(i).names}


def test_processes_share_a_step() -> None:
    """Two shares are the one process's episodes, each once, augmented alike."""
    config = dataclasses.replace(CONFIG, images_per_step=10, augment=1.0)
    for number in range(3):
        whole = Steps(config)[number]
        shares = [Steps(config, Processes(rank, 2))[number] for rank in (0, 1)]
        assert [share.total for share in shares] == [whole.total] * 2
        assert sum(len(share.batch) for share in shares) == len(whole.batch) == whole.total
        for rank, share in enumerate(shares):
            for place in range(len(share.batch)):
                own, expected = (
                    part(batch, at, at + 1)
                    for batch, at in ((share.batch, place), (whole.batch, rank + 2 * place))
                )
                assert own.indices.equal(expected.indices)
                assert own.query_images.equal(expected.query_images)
                assert own.support_masks.equal(expected.support_masks)


def test_no_episode_comes_twice() -> None:
    """Neither in another step nor in another process."""
    config = dataclasses.replace(CONFIG, images_per_step=8, steps=10)
    seen = [
        index
        for rank in range(2)
        for step in range(10)
        for index in Steps(config, Processes(rank, 2))[step].batch.indices.tolist()
    ]
    assert len(seen) == len(set(seen)) > 20


def test_augmented_images_have_names_of_their_own() -> None:
    """An encoder that sees each name once must not take a changed image for the original."""
    plain, changed = (Steps(dataclasses.replace(FROZEN, augment=share))[0] for share in (0.0, 1.0))
    assert plain.names[0][0].startswith("procedural-v1/")
    assert len({*changed.names[0], *plain.names[0]}) == 2 * len(plain.names[0])


def test_a_missing_data_set_is_named(tmp_path: Path) -> None:
    """Before anything is trained."""
    with pytest.raises(UsageError, match=r"--root .*no pascal5i there"):
        Steps(dataclasses.replace(FROZEN, data="pascal5i", root=str(tmp_path)))


def test_part_of_a_batch() -> None:
    """All of its tensors are cut alike."""
    batch = Steps(dataclasses.replace(FROZEN, images_per_step=8, shots=(1,)))[0].batch
    cut = part(batch, 1, 3)
    assert len(cut) == 2 and torch.equal(cut.support_masks, batch.support_masks[1:3])
    assert torch.equal(cut.indices, batch.indices[1:3])


def test_a_share_of_the_episodes_is_invented() -> None:
    """Chosen by the episode's number, so that processes and K agree on it."""
    config = dataclasses.replace(CONFIG, images_per_step=20, augment=0.0, invented=0.5)
    alone = [Steps(config)[step] for step in range(4)]
    ids = torch.cat([step.batch.class_ids for step in alone])
    assert 0.25 < (ids == NO_CLASS).float().mean() < 0.75
    names = [name for step in alone for episode in step.names for name in episode]
    assert len(set(names)) == len(names)
    shares = [Steps(config, Processes(rank, 2))[2] for rank in (0, 1)]
    both = {name for share in shares for episode in share.names for name in episode}
    assert both == {name for episode in alone[2].names for name in episode}


def test_a_share_of_the_episodes_is_made_from_photographs(tmp_path: Path) -> None:
    """Beside base classes and invented ones; workers and processes change none of them."""
    config = dataclasses.replace(
        FROZEN, images_per_step=20, shots=(1,), steps=3, invented=0.5, photograph_share=0.5,
        photographs=str(write_photographs(tmp_path / "photographs")),
    )  # fmt: skip
    alone = list(Steps(config).load(0))
    names = [name for step in alone for episode in step.names for name in episode]
    assert len(set(names)) == len(names) == 60
    shares = {
        kind: sum(name.startswith(kind) for name in names) / len(names)
        for kind in ("photographs-v1/", "invented-v", "procedural-v")
    }
    assert 0.3 < shares["photographs-v1/"] < 0.7 and sum(shares.values()) == 1
    assert min(shares.values()) > 0.05
    helped = list(Steps(dataclasses.replace(config, workers=2)).load(0))
    for one, other in zip(alone, helped, strict=True):
        assert one.names == other.names
        assert one.batch.query_images.equal(other.batch.query_images)
        assert one.batch.support_masks.equal(other.batch.support_masks)
    both = [Steps(config, Processes(rank, 2))[2] for rank in (0, 1)]
    found = {name for share in both for episode in share.names for name in episode}
    assert found == {name for episode in alone[2].names for name in episode}


def test_photographs_and_their_share_belong_together(tmp_path: Path) -> None:
    """A recipe may leave the folder to the command line; a run needs both or neither."""
    with pytest.raises(UsageError, match=r"share is 0\.5: pass a folder as --photographs"):
        Steps(dataclasses.replace(FROZEN, photograph_share=0.5))
    with pytest.raises(UsageError, match=r"photographs .*: photograph_share is 0; set it"):
        Steps(dataclasses.replace(FROZEN, photographs=str(tmp_path)))
    with pytest.raises(UsageError, match="photographs: 0 image files in"):
        Steps(dataclasses.replace(FROZEN, photographs=str(tmp_path), photograph_share=0.5))
