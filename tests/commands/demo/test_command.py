"""`fsdino demo`: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fsdino
import stub_extension
from command_line import error_line
from fsdino import cli
from fsdino.commands import build
from fsdino.commands.demo import run as demo

pytestmark = pytest.mark.usefixtures("one_thread", "workplace")


@pytest.fixture
def two_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {name: fsdino.samples()[name] for name in ("coins", "more-coins")}
    monkeypatch.setattr(demo, "samples", lambda: chosen)


def test_demo_goes_on_without_a_compiler(
    stub, mini, two_photographs, capsys, monkeypatch, tmp_path
):
    """What could not be built is said in one line."""
    stub_extension.without_compiler(monkeypatch, tmp_path)
    arguments = ["demo", "--out", "demo", "--model", "model", "--drawn-model", "model"]
    arguments += ["--episodes", "1", "--pictures", "1", "--workload", "mini", "--rounds", "1"]
    assert cli.main(arguments) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "no C++ compiler" in line]
    assert len(lines) == 1
    assert lines[0].startswith("fsdino: warning: the C++ kernels cannot be used, the slower")


def test_demo(mini, two_photographs, capsys, monkeypatch):
    """The report, the table, and the numbers as JSON."""
    monkeypatch.setattr(build, "build_if_possible", lambda: None)
    arguments = ["demo", "--out", "demo", "--model", "other", "--drawn-model", "model"]
    arguments += ["--episodes", "2", "--pictures", "1", "--workload", "mini", "--rounds", "1"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "training-free" in out
    assert "everything is" in out and "more-coins" in out
    assert "Drawings, model: " in out
    assert "reference" in out
    assert "demo/report.html" in out
    assert Path("demo/report.html").read_text().startswith("<!doctype html>")
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(Path("demo/demo.json").read_text())


def test_demo_is_interrupted_in_one_line(capsys, monkeypatch):
    """Ctrl-C at any moment of the demo."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "build_if_possible", lambda: None)
    monkeypatch.setattr(demo, "photograph_answers", interrupted)
    arguments = ["demo", "--out", "demo", "--model", "model", "--drawn-model", "model"]
    assert cli.main(arguments) == 130
    assert error_line(capsys).startswith("fsdino: interrupted: ")
