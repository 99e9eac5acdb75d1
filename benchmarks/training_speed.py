"""Training throughput: `python benchmarks/training_speed.py`.

One step of `fsdino train` on a frozen DINOv2 ViT-S/14 (random weights: the time is the same) at 518
pixels, with the ops' selected backend and with the eager formulation in the same trainer: episodes
per second of the whole step and of the 4D part (forward and backward), activation and peak memory.
They take turns in processes of their own; medians. Prints a table and writes a JSON file, unless
the two disagree on the loss.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from record import write_record

from fsdino.apps import memory
from fsdino.evaluation import sharding
from fsdino.models import hypercorrelation
from fsdino.models.config import ModelConfig
from fsdino.models.segmenter import pool_supports
from fsdino.ops import backends, baseline
from fsdino.training.config import TrainConfig
from fsdino.training.meta import Trainer
from fsdino.training.objective import supports_of
from fsdino.training.steps import Step

ENCODER = "vit_small_patch14_dinov2.lvd142m"
AGREEMENT = 1e-3  # largest relative difference of the losses


@contextlib.contextmanager
def formulation(name: str) -> Iterator[None]:
    """Let models run the eager formulation in place of the ops."""
    ops = hypercorrelation.ops
    if name == "eager":
        hypercorrelation.ops = baseline
    try:
        yield
    finally:
        hypercorrelation.ops = ops


def measure(name: str, config: TrainConfig, repeats: int) -> dict[str, Any]:
    """Seconds of a step and of its 4D part, its loss, and memory in bytes."""
    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory() as folder, formulation(name):
        trainer = Trainer(config, Path(folder))
        device = trainer.team.device
        step = trainer.steps[0]
        trainer.model.train()
        loss = trainer._step(0, step)
        seconds = [timed(lambda: trainer._step(0, step), device) for _ in range(repeats)]
        part = prior_step(trainer, step)
        part()
        parts = [timed(part, device) for _ in range(repeats)]
        return {
            "formulation": name,
            "backend": name if name == "eager" else backends.select(
                "center_pivot_block4d", torch.empty(0, device=device)
            ),
            "loss": loss,
            "step_seconds": statistics.median(seconds),
            "prior_seconds": statistics.median(parts),
            "activation_bytes": trainer._activations(config.shots[0]),
            "peak_bytes": peak(lambda: trainer._step(0, step), device),
        }  # fmt: skip


def median(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of several: the median of each time, and the times."""
    row = dict(rounds[0])
    for name in ("step_seconds", "prior_seconds"):
        seconds = [found[name] for found in rounds]
        row[name] = statistics.median(seconds)
        row[f"{name}_by_round"] = [round(value, 3) for value in seconds]
    return row


def prior_step(trainer: Trainer, step: Step) -> Callable[[], object]:
    """Forward and backward of the 4D prior alone, on the step's own features."""
    batch, device = step.batch, trainer.team.device
    images = torch.cat([batch.query_images[:, None], batch.support_images], 1).flatten(0, 1)
    masks = torch.cat([batch.query_masks[:, None], batch.support_masks], 1).flatten(0, 1).to(device)
    names = [name for names in step.names for name in names]
    query = trainer.frozen(images.to(device), names)
    others = supports_of(len(images), 1).to(device)
    [shot] = pool_supports(query[others], masks[others], 1).shots

    def run() -> None:
        trainer.model.prior(query.correlation, shot.correlation, shot.mask).sum().backward()

    return run


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device is done."""
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak(run: Callable[[], float], device: torch.device) -> int | None:
    """Most memory in use during a step, in bytes beyond what was in use before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    return memory.peak_bytes(lambda: [torch.tensor(run())])


def configure(encoder: str, size: int, images: int, threads: int) -> TrainConfig:
    """Generated pictures at the encoder's size; nothing but the trained part takes gradients."""
    return TrainConfig(
        ModelConfig(encoder, image_size=size), steps=1, images_per_step=images, workers=0,
        threads=threads,
    )  # fmt: skip


def main() -> None:
    """Measure, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default=ENCODER)
    parser.add_argument("--size", type=int, default=518)
    parser.add_argument("--images", type=int, default=2, help="of a step; two make an episode")
    parser.add_argument("--repeats", type=int, default=2, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=sharding.cores())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_speed.json"))
    options = parser.parse_args()
    config = configure(options.encoder, options.size, options.images, options.threads)
    found: dict[str, list[dict[str, Any]]] = {"ops": [], "eager": []}
    for _ in range(options.rounds):
        for name, rounds in found.items():
            rounds.append(memory.in_new_process(measure, name, config, options.repeats))
    rows = fused, eager = [median(rounds) for rounds in found.values()]
    if abs(fused["loss"] - eager["loss"]) > AGREEMENT * abs(eager["loss"]):
        parser.exit(1, f"the losses differ: {fused['loss']} and {eager['loss']}; not timed\n")
    episodes = config.episodes_per_step(1)
    print(f"{'':12} {'episodes/s':>10} {'4D part, s':>10} {'kept, MB':>9} {'peak, MB':>9}")
    for row in rows:
        most = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        print(
            f"{row['backend']:12} {episodes / row['step_seconds']:10.3f} "
            f"{row['prior_seconds']:10.2f} {row['activation_bytes'] / 1e6:9.0f} {most:>9}"
        )
    print(f"4D part: {eager['prior_seconds'] / fused['prior_seconds']:.2f} times as fast")
    write_record(
        options.out,
        shlex.join(["python", "benchmarks/training_speed.py", *sys.argv[1:]]),
        encoder=options.encoder,
        size=options.size,
        episodes_per_step=episodes,
        shots=1,
        threads=options.threads,
        repeats=options.repeats,
        rounds=options.rounds,
        results=rows,
    )


if __name__ == "__main__":
    main()
