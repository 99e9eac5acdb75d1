"""Shared by the tests of results: an evaluation in a moment, with its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

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
