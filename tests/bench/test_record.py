"""Records say where their numbers come from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fsdino.bench import record
from fsdino.bench.compare import Comparison, Timing


def test_comparisons(tmp_path: Path) -> None:
    """By hand: the median of three rounds, and their range in place of all of them."""
    timings = (Timing("eager", 0.1, (4.0, 3.0, 90.0)), Timing("wrong", 7.0, ()))
    comparison = Comparison("W6", "float32", "cpu", timings, {"triton": "no GPU"})
    path = tmp_path / "new" / "record.json"
    record.write_comparisons(path, "fsdino benchmark", [comparison])
    found = json.loads(path.read_text())
    [row] = found["results"]
    keys = ("median", "rounds", "fastest", "slowest")
    assert [[timing[key] for key in keys] for timing in row["timings"]] == [
        [4.0, 3, 3.0, 90.0],
        [None, 0, None, None],
    ]
    assert row["missing"] == {"triton": "no GPU"} and found["command"] == "fsdino benchmark"
    assert found["machine"].keys() == {"processor", "cores", "instruction_set"}
    capability = torch.backends.cpu.get_cpu_capability()
    assert found["machine"]["instruction_set"] in (capability, "AVX512_BF16", "AMX")
    assert found["machine"]["processor"] in found["environment"]["processor"]


def test_versions_of_packages() -> None:
    plain, found = record.make_record("x"), record.make_record("x", packages=["numpy"])
    assert found["environment"] == {**plain["environment"], "numpy": np.__version__}


def test_an_installation_has_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where the folder of packages lies in a repository of somebody else."""
    monkeypatch.setattr(record, "ROOT", tmp_path)
    assert record.source() == {"commit": None, "changed": None}
