"""Training: that it learns, what learns, and that nothing that happens to a run costs more than it
must."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import fsdino
from data_sets import write_photographs
from fsdino.data.photographs import Photographs
from fsdino.errors import CheckpointError, DataError, FsdinoError, UsageError
from fsdino.training import run
from fsdino.training.meta import footprint, train
from fsdino.training.meta.config import TrainConfig
from fsdino.training.meta.steps import Step, Steps
from fsdino.training.meta.train import Trainer
from pyramids import pyramid_config
from training_work import (
    CONFIG,
    FROZEN,
    StopError,
    die,
    metrics,
    same_run,
    steps_kept,
    stop_at,
    weights,
)

pytestmark = pytest.mark.usefixtures("plain_memory")


@pytest.mark.parametrize("moment", ["between steps", "while a checkpoint is written"])
def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path, whole: Path, moment: str) -> None:
    """kill -9 costs the steps since the last checkpoint, and changes no bit of what follows."""
    assert die(CONFIG, tmp_path, moment) == -signal.SIGKILL
    resumed = Trainer(CONFIG, tmp_path, resume=True)
    assert resumed.start == (4 if moment == "between steps" else 2)
    assert not list((tmp_path / "checkpoints").glob(".*"))
    resumed.fit()
    assert same_run(tmp_path, whole)
    assert isinstance(fsdino.load(tmp_path / "model"), fsdino.FSDINO)


def test_threads_are_the_runs_own(tmp_path: Path) -> None:
    """The setting holds while a run computes, and not for what the caller does later."""
    seen = []
    config = dataclasses.replace(CONFIG, threads=2, steps=1, validation=False)
    trainer = Trainer(config, tmp_path)
    assert torch.get_num_threads() == 1
    trainer.fit(lambda *_: seen.append(torch.get_num_threads()))
    assert seen == [2] and torch.get_num_threads() == 1


def test_names_in_a_checkpoint(whole: Path) -> None:
    """They are a format: a run of an earlier version goes on."""
    with safe_open(whole / "checkpoints" / "00000006.safetensors", framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        titles = {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118
    assert set(state) == {
        *("miou", "best", "stale", "skipped", "replaced", "due", "batch"),
        *("frozen", "lists", "photographs"),
    }
    assert titles == {"model", "classifier", "optimizer", "random"}


def test_ctrl_c_writes_a_checkpoint(tmp_path: Path, whole: Path) -> None:
    """The step is finished and kept, though none was due; the run goes on to the same bits."""

    def press(step: int, loss: float, miou: float | None) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Trainer(CONFIG, tmp_path).fit(press)
    assert steps_kept(tmp_path) == [2, 3]
    Trainer(CONFIG, tmp_path, resume=True).fit()
    assert same_run(tmp_path, whole)


def test_a_full_disk_loses_nothing_older(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found before anything is written, and the run goes on when there is space."""
    usage = shutil.disk_usage(tmp_path)

    def fill(step: int, loss: float, miou: float | None) -> None:
        if step == 3:
            full = usage._replace(free=1000)
            monkeypatch.setattr(run.shutil, "disk_usage", lambda folder: full)

    with pytest.raises(FsdinoError, match=r"is full: a checkpoint takes 0\.\d MB, 0\.0 MB are fr"):
        Trainer(CONFIG, tmp_path).fit(fill)
    assert steps_kept(tmp_path) == [2]
    monkeypatch.undo()
    Trainer(CONFIG, tmp_path, resume=True).fit()
    assert same_run(tmp_path, whole)


