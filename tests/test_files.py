"""The file system: whole or not there, damaged and said so, in use by one process at a time."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from fsdino import files
from fsdino.errors import CheckpointError, DataError, FsdinoError, UsageError
from fsdino.image_files import scan_folder
from pictures import one_line, run_python

CONTENT = bytes(range(256)) * 16


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_atomic_write_replaces_in_one_step(tmp_path: Path) -> None:
    """Until the block ends, readers see the old file; then the new one, and no other."""
    target = tmp_path / "state.json"
    target.write_text("old")
    with files.atomic_write(target) as temporary:
        assert temporary.parent.parent == tmp_path  # so that a rename is one step
        assert temporary.suffix == ".json"
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert scan_folder(tmp_path).images == []
    assert target.read_text() == "new"
    assert entries(tmp_path) == ["state.json"]


def test_atomic_write_reaches_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content is synced before the rename, and the folder after it: a power cut in between
    leaves the old file or the new one."""
    order = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(descriptor: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def recording_replace(source: Path, target: Path) -> None:
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    files.write_bytes(tmp_path / "mask.png", CONTENT)
    assert order == ["file", "rename", "folder"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), SystemExit(1), RuntimeError("bug")])
def test_an_interruption_leaves_the_old_file(tmp_path: Path, failure: BaseException) -> None:
    """Ctrl-C and errors in the middle of writing pass through; nothing half-written stays."""
    target = tmp_path / "state.json"
    target.write_text("old")
    with pytest.raises(type(failure)) as error, files.atomic_write(target) as temporary:
        temporary.write_text("half")
        raise failure
    assert error.value is failure
    assert target.read_text() == "old"
    assert entries(tmp_path) == ["state.json"]


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    """A process that dies without cleaning up leaves a hidden file at most."""
    (tmp_path / "state.png").write_text("old")
    run = run_python(
        "import os, sys\n"
        "from fsdino.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os._exit(9)\n",
        str(tmp_path / "state.png"),
    )
    assert run.returncode == 9, run.stderr
    assert (tmp_path / "state.png").read_text() == "old"
    assert [file.name for file in scan_folder(tmp_path).images] == ["state.png"]


def test_a_file_size_limit_of_the_system(tmp_path: Path) -> None:
    """A write that the system really cuts short: one line, and nothing half-written."""
    run = run_python(
        "import resource, sys\n"
        "from fsdino.errors import FsdinoError\n"
        "from fsdino.files import write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    write_bytes(sys.argv[1], bytes(3000))\n"
        "except FsdinoError as error:\n"
        "    print(error)\n",
        str(tmp_path / "noise.png"),
    )
    assert run.stderr == ""
    assert run.stdout.startswith(f"cannot write {tmp_path / 'noise.png'}: ")
    assert "File too large" in run.stdout and run.stdout.count("\n") == 1
    assert entries(tmp_path) == []


DISK_FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("failure", DISK_FULL, ids=str)
def test_disk_full(tmp_path: Path, failure: Exception) -> None:
    """In the block, from the system or in a library's words: one line, the old file stays."""
    target = tmp_path / "model.safetensors"
    target.write_text("old")
    with pytest.raises(FsdinoError) as error, files.atomic_write(target) as temporary:
        temporary.write_text("half")
        raise failure
    one_line(error, f"cannot write {target}", "disk is full", "free space")
    assert error.value.exit_code == 1
    assert target.read_text() == "old"
    assert entries(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_disk_full_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Delayed allocation reports a full disk as late as at fsync; even then nothing is left."""
    target = tmp_path / "mask.png"
    target.write_text("old")

    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(FsdinoError) as error:
            files.write_bytes(target, CONTENT)
    one_line(error, "mask.png", "disk is full")
    assert target.read_text() == "old"
    assert entries(tmp_path) == ["mask.png"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_no_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A folder that may not be written, or a read-only disk (root may write all: simulated)."""
    target = tmp_path / "mask.png"

    def fail(path: Path, *args: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(FsdinoError) as error:
            files.write_bytes(target, CONTENT)
    one_line(error, f"cannot write {target}", "no write permission")
    assert error.value.exit_code == 1
    assert entries(tmp_path) == []


def test_a_read_only_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename would get past the file's own protection; it is asked first (simulated)."""
    target = tmp_path / "mask.png"
    target.write_text("kept")
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK))
    with pytest.raises(FsdinoError) as error:
        files.write_bytes(target, CONTENT)
    one_line(error, "mask.png", "no write permission")
    assert target.read_text() == "kept"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    """No such folder, a file used as a folder, a folder itself, and a pipe."""
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    cases = {
        tmp_path / "none" / "mask.png": f"create {tmp_path / 'none'} first",
        tmp_path / "file" / "mask.png": "no such folder",
        tmp_path: "this is a folder",
        tmp_path / "pipe": "not a regular file",
    }
    for path, part in cases.items():
        with pytest.raises(UsageError) as error:
            files.write_bytes(path, CONTENT)
        one_line(error, f"cannot write {path}", part)
    assert entries(tmp_path) == ["file", "pipe"]
    assert (tmp_path / "file").read_text() == "kept"


