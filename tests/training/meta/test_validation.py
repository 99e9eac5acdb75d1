"""What the best model is chosen by, and what becomes of a run where that fails."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fsdino
from fsdino.errors import FsdinoError, UsageError
from fsdino.evaluation import record
from fsdino.training.meta import validation
from fsdino.training.meta.config import TrainConfig
from fsdino.training.meta.train import Trainer
from training_work import (
    CONFIG,
    FROZEN,
    metrics,
    same_run,
    steps_kept,
)

pytestmark = pytest.mark.usefixtures("plain_memory")


def test_the_best_model_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By validation; the run ends when `patience` validations brought no better one."""
    mious = iter([10.0, 30.0, 20.0, 30.0, 99.0])
    states: dict[int, bytes] = {}

    class Scored:
        def __init__(self) -> None:
            self.miou = next(mious)

    monkeypatch.setattr(validation, "evaluate", lambda *a, **k: Scored())
    config = dataclasses.replace(FROZEN, validate_every=1, patience=2)
    trainer = Trainer(config, tmp_path)
    tokens = trainer.model.decoder.mask_tokens.weight

    def note(step: int, loss: float, miou: float | None) -> None:
        states[step] = tokens.detach().numpy().tobytes()

    trainer.fit(note)
    assert list(states) == [1, 2, 3, 4]
    for name, step in (("best", 2), ("model", 4)):
        model = fsdino.load(tmp_path / name)
        assert model.decoder.mask_tokens.weight.detach().numpy().tobytes() == states[step]
        assert model.provenance["step"] == step
    Trainer(config, tmp_path, resume=True).fit(note)
    assert list(states) == [1, 2, 3, 4]  # it has ended


def test_a_validation_that_fails_costs_no_step(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An output of NaN, say: a checkpoint is written, and what failed comes first in the next."""
    config = dataclasses.replace(CONFIG, checkpoint_every=100)
    with monkeypatch.context() as patch:
        nothing = lambda questions: torch.full((4, 1, 8, 8), torch.nan)  # noqa: E731
        patch.setattr(validation, "ModelPredictor", lambda model: nothing)
        with pytest.raises(FsdinoError, match="the model's output is not finite"):
            Trainer(config, tmp_path).fit()
        assert steps_kept(tmp_path) == [3]
        with pytest.raises(FsdinoError, match="the model's output is not finite"):
            Trainer(config, tmp_path, resume=True).fit()
    Trainer(config, tmp_path, resume=True).fit()
    assert same_run(tmp_path, whole)


def test_a_validation_without_a_number_is_no_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """NaN is greater than nothing, and nothing is greater than it: it must not be kept."""
    mious = iter([float("nan"), 30.0, float("nan"), 20.0])
    monkeypatch.setattr(validation, "evaluate", lambda *a, **k: SimpleNamespace(miou=next(mious)))
    config = dataclasses.replace(FROZEN, steps=4, validate_every=1)
    Trainer(config, tmp_path).fit()
    assert fsdino.load(tmp_path / "best").provenance["step"] == 2
    assert [row["base_miou"] for row in metrics(tmp_path)] == [None, 30.0, None, 20.0]
    assert "step 1: validation gave no number, but nan" in caplog.text


def test_what_validation_reads_is_opened_first(tmp_path: Path, photos: TrainConfig) -> None:
    """Not after hours of training: without it, nothing is written."""
    config = dataclasses.replace(photos, select_on="base", fold=3)
    with pytest.raises(UsageError, match="fold 3: folder has no folds; pass --fold 0"):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("select_on", ["base", "novel"])
def test_results_say_what_a_model_was_selected_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    select_on: str,
) -> None:
    """Whoever chose by the held-out classes cannot forget to say so."""
    asked: list[set[int]] = []
    evaluate = validation.evaluate

    def spy(predict: Any, episodes: Any, *args: Any, **options: Any) -> Any:
        asked.append(set(episodes.classes))
        return evaluate(predict, episodes, *args, **options)

    monkeypatch.setattr(validation, "evaluate", spy)
    config = dataclasses.replace(FROZEN, steps=1, select_on=select_on, fold=2)
    Trainer(config, tmp_path).fit()
    held_out = set(range(48, 72))
    assert asked == [held_out if select_on == "novel" else set(range(96)) - held_out]
    assert f"{select_on}_miou" in metrics(tmp_path)[0]
    described = record.describe_model(fsdino.load(tmp_path / "best"), "mine")["training"]
    expected = "novel classes of the fold" if select_on == "novel" else "base classes"
    assert described["selected_on"] == expected and described["fold"] == 2
    assert ("selected on the novel classes" in caplog.text) == (select_on == "novel")
