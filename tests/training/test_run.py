"""A run folder survives kills, damage and changed minds."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fsdino.errors import CheckpointError, FsdinoError, UsageError
from fsdino.models import checkpoints
from fsdino.training.run import Run, pack, unpack


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


HOLDER = """
import sys
from pathlib import Path
from fsdino.training.run import Run
run = Run(Path(sys.argv[1]), {"steps": 3}, resume=False)
print("training", flush=True)
sys.stdin.read()
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A folder in which another process trains is refused, until that one is gone, even killed."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "training\n"
        try:
            with pytest.raises(UsageError, match=rf"another process \(number {other.pid}\)"):
                Run(tmp_path, {"steps": 3}, resume=True)
        finally:
            other.kill()
    Run(tmp_path, {"steps": 3}, resume=True).close()
    Run(tmp_path, {"steps": 3}, resume=True)  # what ended, or was closed, holds nothing


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
    """A file where the folder should be, or a folder for a file, is an error that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(FsdinoError, match=r"cannot write in .*file.*another --out"):
        Run(tmp_path / "file" / "run", {}, resume=False)
    (tmp_path / "run" / "lock").mkdir(parents=True)
    with pytest.raises(FsdinoError, match=r"cannot write in .*run: Is a directory"):
        Run(tmp_path / "run", {}, resume=False)


def test_a_disk_that_is_full_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the few bytes of the lock are said to be missing, and nothing is left open."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = len(os.listdir("/dev/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(FsdinoError, match="No space left"):
            Run(tmp_path, {}, resume=False)
    assert len(os.listdir("/dev/fd")) == before


def test_a_changed_bit_is_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """safetensors itself checks lengths only; the state counts like the tensors."""
    run = Run(tmp_path, {}, resume=False)
    for step in (10, 20):
        run.save(step, value(step), {"miou": 12.5})
    newest = tmp_path / "checkpoints" / "00000020.safetensors"
    whole = newest.read_bytes()
    for place in (len(whole) - 2, whole.index(b"12.5")):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        newest.write_bytes(damaged)
        assert run.load()[0] == 10
        assert "its content is not what was written" in caplog.text
        caplog.clear()
    newest.write_bytes(whole)
    assert run.load()[0] == 20


def test_a_disk_that_fills_up_while_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints and metrics name the file and the remedy; what was there stays."""
    run = Run(tmp_path, {}, resume=False)
    run.save(10, value(10), {})

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(FsdinoError, match=r"00000020\.safetensors.*space"):
        run.save(20, value(20), {})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000010.safetensors"]
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(FsdinoError, match=r"cannot write .*metrics\.jsonl: .*--resume"):
        run.log(20, loss=1.0)


def test_free_settings_may_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What decides no number, and it is said; settings of a section are named with it."""
    caplog.set_level("INFO")
    Run(tmp_path, {"workers": 1, "model": {"width": 8}}, resume=False, free=("workers",))
    Run(tmp_path, {"workers": 2, "model": {"width": 8}}, resume=True, free=("workers",))
    assert "resuming with workers 2 in place of 1" in caplog.text
    with pytest.raises(UsageError, match=r"differs from this configuration in model\.width:"):
        Run(tmp_path, {"workers": 1, "model": {"width": 16}}, resume=True, free=("workers",))


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    """The others read what it wrote."""
    run, other = (Run(tmp_path, {}, resume=False, main=main) for main in (True, False))
    other.save(10, value(10), {})
    other.log(10, loss=1.0)
    assert other.load() is None and not (tmp_path / "metrics.jsonl").exists()
    run.save(10, value(10), {})
    assert other.load()[0] == 10


def test_without_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The numbers are in metrics.jsonl all the same; it is said once."""
    caplog.set_level("INFO")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = Run(tmp_path, {}, resume=False)
    for step in (1, 2):
        run.log(step, loss=0.5)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert caplog.text.count('pip install "fsdino[train]"') == 1


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    """By names and shapes; frozen parameters are neither kept nor asked for."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[1].parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tensors = {name: value.clone() for name, value in pack({"model": model}, optimizer).items()}
    assert {name for name in tensors if name.startswith("model.")} == {
        "model.1.weight", "model.1.bias",
    }  # fmt: skip
    kept = model[1].weight.detach().clone()
    optimizer.step()
    unpack(tensors, {"model": model}, optimizer)
    assert torch.equal(model[1].weight, kept) and optimizer.state[model[1].weight]["step"] == 1
    other = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 5))
    other[0].requires_grad_(False)
    with pytest.raises(CheckpointError, match="the checkpoint's model is another one"):
        unpack(tensors, {"model": other}, torch.optim.AdamW(other[1].parameters()))
