"""Both formulations train alike, and the eager one really takes the ops' place."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
import training_speed

from fsdino.models import hypercorrelation
from fsdino.ops import eager
from training_work import FROZEN


def test_both_formulations_give_one_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one of them would be timed on other work."""
    config = dataclasses.replace(FROZEN, shots=(1,), image_sizes=(), steps=1)
    calls: list[str] = []
    block4d = eager.center_pivot_block4d

    def spy(*args, **options):
        calls.append("eager")
        return block4d(*args, **options)

    monkeypatch.setattr(eager, "center_pivot_block4d", spy)
    ops = hypercorrelation.ops
    rows = {}
    for name in ("ops", "eager"):
        rows[name] = training_speed.measure(name, config, 1)
        assert bool(calls) == (name == "eager")
        assert hypercorrelation.ops is ops
    assert rows["ops"]["loss"] == pytest.approx(rows["eager"]["loss"], rel=1e-5)
    for row in rows.values():
        assert row["step_seconds"] > row["prior_seconds"] > 0 and row["activation_bytes"] > 0


def test_median_of_rounds() -> None:
    """Times are medians over rounds; the rest is the first round's."""
    rounds = [
        {"loss": 1.0, "step_seconds": step, "prior_seconds": prior}
        for step, prior in ((3.0, 0.3), (1.0, 0.1), (2.0, 0.2))
    ]
    row = training_speed.median(rounds)
    assert (row["loss"], row["step_seconds"], row["prior_seconds"]) == (1.0, 2.0, 0.2)
    assert row["step_seconds_by_round"] == [3.0, 1.0, 2.0]


def test_what_does_not_fit_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The eager formulation stops at two images, the ops go on to eight and win there."""
    calls = []

    def fake(name, config, repeats):
        images = config.images_per_step
        calls.append((name, images))
        if name == "eager" and images > 2:
            raise torch.OutOfMemoryError
        seconds = 1.0 if name == "eager" else images / 8
        return {
            "formulation": name, "backend": name, "loss": 1.0, "step_seconds": seconds,
            "prior_seconds": seconds / 2, "activation_bytes": 1, "peak_bytes": None,
        }  # fmt: skip

    monkeypatch.setattr(training_speed, "measure", fake)
    monkeypatch.setattr(training_speed.memory, "in_new_process", lambda run, *args: run(*args))
    record = tmp_path / "speed.json"
    arguments = [
        "--images",
        "8",
        "2",
        "4",
        "--rounds",
        "2",
        "--limit-gb",
        "1",
        "--out",
        str(record),
    ]
    monkeypatch.setattr(sys, "argv", ["training_speed.py", *arguments])
    training_speed.main()
    printed = capsys.readouterr().out
    assert "eager: 4 images do not fit" in printed
    assert "4D part, 1 episodes: 4.00 times as fast" in printed
    assert "each at its best: 4.00 times as fast, with 1 and 1 episodes" in printed
    assert calls.count(("eager", 4)) == 1 and ("eager", 8) not in calls
    rows = json.loads(record.read_text())["results"]
    assert [(r["formulation"], r["episodes"]) for r in rows] == [
        ("ops", 1), ("eager", 1), ("ops", 2), ("ops", 4),
    ]  # fmt: skip


def test_different_losses_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a wrong kernel could win."""
    row = {"step_seconds": 1.0, "prior_seconds": 1.0}
    losses = {"ops": 1.0, "eager": 1.01}
    monkeypatch.setattr(training_speed, "measure", lambda n, *_: {**row, "loss": losses[n]})
    monkeypatch.setattr(training_speed.memory, "in_new_process", lambda run, *args: run(*args))
    monkeypatch.setattr(sys, "argv", ["training_speed.py"])
    with pytest.raises(SystemExit, match="the losses differ"):
        training_speed.main()
