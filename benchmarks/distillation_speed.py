"""Throughput of stage 1: `python benchmarks/distillation_speed.py`.

One step of `fsdino distill` on a frozen DINOv2 ViT-S/14 (random weights: the time is the same) at
each size of the schedule: images per second and peak memory. The teacher has SAM's grid and
channels, but hardly a block: its embeddings come from the cache, as in a run after the first hour.
Images are read before the clock starts, as workers do it beside the steps. Prints a table and
writes a JSON file.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import command
from training_speed import ENCODER, peak

from fsdino import processes as sharing
from fsdino.bench import memory
from fsdino.bench.compare import timed
from fsdino.bench.record import write_record
from fsdino.models.checkpoints import write_tensors
from fsdino.models.config import ModelConfig
from fsdino.training.distillation.architecture import Architecture
from fsdino.training.distillation.config import DistillConfig
from fsdino.training.distillation.distill import Distillation
from fsdino.training.distillation.teacher import Teacher

SAM = Architecture(width=32, depth=1, heads=2, global_blocks=())  # its input, grid and channels
SIZES = (126, 252, 518)


def measure(
    config: DistillConfig, repeats: int, teacher: Architecture = SAM
) -> list[dict[str, Any]]:
    """Seconds of a step at each size, with its loss, and its peak memory in bytes.

    Args:
        config: one epoch of each size; images and teacher are made here.
        repeats: steps whose median counts, after one that does not.
        teacher: what to make.
    """
    with sharing.threads(config.threads), tempfile.TemporaryDirectory() as folder:
        distillation = Distillation(prepare(config, Path(folder), teacher), Path(folder) / "run")
        distillation.prepare()
        device = distillation.processes.device
        rows = []
        for number, pairs in enumerate(distillation.load()):
            loss = distillation.step(number, pairs)
            seconds = [
                timed(lambda n=number, p=pairs: distillation.step(n, p), device)
                for _ in range(repeats)
            ]
            rows.append({
                "image_size": pairs[0].image.shape[-1],
                "loss": loss,
                "images_per_second": len(pairs) / statistics.median(seconds),
                "peak_bytes": peak(lambda n=number, p=pairs: distillation.step(n, p), device),
            })  # fmt: skip
        distillation.run.close()
    return rows


def prepare(config: DistillConfig, folder: Path, teacher: Architecture) -> DistillConfig:
    """Make as many pictures as a step has, so that each size has one step, and a teacher."""
    torch.manual_seed(0)
    weights = Teacher(teacher).encoder.state_dict(prefix="image_encoder.")
    write_tensors(folder / "teacher.safetensors", weights, {"format": "pt"})
    (folder / "images").mkdir()
    for number in range(max(config.batch_size, 2)):
        noise = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((1024, 768)).save(folder / "images" / f"{number}.jpg")
    return DistillConfig(**{
        **vars(config),
        "images": (str(folder / "images"),),
        "teacher_checkpoint": str(folder / "teacher.safetensors"),
    })  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default=ENCODER)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--images", type=int, default=8, help="of a step")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=sharing.cores())
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/distillation_speed.json")
    )
    options = parser.parse_args()
    config = DistillConfig(
        ModelConfig(options.encoder), image_sizes=options.sizes, epochs=(1,), workers=0,
        batch_size=options.images, threads=options.threads,
    )  # fmt: skip
    rows = memory.in_new_process(measure, config, options.repeats)
    print(f"{'pixels':>6} {'images/s':>9} {'peak, MB':>9}")
    for row in rows:
        most = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        print(f"{row['image_size']:6} {row['images_per_second']:9.2f} {most:>9}")
    write_record(
        options.out,
        command(),
        encoder=options.encoder,
        images_per_step=options.images,
        threads=options.threads,
        repeats=options.repeats,
        results=rows,
    )


if __name__ == "__main__":
    main()
