"""Two processes that train together do what one does with twice the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import gloo
from fsdino.training.meta.steps import Steps
from fsdino.training.meta.train import Trainer
from training_work import SHARED, StopError, stop_at, together, weights

# Gradients are summed in another order. AdamW divides by their size, so that where one is nearly
# zero its rounding moves a weight by up to the learning rate a step.
LOSS = {"rel": 1e-4}
WEIGHTS = {"rtol": 1e-3, "atol": 4e-4}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """Runs of one process and of two, and runs that one began and the other finished."""
    folder = tmp_path_factory.mktemp("together")
    losses: list[tuple[int, float]] = []
    Trainer(SHARED, folder / "one").fit(lambda s, x, m: losses.append((s, x)))
    (folder / "one.json").write_text(json.dumps(losses))
    with pytest.raises(StopError):
        Trainer(SHARED, folder / "alone").fit(stop_at(3))
    gloo.run(together, folder, 2)
    resumed = Trainer(SHARED, folder / "stopped", resume=True)
    assert resumed.start == 2
    resumed.fit()
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_same_loss_curve(out: Path) -> None:
    """Both report the mean over all episodes, which is the one process's loss."""
    one, two = read(out / "one.json"), read(out / "rank0.json")["losses"]
    assert two == read(out / "rank1.json")["losses"]
    assert [step for step, _ in two] == [1, 2, 3, 4]
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], **LOSS)


def test_the_same_weights(out: Path) -> None:
    """Also where one process went on from two's checkpoint, and two from one's."""
    expected = weights(out / "one")
    for name in ("two", "stopped", "alone"):
        for key, value in weights(out / name).items():
            torch.testing.assert_close(value, expected[key], **WEIGHTS, msg=f"{name}: {key}")


def test_no_episode_is_seen_twice(out: Path) -> None:
    """The shares of both are the one process's episodes, each once."""
    shares = [read(out / f"rank{rank}.json")["episodes"] for rank in (0, 1)]
    steps = Steps(SHARED)
    for number in range(SHARED.steps):
        both = shares[0][number] + shares[1][number]
        assert sorted(both) == sorted(steps[number].batch.indices.tolist())
        assert len(set(both)) == len(both) >= 2


def test_one_process_writes(out: Path) -> None:
    """Every logged step stands in metrics.jsonl once, with the validation of both together."""
    rows = {
        name: (out / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")
    }
    found = {name: [json.loads(line) for line in lines] for name, lines in rows.items()}
    assert [r["step"] for r in found["two"]] == [r["step"] for r in found["one"]] == [3, 4]
    for one, two in zip(found["one"], found["two"], strict=True):
        assert two["base_miou"] == pytest.approx(one["base_miou"], abs=0.5)


def test_sums_are_over_all_processes(out: Path) -> None:
    """1 + 2, known to both."""
    assert [read(out / f"rank{rank}.json")["sum"] for rank in (0, 1)] == [[3.0], [3.0]]


def test_long_waits_end_no_process(out: Path) -> None:
    """One process may compute for hours before it answers the others."""
    assert [read(out / f"rank{rank}.json")["patience"] for rank in (0, 1)] == pytest.approx(
        [24 * 3600] * 2, abs=1
    )
