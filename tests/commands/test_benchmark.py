"""`fsdino benchmark`: tables, JSON and exit codes."""

from __future__ import annotations

import json

import pytest
import torch

from command_line import nothing
from fsdino import cli
from fsdino.bench import baseline, plot

pytestmark = pytest.mark.usefixtures("one_thread", "workplace")


BAD_INPUT = {
    "a floating type to time": (nothing, ["benchmark", "--dtype", "int8"], 2, ["'int8'"]),
    "a picture of a kind that cannot be drawn": (
        nothing, ["benchmark", "--plot", "times.pdf"], 2, ["times.pdf", ".svg or .png"],
    ),
    "a record that is a folder": (
        nothing, ["benchmark", "--record", "."], 2, ["--record .", "this is a folder"],
    ),
    "unknown workload": (nothing, ["benchmark", "--workloads", "W5"], 2, ["'W5'", "W6"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(case, assert_refused):
    """Each mistake names the thing and the remedy, exits with its code, and leaves no files."""
    assert_refused(BAD_INPUT[case])


def test_benchmark_as_table_and_json(mini, capsys):
    """Every backend beside the baseline."""
    arguments = ["benchmark", "--workloads", "mini", "--rounds", "2", "--device", "cpu"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("eager", "reference", "mini, float32, cpu"))
    assert cli.main([*arguments, "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["workloads"]
    assert [len(timing["seconds"]) for timing in found["timings"]] == [2] * len(found["timings"])


def test_record_and_picture(mini, capsys, monkeypatch, tmp_path):
    """With torch.compile of the baseline; what the picture measures is in the record, too."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(plot, "SIDES", (2, 3))
    record, picture = tmp_path / "record.json", tmp_path / "times.svg"
    arguments = ["benchmark", "--workloads", "mini", "--rounds", "1", "--device", "cpu"]
    arguments += ["--backends", "reference", "--compile", "--threads", "1"]
    assert cli.main([*arguments, "--record", str(record), "--plot", str(picture)]) == 0
    rows = json.loads(record.read_text())["results"]
    assert [row["workload"] for row in rows] == [
        "mini", *(f"mini at grid {side}" for _ in range(2) for side in (2, 3)),
    ]  # fmt: skip
    for row in rows:
        assert [t["name"] for t in row["timings"]] == ["eager", "compiled", "reference"]
        assert all(t["median"] > 0 and t["rounds"] == 1 for t in row["timings"])
    assert "reference, bfloat16" in picture.read_text(encoding="utf-8")
    assert "mini at grid 3, bfloat16" in capsys.readouterr().out


def test_benchmark_fails_on_wrong_results(mini, capsys, monkeypatch):
    """No time is printed for them, and the exit code says so."""
    monkeypatch.setattr(baseline, "chain", lambda inputs: torch.ones(1, 16, 7, 7))
    arguments = ["benchmark", "--workloads", "mini", "--rounds", "1", "--device", "cpu"]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    [row] = [line for line in captured.out.splitlines() if line.split()[:1] == ["eager"]]
    assert row.split() == ["eager", "check", "failed", "–", "–", "–"]
    assert "wrong results, so not timed: eager on mini" in captured.err
