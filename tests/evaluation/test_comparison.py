"""Two results: what is compared, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluated import everything, shrunk, write
from fsdino.errors import DataError, UsageError
from fsdino.evaluation import comparison, results


def test_comparison_is_paired(tmp_path: Path) -> None:
    """Differences with intervals; a result against itself differs by 0 ± 0."""
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    a, b = write(first, everything), write(second, shrunk)
    lines = {line.name: line for line in comparison.compare(first, second)}
    assert list(lines)[:2] == ["mIoU", "FB-IoU"] and len(lines) == 2 + 24
    miou = lines["mIoU"]
    assert miou.difference == pytest.approx(b["miou"] - a["miou"])
    assert 0 < miou.half_width < miou.difference
    for line in comparison.compare(first, first):
        assert line.difference == 0 and line.half_width in (0, None)


def test_other_episodes_are_not_compared(tmp_path: Path) -> None:
    """A difference between other questions says nothing about models."""
    write(tmp_path / "a.json", shrunk)
    write(tmp_path / "b.json", shrunk, (1,))
    with pytest.raises(UsageError, match="cannot be compared: episode_hash is"):
        comparison.compare(tmp_path / "a.json", tmp_path / "b.json")
    data = json.loads((tmp_path / "a.json").read_text())
    for key, value in (("image_size", 64), ("scored_at", "original size"), ("skipped", [1])):
        (tmp_path / "c.json").write_text(json.dumps({**data, key: value}))
        with pytest.raises(UsageError, match=f"cannot be compared: {key} is"):
            comparison.compare(tmp_path / "a.json", tmp_path / "c.json")


def test_missing_damaged_and_incomplete_results(tmp_path: Path) -> None:
    """Each error names the file."""
    with pytest.raises(UsageError, match=r"x\.json: no such file"):
        comparison.compare(tmp_path / "x.json", tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match=r"x\.json is not a result"):
        results.read(tmp_path / "x.json")
    write(tmp_path / "a.json", shrunk)
    rows = tmp_path / "a.episodes.jsonl"
    rows.write_text("\n".join(rows.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(DataError, match="incomplete"):
        comparison.compare(tmp_path / "a.json", tmp_path / "a.json")


CHANGES: dict[str, dict[str, Any]] = {
    "no mIoU": {"miou": ...},
    "an mIoU that is text": {"miou": "71.2"},
    "an mIoU that is not finite": {"miou": float("nan")},
    "an mIoU of other rows": {"miou": 71.2},
    "classes in a list": {"per_class": [1, 2]},
    "no classes": {"per_class": {}},
    "classes without numbers": {"per_class": {"a": 1.0}},
    "classes without names": {"class_names": {}},
    "names in a list": {"class_names": ["a"]},
    "other classes": {"per_class": {"1000": 1.0}, "class_names": {"1000": "x"}},
    "seeds that are none": {"miou_by_seed": {"x": 1.0}},
    "no seeds": {"miou_by_seed": {}},
    "other seeds": {"miou_by_seed": {"7": 1.0}},
    "episodes without end": {"episodes": 10**15},
    "episodes as text": {"episodes": "48"},
    "no hash": {"episode_hash": ...},
    "nothing skipped": {"skipped": ...},
    "no size": {"image_size": ...},
    "not said where": {"scored_at": ...},
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result with its rows."""
    path = tmp_path_factory.mktemp("result") / "a.json"
    write(path, shrunk)
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_result_is_named(result: Path, tmp_path: Path, change: str) -> None:
    """On either side of a comparison: one line, never an error of Python's own."""
    data = {**json.loads(result.read_text()), **CHANGES[change]}
    text = json.dumps({key: value for key, value in data.items() if value is not ...})
    path = tmp_path / "b.json"
    path.write_text(text)
    rows = result.with_suffix(".episodes.jsonl").read_bytes()
    path.with_suffix(".episodes.jsonl").write_bytes(rows)
    for pair in ((path, result), (result, path), (path, path)):
        with pytest.raises((DataError, UsageError), match=r"b\.json"):
            comparison.compare(*pair)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0", b"\xff", b"[" * 100_000, b"[]", b'{"format": 1}']
)
def test_a_file_that_is_no_result(tmp_path: Path, content: bytes) -> None:
    """Binary, deep, of another type: named with the remedy."""
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.json is not a result .*: evaluate again"):
        comparison.compare(tmp_path / "x.json", tmp_path / "x.json")


def test_videos_are_not_compared(tmp_path: Path) -> None:
    """Their results have no episodes."""
    results.write(tmp_path / "d.json", {"format": results.FORMAT, "per_sequence": {}, "j": 1.0})
    with pytest.raises(UsageError, match=r"d\.json is a result on videos"):
        comparison.compare(tmp_path / "d.json", tmp_path / "d.json")


def test_rows_beside_a_result_must_be_its_own(result: Path, tmp_path: Path) -> None:
    """A flipped digit in them, or rows of another run, would move the interval unnoticed."""
    path = tmp_path / "b.json"
    path.write_bytes(result.read_bytes())
    write(tmp_path / "other.json", everything)
    (tmp_path / "other.episodes.jsonl").rename(tmp_path / "b.episodes.jsonl")
    with pytest.raises(DataError, match=r"b\.json: its file of episodes gives another mIoU"):
        comparison.compare(result, path)
