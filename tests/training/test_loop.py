"""The loop by itself, with a stage of one weight: what both stages rely on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from fsdino.errors import CheckpointError, DataError, FsdinoError
from fsdino.models.config import ModelConfig
from fsdino.training.loop import Loop
from fsdino.training.optimisation import Descent
from fsdino.training.recipe import Recipe, Schedule

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 6


@dataclass(frozen=True)
class Toy(Recipe):
    """Settings of the stage below."""

    warmup: int = 2
    validate_every: int = 2
    checkpoint_every: int = 2
    device: str = "cpu"
    enough: int = STEPS


class Fit(Loop[float, float]):
    """Fits a weight to numbers that are drawn; measures how far it is from 3.

    Its defects are switched on by tests.
    """

    config: Toy
    measures_start = True

    def __init__(self, config: Toy, folder: Path, *, resume: bool = False) -> None:
        super().__init__(config, None)
        self.bad_item = self.bad_measure = self.bad_loss = -1
        self.seen: list[float] = []
        with self._opening():
            self._open_run(folder, resume=resume)
            self.line = nn.Linear(1, 1)
            self.modules = {"line": self.line}
            self.wrapped = self.processes.wrap(self.line)
            self.descent = Descent(self.processes, self.wrapped, self.line, config)
            self._restore()

    @property
    def schedule(self) -> Schedule:
        return Schedule(STEPS, ends=frozenset({STEPS}))

    def load(self) -> list[float]:
        return [float(number) for number in range(self.start, STEPS)]

    def check(self, number: int, item: float) -> None:
        if number == self.bad_item:
            raise DataError(f"item {item} cannot be read")

    def passes(self, item: float) -> list[Callable[[], Tensor]]:
        self.seen.append(item)
        spoilt = torch.nan if item == self.bad_loss else 1.0
        return [lambda: spoilt * (self.wrapped(torch.rand(4, 1)) - 3).square().mean()]

    def metrics(self, done: int, loss: float | None, *, measured: bool) -> dict[str, Any]:
        if measured:
            if done == self.bad_measure:
                raise FsdinoError("it cannot be measured")
            self.quality = abs(self.line.weight.item() - 3)
        return {"loss": loss, **({"distance": self.quality} if measured else {})}

    def has_stopped(self) -> bool:
        return len(self.seen) >= self.config.enough

    def state(self) -> dict[str, Any]:
        return {"distance": self.quality, "seen": self.seen}

    def take_over(self, step: int, state: Mapping[str, Any] | None) -> None:
        if state is not None:
            self.quality, self.seen = state["distance"], state["seen"]

    def finish(self, done: int) -> float:
        return self.line.weight.item()


CONFIG = Toy(ModelConfig())


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if name != "seconds"} for row in lines]


def kept(folder: Path) -> list[int]:
    return [int(path.stem) for path in sorted((folder / "checkpoints").iterdir())]


@pytest.fixture
def whole(tmp_path: Path) -> tuple[float, list[dict[str, Any]]]:
    """The result and the metrics of an unbroken run."""
    found = Fit(CONFIG, tmp_path / "whole").fit()
    return found, rows(tmp_path / "whole")


def test_what_a_run_writes(tmp_path: Path, whole: tuple[float, list[dict[str, Any]]]) -> None:
    """The start is measured, every second step is measured and kept; names are a format."""
    assert [row["step"] for row in whole[1]] == [0, 2, 4, 6]
    assert [list(row) for row in whole[1]] == [["step", "loss", "distance"]] * 4
    assert kept(tmp_path / "whole") == [4, 6]
    with safe_open(tmp_path / "whole" / "checkpoints" / "00000006.safetensors", "pt") as file:
        assert set(file.keys()) == {
            *("line.weight", "line.bias", "random.cpu"),
            *(f"optimizer.{i}.{n}" for i in (0, 1) for n in ("step", "exp_avg", "exp_avg_sq")),
        }
        assert set(file.metadata()) == {"step", "state", "config", "sha256"}
        state = json.loads(file.metadata()["state"])
    assert set(state) == {"distance", "seen", "skipped", "due"}


@pytest.mark.parametrize("moment", ["item", "measure", "interrupt", "report"])
def test_what_stops_a_run_costs_no_bit(
    tmp_path: Path, whole: tuple[float, list[dict[str, Any]]], moment: str
) -> None:
    """An item or a measurement that fails, a signal, an error of the caller's."""
    stopped = Fit(CONFIG, tmp_path / "run")
    expected: dict[str, tuple[type[BaseException], list[int]]] = {
        "item": (DataError, [2, 3]),
        "measure": (FsdinoError, [2, 4]),
        "interrupt": (KeyboardInterrupt, [2, 3]),
        "report": (ZeroDivisionError, [2]),
    }
    if moment == "item":
        stopped.bad_item = 3
    if moment == "measure":
        stopped.bad_measure = 4

    def report(done: int, loss: float, quality: float | None) -> None:
        if done == 3 and moment == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if done == 3 and moment == "report":
            raise ZeroDivisionError

    error, checkpoints = expected[moment]
    with pytest.raises(error):
        stopped.fit(report)
    assert kept(tmp_path / "run") == checkpoints
    resumed = Fit(CONFIG, tmp_path / "run", resume=True)
    assert resumed.start == checkpoints[-1]
    assert (resumed.fit(), rows(tmp_path / "run")) == whole
    assert resumed.seen == [float(number) for number in range(STEPS)]


def test_steps_without_a_finite_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One is skipped; too many are an error after a checkpoint."""
    skipping = Fit(CONFIG, tmp_path / "one")
    skipping.bad_loss = 3
    skipping.fit()
    assert skipping.descent.guard.count == 1 and "step 3 skipped" in caplog.text
    failing = Fit(Toy(ModelConfig(), nan_limit=1), tmp_path / "many")
    failing.bad_loss = 3
    with pytest.raises(FsdinoError, match="1 consecutive steps had no finite loss, up to step 3"):
        failing.fit()
    assert kept(tmp_path / "many") == [2, 3]


def test_a_run_that_ends_early_stays_ended(tmp_path: Path) -> None:
    """It is kept where it stopped, and does nothing when it is resumed."""
    config = Toy(ModelConfig(), enough=3)
    result = Fit(config, tmp_path).fit()
    assert kept(tmp_path) == [2, 3]
    again = Fit(config, tmp_path, resume=True)
    assert again.start == 3 and again.fit() == result and len(again.seen) == 3


def test_checkpoints_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what the stage asks for: an error that says so."""
    with monkeypatch.context() as patch:
        patch.setattr(Fit, "state", lambda self: {"distance": 1.0})
        Fit(CONFIG, tmp_path).fit()
    with pytest.raises(
        CheckpointError, match=r"another version \('seen'\): start in another --out"
    ):
        Fit(CONFIG, tmp_path, resume=True)


def test_a_start_that_fails_leaves_the_folder_free(tmp_path: Path) -> None:
    """Nothing of it is in the way of the next one."""

    class Failing(Fit):
        def _restore(self) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Failing(CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    Fit(CONFIG, tmp_path / "run").fit()