def test_a_corrupt_last_checkpoint_costs_its_steps(
    tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One changed bit is seen, said, and the older checkpoint leads to the same end."""
    with pytest.raises(StopError):
        Trainer(CONFIG, tmp_path).fit(stop_at(5))
    newest = tmp_path / "checkpoints" / "00000004.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    resumed = Trainer(CONFIG, tmp_path, resume=True)
    assert resumed.start == 2
    assert "00000004.safetensors is damaged" in caplog.text
    resumed.fit()
    assert same_run(tmp_path, whole)


def spoil(monkeypatch: pytest.MonkeyPatch, spoilt: set[int]) -> None:
    """Make the pictures of some steps no numbers."""
    load = Steps.load

    def broken(self: Steps, start: int) -> Iterator[Step]:
        for number, step in enumerate(load(self, start), start=start):
            if number in spoilt:
                images = step.batch.query_images * torch.nan
                step = dataclasses.replace(
                    step, batch=dataclasses.replace(step.batch, query_images=images)
                )
            yield step

    monkeypatch.setattr(Steps, "load", broken)


def test_a_nan_loss_is_skipped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The step changes no weight, the next one does, and the record says how many there were."""
    spoil(monkeypatch, {1})
    trained: list[torch.Tensor] = []
    config = dataclasses.replace(FROZEN, steps=3)
    trainer = Trainer(config, tmp_path)
    parameter = trainer.model.decoder.mask_tokens.weight
    trainer.fit(lambda step, loss, miou: trained.append(parameter.detach().clone()))
    assert torch.equal(trained[0], trained[1]) and not torch.equal(trained[1], trained[2])
    assert "step 1 skipped: the loss is nan" in caplog.text
    assert metrics(tmp_path)[-1]["skipped_steps"] == 1


def test_too_many_nan_losses_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `nan_limit` consecutive ones; the weights before them are kept."""
    spoil(monkeypatch, {3, 4})
    config = dataclasses.replace(FROZEN, nan_limit=2)
    with pytest.raises(FsdinoError, match=r"2 consecutive steps had no finite loss, up to step 4"):
        Trainer(config, tmp_path).fit()
    assert steps_kept(tmp_path)[-1] == 4
    tensors = run.Run(tmp_path, config.to_dict(), resume=True).load()[1]
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())


def test_a_missing_image_keeps_what_was_done(tmp_path: Path, photos: TrainConfig) -> None:
    """It is named with the remedy; put back, the run goes on to the same bits."""
    Trainer(photos, tmp_path / "whole").fit()
    steps = Steps(photos)
    early = {name for step in range(2) for names in steps[step].names for name in names}
    late = {name for step in range(2, 6) for names in steps[step].names for name in names}
    place = Path(photos.root) / min(late - early)
    content = place.read_bytes()
    trainer = Trainer(dataclasses.replace(photos, checkpoint_every=100), tmp_path / "broken")
    place.unlink()
    with pytest.raises(DataError, match=f"{place.name}.*checkpoint is written.*--resume"):
        trainer.fit()
    [kept] = steps_kept(tmp_path / "broken")
    assert kept >= 2
    place.write_bytes(content)
    resumed = Trainer(photos, tmp_path / "broken", resume=True)
    assert resumed.start == kept
    resumed.fit()
    assert same_run(tmp_path / "broken", tmp_path / "whole")


def test_unreadable_images_can_be_replaced(
    tmp_path: Path, photos: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """With skip_bad another episode takes the place, is announced and counted."""
    config = dataclasses.replace(photos, skip_bad=True, shots=(1,))
    first = Steps(config)[0].names[0][0]
    (Path(config.root) / first).write_bytes(b"no picture")
    Trainer(config, tmp_path / "run").fit()
    assert "step 0: another episode in place of one" in caplog.text and first in caplog.text
    assert metrics(tmp_path / "run")[-1]["replaced_episodes"] >= 1


def test_other_images_are_no_resumption(tmp_path: Path, photos: TrainConfig) -> None:
    """The folder may move, but not become another one."""
    with pytest.raises(StopError):
        Trainer(photos, tmp_path / "run").fit(stop_at(3))
    moved = Path(photos.root).rename(tmp_path / "moved")
    config = dataclasses.replace(photos, root=str(moved))
    assert Trainer(config, tmp_path / "run", resume=True).start == 2
    (moved / "cat" / "0.jpg").unlink()
    with pytest.raises(UsageError, match="other lists of images than --root"):
        Trainer(config, tmp_path / "run", resume=True)


def test_other_photographs_are_no_resumption(tmp_path: Path) -> None:
    """Their folder may move; a model says how many there were, and which."""
    folder = write_photographs(tmp_path / "photographs")
    config = dataclasses.replace(FROZEN, photographs=str(folder), photograph_share=0.5)
    with pytest.raises(StopError):
        Trainer(config, tmp_path / "run").fit(stop_at(3))
    moved = folder.rename(tmp_path / "moved")
    config = dataclasses.replace(config, photographs=str(moved))
    resumed = Trainer(config, tmp_path / "run", resume=True)
    assert resumed.start == 2
    resumed.fit()
    said = json.loads((tmp_path / "run" / "model" / "provenance.json").read_text())
    assert (said["photographs"], said["photograph_share"]) == (3, 0.5)
    assert said["photographs_sha256"] == Photographs(moved).digest
    (moved / "red.png").unlink()
    longer = dataclasses.replace(config, steps=8)
    with pytest.raises(UsageError, match="other photographs than --photographs gives"):
        Trainer(longer, tmp_path / "run", resume=True)


def test_other_frozen_weights_are_no_resumption(tmp_path: Path, whole: Path) -> None:
    """Checkpoints hold what is trained; the frozen part has to be the one it was trained with."""
    encoder = tmp_path / "encoder"
    shutil.copytree(whole / "model", encoder)
    config = dataclasses.replace(FROZEN, encoder_from=str(encoder))
    with pytest.raises(StopError):
        Trainer(config, tmp_path / "run").fit(stop_at(3))
    kept = run.Run(tmp_path / "run", config.to_dict(), resume=True).load()[1]
    assert not [name for name in kept if "encoder.vit.blocks" in name]
    shutil.rmtree(encoder)
    shutil.copytree(whole / "best", encoder)
    with pytest.raises(CheckpointError, match="trained on other frozen weights"):
        Trainer(config, tmp_path / "run", resume=True)


def test_workers_change_nothing(tmp_path: Path) -> None:
    """The episodes of a step do not depend on the processes that prepare them."""
    losses: dict[int, list[float]] = {0: [], 2: []}
    for workers, seen in losses.items():
        config = dataclasses.replace(CONFIG, steps=3, workers=workers)
        trainer = Trainer(config, tmp_path / str(workers))
        trainer.fit(lambda s, x, m, seen=seen: seen.append(x))
    assert losses[0] == losses[2]


def test_gradients_of_several_passes_add_up(tmp_path: Path) -> None:
    """Episodes one by one give the step that they give together, but for rounding."""
    together = dataclasses.replace(FROZEN, images_per_step=12, shots=(1, 2), steps=3)
    apart = dataclasses.replace(together, episodes_per_batch=1)
    found = []
    for name, config in (("together", together), ("apart", apart)):
        losses: list[float] = []
        Trainer(config, tmp_path / name).fit(lambda s, x, m, to=losses: to.append(x))
        found.append((losses, weights(tmp_path / name)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][0] != found[1][0]  # the passes were several
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_as_many_episodes_as_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`auto` divides the free memory by what an episode of K shots takes, and says both."""
    caplog.set_level("INFO")
    config = dataclasses.replace(FROZEN, images_per_step=16, episodes_per_batch="auto", steps=2)
    trainer = Trainer(config, tmp_path / "ample")
    assert trainer.batch == {1: 8, 3: 4}  # the whole step
    each = trainer.activation_bytes(1)
    assert f"activations of a 1-shot episode at 40 pixels: {each / 1e6:.1f} MB" in caplog.text
    # Planned: 80 % of the free memory, and twice an episode's activations.
    free = 2 * 3.5 * each / 0.8
    monkeypatch.setattr(footprint, "free_bytes", lambda device: int(free))
    scarce = Trainer(config, tmp_path / "scarce")
    assert scarce.batch[1] == 3 and scarce.batch[3] == 1
    with pytest.raises(StopError):
        scarce.save(1)
        scarce.fit(stop_at(2))
    monkeypatch.undo()
    assert Trainer(config, tmp_path / "scarce", resume=True).batch == {1: 3, 3: 1}


def test_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty steps on the same few episodes lower the loss by a quarter."""
    losses: list[float] = []
    config = dataclasses.replace(
        CONFIG, steps=40, shots=(1,), image_sizes=(32,), learning_rate=3e-3, validate_every=40
    )
    first = Steps(config)[0]
    monkeypatch.setattr(Steps, "load", lambda self, start: iter([first] * 40))
    Trainer(config, tmp_path).fit(lambda step, loss, miou: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])


def test_metrics_are_recorded(whole: Path) -> None:
    """Losses and the mIoU on base classes by step, for people and for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = metrics(whole)
    assert [row["step"] for row in rows if "base_miou" in row] == [3, 6]
    assert TrainConfig.from_yaml(whole / "config.yaml") == CONFIG
    found = json.loads((whole / "environment.json").read_text())
    assert found["torch"] == torch.__version__
    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("base_miou")] == [
        (row["step"], pytest.approx(row["base_miou"], rel=1e-6)) for row in rows
    ]


