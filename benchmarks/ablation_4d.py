"""What the 4D branch adds: `python benchmarks/ablation_4d.py --out DIR`.

Trains the segmenter of fsdino-tiny anew on its own frozen encoder, with the 4D branch (`full`) and
without (`comp`): at equal steps, and `comp` once more for as many steps as take the time of `full`.
Same episodes, learning rate and schedule; three seeds; mIoU on the held-out fold. An interrupted
call goes on where it stopped. Prints a table and writes a JSON file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import torch
from record import write_record

import fsdino
from fsdino.data import procedural
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.evaluation.evaluate import Settings, evaluate
from fsdino.evaluation.predictors import predictor
from fsdino.images import atomic_write
from fsdino.training.config import TrainConfig
from fsdino.training.meta import Trainer

RECIPE = Path(fsdino.__file__).parent / "recipes" / "fsdino-tiny.yaml"
EPISODES = 480  # twenty rounds of the 24 held-out classes


def configure(variant: str, steps: int, seed: int, encoder: str) -> TrainConfig:
    """The bundled recipe with a frozen encoder."""
    recipe = TrainConfig.from_yaml(RECIPE)
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, variant=variant),
        encoder_from=encoder,
        train_encoder=False,
        prototype_weight=0.0,
        class_weight=0.0,
        steps=steps,
        validate_every=steps,
        seed=seed,
    )


def run(config: TrainConfig, folder: Path) -> dict[str, float]:
    """Train and evaluate one configuration; remembered in `folder/row.json`."""
    done = folder / "row.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    began = time.process_time()
    trainer = Trainer(config, folder, resume=(folder / "config.yaml").exists())
    model = trainer.fit()
    seconds = (time.process_time() - began) * config.steps / max(config.steps - trainer.start, 1)
    episodes = ProceduralEpisodes(config.fold, "val", episodes=EPISODES)
    miou = evaluate(predictor(model), episodes, Settings(config.model.image_size)).miou
    row = {"steps": config.steps, "seconds": round(seconds, 1), "miou": round(miou, 2)}
    with atomic_write(done) as temporary:
        Path(temporary).write_text(json.dumps(row))
    return row


def main() -> None:
    """Run what is missing, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--encoder", default="fsdino-tiny")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--record", type=Path, default=Path("benchmarks/results/ablation_4d.json"))
    options = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {"full": [], "comp": [], "comp, equal time": []}
    for seed in range(options.seeds):
        folder = options.out / str(seed)
        full = run(configure("full", options.steps, seed, options.encoder), folder / "full")
        comp = run(configure("comp", options.steps, seed, options.encoder), folder / "comp")
        steps = round(options.steps * full["seconds"] / comp["seconds"])
        longer = run(configure("comp", steps, seed, options.encoder), folder / f"comp-{steps}")
        for name, row in zip(rows, (full, comp, longer), strict=True):
            rows[name].append(row)
            print(
                f"seed {seed}  {name:18} {row['steps']:6} steps {row['seconds']:7.1f} s "
                f"mIoU {row['miou']:6.2f}"
            )
    for name, results in rows.items():
        values = [row["miou"] for row in results]
        print(
            f"{name:18} mean {statistics.mean(values):6.2f}, {min(values):.2f} to {max(values):.2f}"
        )
    write_record(
        options.record,
        f"python benchmarks/ablation_4d.py --steps {options.steps} --out DIR",
        encoder=options.encoder,
        data_fingerprint=procedural.fingerprint(),
        evaluation=f"fold 3, val, seed 0, {EPISODES} episodes, 1-shot mIoU in percent",
        results=rows,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
