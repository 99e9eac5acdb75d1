"""Rows on disk: who they belong to, and what an interruption may leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsdino.errors import DataError, FsdinoError, UsageError
from fsdino.evaluation.journal import Journal, Row, read_rows

ROWS = [Row(0, i, 7, f"{i}.jpg", (i, 1, 2), (9, 8, 7)) for i in range(4)]


def test_rows_come_back(tmp_path: Path) -> None:
    """From the parts while a run is under way, from one file after it."""
    out = tmp_path / "new" / "r.json"
    journal = Journal(out, {"model": "a"})
    journal.append(ROWS[:2])
    journal.append(ROWS[2:])
    again = Journal(out, {"model": "a"})
    assert again.finished(0) == dict(enumerate(ROWS)) and again.finished(1) == {}
    again.finish(ROWS)
    assert read_rows(out) == ROWS
    assert Journal(out, {"model": "a"}).finished(0) == dict(enumerate(ROWS))
    assert [path.name for path in out.parent.iterdir()] == ["r.episodes.jsonl"]


def test_a_line_cut_off_is_done_again(tmp_path: Path) -> None:
    """It is dropped, and what is appended after it is whole."""
    Journal(tmp_path / "r.json", {}).append(ROWS[:3])
    part = tmp_path / "r.part0.jsonl"
    part.write_bytes(part.read_bytes()[:-20])
    journal = Journal(tmp_path / "r.json", {})
    assert sorted(journal.finished(0)) == [0, 1]
    journal.append(ROWS[2:])
    assert Journal(tmp_path / "r.json", {}).finished(0) == dict(enumerate(ROWS))


def test_what_could_not_be_read_is_tried_again(tmp_path: Path) -> None:
    """A file that was repaired since must count."""
    Journal(tmp_path / "r.json", {}).append([ROWS[0], Row(0, 1, 7, "1.jpg", error="damaged")])
    journal = Journal(tmp_path / "r.json", {})
    assert list(journal.finished(0)) == [0]
    journal.append([ROWS[1]])
    assert Journal(tmp_path / "r.json", {}).finished(0) == {0: ROWS[0], 1: ROWS[1]}


def test_parts_of_more_processes_are_found(tmp_path: Path) -> None:
    """Two processes were interrupted; one goes on with the rows of both."""
    Journal(tmp_path / "r[1].json", {}).append(ROWS[:2])
    part = (tmp_path / "r[1].part0.jsonl").rename(tmp_path / "r[1].part1.jsonl")
    Journal(tmp_path / "r[1].json", {}).append(ROWS[2:])
    assert part.exists()
    assert Journal(tmp_path / "r[1].json", {}).finished(0) == dict(enumerate(ROWS))


def test_another_call_needs_another_file(tmp_path: Path) -> None:
    """Rows of two calls never mix; the message names what differs."""
    Journal(tmp_path / "r.json", {"model": "a", "size": 1}).append(ROWS)
    with pytest.raises(UsageError, match=r"differs in model, size\): pass another --out"):
        Journal(tmp_path / "r.json", {"model": "b", "size": 2})
    fresh = Journal(tmp_path / "r.json", {"model": "b", "size": 2}, overwrite=True)
    assert fresh.finished(0) == {} and not list(tmp_path.iterdir())


def test_foreign_and_missing_files(tmp_path: Path) -> None:
    """Errors name the file and the remedy."""
    with pytest.raises(UsageError, match=r"r\.episodes\.jsonl is missing"):
        read_rows(tmp_path / "r.json")
    (tmp_path / "r.episodes.jsonl").write_text("[]\n")
    with pytest.raises(DataError, match="no file of episodes, or damaged"):
        read_rows(tmp_path / "r.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(FsdinoError, match="pass an --out that can be written"):
        Journal(tmp_path / "file" / "r.json", {})
