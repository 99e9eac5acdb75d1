"""Compiling with a progress line."""

from __future__ import annotations

import logging

import pytest

import stub_extension
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
    total = len(flags.sources()) + 1
    assert lines[1].startswith(f"compile: {total}/{total} files")
    caplog.clear()
    assert build.build() == built == native.extension()
    assert not caplog.records


def test_an_app_goes_on_without_a_compiler(monkeypatch, tmp_path, caplog):
    """One warning with the reason; asked for directly, the reason is the error."""
    stub_extension.without_compiler(monkeypatch, tmp_path)
    build.build_if_possible()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "no C++ compiler found" in record.getMessage()
    with pytest.raises(BackendError, match=r"no C\+\+ compiler found"):
        build.build()
