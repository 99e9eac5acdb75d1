"""Training throughput: `python benchmarks/training_speed.py`.

One step of `fsdino train` on a frozen DINOv2 ViT-S/14 (random weights: the time is the same) at 518
pixels, with the ops' selected backend and with the eager formulation in the same trainer: episodes
per second of the whole step and of the 4D part (forward and backward), activation and peak memory.
They take turns in processes of their own; medians. Prints a table and writes a JSON file, unless
the two disagree on the loss.

On a GPU, `--dtype bfloat16 --limit-gb 24 --images 2 4 8 16 32 64` finds how much of each
formulation fits into that much memory, and compares the two where each is fastest.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from record import command

from fsdino import processes as sharing
from fsdino.bench import memory
from fsdino.bench.compare import timed
from fsdino.bench.record import write_record
from fsdino.models import hypercorrelation
from fsdino.models.config import ModelConfig
from fsdino.ops import backends, eager
from fsdino.training.meta.config import TrainConfig
from fsdino.training.meta.objective import supports_of
from fsdino.training.meta.steps import Step
from fsdino.training.meta.train import Trainer

ENCODER = "vit_small_patch14_dinov2.lvd142m"
AGREEMENT = 1e-3  # largest relative difference of the losses


@contextlib.contextmanager
def formulation(name: str) -> Iterator[None]:
    """Let models run the eager formulation in place of the ops."""
    ops = hypercorrelation.ops
    if name == "eager":
        hypercorrelation.ops = eager
    try:
        yield
    finally:
        hypercorrelation.ops = ops


def measure(name: str, config: TrainConfig, repeats: int) -> dict[str, Any]:
    """Seconds of a step and of its 4D part, its loss, and memory in bytes."""
    threads = sharing.threads(config.threads)
    with threads, tempfile.TemporaryDirectory() as folder, formulation(name):
        trainer = Trainer(config, Path(folder))
        device = trainer.processes.device
        step = trainer.steps[0]
        trainer.model.train()
        loss = trainer.step(0, step)
        seconds = [timed(lambda: trainer.step(0, step), device) for _ in range(repeats)]
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
            "activation_bytes": trainer.activation_bytes(config.shots[0]),
            "peak_bytes": peak(lambda: trainer.step(0, step), device),
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
    batch, device = step.batch, trainer.processes.device
    images = torch.cat([batch.query_images[:, None], batch.support_images], 1).flatten(0, 1)
    masks = torch.cat([batch.query_masks[:, None], batch.support_masks], 1).flatten(0, 1).to(device)
    names = [name for names in step.names for name in names]
    query = trainer.frozen(images.to(device), names)
    others = supports_of(len(images), 1).to(device)
    [shot] = trainer.model.pool(query[others], masks[others], 1).shots

    def run() -> None:
        trainer.model.prior(
            query.correlation[0], shot.correlation[0], shot.masks[0]
        ).sum().backward()

    return run


def peak(run: Callable[[], float], device: torch.device) -> int | None:
    """Most memory in use during a step, in bytes beyond what was in use before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    return memory.peak_bytes(lambda: [torch.tensor(run())])


def configure(encoder: str, size: int, images: int, threads: int, dtype: str) -> TrainConfig:
    """Generated pictures at the encoder's size; nothing but the trained part takes gradients."""
    return TrainConfig(
        ModelConfig(encoder, image_size=size), steps=1, images_per_step=images, workers=0,
        threads=threads, dtype=dtype,
    )  # fmt: skip


def try_measure(
    name: str, config: TrainConfig, repeats: int, limit: float | None
) -> dict[str, Any] | None:
    """`measure`, with no more than `limit` gigabytes of a GPU; None where that is too little."""
    if limit is not None and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(limit * 1e9 / total, 1.0))
    try:
        return measure(name, config, repeats)
    except torch.OutOfMemoryError:
        return None


def agree(found: Sequence[dict[str, Any]]) -> bool:
    """Whether both formulations, on the same images, gave one loss."""
    losses = [row["loss"] for row in found]
    return max(losses) - min(losses) <= AGREEMENT * abs(losses[0])


def fastest(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """The row of a formulation with most episodes per second."""
    mine = [row for row in rows if row["formulation"] == name]
    return max(mine, key=lambda row: row["episodes"] / row["step_seconds"])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default=ENCODER)
    parser.add_argument("--size", type=int, default=518)
    parser.add_argument(
        "--images", type=int, nargs="+", default=[2], help="of a step; two make an episode"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--limit-gb", type=float, help="memory of a GPU that may be used")
    parser.add_argument("--repeats", type=int, default=2, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=sharing.cores())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_speed.json"))
    return parser.parse_args()


def measure_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each number of images and formulation that fits; both take turns."""
    rows: list[dict[str, Any]] = []
    names = ["ops", "eager"]
    for images in sorted(options.images):
        config = configure(options.encoder, options.size, images, options.threads, options.dtype)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(options.rounds):
            for name in list(found):
                row = memory.in_new_process(
                    try_measure, name, config, options.repeats, options.limit_gb
                )
                if row is None:
                    print(f"{name}: {images} images do not fit", flush=True)
                    del found[name]
                    names.remove(name)
                else:
                    found[name].append(row)
        here = [{"episodes": config.episodes_per_step(1), **median(r)} for r in found.values()]
        if len(here) > 1 and not agree(here):
            raise SystemExit(f"the losses differ: {[row['loss'] for row in here]}; not timed")
        rows += here
    return rows


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Print every row, and how the two formulations compare."""
    print(
        f"{'':12} {'episodes':>8} {'per s':>8} {'4D part, s':>10} {'kept, MB':>9} {'peak, MB':>9}"
    )
    for row in rows:
        most = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        print(
            f"{row['backend']:12} {row['episodes']:8} {row['episodes'] / row['step_seconds']:8.3f} "
            f"{row['prior_seconds']:10.3f} {row['activation_bytes'] / 1e6:9.0f} {most:>9}"
        )
    for fused, theirs in pairwise(rows):
        if (fused["formulation"], theirs["formulation"]) == ("ops", "eager"):
            ratio = theirs["prior_seconds"] / fused["prior_seconds"]
            print(f"4D part, {fused['episodes']} episodes: {ratio:.2f} times as fast")
    if {row["formulation"] for row in rows} == {"ops", "eager"}:
        fused, theirs = fastest(rows, "ops"), fastest(rows, "eager")
        speeds = [row["episodes"] / row["step_seconds"] for row in (fused, theirs)]
        print(
            f"whole step, each at its best: {speeds[0] / speeds[1]:.2f} times as fast, with "
            f"{fused['episodes']} and {theirs['episodes']} episodes"
        )


def main() -> None:
    """Measure, compare, print, write."""
    options = parse()
    rows = measure_all(options)
    report(rows)
    write_record(
        options.out,
        command(),
        encoder=options.encoder,
        size=options.size,
        shots=1,
        dtype=options.dtype,
        limit_gb=options.limit_gb,
        threads=options.threads,
        repeats=options.repeats,
        rounds=options.rounds,
        results=rows,
    )


if __name__ == "__main__":
    main()
