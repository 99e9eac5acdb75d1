"""A finished run goes on: another schedule begins, and it is as safe as the first."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import fsdino
from fsdino.errors import UsageError
from fsdino.training.meta import validation
from fsdino.training.meta.config import TrainConfig
from fsdino.training.meta.train import Trainer
from training_work import CONFIG, StopError, stop_at

SHORT = dataclasses.replace(CONFIG, steps=4, validate_every=4, checkpoint_every=1, warmup=2)
LONG = dataclasses.replace(SHORT, steps=8)


@pytest.fixture(autouse=True)
def plain_memory(one_thread: None) -> None:
    """Bits are compared: no filling of fresh memory, one thread."""
    torch.set_deterministic_debug_mode("default")


def bits(folder: Path) -> tuple[bytes, list[dict]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
    return (folder / "model" / "model.safetensors").read_bytes(), rows


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """The same in one go: a recipe that says where its schedule begins again."""
    folder = tmp_path_factory.mktemp("once")
    Trainer(dataclasses.replace(LONG, restarts=(4,)), folder).fit()
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    Trainer(SHORT, folder).fit()
    return folder


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_the_schedule_begins_again(finished: Path, tmp_path: Path, once: Path) -> None:
    """With a warm-up and a decay of its own; recorded with configuration, metrics and model."""
    folder = copy(finished, tmp_path / "run")
    rates: list[float] = []
    trainer = Trainer(LONG, folder, resume=True)
    assert (trainer.start, trainer.config.restarts) == (4, (4,))
    trainer.fit(lambda step, loss, miou: rates.append(trainer.descent.learning_rate))
    # Steps 4..7 of a schedule of four with two of warm-up: half, whole, then the cosine's.
    peak = LONG.learning_rate
    assert rates == pytest.approx([peak / 2, peak, peak, peak * (0.01 + 0.99 / 2)])
    assert bits(folder) == bits(once)
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert (stored["steps"], stored["restarts"]) == (8, [4])
    assert [row["step"] for row in bits(folder)[1] if "base_miou" in row] == [4, 8]
    assert fsdino.load(folder / "model").provenance["restarts"] == [4]
    again = Trainer(dataclasses.replace(LONG, steps=9), folder, resume=True)
    assert again.config.restarts == (4, 8)


@pytest.mark.parametrize("stop", [5, 7])
def test_an_extension_is_resumed_to_the_same_bits(
    finished: Path, tmp_path: Path, once: Path, stop: int
) -> None:
    """Also from a checkpoint of before it, where the newer ones are damaged."""
    folder = copy(finished, tmp_path / "run")
    with pytest.raises(StopError):
        Trainer(LONG, folder, resume=True).fit(stop_at(stop))
    if stop == 5:  # back to step 4
        (folder / "checkpoints" / "00000005.safetensors").write_bytes(b"")
    resumed = Trainer(LONG, folder, resume=True)
    assert resumed.start == (4 if stop == 5 else 7)
    resumed.fit()
    assert bits(folder) == bits(once)


def test_what_cannot_be_extended(finished: Path, tmp_path: Path) -> None:
    """Fewer steps, and a run that has not come to its end; the folder stays as it was."""
    folder = copy(finished, tmp_path / "run")
    fewer = dataclasses.replace(SHORT, steps=3)
    with pytest.raises(UsageError, match=r"steps 3: the run in .* has 4: pass --steps 4 to resume"):
        Trainer(fewer, folder, resume=True)
    other = dataclasses.replace(LONG, restarts=(2,))
    with pytest.raises(UsageError, match=r"restarts \(2,\): the schedule of .* at \(\): leave"):
        Trainer(other, folder, resume=True)
    with pytest.raises(StopError):
        Trainer(SHORT, tmp_path / "half").fit(stop_at(2))
    with pytest.raises(UsageError, match=r"at step 2 of 4, and only a finished one can be ext"):
        Trainer(LONG, tmp_path / "half", resume=True)
    assert TrainConfig.from_yaml(folder / "config.yaml") == SHORT


def test_a_run_that_patience_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is finished where it stopped; its extension begins to count validations again."""

    class Scored:
        miou = 50.0

    monkeypatch.setattr(validation, "evaluate", lambda *a, **k: Scored)
    config = dataclasses.replace(SHORT, steps=8, validate_every=1, patience=2)
    trainer = Trainer(config, tmp_path)
    seen: list[int] = []
    trainer.fit(lambda step, loss, miou: seen.append(step))
    assert seen == [1, 2, 3]
    more = Trainer(dataclasses.replace(config, steps=12), tmp_path, resume=True)
    more.fit(lambda step, loss, miou: seen.append(step))
    assert more.config.restarts == (3,) and seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("restarts", [(0,), (4,), (3, 2), (2, 2), (5,)])
def test_restarts_lie_within_the_run(restarts: tuple[int, ...]) -> None:
    """In order, after the first step and before the last."""
    with pytest.raises(UsageError, match="restarts must be ascending steps between 0 and steps"):
        dataclasses.replace(SHORT, restarts=restarts)
