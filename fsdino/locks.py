"""Locks: a folder or file is used by one process at a time, and an error names that process."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shlex
import socket
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fsdino.errors import UsageError
from fsdino.files import read_json, write_error

logger = logging.getLogger("fsdino.locks")

# What locking fails with where the file system has none.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})


class Lock:
    """A folder or file that is in use by one process at a time.

    The lock is the operating system's: it ends with the process that holds it, however that ends,
    and children do not inherit it. A record beside it says who holds it. Where the file system has
    no locks, there is none. Both files go when the lock is released.

    Args:
        path: of the lock's own file; `PATH.json` is the record.
        subject: what is in use, for the error.
        remedy: what the error says to do besides waiting, such as "pass another --out".
        wait: wait for the holder instead of raising; the log names it.

    Raises:
        UsageError: another process holds it; names the process.
        FsdinoError: the files cannot be written.
    """

    def __init__(self, path: Path, subject: str, remedy: str, *, wait: bool = False) -> None:
        self._path, self._record = path, path.with_name(f"{path.name}.json")
        self._owner = os.getpid()
        self._lock = FileLock(path, timeout=0, thread_local=False, mode=0o666)
        try:
            self._acquire(subject, remedy, wait)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise write_error(error, path) from error
            logger.debug("no lock on %s: %s", path, error)
        else:
            # Not worth a sync: it ends with the process, and who reads half of it knows enough.
            with contextlib.suppress(OSError):  # a full disk; the lock itself holds
                self._record.unlink(missing_ok=True)  # an earlier holder's
                with self._record.open("x", encoding="utf-8") as file:  # never a link's target
                    file.write(json.dumps(_myself()) + "\n")

    def _acquire(self, subject: str, remedy: str, wait: bool) -> None:
        try:
            self._lock.acquire()
        except Timeout:
            holder = self._holder()
            if not wait:
                raise UsageError(
                    f"{subject} is in use by {holder}: wait for its end or stop it, or {remedy}"
                ) from None
            logger.info("%s is in use by %s: waiting for it", subject, holder)
            self._lock.acquire(timeout=-1)

    def _holder(self) -> str:
        """Who holds the lock, as far as the record can be believed."""
        try:
            found = read_json(self._record)
            pid, host = int(found["pid"]), str(found["host"])
            if host == socket.gethostname() and not _is_alive(pid):
                raise ValueError("a record that an earlier process left")
            return f"process {pid} on {host} ({found['command']}, since {found['started']})"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def release(self) -> None:
        """Let others have it; once is enough."""
        if self._lock.is_locked and self._owner == os.getpid():
            # A process that waits for a removed file takes the new one: filelock checks this.
            for file in (self._record, self._path):
                with contextlib.suppress(OSError):
                    file.unlink()
            self._lock.release()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *reason: object) -> None:
        self.release()

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self.release()


def _myself() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
