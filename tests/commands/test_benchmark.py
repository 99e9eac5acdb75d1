"""`fsdino benchmark`: tables, JSON and exit codes."""

from __future__ import annotations

import json

import pytest
import torch

from command_line import nothing
from fsdino import cli
from fsdino.bench import baseline

pytestmark = pytest.mark.usefixtures("one_thread", "workplace")


BAD_INPUT = {
    "a floating type to time": (nothing, ["benchmark", "--dtype", "int8"], 2, ["'int8'"]),
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


def test_benchmark_fails_on_wrong_results(mini, capsys, monkeypatch):
    """No time is printed for them, and the exit code says so."""
    monkeypatch.setattr(baseline, "chain", lambda inputs: torch.ones(1, 16, 7, 7))
    arguments = ["benchmark", "--workloads", "mini", "--rounds", "1", "--device", "cpu"]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    [row] = [line for line in captured.out.splitlines() if line.split()[:1] == ["eager"]]
    assert row.split() == ["eager", "check", "failed", "–", "–", "–"]
    assert "wrong results, so not timed: eager on mini" in captured.err
