"""Recipes: what they may say, and how what they may not is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from fsdino.errors import UsageError
from fsdino.training.distillation.config import DistillConfig
from fsdino.training.meta.config import TrainConfig
from training_work import CONFIG


@pytest.mark.parametrize(
    "text, message",
    [
        ("model: [", "cannot be read"),
        ("steps: 3", "expected settings with a `model` section"),
        ("model: {}\nstep: 3", "unknown settings step"),
        ("model: {}\nsteps: many", "recipe .*recipe.yaml: steps must be a number.*'many'"),
        ("model: {}\nlearning_rate: 1e-3", "learning_rate must be a number, such as 0.001"),
        ("model: {encoder: 'hf-hub:a/b'}", "its model section .*name of a timm model"),
        ("model: {encoder_args: {pretrained_cfg: {file: x}}}", "must not have 'pretrained_cfg'"),
        ("model: 5", "its model section .*5 is not a mapping"),
        ("model: {}\nlearning_rate: .inf", "learning_rate must be at most 1,000,000,000, got inf"),
        ("model: {}\nsteps: 1.5", "steps must be a number, and a whole one, got 1.5"),
        ("model: {}\nsteps: true", "steps must be a number, and a whole one, got True"),
        ("model: {}\nweight_decay: .nan", "weight_decay must be at least 0, got nan"),
        ("model: {}\nsteps: 1000000000000", "steps must be at most 1,000,000,000"),
        ("model: {}\nseed: -1", "seed must be at least 0"),
        ("model: {}\nshots: 3", "shots must be a list, got 3"),
        ("model: {}\nshots: [a]", "shots must be a number, and a whole one, got 'a'"),
        ("model: {}\nskip_bad: 1", "skip_bad must be true or false, got 1"),
        ("model: {}\nroot: 3", "root must be text, got 3"),
        ("model: {}\ndata: [a]", r"data must be text, got \['a'\]"),
        ("model: {}\n1: 2", "unknown settings 1"),
        ("[" * 3000, "cannot be read: it is nested too deeply"),
        ("model: {variant: huge}", "recipe .*recipe.yaml: .*unknown variant 'huge'"),
    ],
)
def test_bad_recipes(tmp_path: Path, text: str, message: str) -> None:
    """An invalid recipe is refused with its path."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(UsageError, match=message):
        TrainConfig.from_yaml(recipe)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        TrainConfig.from_yaml(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"nan_limit": 0}, "nan_limit must be at least 1"),
        ({"device": "tpu"}, "unknown device 'tpu': choose auto, cpu"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"learning_rate": 0}, "learning_rate must be greater than 0, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be greater than 0, got nan"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a number, such as 0.001, got '1e-3'"),
        ({"shots": ()}, "shots must be numbers of at least 1"),
        ({"augment": 1.5}, r"augment must be in \[0, 1\]"),
        ({"invented": -0.1}, r"invented must be in \[0, 1\]"),
        (
            {"data": "coco20i", "invented": 0.5},
            "invented: only data 'procedural' can, not 'coco20i'",
        ),
        ({"photograph_share": 1.5}, r"photograph_share must be in \[0, 1\], got 1.5"),
        ({"photographs": 3}, "photographs must be text, got 3"),
        ({"images_per_step": 3}, "images_per_step must be greater than the largest of shots"),
        ({"data": "imagenet"}, "unknown data 'imagenet'"),
        ({"data": "davis17"}, "unknown data 'davis17'"),
        ({"data": "isic"}, "data 'isic' is evaluated on and never trained on: choose pascal5i"),
        ({"select_on": "test"}, "unknown select_on 'test': choose base, novel"),
        ({"select_on": "novel", "data": "folder"}, "has no novel classes"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"episodes_per_batch": 0}, "episodes_per_batch must be auto or at least 1, got 0"),
        ({"episodes_per_batch": "many"}, "episodes_per_batch must be auto or at least 1"),
        ({"feature_cache": "f"}, "feature_cache keeps a frozen encoder's output"),
        (
            {"feature_cache": "f", "train_encoder": False, "augment": 0.0},
            "no generated image comes twice",
        ),
        (
            {
                **{"data": "coco20i", "feature_cache": "f", "train_encoder": False},
                **{"augment": 0.0, "photograph_share": 0.5},
            },
            "no generated image comes twice; .*photograph_share to 0",
        ),
        ({"encoder_from": "a", "encoder_weights": "b"}, "exclude each other"),
        (
            {"start_from": "a", "decoder_weights": "b"},
            "start_from brings all weights: leave decoder_weights out",
        ),
        ({"contrast_weight": -1.0}, "contrast_weight must"),
    ],
)
def test_bad_settings(changes: dict, message: str) -> None:
    """Settings are checked before anything is created."""
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_nothing_to_train_is_refused() -> None:
    """The training-free variant has no weights of its own."""
    model = dataclasses.replace(CONFIG.model, variant="training_free")
    with pytest.raises(UsageError, match="nothing to train"):
        dataclasses.replace(CONFIG, model=model)


def test_recipe_round_trip() -> None:
    """to_dict is what YAML can hold."""
    data = yaml.safe_load(yaml.safe_dump(CONFIG.to_dict()))
    assert data == CONFIG.to_dict() and TrainConfig.from_dict(data) == CONFIG


def test_free_settings_exist() -> None:
    """A misspelt name would forbid what should be allowed."""
    for kind in (TrainConfig, DistillConfig):
        assert set(kind.free) <= {field.name for field in dataclasses.fields(kind)}
