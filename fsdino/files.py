"""Files on disk: whole or not there, and found damaged rather than believed.

The only place that writes in one step, reads JSON, appends lines, and removes what a process that
was killed left behind. `locks` keeps a folder to one process, `yaml_files` reads YAML.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from fsdino.errors import DataError, FsdinoError, UsageError, first_line

logger = logging.getLogger("fsdino.files")

AnyPath = str | os.PathLike[str]
Row = TypeVar("Row")

_PREFIX = ".fsdino-"  # of the hidden folders that files are written in
_STALE = 24 * 3600.0  # seconds after which what cannot be locked counts as left behind
_CHUNK = 2**20  # bytes that are hashed at once
_MOST_JSON = 2**28  # bytes
_MOST_LINE = 2**24  # bytes of one of several objects
_cleaned: set[tuple[int, int]] = set()  # folders by device and inode


# ---------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def atomic_write(path: AnyPath) -> Iterator[Path]:
    """Have a file written elsewhere first, so that `path` is never half-written.

    ```python
    with atomic_write("report.html") as temporary:
        temporary.write_text(report)
    ```

    The block writes the temporary file, which has the same suffix and lies in a hidden folder
    beside `path`, together with anything that a library puts next to it. When the block succeeds,
    the file goes to disk (fsync) and takes the place of `path` in one step, with the permissions
    that a file there had. When it fails (Ctrl-C included), the hidden folder is removed and `path`
    stays as it was. A link is followed. What a killed process left is removed by the next one that
    writes in the same folder.

    Raises:
        UsageError: no such folder, or `path` is a folder or a device.
        FsdinoError: no write permission, disk full, or another reason of the system's.
    """
    target = Path(os.path.realpath(path))
    place: _Place | None = None
    temporary = target
    try:
        mode = _writable_mode(target, path)
        place = _Place(target.parent)
        temporary = place.folder / f"content{target.suffix[:32]}"
        # 0o666 is narrowed by the umask, as for any new file.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        if mode is not None:
            os.chmod(temporary, mode)
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException as error:
        if isinstance(error, Exception) and _is_about(error, temporary, target):
            raise write_error(error, path) from error
        raise
    finally:
        if place is not None:
            place.remove()
    with contextlib.suppress(OSError):  # the rename's own record, where folders can be synced
        _sync(target.parent)


def write_bytes(path: AnyPath, content: bytes) -> None:
    """Write a file, whole or not at all; see `atomic_write`.

    What is encoded by a library is encoded to memory and written by this: not every library
    notices a write that the system cut short.

    Raises:
        UsageError, FsdinoError: see `atomic_write`.
    """
    with atomic_write(path) as temporary, temporary.open("wb", buffering=0) as file:
        _write_all(file, content)


def write_text(path: AnyPath, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: AnyPath, value: Any) -> None:
    """Write a JSON file, indented, whole or not at all; see `write_bytes`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def make_folder(folder: AnyPath, remedy: str) -> None:
    """Create a folder, with those above it; one that is there is fine.

    Args:
        folder: its path.
        remedy: what an error says to do, such as "pass an --out that can be written".

    Raises:
        UsageError: a file is in its place.
        FsdinoError: it cannot be created.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(
            f"cannot create the folder {os.fspath(folder)}: a file is in its place; {remedy}"
        ) from error
    except OSError as error:
        raise FsdinoError(
            f"cannot create {os.fspath(folder)}: {error.strerror}; {remedy}"
        ) from error


def remove_leftovers(folder: AnyPath) -> None:
    """Remove what killed processes left of `atomic_write` in a folder; others' files stay.

    What a living process is writing is locked, and stays. Where the file system has no locks, it
    goes after a day.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in [e for e in entries if e.name.startswith(_PREFIX)]:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    _remove_place(Path(entry.path))
                elif entry.is_file(follow_symlinks=False) and _is_old(entry.stat()):
                    os.unlink(entry.path)  # as versions before 0.2 named it


