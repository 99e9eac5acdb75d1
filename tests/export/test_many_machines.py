"""docs/many-machines.md: torchrun, and the program for Ray, of whose two workers one is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pages
import pytest
from PIL import Image

import fsdino
from fsdino import cli
from fsdino.export.segmenter import ExportedSegmenter
from fsdino.export.write import export_model
from tiny_models import tiny_model

ROOT = Path(__file__).resolve().parents[2]
TASK, PHOTOGRAPHS, DAMAGED = 4, 63, "damaged.jpg"
LIMIT = 300  # seconds, for whatever is waited for
BUSY = re.compile(rb"ray::(MapWorker\()?MapBatches\(Worker\)\)?\.submit\b")  # a process's title


def program(**constants: str) -> str:
    """The page's program, with other values of some constants."""
    [code] = [
        b.code for b in pages.blocks(ROOT / "docs/many-machines.md") if b.language == "python"
    ]
    for name, value in constants.items():
        code, count = re.subn(rf"^{name} = [^#\n]*", f"{name} = {value}  ", code, flags=re.M)
        assert count == 1, name
    return code


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a model with few operations, which is written in half the time of others."""
    folder = tmp_path_factory.mktemp("export")
    export_model(tiny_model(variant="training_free", matcher="prototype"), folder, name="tiny")
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, exported) -> Path:
    """What the program reads: an export, an example, and photographs, of which one is damaged."""
    monkeypatch.chdir(tmp_path)
    Path("photo-onnx").symlink_to(exported)
    samples = fsdino.samples()
    samples["coins"].image.save("cat.jpg")
    samples["coins"].mask.save("cat_mask.png")
    Path("photos/more").mkdir(parents=True)
    cup = samples["teacup"].image.convert("RGB")
    for number in range(PHOTOGRAPHS):
        folder = "photos/more" if number % 2 else "photos"
        cup.resize((900 + number, 700)).save(f"{folder}/{number:02}.jpg")
    Path(f"photos/{DAMAGED}").write_bytes(b"\xff\xd8")
    Path("segment_folder.py").write_text(program(TASK=str(TASK)))
    return tmp_path


@pytest.fixture
def run(place) -> Iterator[subprocess.Popen[str]]:
    """The program, with a Ray of its own."""
    with tempfile.TemporaryDirectory() as short, Path("errors.txt").open("w") as errors:
        environment = {
            **os.environ,
            "RAY_TMPDIR": short,  # for its sockets, whose paths have to be short
            "RAY_AUTH_MODE": "disabled",  # which would write a token to the home folder
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "segment_folder.py"]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            yield process
            process.kill()


def busy_workers(place: Path) -> list[int]:
    """Processes of Ray's, started by a program in a folder, that are at a task."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes()
            if BUSY.match(title) and place.samefile(process / "cwd"):
                found.append(int(process.name))
        except OSError:  # it has ended
            continue
    return found


def begun_tasks(place: Path, names: list[str]) -> list[int]:
    """How many results there are of each task that a worker is in the middle of."""
    found = []
    for start in range(0, len(names), TASK):
        task = [name for name in names[start : start + TASK] if name != DAMAGED]
        count = sum((place / "found" / name / "result.json").exists() for name in task)
        found += [count] if 0 < count < len(task) else []
    return found


def kill_one_of_two(place: Path, names: list[str]) -> list[int]:
    """Kill a worker in the middle of a task; how many results each of the two tasks had."""
    until = time.monotonic() + LIMIT
    both: list[int] = []
    while len(both) < 2:  # the first one waits for the second, which may start much later
        both = busy_workers(place)
        for pid in both:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.05)
        assert time.monotonic() < until, "two workers never ran"
    while len(counts := begun_tasks(place, names)) < 2:
        assert len(both) == 2 and time.monotonic() < until
        for pid in both:
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.05)
        for pid in both:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.05)  # until they stand still
    os.kill(both[0], signal.SIGKILL)
    os.kill(both[1], signal.SIGCONT)
    return counts


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")
def test_a_worker_that_is_killed_costs_no_result(place, run, exported, capsys) -> None:
    """Its photographs may be segmented twice; each has one whole result, and the report says so."""
    names = sorted(path.relative_to("photos").as_posix() for path in Path("photos").rglob("*.jpg"))
    good = [name for name in names if name != DAMAGED]
    counts = kill_one_of_two(place, names)
    printed, _ = run.communicate(timeout=LIMIT)
    assert run.returncode == 0, Path("errors.txt").read_text()
    assert sum(DAMAGED in line for line in printed.splitlines()) == 1
    report = json.loads(printed.splitlines()[-1])
    again = report.pop("again")
    assert again in counts
    assert report == {"photographs": len(names), "results": len(good), "failed": 1}

    table = Path("found/results.jsonl")
    rows = [json.loads(line) for line in table.read_text().split("\n") if line]
    assert sorted(row["name"] for row in rows) == good
    assert sum(row["again"] for row in rows) == again
    model = ExportedSegmenter(exported)
    support = model.encode_support("cat.jpg", "cat_mask.png", warn=False)
    for row in rows:
        folder = Path("found", row["name"])
        files = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        assert files == {"mask.png", "overlay.jpg", "result.json"}
        Image.open(folder / "overlay.jpg").load()
        [described] = json.loads((folder / "result.json").read_text())["classes"]
        assert described["score"] == round(row["scores"]["cat"], 4)
        if row["again"] or row is rows[0]:
            expected = model.segment(Path("photos", row["name"]), {"cat": support})
            assert np.array_equal(np.asarray(Image.open(folder / "mask.png")) > 0, expected.mask)

    before = table.read_text()
    table.write_text(before + '\n{"name": "more/0')  # an interruption cut a line off
    Path(f"photos/{DAMAGED}").unlink()
    exec(program(), {"__name__": "__main__"})  # there is nothing left to do
    done = {"photographs": len(good), "results": len(good), "again": 0, "failed": 0}
    assert json.loads(capsys.readouterr().out) == done


@pytest.mark.slow
def test_torchrun_shares_the_photographs_for_an_exported_model(place, capsys) -> None:
    """Two processes write what one does."""
    call = ["segment", "--runtime", "onnx", "photo-onnx", "--support", "cat.jpg", "cat_mask.png"]
    call += ["--query", "photos/more", "--out"]
    processes = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fsdino"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, *processes, *call, "shared"],
        env=environment,
        check=True,
        capture_output=True,
        timeout=LIMIT,
    )
    assert cli.main([*call, "alone"]) == 0
    rows = []
    for out in ("shared", "alone"):
        lines = Path(out, "results.jsonl").read_text().splitlines()
        rows.append([{**json.loads(line), "seconds": 0} for line in lines])
    assert rows[0] == rows[1] and len(rows[0]) == PHOTOGRAPHS // 2
    for row in rows[0]:
        masks = [Path(out, row["mask"]).read_bytes() for out in ("shared", "alone")]
        assert masks[0] == masks[1]