def test_errors_about_other_files_keep_their_words(tmp_path: Path) -> None:
    """A missing input, read while an output is written, is not called a missing output."""
    with (
        pytest.raises(FileNotFoundError, match=r"input\.json"),
        files.atomic_write(tmp_path / "output.json") as temporary,
    ):
        temporary.write_text(Path(tmp_path / "input.json").read_text())
    assert entries(tmp_path) == []


def test_permissions_of_written_files(tmp_path: Path) -> None:
    """A new file follows the umask, a replaced one keeps what it had."""
    previous = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "new.png", CONTENT)
    finally:
        os.umask(previous)
    assert (tmp_path / "new.png").stat().st_mode & 0o777 == 0o640
    (tmp_path / "new.png").chmod(0o606)
    files.write_bytes(tmp_path / "new.png", CONTENT)
    assert (tmp_path / "new.png").stat().st_mode & 0o777 == 0o606


def test_links_are_followed(tmp_path: Path) -> None:
    """Writing through a link changes the file that it points at, and keeps the link."""
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "far" / "real.txt")
    with files.atomic_write(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "far" / "real.txt").read_text() == "new"


def test_names_as_long_as_the_system_allows(tmp_path: Path) -> None:
    """The temporary name is short, so the longest possible target can be written."""
    name = "x" * 251 + ".png"
    files.write_bytes(tmp_path / name, CONTENT)
    assert entries(tmp_path) == [name]


# ------------------------------------------------------------------------------- what a kill leaves

KILLED = """
import os, sys
from pathlib import Path
from typing import Any
from fsdino.files import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("half")
    (temporary.parent / ".tmpWhatALibraryWrites").write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_what_a_kill_left_goes_with_the_next_write(tmp_path: Path) -> None:
    """Also what a library wrote under a name of its own; other programs' hidden files stay."""
    (tmp_path / ".hidden").write_text("another program's")
    run = run_python(KILLED, str(tmp_path / "model.safetensors"))
    assert run.returncode == -signal.SIGKILL
    assert len(entries(tmp_path)) == 2
    write = "import sys; from fsdino import files; files.write_bytes(sys.argv[1], b'whole')"
    assert run_python(write, str(tmp_path / "other.json")).returncode == 0
    assert entries(tmp_path) == [".hidden", "other.json"]


def test_what_others_are_writing_is_no_leftover(tmp_path: Path) -> None:
    """A living writer's folder stays, whichever process looks for leftovers."""
    with files.atomic_write(tmp_path / "state.json") as temporary:
        temporary.write_text("half")
        clean = "import sys; from fsdino import files; files.remove_leftovers(sys.argv[1])"
        assert run_python(clean, str(tmp_path)).returncode == 0
        files.remove_leftovers(tmp_path)
        assert temporary.read_text() == "half"
    assert (tmp_path / "state.json").read_text() == "half"


def test_writers_and_cleaners_at_the_same_time(tmp_path: Path) -> None:
    """A folder that a cleaner takes between its creation and its lock is made once more."""
    stop = threading.Event()

    def clean() -> None:
        while not stop.is_set():
            files.remove_leftovers(tmp_path)

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    try:
        for number in range(200):
            files.write_bytes(tmp_path / f"{number % 5}.bin", CONTENT)
    finally:
        stop.set()
        cleaner.join()
    assert entries(tmp_path) == [f"{number}.bin" for number in range(5)]
    assert all((tmp_path / name).read_bytes() == CONTENT for name in entries(tmp_path))


def test_hidden_files_of_earlier_versions_go_after_a_day(tmp_path: Path) -> None:
    """They hold no lock, so that a young one may be a living process's."""
    old, young = tmp_path / ".fsdino-0123456789ab.png", tmp_path / ".fsdino-ba9876543210.png"
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    files.remove_leftovers(tmp_path)
    assert entries(tmp_path) == [young.name]


# ------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "content, reason",
    [
        (b'{"a": 1', "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe{}", "it is not"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[1, 2]", "does not hold an object"),
        (b"9" * 5000, "not JSON"),
    ],
)
def test_damaged_json_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    """Whatever the damage, the file is named with the reason and the remedy."""
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        files.read_object(file, "save the model again", CheckpointError)
    one_line(error, str(file), "is damaged", reason, "save the model again")


def test_json_that_is_no_regular_file(tmp_path: Path) -> None:
    """A pipe is not waited for, a device not read, and an absurd size not allocated."""
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "null.json").symlink_to("/dev/zero")
    with (tmp_path / "sparse.json").open("wb") as file:
        file.truncate(2**35)
    (tmp_path / "folder.json").mkdir()
    for name, reason in {
        "pipe": "not a regular file",
        "null": "not a regular file",
        "sparse": "34,359,738,368 bytes",
        "folder": "cannot be read (Is a directory)",
        "none": "cannot be read (No such file",
    }.items():
        with pytest.raises(DataError) as error:
            files.read_object(tmp_path / f"{name}.json", "write it again")
        one_line(error, f"{name}.json", reason, "write it again")


