"""What fsdino-tiny scores on the held-out fold: `python benchmarks/tiny.py`.

The bundled model, 1-shot and 5-shot, beside two training-free matchers on the same encoder, whose
cut is tuned on base classes, and beside "everything is foreground". The held-out fold is looked at
once. Prints a table and writes a JSON file.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import drawn_set

import fsdino
from fsdino.bench.record import write_record
from fsdino.data.batches import collate
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.evaluation.evaluate import Settings, evaluate
from fsdino.evaluation.metrics import Scores
from fsdino.evaluation.predictors import ModelPredictor
from fsdino.evaluation.questions import Questions
from fsdino.models import zoo
from fsdino.models.config import MATCHERS
from fsdino.models.segmenter import Segmenter

FOLD = 3
TUNING_EPISODES = 288  # four rounds of the 72 base classes
SHOTS = (1, 5)


@torch.inference_mode()
def tune(model: Segmenter, size: int) -> tuple[float, float]:
    """The cut of a training-free score with the highest 1-shot mIoU on base classes, and that."""
    episodes = ProceduralEpisodes(FOLD, "base_val", seed=1, episodes=TUNING_EPISODES)
    temperature = model.config.match_temperature
    cuts = np.linspace(-0.5, 1.0, 61).tolist()
    metrics = [Scores(episodes.classes) for _ in cuts]
    for start in range(0, len(episodes), 8):
        batch = collate([episodes[i] for i in range(start, start + 8)], size)
        images = (batch.support_images, batch.support_masks, batch.query_images)
        score = model(*images)[:, 0] * temperature
        for cut, metric in zip(cuts, metrics, strict=True):
            metric.update(score >= cut, batch.query_masks > 0, batch.class_ids)
    best = max(range(len(cuts)), key=lambda i: metrics[i].miou())
    return cuts[best], metrics[best].miou()


def everything(questions: Questions) -> torch.Tensor:
    """All foreground."""
    assert questions.batch is not None
    return torch.ones_like(questions.batch.query_masks)[:, None]


def main() -> None:
    """Tune on base classes, evaluate once, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fsdino-tiny")
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fsdino-tiny.json"))
    options = parser.parse_args()
    model = fsdino.load(options.model)
    size = model.config.image_size
    methods: list[tuple[str, Any, dict[str, float]]] = [(options.model, ModelPredictor(model), {})]
    for matcher in MATCHERS:
        cut, base = tune(zoo.training_free(model, matcher), size)
        tuned = {"cut": cut, "base_miou": round(base, 2)}
        print(f"training-free {matcher}: cut {cut:.3f}, {base:.2f} on base classes")
        methods.append(
            (
                f"training-free {matcher}",
                ModelPredictor(zoo.training_free(model, matcher, cut=cut)),
                tuned,
            )
        )
    methods.append(("all foreground", everything, {}))
    rows = []
    print(f"{'held-out fold 3':32} {'shots':>5} {'mIoU':>7} {'FB-IoU':>7} {'episodes/s':>11}")
    for shots in SHOTS:
        episodes = ProceduralEpisodes(FOLD, "val", shots=shots, episodes=options.episodes)
        for name, predict, tuned in methods:
            began = time.perf_counter()
            result = evaluate(predict, episodes, Settings(size))
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
        **drawn_set(f"fold{FOLD}/val/0"),
        episodes=options.episodes,
        image_size=size,
        tuned_on=f"base_val, seed 1, {TUNING_EPISODES} episodes, 1-shot",
        results=rows,
    )


if __name__ == "__main__":
    main()
