"""A run folder survives kills, damage and changed minds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fsdino.errors import CheckpointError, FsdinoError, UsageError
from fsdino.training.run import Run


def value(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2,), float(step))}


def test_a_second_run_does_not_overwrite_the_first(tmp_path: Path) -> None:
    """A folder that holds a run is refused unless it is to be resumed."""
    Run(tmp_path, {"steps": 1}, resume=False)
    with pytest.raises(UsageError, match="already holds a run: pass --resume"):
        Run(tmp_path, {"steps": 1}, resume=False)
    Run(tmp_path, {"steps": 1}, resume=True)


def test_resuming_with_another_configuration_is_refused(tmp_path: Path) -> None:
    """The message names the settings that differ."""
    Run(tmp_path, {"steps": 1, "seed": 3}, resume=False)
    with pytest.raises(UsageError, match="differs from this configuration in seed"):
        Run(tmp_path, {"steps": 1, "seed": 4}, resume=True)


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    """Disk use is bounded, and there is always an older one."""
    run = Run(tmp_path, {}, resume=False)
    assert run.load() is None
    for step in (10, 20, 30):
        run.save(step, value(step), {"miou": step / 2})
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "00000020.safetensors",
        "00000030.safetensors",
    ]
    step, tensors, state = run.load()
    assert (
        step == 30
        and state == {"miou": 15.0}
        and torch.equal(tensors["weight"], value(30)["weight"])
    )


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, None], ids=["empty", "zeros", "cut"])
def test_a_damaged_checkpoint_falls_back(tmp_path: Path, damage: bytes | None) -> None:
    """A corrupt newest checkpoint costs its steps, not the run; with none left, it is said."""
    run = Run(tmp_path, {}, resume=False)
    for step in (10, 20):
        run.save(step, value(step), {})
    newest, oldest = (tmp_path / "checkpoints" / f"{step:08d}.safetensors" for step in (20, 10))
    newest.write_bytes(newest.read_bytes()[:-3] if damage is None else damage)
    assert run.load()[0] == 10
    oldest.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read"):
        run.load()


def test_metrics_of_repeated_steps_are_dropped(tmp_path: Path) -> None:
    """After a resume every step stands in metrics.jsonl once, a half-written line not at all."""
    run = Run(tmp_path, {}, resume=False)
    for step in (10, 20, 30):
        run.log(step=step, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    run.forget_after(20)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == ['{"step": 10, "loss": 1.0}', '{"step": 20, "loss": 1.0}']


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    """A file where the folder should be is an error that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(FsdinoError, match=r"cannot create .*file"):
        Run(tmp_path / "file" / "run", {}, resume=False)
