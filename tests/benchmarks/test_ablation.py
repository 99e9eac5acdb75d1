"""The ablation's rows differ by what they say, and an interrupted call goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import ablation
import pytest

from fsdino.models import zoo
from training_work import MODEL


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    """A small model on disk."""
    zoo.assemble(dataclasses.replace(MODEL, variant="full")).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_each_row_adds_one_part(encoder: str) -> None:
    """In the order of the paper's table; everything else is equal."""
    configs = [ablation.configure(parts, 7, 1, encoder) for parts in range(1, 5)]
    switches = [[getattr(c.model, name) for name in ablation.PARTS] for c in configs]
    assert switches == [[place < parts for place in range(4)] for parts in range(1, 5)]
    assert len({str(dataclasses.replace(c, model=MODEL)) for c in configs}) == 1
    parts = [
        {name.split(".")[0] for name, _ in zoo.assemble(c.model).named_parameters()}
        for c in configs
    ]
    added = [after - before for before, after in pairwise(parts)]
    assert added == [{"visual_prompt"}, {"prior"}, set()]  # CE has no weights
    assert not configs[0].train_encoder and configs[0].encoder_from == encoder


def test_means_and_gains_by_hand() -> None:
    """Gains are paired by seed, so that what all seeds share does not spread them."""
    before = [{"miou": 10.0}, {"miou": 20.0}]
    found = ablation.summary([{"miou": 13.0}, {"miou": 25.0}], before)
    assert found["mean"] == 19 and found["gain"] == 4
    assert found["deviation"] == pytest.approx(statistics.stdev([13, 25]), abs=0.01)
    assert found["gain_deviation"] == pytest.approx(2**0.5, abs=0.01)
    assert ablation.summary(before[:1], before[:1])["deviation"] is None


@pytest.mark.slow
def test_the_table_end_to_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoder: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A second call trains nothing and prints the same."""
    record = tmp_path / "ablation.json"
    arguments = ["--steps", "2", "--seeds", "1", "--jobs", "2", "--episodes", "24"]
    arguments += ["--encoder", encoder, "--out", str(tmp_path / "runs"), "--record", str(record)]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *arguments])
    ablation.main()
    first, table = json.loads(record.read_text()), capsys.readouterr().out
    assert list(first["results"]) == [*ablation.ROWS, ablation.EQUAL_TIME]
    for rows in first["results"].values():
        assert [row["seed"] for row in rows] == [0]
        assert all(0 <= row["miou"] <= 100 and row["cpu_seconds"] > 0 for row in rows)
    before = sorted(p.stat().st_mtime_ns for p in tmp_path.glob("runs/**/*"))
    ablation.main()
    assert sorted(p.stat().st_mtime_ns for p in tmp_path.glob("runs/**/*")) == before
    assert capsys.readouterr().out == table
    assert json.loads(record.read_text())["results"] == first["results"]


POOL = """
import sys
sys.path.insert(0, sys.argv[1])
import multiprocessing, os
from concurrent.futures import ProcessPoolExecutor
import ablation
pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), ablation.end_with_parent)
print(pool.submit(os.getpid).result(), flush=True)
sys.stdin.read()
"""


def test_workers_end_with_their_parent() -> None:
    """However it ends: whoever resumes finds nobody at work."""
    command = [sys.executable, "-c", POOL, str(Path(ablation.__file__).parent)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
        try:  # the worker has the same output: it ends when nobody can write to it any more
            parent.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            raise
