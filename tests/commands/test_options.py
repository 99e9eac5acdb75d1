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
from fsdino.errors import FsdinoError

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


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    """The nearest that exists is asked; its answer is set here, since root may write anywhere."""
    asked = []

    def no(path, mode):
        asked.append((path, mode))
        return False

    monkeypatch.setattr(os, "access", no)
    for out in (tmp_path, tmp_path / "new" / "deeper"):
        words = f"--out {out}: no permission to write in {tmp_path};"
        with pytest.raises(FsdinoError, match=words):
            options.check_folder(out)
    assert asked == [(tmp_path, os.W_OK | os.X_OK)] * 2