class _Place:
    """A hidden folder to write in, locked while it is used."""

    def __init__(self, parent: Path) -> None:
        status = parent.stat()
        if (status.st_dev, status.st_ino) not in _cleaned:
            _cleaned.add((status.st_dev, status.st_ino))
            remove_leftovers(parent)
        while not self._make(parent / f"{_PREFIX}{secrets.token_hex(8)}"):
            pass

    def _make(self, folder: Path) -> bool:
        """Create and lock it; False where one who removes leftovers took it in between."""
        folder.mkdir(mode=0o700)
        descriptor = -1
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if folder.stat().st_ino != os.fstat(descriptor).st_ino:
                raise FileNotFoundError
        except BaseException as error:
            if descriptor >= 0:
                os.close(descriptor)
            with contextlib.suppress(OSError):
                folder.rmdir()
            if isinstance(error, FileNotFoundError):
                return False
            raise
        self.folder, self._descriptor = folder, descriptor
        return True

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # empty once the file is in its place
        if self.folder.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._descriptor)


def _remove_place(folder: Path) -> None:
    """Remove a hidden folder that nobody writes in."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            if not _is_old(os.fstat(descriptor)):
                return
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def _is_old(status: os.stat_result) -> bool:
    return time.time() - status.st_mtime > _STALE


def _writable_mode(target: Path, path: AnyPath) -> int | None:
    """The permissions of a file that will be replaced; None if there is none."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise UsageError(f"cannot write {os.fspath(path)}: this is a folder; pass a file name")
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"cannot write {os.fspath(path)}: not a regular file; pass another path")
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    return stat.S_IMODE(status.st_mode)


def _write_all(file: BinaryIO, content: bytes) -> None:
    """Write to an unbuffered file; the system may take less than it is given."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_about(error: Exception, temporary: Path, target: Path) -> bool:
    """Whether an error is about writing the file, and not about another one that was read."""
    if _is_disk_full(error):
        return True
    if not isinstance(error, OSError):
        return False
    if error.filename is None:
        return True
    name = os.fspath(error.filename)
    hidden = str(target.parent / _PREFIX)
    return name in {str(temporary), str(target), str(target.parent)} or name.startswith(hidden)


def _is_disk_full(error: Exception) -> bool:
    """OSError has a number for it; safetensors and others only pass on the system's message."""
    full = {errno.ENOSPC, errno.EDQUOT}
    if isinstance(error, OSError) and error.errno in full:
        return True
    return any(os.strerror(number) in str(error) for number in full)


def write_error(error: Exception, path: AnyPath) -> FsdinoError:
    """What a user reads where a file could not be written, with the remedy."""
    name = os.fspath(path)
    if _is_disk_full(error):
        return FsdinoError(f"cannot write {name}: the disk is full; free space or choose another")
    number = cast(OSError, error).errno
    if number in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST):
        return UsageError(f"cannot write {name}: no such folder; create {Path(path).parent} first")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return FsdinoError(
            f"cannot write {name}: no write permission; change it or choose another folder"
        )
    return FsdinoError(f"cannot write {name}: {error}; choose another path")


# ---------------------------------------------------------------------------------------- reading


