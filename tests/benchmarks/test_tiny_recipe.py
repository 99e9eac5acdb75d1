"""What is trained on fsdino-tiny's frozen encoder sees what fsdino-tiny saw."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import baselines
import pytest
from tiny_recipe import RECIPE, on_frozen_encoder

from fsdino.models import zoo
from fsdino.training.meta.config import TrainConfig
from tiny_models import tiny_config

EPISODES = (
    *("data", "fold", "shots", "images_per_step", "image_sizes", "invented", "augment", "crowded"),
    *("learning_rate", "warmup", "weight_decay", "gradient_clip"),
)


def test_the_hsnet_head_is_trained_on_the_same_episodes() -> None:
    """A baseline with a poorer diet would be no baseline."""
    config = baselines.hsnet_config(zoo.load("fsdino-tiny"), 1600)
    recipe = TrainConfig.from_yaml(RECIPE)
    assert {n: getattr(config, n) for n in EPISODES} == {n: getattr(recipe, n) for n in EPISODES}
    assert (
        config.model.variant == "hsnet_head" and config.model.image_size == recipe.model.image_size
    )
    assert (config.encoder_from, config.start_from, config.train_encoder) == (
        "fsdino-tiny", None, False,
    )  # fmt: skip
    assert config.steps == config.validate_every == 1600


@pytest.mark.parametrize("side", [28, 112])
def test_another_model_is_trained_at_its_own_size(side: int, tmp_path: Path) -> None:
    model = dataclasses.replace(tiny_config(), image_size=side)
    config = on_frozen_encoder(model, str(tmp_path), steps=3, seed=2, workers=0)
    assert (side in config.sizes) and (config.seed, config.workers) == (2, 0)
    assert (len(config.sizes) == 1) == (side == 28)
