"""Work for several processes, which find it by name; each writes what it got."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

from fsdino import processes as sharing
from fsdino.commands.segment.output import Output
from fsdino.commands.segment.queries import find_queries
from fsdino.commands.segment.stream import segment_files
from fsdino.errors import FsdinoError
from fsdino.evaluation import journal, protocols
from fsdino.evaluation import run as evaluation
from fsdino.evaluation.evaluate import Settings
from fsdino.evaluation.questions import Questions
from fsdino.evaluation.request import Request
from tiny_models import SIDE, box_mask, picture, tiny_model

EPISODES = 30
REQUEST = Request("procedural", fold=0, shots=2, episodes=EPISODES)
SETTINGS = Settings(SIDE, protocols.find("hsnet", seeded=True), batch_size=4)


def run(work: Callable[[Path], None], out: Path, count: int) -> None:
    """Call `work(out)` in `count` processes that know of each other as torchrun's do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_join, args=(work, out, count, port), nprocs=count)


def _join(rank: int, work: Callable[[Path], None], out: Path, count: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    work(out)


def patience() -> float:
    """Seconds that this process waits for the others before it gives up."""
    group = distributed.distributed_c10d._get_default_group()
    options = group._get_backend(torch.device("cpu")).options
    return options._timeout.total_seconds()


def both(out: Path) -> None:
    """The two commands that share work, one after the other."""
    evaluate(out)
    segment(out)


def every(out: Path) -> None:
    """Those, counting how often the processes are joined, and then two calls that fail."""
    joined, join = [], distributed.init_process_group
    distributed.init_process_group = lambda *a, **o: joined.append(1) or join(*a, **o)
    both(out)
    (out / f"joined{os.environ['RANK']}.json").write_text(json.dumps(len(joined)))
    refused(out)
    abandoned(out)


def refused(out: Path) -> None:
    """Evaluate into a result that another call holds; every process keeps what it was told."""
    held = out / "failed" / "held.json"
    with sharing.processes() as processes:
        keeper = journal.lock(held) if processes.rank == 0 else contextlib.nullcontext()
        with keeper:
            processes.gather(None)
            told = _error(lambda: _evaluate(held, processes))
            processes.gather(None)
    (out / f"refused{processes.rank}.txt").write_text(told)


def abandoned(out: Path) -> None:
    """Evaluate where the last process fails; every process keeps what it was told."""
    rank = int(os.environ["RANK"])

    def broken(questions: Questions) -> torch.Tensor:
        assert questions.batch is not None
        return torch.full((len(questions.keys), 2, 5, 5), torch.nan if rank else 0.0)

    evaluation.ModelPredictor = lambda *_: broken
    with contextlib.suppress(FsdinoError), sharing.processes() as processes:
        told = _error(lambda: _evaluate(out / "failed" / "abandoned.json", processes))
        (out / f"abandoned{rank}.txt").write_text(told)
        raise FsdinoError(told)  # leaves as a command does


def _error(work: Callable[[], object]) -> str:
    try:
        work()
    except FsdinoError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _evaluate(out: Path, processes: sharing.Processes) -> dict[str, Any]:
    return evaluation.run(tiny_model(), "tiny", REQUEST, SETTINGS, out=out, processes=processes)


def evaluate(out: Path) -> None:
    """Evaluate into out/result.json; every process keeps the summary it got."""
    with sharing.processes() as processes:
        summary = _evaluate(out / "result.json", processes)
        if processes.count > 1:
            (out / f"patience{processes.rank}.json").write_text(json.dumps(patience()))
    (out / f"summary{processes.rank}.json").write_text(json.dumps(summary))


def segment(out: Path) -> None:
    """Segment the pictures in out/../queries into out/masks; every process keeps the rows."""
    model = tiny_model()
    supports = {"foreground": model.encode_support([picture(50, 60, 1)], [box_mask(50, 60)])}
    with sharing.processes() as processes:
        output = processes.in_turn(lambda: Output(out, {"call": "test"}, first=processes.is_first))
        queries = find_queries([out.parent / "queries"])
        outcome = segment_files(model, supports, queries, output, processes=processes)
    rows = [asdict(row) for row in outcome.rows]
    (out / f"rows{processes.rank}.json").write_text(json.dumps([rows, outcome.failed]))