def open_regular(path: AnyPath) -> BinaryIO:
    """Open a regular file for reading: a pipe would wait forever, a device never ends.

    Raises:
        ValueError: neither a regular file nor a link to one.
        OSError: as `open` raises it.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise ValueError("it is not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: AnyPath, most: int) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        ValueError: not a regular file, or a larger one.
        OSError: as `open` raises it.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"it has {size:,} bytes, at most {most:,} can be right")
        return file.read(size or most)  # memory for as many is reserved; /proc states a size of 0


def sha256(path: AnyPath) -> str:
    """The hash of a regular file of any size, in hexadecimal digits.

    Raises:
        ValueError: not a regular file.
        OSError: as `open` raises it.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def parse_json(content: str | bytes) -> Any:
    """JSON of any origin as plain data.

    Raises:
        ValueError: not JSON, not UTF-8, or nested too deeply; a reason of one line.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from None


def read_json(path: AnyPath, *, most: int = _MOST_JSON) -> Any:
    """A JSON file as plain data.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        ValueError: its content cannot be used; a reason of one line.
        OSError: it cannot be read.
    """
    return parse_json(read_bytes(path, most))


def read_object(
    path: AnyPath, remedy: str, error: type[FsdinoError] = DataError, *, most: int = _MOST_JSON
) -> dict[str, Any]:
    """A JSON file that holds an object.

    Args:
        path: the file.
        remedy: what the error says to do where the file is damaged.
        error: class of that error.
        most: bytes that the file may have.

    Raises:
        FsdinoError: an `error`; the file is damaged, or cannot be read.
    """
    try:
        data = read_json(path, most=most)
        if not isinstance(data, dict):
            raise ValueError("it does not hold an object")
        return data
    except OSError as reason:
        raise error(f"{os.fspath(path)} cannot be read ({reason.strerror}): {remedy}") from reason
    except ValueError as reason:
        raise error(f"{os.fspath(path)} is damaged ({reason}): {remedy}") from reason


# ------------------------------------------------------------------------------------- JSON lines


def read_json_lines(path: AnyPath) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file that holds one on each line, and the number of damaged lines.

    An interruption may cut a line off, and a crash of the system leave zeros: such lines are left
    out and counted. Where there is no file, there are no lines.

    Raises:
        FsdinoError: it cannot be read.
    """
    rows: list[dict[str, Any]] = []
    damaged = 0
    try:
        with open_regular(path) as file:
            for line in _lines(file):
                if not line.strip():
                    continue
                try:
                    row = parse_json(line)
                except ValueError:
                    row = None
                if isinstance(row, dict):
                    rows.append(row)
                else:
                    damaged += 1
    except FileNotFoundError:
        return [], 0
    except (OSError, ValueError) as error:
        raise FsdinoError(
            f"{os.fspath(path)} cannot be read ({first_line(error)}): fix that, or choose another "
            "folder"
        ) from error
    return rows, damaged


def read_journal(
    path: AnyPath,
    parse: Callable[[dict[str, Any]], Row | None],
    *,
    header: Callable[[dict[str, Any]], object] | None = None,
    quiet: bool = False,
) -> tuple[list[Row], int]:
    """The rows of a journal: a file of JSON lines that grows as work is done, and resumes it.

    Args:
        path: the file.
        parse: makes a row of an object; None if it cannot be one, which is a damaged line.
        header: called with the first object, if there is any, which then is not a row; raises
            where the file is another's.
        quiet: keep the number of damaged lines out of the log.

    Returns:
        the rows in the order of the file, and the number of damaged lines.

    Raises:
        FsdinoError: it cannot be read.
    """
    objects, damaged = read_json_lines(path)
    if header is not None and objects:
        header(objects.pop(0))
    rows = [row for row in map(parse, objects) if row is not None]
    damaged += len(objects) - len(rows)
    if damaged and not quiet:
        logger.warning("%s: %d damaged lines are left out", os.fspath(path), damaged)
    return rows, damaged


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file. One that is longer than any can be is a zero byte, and not kept."""
    while line := file.readline(_MOST_LINE):
        if len(line) == _MOST_LINE and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(_MOST_LINE)
            yield b"\0"
        else:
            yield line


def append_json_lines(path: AnyPath, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append an object a line, all of them or none; starts the file where there is none.

    A line that an interruption cut off is ended first, so that it costs nothing but itself.

    Raises:
        FsdinoError: the file cannot be written; what was in it is kept.
    """
    content = "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8")
    try:
        with Path(path).open("a+b", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            if before:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    content = b"\n" + content
            try:
                _write_all(file, content)
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(before)
                raise
    except OSError as error:
        raise write_error(error, path) from error


def write_json_lines(path: AnyPath, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file that holds an object on each line, whole or not at all; see `write_bytes`."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