def test_json_lines_lose_the_damaged_ones_alone(tmp_path: Path) -> None:
    """A torn line, zeros of a crash, bytes that are not text, values that are not objects."""
    file = tmp_path / "rows.jsonl"
    damage = b"[1]\nnull\n\x00\x00\n\xff\n" + b"[" * 100_000 + b"\n"
    file.write_bytes(b'{"n": 1}\n' + damage + b'{"n": 2, "t": "\xe2\x80\xa8"}\n\n{"n": 3')
    rows, damaged = files.read_json_lines(file)
    assert rows == [{"n": 1}, {"n": 2, "t": "\u2028"}]
    assert damaged == 6
    assert files.read_json_lines(tmp_path / "none.jsonl") == ([], 0)


def test_a_journal_resumes_with_what_can_be_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that are none count as damaged lines, the log says how many, and the first can be a
    header, which has no row's form."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"format": 1}\n{"n": 3}\n{"n": "x"}\n{"n": 5}\n{"n": 7')
    headers: list[dict[str, Any]] = []

    def parse(data: dict[str, Any]) -> int | None:
        return data["n"] if isinstance(data.get("n"), int) else None

    assert files.read_journal(path, parse, header=headers.append) == ([3, 5], 2)
    assert headers == [{"format": 1}]
    assert caplog.messages == [f"{path}: 2 damaged lines are left out"]
    assert files.read_journal(path, parse, quiet=True) == ([3, 5], 3)
    assert files.read_journal(tmp_path / "none", parse, header=headers.append) == ([], 0)
    assert len(headers) == len(caplog.messages) == 1


def test_a_line_without_an_end_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash may leave gigabytes of zeros; what follows them is read."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"n": 1}\n')
    os.truncate(file, 2**27)
    files.append_json_lines(file, [{"n": 2}, {"text": "x" * 5000}])
    tracemalloc.start()
    try:
        rows, damaged = files.read_json_lines(file)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()
    assert rows == [{"n": 1}, {"n": 2}, {"text": "x" * 5000}] and damaged == 1
    files.write_json_lines(file, [{"n": 1}, {"n": 20}, {"n": 2}])
    monkeypatch.setattr(files, "_MOST_LINE", 9)  # the first line has just as many
    assert files.read_json_lines(file) == ([{"n": 1}, {"n": 2}], 1)


def test_appending_after_a_torn_line(tmp_path: Path) -> None:
    """The torn line costs itself, not the first new one."""
    file = tmp_path / "rows.jsonl"
    files.append_json_lines(file, [{"n": 1}])
    with file.open("ab") as end:
        end.write(b'{"n": 2')
    files.append_json_lines(file, [{"n": 3}, {"n": 4}])
    assert files.read_json_lines(file) == ([{"n": 1}, {"n": 3}, {"n": 4}], 1)
    files.write_json_lines(file, [{"n": 5}])
    assert file.read_text() == '{"n": 5}\n'


def test_appending_to_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    """The system takes a part of the rows only (a real limit): none of them stays."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"n": 1}\n')
    run = run_python(
        "import resource, sys\n"
        "from fsdino.errors import FsdinoError\n"
        "from fsdino.files import append_json_lines\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try:\n"
        "    append_json_lines(sys.argv[1], [{'n': 10 ** 60}] * 3)\n"
        "except FsdinoError as error:\n"
        "    print(error)\n",
        str(file),
    )
    assert run.stdout.startswith(f"cannot write {file}: ") and run.stderr == ""
    assert file.read_text() == '{"n": 1}\n'


def test_folders_are_made_or_named(tmp_path: Path) -> None:
    """With those above; a file in the way is named with the remedy."""
    files.make_folder(tmp_path / "a" / "b", "pass another --out")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file", tmp_path / "file" / "b"):
        with pytest.raises(UsageError) as error:
            files.make_folder(path, "pass another --out")
        one_line(error, str(path), "a file is in its place", "pass another --out")


def test_hash_of_a_file_of_any_size(tmp_path: Path) -> None:
    """In pieces the same as in one; a pipe is not waited for."""
    for size in (0, 3, 2**20, 2**20 + 1):
        (tmp_path / "file").write_bytes(b"x" * size)
        assert files.sha256(tmp_path / "file") == hashlib.sha256(b"x" * size).hexdigest()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="regular file"):
        files.sha256(tmp_path / "pipe")


def test_reading_reserves_what_the_file_has(tmp_path: Path) -> None:
    """Not what it may have, which can be more than the machine has."""
    (tmp_path / "file").write_bytes(CONTENT)
    tracemalloc.start()
    found = files.read_bytes(tmp_path / "file", 2**28)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == CONTENT and peak < 10**6
