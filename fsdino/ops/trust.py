"""Which files may be loaded as code: those that only this user or root can have written."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

from fsdino.environment import cache, own_cache
from fsdino.errors import BackendError


def distrust(path: Path) -> str | None:
    """Why code in a file or folder must not run here; None if only this user or root can write it.

    For a link, both the link and its target are checked. Parent folders are not.

    Raises:
        OSError: there is no such file.
    """
    for status in (path.lstat(), path.stat()):
        if _owner(status) not in {os.geteuid(), 0}:
            return f"{path} belongs to {_user(_owner(status))}, and its code would run as you"
        if not stat.S_ISLNK(status.st_mode) and _others_write(status):
            mode = stat.S_IMODE(status.st_mode)
            return f"{path} can be written by others (mode {mode:o})"
    return None


def distrust_build(library: Path) -> str | None:
    """The same for a build in a cache: its library, its folder with all files, and the cache."""
    folder = library.parent
    if (reason := _distrust_entries(folder.parent)) is not None:
        return reason
    for path in [folder, *sorted(folder.iterdir())]:
        if (reason := distrust(path)) is not None:
            return reason
    return None


def places() -> list[Path]:
    """Folders that are searched for builds: `place`, and the unsafe ones before it."""
    found = []
    for folder in _candidates():
        found.append(folder)
        if _unsafe(folder) is None:
            break
    return found


def place() -> tuple[Path, list[str]]:
    """The folder to build in, and why the folders before it are not used.

    In this order: the cache, this user's folder in it, and the user's own cache.

    Raises:
        BackendError: none of them is safe.
    """
    reasons: list[str] = []
    for folder in _candidates():
        reason = _unsafe(folder)
        if reason is None:
            return folder, reasons
        reasons.append(reason)
    raise BackendError(
        f"there is no safe folder to build in: {'; '.join(reasons)}; set FSDINO_CACHE to a folder "
        "that only you can write"
    )


def _candidates() -> list[Path]:
    return list(dict.fromkeys([cache(), cache() / f"user-{os.geteuid()}", own_cache()]))


def _unsafe(folder: Path) -> str | None:
    """Why a folder, which may have to be created, is not safe for this user's code."""
    try:
        return distrust(folder)
    except FileNotFoundError:
        above = next(parent for parent in folder.absolute().parents if parent.exists())
        return _distrust_entries(above)
    except OSError:  # a build in that folder raises it again, with what to do
        return None


def _distrust_entries(folder: Path) -> str | None:
    """Why others could replace this user's entries of a folder; None if they cannot."""
    status = folder.stat()
    if _owner(status) not in {os.geteuid(), 0}:
        return f"{folder} belongs to {_user(_owner(status))}, who can replace what is in it"
    if _others_write(status) and not status.st_mode & stat.S_ISVTX:
        return f"{folder} can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    return None


def _owner(status: os.stat_result) -> int:
    return status.st_uid


def _others_write(status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_private(status.st_gid)


def _is_private(group: int) -> bool:
    """Whether a group is the user's own, without other members, as many systems create it."""
    try:
        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    own = user.pw_gid == group and found.gr_name == user.pw_name
    return own and set(found.gr_mem) <= {user.pw_name}


def _user(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"
