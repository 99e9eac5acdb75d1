"""Settings of a run as options: every one of them, and what --help says of it."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import pytest
import tyro

from fsdino.commands.settings import AsOptions, optional_values
from fsdino.models.config import ModelConfig
from fsdino.training.distillation.config import DistillConfig
from fsdino.training.meta.config import TrainConfig

# Of these, None or nothing is the default, which does not tell their type.
UNTOLD = {
    "restarts": (3, 4), "image_sizes": (3, 4), "correlation_layers": (3, 4), "images_per_pass": 3,
    "mean": (3.0, 4.0, 5.0), "std": (3.0, 4.0, 5.0), "images": ("3", "4"),
    "correlation_prompt": True,
}  # fmt: skip


def another(name: str, value: Any) -> Any:
    """A value of the same type that is not the default."""
    if name in UNTOLD:
        return UNTOLD[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return tuple(type(value[0])(number) for number in (3, 4))
    return type(value)(3) if isinstance(value, int | float) else "word"


def said(option: str, value: Any) -> list[str]:
    """An option that gives a setting a value."""
    prefix, _, name = option.replace("_", "-").rpartition(".")
    start = f"--{prefix}." if prefix else "--"
    if isinstance(value, bool) and name != "correlation-prompt":
        return [f"{start}{'' if value else 'no-'}{name}"]
    return [start + name, *map(str, value if isinstance(value, tuple) else (value,))]


@pytest.mark.parametrize("kind", [TrainConfig, DistillConfig])
def test_every_setting_is_an_option(kind, monkeypatch):
    """Each of both stages and of their model, by its own name; what is true can be switched off."""
    for checked in (kind, ModelConfig):
        monkeypatch.setattr(checked, "__post_init__", lambda self: None)
    base = kind(ModelConfig())
    wanted = {name: another(name, value) for name, value in vars(base).items() if name != "model"}
    mappings = ("encoder_args", "encoder_weights")  # for a recipe alone
    parts = {n: another(n, v) for n, v in vars(base.model).items() if n not in mappings}
    options = [said(name, value) for name, value in wanted.items()]
    options += [said(f"model.{name}", value) for name, value in parts.items()]
    with optional_values():
        found = tyro.cli(AsOptions[kind], args=list(itertools.chain(*options)), default=base)
    assert vars(found) == {**wanted, "model": found.model}
    assert {name: getattr(found.model, name) for name in parts} == parts
    assert not {name for name, value in wanted.items() if value == getattr(base, name)}


@pytest.mark.parametrize("kind", [TrainConfig, DistillConfig, ModelConfig])
def test_every_setting_is_explained(kind):
    """Its own line in a docstring is what --help prints of it."""
    documented = "\n".join(parent.__doc__ or "" for parent in kind.__mro__)
    for field in dataclasses.fields(kind):
        assert re.search(rf"^ +{field.name}: \S", documented, re.MULTILINE), field.name