def test_a_start_that_fails_late_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory before the first checkpoint, say: the next start may have other settings."""
    with monkeypatch.context() as patch:
        patch.setattr(footprint, "activation_bytes", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Trainer(FROZEN, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ZeroDivisionError):
        Trainer(FROZEN, tmp_path / "run").fit(lambda *a: 1 / 0)
    Trainer(dataclasses.replace(FROZEN, images_per_step=8), tmp_path / "run")


def test_bfloat16_trains(tmp_path: Path) -> None:
    """Under autocast: near the float32 run, not equal, and the weights stay float32."""
    losses: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for dtype, seen in losses.items():
        config = dataclasses.replace(FROZEN, dtype=dtype, encoder_dtype=dtype, steps=3)
        trainer = Trainer(config, tmp_path / dtype)
        trained = trainer.fit(lambda s, x, m, seen=seen: seen.append(x))
        assert {p.dtype for p in trained.parameters()} == {torch.float32}
    assert losses["float32"] == pytest.approx(losses["bfloat16"], rel=0.05)
    assert losses["float32"] != losses["bfloat16"]


def test_kept_features_change_nothing(
    tmp_path: Path, photos: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """A run from the cache and one that fills it give the same bits; its size is announced."""
    caplog.set_level("INFO")
    config = dataclasses.replace(photos, feature_cache=str(tmp_path / "cache"), workers=0)
    for name in ("fills", "reads"):
        trainer = Trainer(config, tmp_path / name)
        if name == "reads":
            trainer.model.encode = None  # is not called by training
        trainer._validate = lambda done: None
        trainer.fit()
    # Every fifth of the 20 images is kept out of training.
    assert "features of 16 images: at most" in caplog.text
    assert same_run(tmp_path / "reads", tmp_path / "fills")


def test_features_of_another_reading_are_not_taken_from_the_cache(
    tmp_path: Path, photos: TrainConfig
) -> None:
    """Normalisation and the side of tokens decide them, too, and no weight shows it."""
    pyramid = pyramid_config("ResNet", variant="comp", adapter_layer=1)
    vit = photos.model
    models = [
        vit,
        dataclasses.replace(vit, mean=(0.1, 0.2, 0.3)),
        dataclasses.replace(vit, std=(0.1, 0.2, 0.3)),
        pyramid,
        dataclasses.replace(pyramid, token_stride=32),
    ]
    keys = set()
    for number, model in enumerate(models):
        config = dataclasses.replace(
            photos, model=model, feature_cache=str(tmp_path / "cache"), workers=0
        )
        trainer = Trainer(config, tmp_path / str(number))
        keys.add(trainer.frozen.store.kind)
        trainer.run.abandon()
    assert len(keys) == len(models)


def test_too_many_processes_are_an_error() -> None:
    """Each needs an episode of every step."""
    with pytest.raises(UsageError, match=r"1 episodes of 3 shots, too few for 2 .* at least 8 im"):
        train._check_processes(CONFIG, 2)
