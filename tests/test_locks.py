"""Locks: held by one process at a time, and by nobody once it is gone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fsdino.errors import FsdinoError, UsageError
from fsdino.locks import Lock
from pictures import one_line

HOLDER = """
import sys
from pathlib import Path
from fsdino.locks import Lock
lock = Lock(Path(sys.argv[1]), "the run", "pass another --out")
print("held", flush=True)
sys.stdin.read()
"""


def start_holder(path: Path, code: str = HOLDER) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def end(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.communicate()


def test_a_lock_says_who_holds_it(tmp_path: Path) -> None:
    """Process, host, command and start; once the holder is killed, the lock is free."""
    path = tmp_path / "run.lock"
    holder = start_holder(path)
    try:
        with pytest.raises(UsageError) as error:
            Lock(path, "runs/a", "pass another --out")
        who = (f"process {holder.pid} on {socket.gethostname()}", "since 20", str(path))
        one_line(error, "runs/a is in use by", *who, "pass another --out")
    finally:
        end(holder)
    with Lock(path, "runs/a", "pass another --out"):
        record = json.loads(path.with_name("run.lock.json").read_text())
        assert record["pid"] == os.getpid()


def test_a_lock_holds_against_its_own_process(tmp_path: Path) -> None:
    """Two threads, or two calls in a notebook, exclude each other as two processes do."""
    path = tmp_path / "run.lock"
    with (
        Lock(path, "runs/a", "pass another --out"),
        pytest.raises(UsageError, match=f"process {os.getpid()} on"),
    ):
        Lock(path, "runs/a", "pass another --out")
    Lock(path, "runs/a", "pass another --out").release()


def test_a_released_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither by `release` nor by the end of the object; and the next one is a lock again."""
    path = tmp_path / "run.lock"
    for _ in range(2):
        lock = Lock(path, "runs/a", "pass another --out")
        assert path.is_file()
        lock.release()
        assert list(tmp_path.iterdir()) == []
    lock = Lock(path, "runs/a", "pass another --out")
    del lock
    assert list(tmp_path.iterdir()) == []


def test_a_lock_holds_until_its_file_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removed after the release, it might be the file that another has locked by then."""
    path, refused, unlink = tmp_path / "run.lock", [], Path.unlink
    lock = Lock(path, "runs/a", "pass another --out")

    def spying(self: Path, missing_ok: bool = False) -> None:
        if self == path:
            with pytest.raises(UsageError, match="in use"):
                Lock(path, "runs/a", "pass another --out")
            refused.append(self)
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", spying)
    lock.release()
    assert refused == [path]


def test_a_record_is_written_through_no_link(tmp_path: Path) -> None:
    """In a shared folder, somebody may have put one there; a pipe would be waited for."""
    other = tmp_path / "other.txt"
    other.write_text("mine")
    (tmp_path / "a.lock.json").symlink_to(other)
    os.mkfifo(tmp_path / "b.lock.json")
    reader = os.open(tmp_path / "b.lock.json", os.O_RDONLY | os.O_NONBLOCK)
    try:
        for name in ("a.lock", "b.lock"):
            with Lock(tmp_path / name, "it", "wait"):
                record = tmp_path / f"{name}.json"
                assert record.is_file() and not record.is_symlink()
                assert json.loads(record.read_text())["pid"] == os.getpid()
    finally:
        os.close(reader)
    assert other.read_text() == "mine"


def test_an_old_record_is_not_believed(tmp_path: Path) -> None:
    """What a killed holder left names nobody while a new one has not written its own."""
    path = tmp_path / "run.lock"
    with Lock(path, "runs/a", "pass another --out"):
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        stale = {"pid": ended.pid, "host": socket.gethostname(), "command": "x", "started": "y"}
        for content in (json.dumps(stale), "{", "[]", '{"pid": "a"}'):
            path.with_name("run.lock.json").write_text(content)
            with pytest.raises(UsageError, match="is in use by another process: "):
                Lock(path, "runs/a", "pass another --out")


FORKING = """
import os, sys
from pathlib import Path
from fsdino.locks import Lock
lock = Lock(Path(sys.argv[1]), "the run", "pass another --out")
told, tell = os.pipe()
if os.fork() == 0:
    os.write(tell, b"started")
    sys.stdin.read()  # lives on after its parent
    os._exit(0)
os.read(told, 7)
print("held", flush=True)
os.kill(os.getpid(), 9)
"""


def test_children_do_not_inherit_a_lock(tmp_path: Path) -> None:
    """A loader's worker that outlives a killed run must not hold the run's folder."""
    path = tmp_path / "run.lock"
    parent = start_holder(path, FORKING)
    try:
        parent.wait()
        Lock(path, "runs/a", "pass another --out").release()
    finally:
        end(parent)


def test_waiting_for_a_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With `wait`, the log says for whom, and the lock comes once the holder ends."""
    path = tmp_path / "build.lock"
    holder = start_holder(path)
    taken: list[Any] = []
    caplog.set_level("INFO", logger="fsdino.locks")
    waiting = threading.Thread(
        target=lambda: taken.append(Lock(path, "the build", "wait", wait=True))
    )
    waiting.start()
    waiting.join(0.3)
    assert not taken
    end(holder)
    waiting.join(30)
    assert len(taken) == 1
    taken[0].release()
    assert f"in use by process {holder.pid}" in caplog.text


def test_a_lock_where_nothing_can_be_written(tmp_path: Path) -> None:
    """A file in place of the folder is said in the words of writing."""
    (tmp_path / "file").write_text("kept")
    with pytest.raises(FsdinoError) as error:
        Lock(tmp_path / "file" / "lock", "runs/a", "pass another --out")
    one_line(error, "cannot write", "no such folder")
