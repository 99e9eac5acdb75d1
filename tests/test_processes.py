"""Two processes give what one gives, number for number and file for file."""

from __future__ import annotations

import builtins
import dataclasses
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import gloo
from fsdino.errors import FsdinoError
from fsdino.processes import Processes, local_device, processes, threads
from tiny_models import picture


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one process left behind, and what two did."""
    root = tmp_path_factory.mktemp("shared")
    (root / "queries").mkdir()
    for i in range(21):
        Image.fromarray(picture(40 + i, 50, i)).save(root / "queries" / f"{i:02d}.png")
    (root / "queries" / "03.jpg").write_bytes(b"no picture")
    one, two = root / "one", root / "two"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    one.mkdir()
    gloo.both(one)
    torch.set_num_threads(before)
    two.mkdir()
    gloo.run(gloo.every, two, 2)
    return one, two


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_an_evaluation_is_the_same_in_two_processes(folders: tuple[Path, Path]) -> None:
    """Every number of the result, every row of the episodes; no part is left."""
    one, two = folders
    differs = {"processes", "seconds", "environment"}
    found = [read(folder / "result.json") for folder in (one, two)]
    found += [read(two / f"summary{rank}.json") for rank in (0, 1)]
    kept = [{k: v for k, v in result.items() if k not in differs} for result in found]
    assert kept[0] == kept[1] == kept[2] == kept[3]
    assert [result["processes"] for result in found] == [1, 2, 2, 2]
    episodes = [(folder / "result.episodes.jsonl").read_text() for folder in (one, two)]
    assert episodes[0] == episodes[1]
    assert len(episodes[0].splitlines()) == 1 + gloo.EPISODES
    assert not list(two.glob("*.part*"))


def test_a_result_in_use_is_refused_by_all_processes(folders: tuple[Path, Path]) -> None:
    """The first one holds locks for all; the others do not go on, and do not wait for it."""
    told = [(folders[1] / f"refused{rank}.txt").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert re.match(r"UsageError: result .*held\.json is in use by process \d+ on ", told[0])
    assert not list((folders[1] / "failed").glob("held*"))


def test_a_process_that_fails_does_not_keep_the_others_waiting(
    folders: tuple[Path, Path],
) -> None:
    """Without a launcher that ends them, either; and the result can be written again."""
    first, last = ((folders[1] / f"abandoned{rank}.txt").read_text() for rank in (0, 1))
    assert re.match("DataError: .*not finite", last)
    assert first.startswith("FsdinoError: another process of this job has failed")
    kept = [path.name for path in (folders[1] / "failed").glob("abandoned.*")]
    assert kept == ["abandoned.part0.jsonl"]


def test_a_folder_is_segmented_alike_by_two_processes(folders: tuple[Path, Path]) -> None:
    """The same masks under the same names, one row for each query, failures told to both."""
    one, two = folders
    names = sorted(path.name for path in (one / "masks").iterdir())
    assert names == sorted(path.name for path in (two / "masks").iterdir()) and len(names) == 21
    for name in names:
        assert (one / "masks" / name).read_bytes() == (two / "masks" / name).read_bytes()
    queries = [
        [json.loads(line)["query"] for line in (folder / "results.jsonl").read_text().splitlines()]
        for folder in folders
    ]
    assert queries[0] == queries[1] == sorted(queries[0]) and len(queries[0]) == 21
    for rank in (0, 1):
        rows, failed = read(two / f"rows{rank}.json")
        assert [row["query"] for row in rows] == queries[0]
        assert [Path(query).name for query in failed] == ["03.jpg"]


def test_long_waits_end_no_process(folders: tuple[Path, Path]) -> None:
    """One process may look through a data set for hours before the others go on."""
    found = [read(folders[1] / f"patience{rank}.json") for rank in (0, 1)]
    assert found == pytest.approx([24 * 3600] * 2, abs=1)


def test_processes_are_joined_once(folders: tuple[Path, Path]) -> None:
    """Two commands in one job: to join again could meet the group that another has not left."""
    assert [read(folders[1] / f"joined{rank}.json") for rank in (0, 1)] == [1, 1]


def test_shares_are_disjoint_and_complete() -> None:
    """Every item belongs to one process, whatever their number."""
    items = list(range(10))
    for count in (1, 2, 3, 16):
        shares = [Processes(rank, count).share(items) for rank in range(count)]
        assert sorted(item for share in shares for item in share) == items
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is joined, and gathering returns the value itself."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes() as alone:
        assert alone == Processes(0, 1) and alone.gather("rows") == ["rows"]
        assert alone.in_turn(lambda: 7) == 7


def test_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process trains by itself; a missing accelerate is an error that names the extra."""
    alone = Processes.for_training("cpu")
    assert alone == Processes(0, 1) and alone.is_first
    assert alone.sum(1, 2.5, torch.tensor(3)) == [1.0, 2.5, 3.0]
    real = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name == "accelerate":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(FsdinoError, match=r'pip install "fsdino\[train\]"'):
        Processes.for_training("cpu")


def test_workers_share_what_their_process_does() -> None:
    """A loader's worker may be another program, which cannot take part in the training."""
    processes = dataclasses.replace(Processes.for_training("cpu"), rank=1, count=2)
    worker = pickle.loads(pickle.dumps(processes))
    assert worker == processes and worker.share("abcd") == "bd"
    assert worker._accelerator is None


def test_every_process_has_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cuda` means this process's GPU; a number or the CPU stay as they are."""
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device(torch.device("cuda")) == torch.device("cuda:3")
    assert local_device(torch.device("cuda:1")) == torch.device("cuda:1")
    assert local_device(torch.device("cpu")) == torch.device("cpu")


def test_threads_are_put_back() -> None:
    """Also after an error."""
    before = torch.get_num_threads()
    with pytest.raises(KeyError), threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
    for unchanged in (None, 0):
        with threads(unchanged):
            assert torch.get_num_threads() == before
