"""From measurements to the table that `auto` reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import measure_auto
import pytest
import torch

from fsdino import contract
from fsdino.bench.workloads import WORKLOADS
from fsdino.errors import FsdinoError
from fsdino.ops import backends, measured, reference

CPU = torch.device("cpu")
CONV = "center_pivot_conv4d"


def test_the_table_says_what_the_record_says() -> None:
    """The installed file follows from benchmarks/results/auto.json; without one it is empty."""
    path = measure_auto.RECORD
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    entries = json.loads(measured.FILE.read_text(encoding="utf-8"))
    assert entries == measure_auto.table(record)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"cpp": 1.0, "eager": 0.9}], "eager"),
        ([{"cpp": 1.0, "eager": 0.98}], None),
        ([{"cpp": 1.0, "eager": 0.8, "reference": 0.7}], "reference"),
        ([{"cpp": 1.0, "eager": 0.5}, {"cpp": 1.0, "eager": 1.02}], "eager"),
        ([{"cpp": 1.0, "eager": 0.5}, {"cpp": 1.0, "eager": 1.1}], None),
        ([{"cpp": 1.0, "eager": 0.5}, {"cpp": 1.0}], None),
        ([{"cpp": 1.0, "eager": 2.0}], None),
    ],
)
def test_the_fastest_of_a_class(rows: list[dict[str, float]], expected: str | None) -> None:
    """By hand: a gain of more than 3 % on the whole, and nowhere a loss of more."""
    assert measure_auto.fastest(rows) == expected


def test_the_table_of_a_record(tmp_path: Path) -> None:
    """By hand: two sizes of one class, of which one architecture speaks for another backend."""

    def row(size: int, eager: float) -> dict[str, object]:
        median = {"cpp": 1.0, "eager": eager}
        return {"op": "correlation4d", "dtype": "float32", "size": size, "median": median}

    record = {
        "AVX2": {"results": [row(9, 0.5), row(15, 0.5), row(16, 2.0)]},
        "AMX": {"results": [row(9, 0.5), row(15, 2.0)]},
    }
    entries = measure_auto.table(record)
    entry = {"op": "correlation4d", "dtype": "float32", "architecture": "AVX2"}
    assert entries == [{**entry, "size_class": 4, "backend": "eager"}]
    measure_auto.write_table(tmp_path / "table.json", entries)
    text = (tmp_path / "table.json").read_text()
    assert json.loads(text) == entries and len(text.splitlines()) == 3


def test_measurements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every op, also backwards, on every backend that can run it, and the first in order first."""
    monkeypatch.setattr(measure_auto, "LEAST_SECONDS", 0.0)
    small = dataclasses.replace(WORKLOADS["W4"], grid=3, channels=4, block_channels=(4, 8))
    rows = list(measure_auto.measure(small, "float32", 1, 2, CPU))
    found = {(row["op"], row["backward"]) for row in rows}
    ops = {*contract.OPS, *contract.COMPOSED}
    assert found == {(op, False) for op in ops} | {(op, True) for op in ops - {"correlation4d"}}
    able = [n for n in backends.names() if backends.why_not(n, CONV, CPU, torch.float32) is None]
    assert all([*row["median"]] == able and min(row["median"].values()) > 0 for row in rows)
    sizes = {row["size"] for row in rows if row["op"] == "center_pivot_block4d"}
    assert sizes == {4 * 9 * 9, 4 * 9 * 4}  # [1, 4, 3, 3, 3, 3], then [1, 4, 3, 3, 2, 2]
    assert {row["size"] for row in rows if row["op"] == "squeeze4d"} == {4 * 4 * 9}


def test_wrong_results_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing wrong is timed."""
    right = reference.center_pivot_conv4d
    monkeypatch.setattr(backends, "_registry", {"eager": backends._registry["eager"]} | {
        "reference": backends._registry["reference"]})  # fmt: skip
    from fsdino.ops import eager_backend

    monkeypatch.setattr(eager_backend, "center_pivot_conv4d", lambda *a: right(*a) * 1.1)
    small = dataclasses.replace(WORKLOADS["W4"], grid=3, channels=4, block_channels=(4,))
    with pytest.raises(FsdinoError, match=r"eager on .* error .* of the allowed"):
        list(measure_auto.measure(small, "float32", 1, 1, CPU))


def test_mistakes_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Too few rounds are not evidence."""
    with pytest.raises(SystemExit):
        measure_auto.parse(["--rounds", "8"])
    assert "--rounds must be at least 9, got 8" in capsys.readouterr().err
