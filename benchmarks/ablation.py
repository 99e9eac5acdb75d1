"""What each part of the prompt generator adds: `python benchmarks/ablation.py --out DIR`.

Trains the segmenter of fsdino-tiny from random weights on the frozen encoder, with the parts of
FS-DINO's table added one after another (adapter + PCS, + SVP, + 4D, + CE): same episodes, steps,
learning rate and schedule; and "+ SVP" again for the number of steps that takes as long as all
parts, since parts cost time. Several seeds; 1-shot mIoU on the held-out fold. The same command
continues an interrupted call. Prints a table and writes a JSON file. The published rows read the
correlation with a state-space module, ours with center-pivot 4D convolutions (docs/numbers.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from record import drawn_set
from tiny_recipe import on_frozen_encoder

import fsdino
from fsdino import processes as sharing
from fsdino.bench.record import write_record
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.evaluation.evaluate import Settings, evaluate
from fsdino.evaluation.predictors import ModelPredictor
from fsdino.files import read_object, write_json
from fsdino.training.meta.config import TrainConfig
from fsdino.training.meta.train import Trainer

# The paper's table adds them in this order (arXiv 2504.15669); the adapter is in all rows.
PARTS = ("cosine_prompt", "visual_prompt", "correlation_prompt", "contrastive")
ROWS = ("adapter + PCS", "+ SVP", "+ 4D", "+ CE")
EQUAL_TIME = "+ SVP, in the time of + CE"


def configure(parts: int, steps: int, seed: int, encoder: str) -> TrainConfig:
    """The bundled recipe with a model's encoder, frozen, and the first of the parts."""
    model = fsdino.load(encoder).config
    switches: dict[str, Any] = {name: place < parts for place, name in enumerate(PARTS)}
    return on_frozen_encoder(
        dataclasses.replace(model, **switches), encoder, steps=steps, seed=seed
    )


def run(config: TrainConfig, folder: Path, episodes: int) -> dict[str, float]:
    """Train and evaluate one configuration; the result is kept in `folder/row.json`."""
    done = folder / "row.json"
    if done.exists():
        return read_object(done, "remove it")
    with sharing.threads(1):
        began = time.process_time()
        trainer = Trainer(config, folder, resume=(folder / "config.yaml").exists())
        model = trainer.fit()
        seconds = time.process_time() - began
        novel = ProceduralEpisodes(config.fold, "val", episodes=episodes)
        miou = evaluate(ModelPredictor(model), novel, Settings(config.model.image_size)).miou
    seconds *= config.steps / max(config.steps - trainer.start, 1)
    row = {
        "seed": config.seed,
        "steps": config.steps,
        "cpu_seconds": round(seconds, 1),
        "miou": round(miou, 2),
    }
    write_json(done, row)
    return row


def end_with_parent() -> None:
    """Kill this worker when its parent is gone.

    It would continue with what is queued, at the same time as a call that resumes the runs.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def summary(rows: Sequence[dict[str, float]], before: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, of mIoU and of what it gained seed by seed."""
    values = [row["miou"] for row in rows]
    gains = [row["miou"] - old["miou"] for row, old in zip(rows, before, strict=True)]
    return {
        "mean": round(statistics.mean(values), 2),
        "deviation": round(statistics.stdev(values), 2) if len(values) > 1 else None,
        "gain": round(statistics.mean(gains), 2),
        "gain_deviation": round(statistics.stdev(gains), 2) if len(gains) > 1 else None,
    }


def main() -> None:
    """Run what is missing, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=960, help="24 classes take turns")
    parser.add_argument("--encoder", default="fsdino-tiny")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--record", type=Path, default=Path("benchmarks/results/ablation.json"))
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows: dict[str, list[dict[str, float]]] = {}
    with ProcessPoolExecutor(options.jobs, context, end_with_parent) as pool:

        def start(parts: int, steps: int, seed: int) -> Any:
            config = configure(parts, steps, seed, options.encoder)
            folder = options.out / str(seed) / f"{parts}-parts-{steps}"
            return pool.submit(run, config, folder, options.episodes)

        seeds = range(options.seeds)
        begun = [[start(n, options.steps, s) for n in range(1, 1 + len(PARTS))] for s in seeds]
        for place, name in enumerate(ROWS):
            rows[name] = [runs[place].result() for runs in begun]
        longer = []
        for seed in seeds:
            less, more = (rows[name][seed]["cpu_seconds"] for name in ("+ SVP", "+ CE"))
            longer.append(start(2, max(round(options.steps * more / less), 1), seed))
        rows[EQUAL_TIME] = [future.result() for future in longer]
    print(f"{'held-out fold 3, 1-shot':28} {'steps':>6} {'CPU s':>7} {'mIoU':>14} {'gain':>14}")
    summaries, before = {}, rows[ROWS[0]]
    for name, found in rows.items():
        reference = rows["+ SVP"] if name == EQUAL_TIME else before
        summaries[name] = entry = summary(found, reference)
        steps = round(statistics.mean(row["steps"] for row in found))
        seconds = statistics.mean(row["cpu_seconds"] for row in found)
        print(
            f"{name:28} {steps:6} {seconds:7.0f} {entry['mean']:6.2f} +- {entry['deviation']} "
            f"{entry['gain']:+6.2f} +- {entry['gain_deviation']}"
        )
        before = found
    write_record(
        options.record,
        f"python benchmarks/ablation.py --steps {options.steps} --jobs {options.jobs} --out DIR",
        encoder=options.encoder,
        encoder_fingerprint=fsdino.load(options.encoder).fingerprint(),
        **drawn_set("fold3/val/0"),
        evaluation=f"{options.episodes} episodes, 1-shot mIoU in percent",
        gains="paired by seed, over the row before; the last row's over + SVP",
        results=rows,
        summary=summaries,
    )


if __name__ == "__main__":
    main()
