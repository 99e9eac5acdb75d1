"""Rows on disk: who they belong to, and what an interruption may leave."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fsdino.errors import DataError, FsdinoError, UsageError
from fsdino.evaluation.journal import Journal, Row, lock, read_rows

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
    with pytest.raises(DataError, match="is not a file of episodes, or it is damaged"):
        read_rows(tmp_path / "r.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(FsdinoError, match="pass an --out that can be written"):
        Journal(tmp_path / "file" / "r.json", {})


DAMAGED: dict[str, Any] = {
    "cut off": '{"seed": 0, "epis',
    "binary": b"\xff\xfe\x00\x01",
    "zeros of a crash": b"\0" * 300,
    "nested without end": "[" * 100_000,
    "a list": "[1, 2]",
    "another object": "{}",
    "a second header": '{"format": "fsdino-episodes-1"}',
    "a field more": {"extra": 1},
    "a field less": {"query": ...},
    "seed of another type": {"seed": "0"},
    "a truth value for a number": {"episode": True},
    "a negative episode": {"episode": -1},
    "a class that is a list": {"class_id": [7]},
    "a query that is a number": {"query": 3},
    "an error that is a number": {"error": 1},
    "counts that are text": {"union": "987"},
    "two counts": {"union": [9, 8], "intersection": [1, 1]},
    "negative counts": {"intersection": [-1, 1, 2]},
    "fractions": {"intersection": [0.5, 1, 2]},
    "not a number": {"intersection": [math.nan, 1, 2]},
    "an intersection beyond its union": {"intersection": [10, 1, 2]},
    "counts that overflow": {"union": [2**70, 8, 7]},
}


def line(damage: Any, row: Row) -> bytes:
    """A line as given, or that of a row with some fields changed."""
    if isinstance(damage, dict):
        data = {**asdict(row), **damage}
        damage = json.dumps({key: value for key, value in data.items() if value is not ...})
    return damage if isinstance(damage, bytes) else damage.encode()


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", ["r.part0.jsonl", "r.part3.jsonl", "r.episodes.jsonl"])
def test_damaged_lines_cost_their_own_episodes(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever they are; what follows counts, and rows that are appended are found again."""
    Journal(tmp_path / "r.json", {}).append(ROWS[:2])
    file = (tmp_path / "r.part0.jsonl").rename(tmp_path / name)
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([lines[0], lines[1], line(DAMAGED[damage], ROWS[3]), lines[2]]))
    journal = Journal(tmp_path / "r.json", {})
    assert journal.finished(0) == dict(enumerate(ROWS[:2]))
    assert f"{name}: 1 damaged lines are left out" in caplog.text
    journal.append(ROWS[2:])
    again = Journal(tmp_path / "r.json", {})
    assert again.finished(0) == dict(enumerate(ROWS))
    again.finish(ROWS)
    assert read_rows(tmp_path / "r.json") == ROWS


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\0" * 4096, b'{"format": "fsdino-epi', b"[" * 9000]
)
def test_a_file_of_nothing_is_begun_again(tmp_path: Path, content: bytes) -> None:
    """A kill in the first write, or a crash of the system; later rows know their call."""
    part = tmp_path / "r.part0.jsonl"
    part.write_bytes(content)
    journal = Journal(tmp_path / "r.json", {"model": "a"})
    assert journal.finished(0) == {}
    journal.append(ROWS)
    assert Journal(tmp_path / "r.json", {"model": "a"}).finished(0) == dict(enumerate(ROWS))
    with pytest.raises(UsageError, match="differs in model"):
        Journal(tmp_path / "r.json", {"model": "b"})


@pytest.mark.parametrize("header", ["{}", '{"format": "other-1"}', '{"format": ["x"]}'])
def test_rows_of_an_unknown_call_are_not_used(tmp_path: Path, header: str) -> None:
    """Nor removed: the error names the file."""
    part = tmp_path / "r.part0.jsonl"
    part.write_text(f"{header}\n{json.dumps(asdict(ROWS[0]))}\n")
    before = part.read_bytes()
    with pytest.raises(
        DataError, match=r"r\.part0\.jsonl is not a file of episodes, or it is damaged"
    ):
        Journal(tmp_path / "r.json", {})
    assert part.read_bytes() == before


def test_rows_that_contradict_each_other_are_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing says which of them is right; equal ones are fine."""
    other = Row(0, 1, 7, "1.jpg", (0, 0, 0), (9, 8, 7))
    Journal(tmp_path / "r.json", {}).append([*ROWS, ROWS[0], other])
    assert sorted(Journal(tmp_path / "r.json", {}).finished(0)) == [0, 2, 3]
    assert "1 episodes have rows that differ" in caplog.text


def test_files_of_similar_names_are_left_alone(tmp_path: Path) -> None:
    """Parts end in a number."""
    mine = tmp_path / "r.participants.jsonl"
    mine.write_text("mine")
    journal = Journal(tmp_path / "r.json", {}, overwrite=True)
    journal.append(ROWS)
    journal.finish(ROWS)
    assert mine.read_text() == "mine"


def test_what_cannot_be_a_journal_is_named(tmp_path: Path) -> None:
    """A folder in place of a part."""
    (tmp_path / "r.part0.jsonl").mkdir()
    with pytest.raises(FsdinoError, match=r"r\.part0\.jsonl cannot be read"):
        Journal(tmp_path / "r.json", {})


def test_headers_are_compared_as_they_are_written(tmp_path: Path) -> None:
    """NaN equals itself, and a tuple the list that it becomes."""
    call = {"training": {"selection_miou": math.nan}, "sizes": (1, 2)}
    Journal(tmp_path / "r.json", call).append(ROWS)
    assert len(Journal(tmp_path / "r.json", call).rows) == 4


@pytest.mark.parametrize("name", ["r.lock", "r.lock.json"])
def test_a_result_has_not_the_name_of_a_lock(name: str, tmp_path: Path) -> None:
    """Releasing the lock would remove the result."""
    with pytest.raises(UsageError, match=r"names that end in \.lock .*pass another --out"):
        lock(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_one_call_at_a_time(tmp_path: Path) -> None:
    """Names that share their rows share the lock; nothing is left of it."""
    with lock(tmp_path / "new" / "r.json"):
        with pytest.raises(
            UsageError, match=r"r\.txt is in use by process .*: .*pass another --out"
        ):
            lock(tmp_path / "new" / "r.txt")
        lock(tmp_path / "new" / "s.json").release()
    assert not list((tmp_path / "new").iterdir())
