"""Shared by the tests of results: an evaluation in a moment, with its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fsdino.data.episodes import Episode, EpisodeKey, Sample
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.evaluation import protocols, record, results
from fsdino.evaluation.evaluate import Settings, evaluate
from fsdino.evaluation.journal import Journal
from fsdino.evaluation.questions import Questions

SETTINGS = Settings(32, protocols.find("joint", seeded=True))


def shrunk(questions: Questions) -> torch.Tensor:
    """The truth without its upper half."""
    logits = (questions.batch.query_masks[:, None] - 0.5) * 10
    logits[..., :16, :] = -5
    return logits


def everything(questions: Questions) -> torch.Tensor:
    return torch.ones_like(questions.batch.query_masks)[:, None]


def few(episodes: int = 24, **changes: Any) -> ProceduralEpisodes:
    """Small drawn episodes of novel classes."""
    return ProceduralEpisodes(0, "val", episodes=episodes, **{"image_size": 32, **changes})


class Shared:
    """Four pictures of a box; each episode asks about two of them, in two sizes."""

    classes, class_names, fold, shots, seed = (1,), {1: "box"}, 0, 1, 0

    def __init__(
        self, sizes: tuple[tuple[int, int], ...] = ((70, 70),) * 4, ignored: bool = False
    ) -> None:
        self.samples = []
        for number, (height, width) in enumerate(sizes):
            rng = np.random.default_rng(number)
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            mask = np.zeros((height, width), bool)
            mask[height // 4 : height // 2 + number, width // 3 : width - 9] = True
            ignore = ~mask if ignored else None
            self.samples.append(Sample(image, mask, f"{number}.jpg", 1, ignore))

    def __len__(self) -> int:
        return 6

    def pick(self, index: int) -> tuple[Sample, Sample]:
        return self.samples[index % 4], self.samples[(index + 1) % 4]

    def __getitem__(self, index: int) -> Episode:
        query, support = self.pick(index)
        return Episode(query, (support,), 1, "box", index)

    def key(self, index: int) -> EpisodeKey:
        query, support = self.pick(index)
        return EpisodeKey(1, query.name, (support.name,))


def write(out: Path, predict: Any, seeds: tuple[int, ...] = (0,), **changes: Any) -> dict[str, Any]:
    """A result of 48 small episodes (two rounds of the classes) of each seed."""
    runs = [ProceduralEpisodes(0, "val", seed=s, episodes=48, image_size=32) for s in seeds]
    call = record.describe_call({"model": "m", "model_hash": "h"}, runs[0], SETTINGS) | changes
    journal = Journal(out, call)
    outcomes = [evaluate(predict, episodes, SETTINGS, journal=journal) for episodes in runs]
    summary = record.summarise(call, list(zip(runs, outcomes, strict=True)))
    results.write(out, summary)
    journal.finish([row for outcome in outcomes for row in outcome.rows])
    return summary
