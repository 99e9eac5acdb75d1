"""fsdino-tiny beside its baselines on the held-out fold: `python benchmarks/baselines.py`.

The baselines read the same frozen encoder: prototypes and 4D matching without training, whose cut
is tuned on base classes, and an HSNet-style head that is trained on the same base classes. 1-shot
and 5-shot, three seeds. Nothing is chosen on the held-out fold. Every part is kept in --work, and
the same command continues an interrupted call.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from record import drawn_set
from tiny import tune
from tiny_recipe import on_frozen_encoder

import fsdino
from fsdino import processes as sharing
from fsdino.bench.record import write_record
from fsdino.evaluation import protocols
from fsdino.evaluation import run as evaluation
from fsdino.evaluation.evaluate import Settings
from fsdino.evaluation.request import Request
from fsdino.files import read_object, write_json
from fsdino.models import zoo
from fsdino.models.config import MATCHERS
from fsdino.models.segmenter import Segmenter
from fsdino.progress import Progress
from fsdino.training.meta.config import TrainConfig
from fsdino.training.meta.train import Trainer

MODEL, FOLD = "fsdino-tiny", 3
SHOTS, SEEDS = (1, 5), (0, 1, 2)


def hsnet_config(model: Segmenter, steps: int) -> TrainConfig:
    """The HSNet-style learner: fsdino-tiny's frozen encoder, its episodes and schedule."""
    changes = {"variant": "hsnet_head", "correlation_channels": (8, 16, 32)}
    return on_frozen_encoder(dataclasses.replace(model.config, **changes), MODEL, steps=steps)


def train_hsnet(model: Segmenter, steps: int, work: Path) -> Segmenter:
    """Train it, continue an interrupted training, or load the finished model."""
    folder = work / "hsnet"
    trainer = Trainer(hsnet_config(model, steps), folder, resume=folder.exists())
    with Progress("train hsnet", steps, done=trainer.start, unit="steps") as progress:
        trainer.fit(lambda step, loss, miou: progress.advance(note=f"base mIoU {miou}"))
    return fsdino.load(folder / "model")


def tuned(model: Segmenter, matcher: str, work: Path) -> tuple[Segmenter, dict[str, Any]]:
    """A training-free matcher with the cut that is best on base classes, which a file keeps."""
    file = work / f"{matcher}.json"
    if not file.exists():
        cut, base = tune(zoo.training_free(model, matcher), model.config.image_size)
        write_json(file, {"cut": cut, "base_miou": round(base, 2)})
    facts = read_object(file, "remove it")
    return zoo.training_free(model, matcher, cut=facts["cut"]), facts


def evaluate(model: Segmenter, name: str, shots: int, episodes: int, work: Path) -> dict[str, Any]:
    """One line of the table."""
    workers = min(sharing.cores() - 1, 4)
    settings = Settings(
        model.config.image_size, protocols.find("joint", seeded=True), workers=workers
    )
    request = Request("procedural", fold=FOLD, shots=shots, seeds=SEEDS, episodes=episodes)
    out = work / f"{name.replace(' ', '-')}-{shots}shot.json"
    found = evaluation.run(model, name, request, settings, out=out)
    kept = ("miou", "miou_interval", "miou_interval_over_seeds", "miou_by_seed", "fb_iou", "dice",
            "boundary_iou", "model_hash", "protocol", "backend")  # fmt: skip
    return {"method": name, "shots": shots, **{key: found[key] for key in kept}}


def main() -> None:
    """Train, tune, evaluate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=1000, help="of each seed")
    parser.add_argument("--steps", type=int, default=1600, help="of the HSNet-style learner")
    parser.add_argument("--work", type=Path, default=Path("runs/baselines"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/baselines.json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    model = fsdino.load(MODEL)
    methods: dict[str, tuple[Segmenter, dict[str, Any]]] = {MODEL: (model, {})}
    for matcher in MATCHERS:
        methods[f"training-free {matcher}"] = tuned(model, matcher, options.work)
    steps = {"steps": options.steps}
    methods["hsnet head"] = (train_hsnet(model, options.steps, options.work), steps)
    rows = []
    print(f"{'held-out fold 3':32} {'shots':>5} {'mIoU':>7} {'± 95 %':>7} {'FB-IoU':>7}")
    with sharing.threads(max(sharing.cores() - 1, 1)):
        for shots in SHOTS:
            for name, (segmenter, facts) in methods.items():
                row = evaluate(segmenter, name, shots, options.episodes, options.work) | facts
                rows.append(row)
                print(
                    f"{name:32} {shots:5} {row['miou']:7.2f} {row['miou_interval']:7.2f} "
                    f"{row['fb_iou']:7.2f}"
                )
    write_record(
        options.out,
        "python benchmarks/baselines.py",
        model=MODEL,
        model_fingerprint=model.fingerprint(),
        **drawn_set(f"fold{FOLD}/val"),
        episodes=options.episodes,
        seeds=list(SEEDS),
        image_size=model.config.image_size,
        results=rows,
    )


if __name__ == "__main__":
    main()
