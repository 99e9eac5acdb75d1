"""Memory that training on DINOv2 takes: `python benchmarks/training_memory.py`.

Counts, for the recipes of PASCAL-5i, what autograd keeps of one episode for the backward pass of
the trained part, in the recipe's precision, with the backend that is selected here (encoders with
random weights: the memory is the same), and the encoder's weights. From these follows what one
episode a pass needs at least, by the rule of `episodes_per_batch: auto`: twice an episode's
activations within 80 % of what the weights leave free. COCO-20i's recipes differ in nothing that
counts. Prints a table and writes a JSON file.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import fsdino
from fsdino import processes as sharing
from fsdino.bench.record import write_record
from fsdino.training.meta.config import TrainConfig
from fsdino.training.meta.footprint import BACKWARD, USED
from fsdino.training.meta.train import Trainer

RECIPES = Path(fsdino.__file__).parent / "recipes"


def measure(config: TrainConfig, shots: int) -> dict[str, Any]:
    """Bytes of the encoder's weights and of an episode's activations, and what both ask for."""
    config = dataclasses.replace(
        config, data="procedural", shots=(shots,), episodes_per_batch=1, workers=0, device="cpu",
        images_per_step=shots + 1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder))
        activations = trainer.activation_bytes(shots)
    weights = 4 * sum(p.numel() for p in trainer.model.parameters())
    return {
        "encoder": config.model.encoder,
        "shots": shots,
        "dtype": config.dtype,
        "weight_bytes": weights,
        "activation_bytes": activations,
        "least_bytes": round(weights + BACKWARD * activations / USED),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=[f"dinov2-{s}-pascal5i" for s in "sbl"])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--threads", type=int, default=sharing.cores())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_memory.json"))
    options = parser.parse_args()
    rows = []
    print(f"{'recipe':20} {'shots':>5} {'weights, GB':>12} {'episode, GB':>12} {'least, GB':>10}")
    for recipe in options.recipes:
        for shots in options.shots:
            with sharing.threads(options.threads):
                row = measure(TrainConfig.from_yaml(RECIPES / f"{recipe}.yaml"), shots)
            rows.append({"recipe": recipe, **row})
            sizes = (
                row[name] / 1e9 for name in ("weight_bytes", "activation_bytes", "least_bytes")
            )
            print("{:20} {:5} {:12.2f} {:12.2f} {:10.2f}".format(recipe, shots, *sizes), flush=True)
    write_record(options.out, "python benchmarks/training_memory.py", results=rows)


if __name__ == "__main__":
    main()
