"""A run folder survives kills, damage and changed minds."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from fsdino import files
from fsdino.errors import CheckpointError, FsdinoError, UsageError
from fsdino.locks import Lock
from fsdino.models import checkpoints
from fsdino.models.checkpoints import tensors_sha256
from fsdino.training import run as run_module
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
            with pytest.raises(UsageError, match=rf"is in use by process {other.pid} on "):
                Run(tmp_path, {"steps": 3}, resume=True)
        finally:
            other.kill()
    Run(tmp_path, {"steps": 3}, resume=True).close()
    Run(tmp_path, {"steps": 3}, resume=True)  # what ended, or was closed, holds nothing


STARTER = """
import sys
from pathlib import Path
import torch
from fsdino.training.run import Run
run = Run(Path(sys.argv[1]), {"steps": 3}, resume=False)
run.save(3, {"weight": torch.ones(2)}, {})
run.close()
"""


def test_a_start_that_was_held_up_finds_what_happened_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is looked at before the lock is held: another process's run is not gone on with."""

    class HeldUp(Lock):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            subprocess.run([sys.executable, "-c", STARTER, str(tmp_path)], check=True)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(run_module, "Lock", HeldUp)
    with pytest.raises(UsageError, match="already holds a run: pass --resume"):
        Run(tmp_path, {"steps": 5}, resume=False)
    monkeypatch.undo()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"steps": 3}
    assert Run(tmp_path, {"steps": 3}, resume=True).load()[0] == 3


def test_a_failed_start_leaves_nothing(tmp_path: Path) -> None:
    """No folder, no lock and no run that the next start would meet; a run that was there stays."""
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError), Run(folder, {}, resume=False) as run:
        run.log(1, loss=0.5)
        raise RuntimeError
    assert not folder.exists()
    with Run(folder, {"seed": 1}, resume=False) as run:
        run.save(10, value(10), {})
    with pytest.raises(UsageError, match="differs from this configuration in seed"):
        Run(folder, {"seed": 2}, resume=True)
    with pytest.raises(RuntimeError), Run(folder, {"seed": 1}, resume=True):
        raise RuntimeError
    with Run(folder, {"seed": 1}, resume=True) as run:
        assert run.load()[0] == 10


