"""What several commands do first."""

from __future__ import annotations

import os
import sys

import pytest

from fsdino import cli
from fsdino.commands import evaluate as evaluate_command
from fsdino.commands import options
from fsdino.commands.demo import command as demo_command
from fsdino.commands.segment import command as segment_command

pytestmark = pytest.mark.usefixtures("one_thread", "workplace")


@pytest.mark.parametrize(("given", "expected"), [("", "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_demo_does_not_fight_for_the_processor(given, expected, monkeypatch):
    """Its threads sleep while they wait, unless the user says otherwise; set before torch."""

    monkeypatch.setenv("OMP_WAIT_POLICY", given)  # so that it is as before afterwards
    if not given:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    options.wait_without_spinning()
    assert os.environ.get("OMP_WAIT_POLICY", "") == given  # too late, and so left alone
    monkeypatch.delitem(sys.modules, "torch")
    options.wait_without_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == expected


@pytest.mark.parametrize(
    ("home", "arguments"),
    [
        (demo_command, ["demo", "--out", "demo", "--model", "nonsense"]),
        (segment_command, ["segment", "--support", "a.png", "b.png", "--dtype", "int3"]),
        (evaluate_command, ["evaluate", "fsdino-tiny", "--dtype", "int3"]),
    ],
    ids=["demo", "segment", "evaluate"],
)
def test_commands_that_segment_let_threads_sleep(home, arguments, monkeypatch, capsys):
    """Before anything is loaded: beside another program, spinning makes them many times slower."""
    calls = []
    monkeypatch.setattr(home, "wait_without_spinning", lambda: calls.append(1))
    assert cli.main(arguments) == 2
    assert calls == [1]
