"""Peak memory: a known amount is seen, and whose it is."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from allocations import MEGABYTE, peaks
from fsdino.bench import memory
from fsdino.errors import FsdinoError


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux")
def test_a_known_amount_is_seen():
    """What came before does not count, nor do results; 200 MB are freed before 50 are taken."""
    found = memory.in_new_process(peaks, [(200, 0), (200, 50), (0, 80)])
    assert found == pytest.approx([200 * MEGABYTE, 150 * MEGABYTE, 0], abs=4 * MEGABYTE)


def test_where_the_system_does_not_tell(monkeypatch, tmp_path):
    """None, and not a number that means something else."""
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "missing" / "clear_refs")
    assert memory.peak_bytes(lambda: [torch.ones(1)]) is None


def test_errors_come_through():
    """What fails over there is raised here; a killed process is named."""
    with pytest.raises(ValueError, match="invalid literal"):
        memory.in_new_process(int, "x")
    with pytest.raises(FsdinoError, match="was killed, probably for lack of memory"):
        memory.in_new_process(os._exit, 1)
