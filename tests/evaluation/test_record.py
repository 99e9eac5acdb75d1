"""result.json: what it holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluated import shrunk, write
from fsdino.data.episodes import episode_hash
from fsdino.data.procedural import ProceduralEpisodes, fingerprint
from fsdino.evaluation import record, results
from fsdino.version import __version__
from tiny_models import tiny_model

PROMISED = {
    *("dataset", "fold", "shots", "protocol", "fusion", "image_size", "mask_source", "seed"),
    *("episodes", "episode_hash", "lists_hash", "miou", "fb_iou", "per_class", "model_hash"),
    *("version", "device", "dtype", "backend"),
}


def test_a_result_says_what_makes_it_comparable(tmp_path: Path) -> None:
    """All that is promised, with the values that the data set and the model state."""
    model = tiny_model()
    summary = write(tmp_path / "r.json", shrunk, **record.describe_model(model, "tiny"))
    assert set(summary) >= PROMISED
    episodes = ProceduralEpisodes(0, "val", seed=0, episodes=48, image_size=32)
    expected = {
        "dataset": "procedural", "fold": 0, "shots": 1, "protocol": "joint-seeded",
        "fusion": "joint", "image_size": 32, "mask_source": "generated", "seed": 0,
        "episodes": 48, "episode_hash": episode_hash(episodes), "lists_hash": fingerprint(),
        "model": "tiny", "model_hash": model.fingerprint(), "version": __version__,
        "device": "cpu", "dtype": "float32", "miou_interval_over_seeds": None, "skipped": [],
    }  # fmt: skip
    assert {key: summary[key] for key in expected} == expected
    assert summary["normalisation"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert 0 < summary["boundary_iou"] < summary["miou"] < summary["dice"] < 100
    assert summary["miou"] == pytest.approx(sum(summary["per_class"].values()) / 24)
    read = results.read(tmp_path / "r.json")
    assert read["miou"] == summary["miou"] and len(read["per_class"]) == 24


def test_seeds_are_averaged(tmp_path: Path) -> None:
    """The mean over seeds, and both intervals."""
    single = [write(tmp_path / f"{s}.json", shrunk, (s,))["miou"] for s in (0, 1, 2)]
    summary = write(tmp_path / "all.json", shrunk, (0, 1, 2))
    assert summary["seed"] == [0, 1, 2] and len(summary["episode_hash"]) == 3
    assert list(summary["miou_by_seed"].values()) == single
    assert summary["miou"] == pytest.approx(sum(single) / 3)
    assert summary["miou_interval_over_seeds"] > 0 and summary["miou_interval"] > 0
