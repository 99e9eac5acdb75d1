"""What is timed is a step of each size of the schedule, on as many images as a step has."""

from __future__ import annotations

import dataclasses
import math

import distillation_speed
import pytest

from fsdino.training.distillation.architecture import ARCHITECTURES
from fsdino.training.distillation.config import DistillConfig
from fsdino.training.distillation.distill import Distillation
from tiny_models import tiny_config


def test_one_step_of_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the embeddings of the cache: the teacher is asked before the clock starts."""
    small = dataclasses.replace(distillation_speed.SAM, image_size=64, channels=16)
    seen: list[int] = []
    original = Distillation.step

    def spy(self, number, pairs):
        seen.append(len(pairs))
        assert all(pair.target is not None for pair in pairs)
        return original(self, number, pairs)

    monkeypatch.setattr(Distillation, "step", spy)
    config = DistillConfig(
        tiny_config(), image_sizes=(28, 42), epochs=(1,), batch_size=4, threads=1, workers=0
    )
    rows = distillation_speed.measure(config, 2, small)
    assert [row["image_size"] for row in rows] == [28, 42]
    assert seen == [4] * 2 * (1 + 2 + 1)  # first, timed, for the memory
    for row in rows:
        assert row["images_per_second"] > 0 and math.isfinite(row["loss"])


def test_the_teacher_answers_as_sams_do() -> None:
    """Otherwise the loss would be one over other maps than a real run's."""
    for name in ("most_bytes", "grid_side", "channels", "image_size", "patch_size"):
        assert getattr(distillation_speed.SAM, name) == getattr(ARCHITECTURES["vit_h"], name)
