"""Compiling with a progress line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

import stub_extension
from command_line import error_line
from fsdino import cli
from fsdino.commands import build
from fsdino.csrc import flags
from fsdino.errors import BackendError
from fsdino.ops import native


@pytest.fixture(autouse=True)
def stub(monkeypatch, tmp_path, caplog):
    stub_extension.use(monkeypatch, tmp_path)
    caplog.set_level(logging.INFO, "fsdino")


def test_progress_is_shown(caplog):
    """Where it builds, and how far it is; nothing where it is built."""
    built = build.build()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == f"compiling the C++ kernels into {built.path.parent}"
    total = flags.steps()
    assert lines[1].startswith(f"compile: {total}/{total} files")
    caplog.clear()
    assert build.build() == built == native.extension()
    assert not caplog.records


def test_a_command_goes_on_without_a_compiler(monkeypatch, tmp_path, caplog):
    """One warning with the reason; asked for directly, the reason is the error."""
    stub_extension.without_compiler(monkeypatch, tmp_path)
    build.build_if_possible()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "no C++ compiler found" in record.getMessage()
    with pytest.raises(BackendError, match=r"no C\+\+ compiler found"):
        build.build()


def test_build(stub, capsys):
    """It tells where the result is and how it was made; once built, it is found again."""
    assert cli.main(["build"]) == 0
    captured = capsys.readouterr()
    assert "C++ kernels, compiled in " in captured.out
    assert f" s: {native.extension().path}\n" in captured.out
    assert "fsdino: compile: " in captured.err
    assert cli.main(["build", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Path(found["path"]).is_file()
    assert found["build_info"] == {"compiler": "stub"}
    assert stub_extension.times_compiled() == 1
    assert cli.main(["build", "--force"]) == 0
    assert stub_extension.times_compiled() == 2


def test_build_fails_in_one_line(stub, capsys, monkeypatch, tmp_path):
    """Without a compiler there is one line and exit code 1."""
    stub_extension.without_compiler(monkeypatch, tmp_path)
    assert cli.main(["build"]) == 1
    assert "no C++ compiler found" in error_line(capsys)
