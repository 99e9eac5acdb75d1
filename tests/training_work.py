"""Short training runs, also where other processes find them by name."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

import gloo
from fsdino.models import checkpoints
from fsdino.models.config import ModelConfig
from fsdino.models.weight_files import read_state_dict
from fsdino.processes import Processes
from fsdino.training.meta.config import TrainConfig
from fsdino.training.meta.steps import Steps
from fsdino.training.meta.train import Trainer

MODEL = ModelConfig(
    encoder="vit_tiny_patch16_224",
    encoder_args={"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    conv_stem=True,
    image_size=32,
    adapter_layer=1,
    correlation_layers=(1, 2),
    correlation_channels=(4, 4, 8),
    width=16,
    adapter_width=16,
    adapter_heads=2,
    decoder_heads=2,
    decoder_mlp=16,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)
# Everything learns; K, image size and augmentation change from step to step.
CONFIG = TrainConfig(
    model=MODEL,
    steps=6,
    images_per_step=4,
    image_sizes=(32, 40),
    augment=0.5,
    shots=(1, 3),
    warmup=2,
    train_encoder=True,
    train_adapter=True,
    prototype_weight=0.5,
    class_weight=0.5,
    contrast_weight=0.5,
    workers=0,
    threads=1,
    validate_every=3,
    validation_episodes=4,
    checkpoint_every=2,
)
# As on a large encoder: it is frozen, and images are as they are.
FROZEN = dataclasses.replace(
    CONFIG,
    train_encoder=False,
    train_adapter=False,
    prototype_weight=0.0,
    class_weight=0.0,
    contrast_weight=0.0,
    augment=0.0,
)
# Two or more episodes in each step, for two processes.
SHARED = dataclasses.replace(
    FROZEN, images_per_step=8, train_adapter=True, prototype_weight=0.5, augment=0.5, steps=4
)


# A fork starts at once; where CUDA or macOS forbid it, a new process is started.
_START = "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"


class StopError(Exception):
    """Ends a run between two steps, and nothing is written."""


def stop_at(last: int) -> Any:
    def report(step: int, loss: float, miou: float | None) -> None:
        if step == last:
            raise StopError

    return report


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what differs from run to run."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def same_run(folder: Path, whole: Path) -> bool:
    """Whether weights and metrics are those of the unbroken run, bit for bit."""
    files = [f / "model" / "model.safetensors" for f in (folder, whole)]
    return files[0].read_bytes() == files[1].read_bytes() and metrics(folder) == metrics(whole)


def steps_kept(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "checkpoints").glob("[0-9]*"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_state_dict(folder / "model" / "model.safetensors")


def die(config: TrainConfig, folder: Path, moment: str) -> int | None:
    """Train in a process that kills itself at a moment; returns its exit code."""
    context = multiprocessing.get_context(_START)
    process = context.Process(target=_train_and_die, args=(config, folder, moment))
    process.start()
    process.join()
    return process.exitcode


def _train_and_die(config: TrainConfig, folder: Path, moment: str) -> None:
    def kill(step: int, loss: float, miou: float | None) -> None:
        if moment == "between steps" and step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    written: list[str] = []
    save_file = checkpoints.save_file

    def half(tensors: Any, path: Path, metadata: Any) -> None:
        save_file(tensors, path, metadata)
        written.append(str(path))
        if moment == "while a checkpoint is written" and metadata.get("step") == "4":
            path.write_bytes(path.read_bytes()[:1000])
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.save_file = half
    Trainer(config, folder).fit(kill)


def together(out: Path) -> None:
    """In each of two processes: a whole run, one that is stopped, one that goes on after another.

    `out/alone` holds a stopped run of one process.
    """
    torch.set_num_threads(1)
    processes = Processes.for_training("cpu")
    seen: list[tuple[int, float]] = []
    trainer = Trainer(SHARED, out / "two", processes=processes)
    trainer.fit(lambda s, x, m: seen.append((s, x)))
    try:
        Trainer(SHARED, out / "stopped", processes=processes).fit(stop_at(3))
    except StopError:
        trainer.run.close()
    Trainer(SHARED, out / "alone", resume=True, processes=processes).fit()
    steps = Steps(SHARED, processes)
    episodes = [steps[step].batch.indices.tolist() for step in range(SHARED.steps)]
    report = {
        "losses": seen,
        "episodes": episodes,
        "sum": processes.sum(processes.rank + 1),
        "patience": gloo.patience(),
    }
    (out / f"rank{processes.rank}.json").write_text(json.dumps(report))
    processes.close()
