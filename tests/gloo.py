"""Work for several processes, which find it by name; each writes what it got."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import distributed, multiprocessing

from fsdino import processes as sharing
from fsdino.apps import evaluation, folder
from fsdino.evaluation import protocols
from fsdino.evaluation.evaluate import Settings
from tiny_models import SIDE, box_mask, picture, tiny_model

EPISODES = 30
REQUEST = evaluation.Request("procedural", fold=0, shots=2, episodes=EPISODES)
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


def evaluate(out: Path) -> None:
    """Evaluate into out/result.json; every process keeps the summary it got."""
    with sharing.processes() as processes:
        summary = evaluation.run(
            tiny_model(), "tiny", REQUEST, SETTINGS, out=out / "result.json", processes=processes
        )
        if processes.count > 1:
            (out / f"patience{processes.rank}.json").write_text(json.dumps(patience()))
    (out / f"summary{processes.rank}.json").write_text(json.dumps(summary))


def segment(out: Path) -> None:
    """Segment the pictures in out/../queries into out/masks; every process keeps the rows."""
    model = tiny_model()
    supports = {"foreground": model.encode_support([picture(50, 60, 1)], [box_mask(50, 60)])}
    with sharing.processes() as processes:
        output = processes.in_turn(lambda: folder.Output(out, {"call": "test"}))
        queries = folder.find_queries([out.parent / "queries"])
        outcome = folder.segment_files(model, supports, queries, output, processes=processes)
    rows = [asdict(row) for row in outcome.rows]
    (out / f"rows{processes.rank}.json").write_text(json.dumps([rows, outcome.failed]))
