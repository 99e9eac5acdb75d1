"""The last run of fsdino-tiny's training, for what else is trained on its frozen encoder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import fsdino
from fsdino.models.config import ModelConfig
from fsdino.training.meta.config import TrainConfig

RECIPE = Path(fsdino.__file__).parent / "recipes" / "fsdino-tiny.yaml"


def on_frozen_encoder(
    model: ModelConfig, encoder: str, *, steps: int, seed: int = 0, **changes: Any
) -> TrainConfig:
    """The recipe with the encoder of a model, frozen, and all else trained from random weights.

    Args:
        model: what is trained.
        encoder: name or folder of the model whose encoder is taken.
        steps, seed: of the run, which is validated at its end only.
        changes: further settings.
    """
    recipe = TrainConfig.from_yaml(RECIPE)
    sizes = recipe.image_sizes if model.image_size in recipe.image_sizes else ()
    settings = {
        "model": model, "encoder_from": encoder, "start_from": None, "train_encoder": False,
        "prototype_weight": 0.0, "contrast_weight": 0.0, "image_sizes": sizes,
        "steps": steps, "validate_every": steps, "seed": seed,
    }  # fmt: skip
    return dataclasses.replace(recipe, **{**settings, **changes})
