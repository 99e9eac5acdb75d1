"""What fsdino-tiny scores on the held-out fold: `python benchmarks/tiny.py`.

The bundled model, 1-shot and 5-shot, beside two training-free matchers on the same encoder, whose
cut is tuned on base classes, and beside "everything is foreground". The held-out fold is looked at
once. Prints a table and writes a JSON file.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write_record

import fsdino
from fsdino.data import procedural
from fsdino.data.episodes import Batch, collate
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.evaluation.evaluate import evaluate, predictor
from fsdino.evaluation.metrics import IoU
from fsdino.models.config import MATCHERS
from fsdino.models.fsdino import FSDINO

FOLD = 3
TUNING_EPISODES = 288  # four rounds of the 72 base classes
SHOTS = (1, 5)


def training_free(model: FSDINO, matcher: str, cut: float = 0.0) -> FSDINO:
    """The same encoder without any other trained part."""
    config = dataclasses.replace(
        model.config, variant="training_free", matcher=matcher, match_bias=cut
    )
    return FSDINO(config, encoder=model.encoder).eval()


@torch.inference_mode()
def tune(model: FSDINO, size: int) -> tuple[float, float]:
    """The cut of a training-free score with the highest 1-shot mIoU on base classes, and that."""
    episodes = ProceduralEpisodes(FOLD, "base_val", seed=1, episodes=TUNING_EPISODES)
    temperature = model.config.match_temperature
    cuts = np.linspace(-0.5, 1.0, 61).tolist()
    metrics = [IoU(episodes.classes) for _ in cuts]
    for start in range(0, len(episodes), 8):
        batch = collate([episodes[i] for i in range(start, start + 8)], size)
        score = predictor(model)(batch)[:, 0] * temperature
        for cut, metric in zip(cuts, metrics, strict=True):
            metric.update(score >= cut, batch.query_masks > 0, batch.class_ids)
    best = max(range(len(cuts)), key=lambda i: metrics[i].miou())
    return cuts[best], metrics[best].miou()


def everything(batch: Batch) -> torch.Tensor:
    """All foreground."""
    return torch.ones_like(batch.query_masks)[:, None]


def main() -> None:
    """Tune on base classes, evaluate once, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fsdino-tiny")
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fsdino-tiny.json"))
    options = parser.parse_args()
    model = fsdino.load(options.model)
    size = model.config.image_size
    methods: list[tuple[str, Any, dict[str, float]]] = [(options.model, predictor(model), {})]
    for matcher in MATCHERS:
        cut, base = tune(training_free(model, matcher), size)
        tuned = {"cut": cut, "base_miou": round(base, 2)}
        print(f"training-free {matcher}: cut {cut:.3f}, {base:.2f} on base classes")
        methods.append(
            (f"training-free {matcher}", predictor(training_free(model, matcher, cut)), tuned)
        )
    methods.append(("all foreground", everything, {}))
    rows = []
    print(f"{'held-out fold 3':32} {'shots':>5} {'mIoU':>7} {'FB-IoU':>7} {'episodes/s':>11}")
    for shots in SHOTS:
        episodes = ProceduralEpisodes(FOLD, "val", shots=shots, episodes=options.episodes)
        for name, predict, tuned in methods:
            began = time.perf_counter()
            result = evaluate(predict, episodes, size=size)
            rate = len(episodes) / (time.perf_counter() - began)
            print(f"{name:32} {shots:5} {result.miou:7.2f} {result.fb_iou:7.2f} {rate:11.1f}")
            rows.append(
                {
                    "method": name,
                    "shots": shots,
                    "miou": round(result.miou, 2),
                    "fb_iou": round(result.fb_iou, 2),
                    "per_class": {k: round(v, 2) for k, v in result.per_class.items()},
                    **tuned,
                }
            )
    write_record(
        options.out,
        "python benchmarks/tiny.py",
        model=options.model,
        model_fingerprint=model.fingerprint(),
        data=f"procedural-v{procedural.VERSION}/fold{FOLD}/val/0",
        data_fingerprint=procedural.fingerprint(),
        episodes=options.episodes,
        image_size=size,
        tuned_on=f"base_val, seed 1, {TUNING_EPISODES} episodes, 1-shot",
        results=rows,
    )


if __name__ == "__main__":
    main()
