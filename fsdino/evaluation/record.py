"""What result.json holds: one evaluation with everything that makes its numbers comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from fsdino.data.episodes import Episodes, episode_hash
from fsdino.errors import FsdinoError
from fsdino.evaluation import intervals
from fsdino.evaluation.evaluate import Result, Settings
from fsdino.evaluation.results import FORMAT
from fsdino.models.segmenter import Segmenter
from fsdino.ops import backends
from fsdino.version import __version__


def describe_model(model: Segmenter, name: str) -> dict[str, Any]:
    """The description of a model in results."""
    encoder = model.encoder
    return {
        "model": name,
        "model_hash": model.fingerprint(),
        "variant": model.config.variant,
        "training": None if model.provenance is None else dict(model.provenance),
        "encoder": model.config.encoder,
        "normalisation": {
            "mean": encoder.mean.flatten().tolist(),
            "std": encoder.std.flatten().tolist(),
        },
    }


def describe_call(
    model: Mapping[str, Any], episodes: Episodes, settings: Settings
) -> dict[str, Any]:
    """Everything that determines the scores of an evaluation, except the seed."""
    protocol = settings.protocol
    return {
        **asdict(episodes.provenance),
        "shots": episodes.shots,
        "protocol": protocol.name,
        "fusion": protocol.fusion,
        "scored_at": "original size" if protocol.original_size else "image_size",
        "pixels": protocol.pixels,
        **model,
        **describe_settings(settings),
        "batch_size": settings.batch_size,
        "skip_bad": settings.skip_bad,
    }


def describe_settings(settings: Settings) -> dict[str, Any]:
    """The settings that determine a forward pass, besides the model."""
    device = torch.device(settings.device)
    like = torch.empty(0, device=device, dtype=settings.dtype)
    return {
        "image_size": settings.size,
        "threshold": settings.threshold,
        "device": device.type,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "backend": backends.select("correlation4d", like),
    }


def summarise(
    call: Mapping[str, Any], runs: Sequence[tuple[Episodes, Result]], **facts: Any
) -> dict[str, Any]:
    """The content of result.json: means over the runs, which differ in their seeds.

    Args:
        call: result of `describe_call`.
        runs: episodes with their results.
        facts: further entries.
    """
    results = [result for _, result in runs]
    episodes = runs[0][0]
    seeds = [e.seed for e, _ in runs]
    influences = [intervals.miou_influences(r.rows, episodes.classes) for r in results]
    per_class = _mean_by_class([r.per_class for r in results])
    skipped = [
        {"seed": e.seed, "episode": index, "error": error}
        for e, r in runs
        for index, error in r.skipped.items()
    ]
    return {
        "format": FORMAT,
        **call,
        "version": __version__,
        "seed": seeds[0] if len(seeds) == 1 else seeds,
        "episodes": len(episodes),
        "episode_hash": _join_hashes([episode_hash(e) for e, _ in runs]),
        "miou": _mean([r.miou for r in results]),
        "miou_interval": intervals.half_width(influences),
        "miou_interval_over_seeds": intervals.seeds_half_width([r.miou for r in results]),
        "miou_by_seed": {e.seed: r.miou for e, r in runs},
        "episode_iou": _mean([r.episode_iou for r in results]),
        "fb_iou": _mean([r.fb_iou for r in results]),
        "dice": _mean([_mean(list(r.scores.dice().values())) for r in results]),
        "boundary_iou": _mean([_mean(list(r.scores.boundary_iou().values())) for r in results]),
        "per_class": per_class,
        "class_names": dict(episodes.class_names),
        "undrawn_classes": sorted({c for r in results for c in r.scores.undrawn}),
        "skipped": skipped,
        **facts,
    }


def _mean_by_class(tables: Sequence[Mapping[int, float]]) -> dict[int, float]:
    return {c: _mean([table[c] for table in tables]) for c in tables[0]}


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise FsdinoError("no scores: nothing was evaluated")
    return sum(values) / len(values)


def _join_hashes(hashes: Sequence[str]) -> Any:
    return hashes[0] if len(hashes) == 1 else list(hashes)