DAMAGE = {
    "missing": None,
    "empty": b"",
    "not UTF-8": b"\xff\xfe\x00",
    "a list": b"- a\n- b\n",
    "text": b"steps",
    "deep": b"- " * 3000,
    "aliases": b"a: &a [x, x]\n"
    + b"".join(
        b"%c: &%c [%b]\n" % (n + 1, n + 1, b", ".join([b"*%c" % n] * 9)) for n in range(97, 115)
    ),
    "cut": b"steps: 3\nmodel: {width",
    "another value": b"steps: 3\nmodel: {width: 17}\n",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_configuration_is_mended(tmp_path: Path, name: str, caplog) -> None:
    """Checkpoints hold it, too: the run goes on, and only with the settings that it had."""
    config = {"steps": 3, "model": {"width": 16}}
    with Run(tmp_path, config, resume=False) as run:
        run.save(10, value(10), {})
    stored = tmp_path / "config.yaml"
    stored.unlink()
    if DAMAGE[name] is not None:
        stored.write_bytes(DAMAGE[name])
    with pytest.raises(UsageError, match="already holds a run"):
        Run(tmp_path, config, resume=False)
    with pytest.raises(UsageError, match=r"differs from this configuration in .*width"):
        Run(tmp_path, {"steps": 3, "model": {"width": 18}}, resume=True)
    with Run(tmp_path, config, resume=True) as run:
        assert run.load()[0] == 10 and run.before == config
    assert "written again" in caplog.text
    assert yaml.safe_load(stored.read_text()) == config


def test_checkpoints_of_an_older_version(tmp_path: Path, caplog) -> None:
    """They hold no configuration: a missing one is taken from the command, and that is said."""
    with Run(tmp_path, {"steps": 3}, resume=False) as run:
        run._config = {}
        run.save(10, value(10), {})
    (tmp_path / "config.yaml").unlink()
    path = tmp_path / "checkpoints" / "00000010.safetensors"
    with safe_open(path, framework="pt") as file:
        old = {name: text for name, text in file.metadata().items() if name in ("step", "state")}
    sha256 = tensors_sha256(value(10), json.dumps(old, sort_keys=True))
    save_file(value(10), path, {**old, "sha256": sha256})
    with Run(tmp_path, {"steps": 3}, resume=True) as run:
        assert run.load()[0] == 10
    assert "no checkpoint holds the configuration either" in caplog.text


def test_other_files_among_the_checkpoints(tmp_path: Path) -> None:
    """Copies, notes, folders and pipes are nobody's checkpoints: neither read nor removed."""
    with Run(tmp_path, {}, resume=False) as run:
        run.save(10, value(10), {})
    folder = tmp_path / "checkpoints"
    names = ["00000000 (copy).safetensors", "1.safetensors", "best.safetensors", "notes.txt"]
    for name in names:
        (folder / name).write_bytes(b"mine")
    (folder / "00000090.safetensors").mkdir()
    os.mkfifo(folder / "00000091.safetensors")
    with Run(tmp_path, {}, resume=True) as run:
        assert run.load()[0] == 10
        for step in (20, 30, 100_000_000, 100_000_010):
            run.save(step, value(step), {})
        assert run.load()[0] == 100_000_010
    assert {path.name for path in folder.iterdir()} == {
        *names, "00000090.safetensors", "00000091.safetensors", "100000000.safetensors",
        "100000010.safetensors",
    }  # fmt: skip


def test_leftovers_of_killed_writes_are_removed(tmp_path: Path) -> None:
    """In every folder that a run writes in, at its start; what someone else hid stays."""
    with Run(tmp_path, {}, resume=False) as run:
        run.save(10, value(10), {})
    for part in ("", "checkpoints", "model", "best"):
        (tmp_path / part / ".fsdino-0123456789abcdef").mkdir(parents=True)
        (tmp_path / part / ".fsdino-0123456789abcdef" / "content.safetensors").write_bytes(b"half")
        (tmp_path / part / ".mine").mkdir()
    Run(tmp_path, {}, resume=True).close()
    hidden = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".*"))
    assert hidden == [".mine", "best/.mine", "checkpoints/.mine", "model/.mine"]


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00" * 50, b"\xff\xfe\n", b"[" * 5000 + b"\n", b'{"loss": 1.0}\n', b"[1]\n",
        b'{"step": "ten"}\n', b'{"step": 40, "lo',
    ],
)  # fmt: skip
def test_damaged_metrics_cost_their_lines(tmp_path: Path, damage: bytes, caplog) -> None:
    """Zeros of a crash, other bytes, lines without a step: left out, and said."""
    with Run(tmp_path, {}, resume=False) as run:
        run.log(step=10, loss=1.0)
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(damage)
        run.log(step=20, loss=2.0)
        run.forget_after(20)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == ['{"step": 10, "loss": 1.0}', '{"step": 20, "loss": 2.0}']
    assert "metrics.jsonl: 1 damaged lines are left out" in caplog.text


@pytest.mark.parametrize("moment", ["made", "written", "flushed"])
def test_tensorboard_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, moment: str
) -> None:
    """Its disk is full, or a file is in its place: the run goes on, and that is said once."""

    class Full:
        def __init__(self, folder: str, purge_step: int) -> None:
            self.fail("made")

        def fail(self, now: str) -> None:
            if now == moment:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def add_scalar(self, *_: object) -> None:
            self.fail("written")

        def flush(self) -> None:
            self.fail("flushed")

        def close(self) -> None:
            self.fail(moment)

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", Full)
    with Run(tmp_path, {}, resume=False) as run:
        for step in (1, 2):
            run.log(step, loss=0.5)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert caplog.text.count("TensorBoard's files cannot be written") == 1


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
    with pytest.raises(FsdinoError, match=r"cannot create .*file/run: a file .*another --out"):
        Run(tmp_path / "file" / "run", {}, resume=False)
    (tmp_path / "run" / "lock").mkdir(parents=True)
    with pytest.raises(FsdinoError, match=r"cannot write .*run/lock: .*another"):
        Run(tmp_path / "run", {}, resume=False)


def test_a_disk_that_is_full_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, nothing is left open or behind, and the next start finds no run there."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = len(os.listdir("/dev/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(files, "_write_all", full)
        with pytest.raises(FsdinoError, match="the disk is full"):
            Run(tmp_path / "run", {}, resume=False)
    assert len(os.listdir("/dev/fd")) == before
    assert not (tmp_path / "run").exists()
    Run(tmp_path / "run", {}, resume=False)


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
    run, other = (Run(tmp_path, {}, resume=False, first=first) for first in (True, False))
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
