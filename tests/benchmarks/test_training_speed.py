"""Both formulations train alike, and the eager one really takes the ops' place."""

from __future__ import annotations

import dataclasses

import pytest
import training_speed

from fsdino.models import hypercorrelation
from fsdino.ops import baseline
from training_work import FROZEN


def test_both_formulations_give_one_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one of them would be timed on other work."""
    config = dataclasses.replace(FROZEN, shots=(1,), image_sizes=(), steps=1)
    calls: list[str] = []
    eager = baseline.center_pivot_block4d

    def spy(*args, **options):
        calls.append("eager")
        return eager(*args, **options)

    monkeypatch.setattr(baseline, "center_pivot_block4d", spy)
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
