"""What runs as code comes from this user or root: owners, modes, links, shared caches."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import stub_extension
from fsdino.errors import BackendError
from fsdino.ops import build, native, trust

CPU = torch.device("cpu")
Giver = Callable[[Path], None]


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stub_extension.use(monkeypatch, tmp_path)


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> Giver:
    """Make a file another user's, also where the tests do not run as root."""
    given: set[tuple[int, int]] = set()
    monkeypatch.setattr(
        trust, "_owner",
        lambda status: 4242 if (status.st_dev, status.st_ino) in given else status.st_uid,
    )  # fmt: skip

    def give(path: Path) -> None:
        status = path.lstat()
        given.add((status.st_dev, status.st_ino))

    return give


def why_not(monkeypatch: pytest.MonkeyPatch) -> str | None:
    """As a new process would say it."""
    monkeypatch.setattr(native, "_state", native._State())
    return native.why_not("correlation4d", CPU, torch.float32)


@pytest.mark.parametrize("part", ["_C.so", "libfsdino_ops.so", "build.json", "."])
def test_what_another_user_put_there_does_not_run(
    part: str, give_away: Giver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library, its record, their folder: one that is another user's is reason enough."""
    library = build.compile_extension()
    assert why_not(monkeypatch) is None
    give_away(library.parent / part)
    reason = why_not(monkeypatch)
    assert reason is not None
    assert str((library.parent / part).resolve()) in reason
    assert "belongs to user 4242" in reason and "not used" in reason


@pytest.mark.parametrize("part, mode", [("_C.so", 0o777), ("build.json", 0o666), (".", 0o1777)])
def test_what_others_can_write_does_not_run(
    part: str, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason gives the mode; the next build replaces it by one that only its user can write."""
    library = build.compile_extension()
    (library.parent / part).chmod(mode)
    reason = why_not(monkeypatch)
    assert reason is not None and f"can be written by others (mode {mode:o})" in reason
    assert build.compile_extension() == library
    assert why_not(monkeypatch) is None
    assert stub_extension.times_compiled() == 2


def test_builds_are_private_whatever_the_umask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A umask that lets everybody write would otherwise spoil the build at once."""
    before = os.umask(0)
    try:
        library = build.compile_extension()
    finally:
        os.umask(before)
    assert why_not(monkeypatch) is None
    assert library.stat().st_mode & 0o022 == 0


def test_a_shared_cache_holds_a_folder_for_each_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache of mode 1777: nothing is written beside others' files, and why is said."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o1777)
    with caplog.at_level(logging.WARNING, logger="fsdino.ops"):
        library = build.compile_extension()
    assert library.parent.parent == tmp_path / "cache" / f"user-{os.geteuid()}"
    assert "can be written by others (mode 1777)" in caplog.text
    assert why_not(monkeypatch) is None


def test_a_foreign_build_in_a_shared_cache_is_passed_over(
    tmp_path: Path, give_away: Giver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named as a problem, one's own is built elsewhere, and that is what runs."""
    planted = build.compile_extension()
    (tmp_path / "cache").chmod(0o1777)
    give_away(planted.parent)
    assert "belongs to user 4242" in str(why_not(monkeypatch))
    own = build.compile_extension()
    assert own != planted and own.is_relative_to(tmp_path / "cache" / f"user-{os.geteuid()}")
    assert why_not(monkeypatch) is None
    assert native.extension() is not None and native.extension().path == own


@pytest.mark.parametrize("how", ["another user's", "not sticky", "a planted folder", "a link"])
def test_a_cache_that_others_rule_is_left(
    how: str, tmp_path: Path, give_away: Giver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can rename in the cache can replace a build: the user's own cache is taken."""
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o1777)
    if how == "another user's":
        give_away(cache)
    elif how == "not sticky":
        cache.chmod(0o777)
    else:
        planted = cache / f"user-{os.geteuid()}"
        if how == "a link":
            planted.symlink_to(tmp_path)
        else:
            planted.mkdir()
        give_away(planted)
    library = build.compile_extension()
    assert library.is_relative_to(tmp_path / "own" / "fsdino")
    assert why_not(monkeypatch) is None


def test_no_safe_place_is_one_line(tmp_path: Path, give_away: Giver) -> None:
    """All reasons, and the remedy."""
    for name in ("cache", "own"):
        (tmp_path / name).mkdir()
        give_away(tmp_path / name)
    with pytest.raises(
        BackendError, match=r"no safe folder to build in: .*set FSDINO_CACHE"
    ) as error:
        build.compile_extension()
    assert "\n" not in str(error.value)
    assert str(tmp_path / "cache") in str(error.value) and str(tmp_path / "own") in str(error.value)


@pytest.mark.parametrize(
    "group, user, members, private",
    [
        ("anna", "anna", [], True),
        ("anna", "anna", ["anna"], True),
        ("anna", "anna", ["bert"], False),
        ("staff", "anna", [], False),
    ],
)
def test_a_private_group_may_write(
    group: str, user: str, members: list[str], private: bool,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Many systems give each user a group of their own and a umask that lets it write."""
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o775)
    number = folder.stat().st_gid

    class User:
        pw_gid, pw_name = number, user

    class Group:
        gr_name, gr_mem = group, members

    monkeypatch.setattr(trust.pwd, "getpwuid", lambda uid: User)
    monkeypatch.setattr(trust.grp, "getgrgid", lambda gid: Group)
    assert (trust.distrust(folder) is None) == private
