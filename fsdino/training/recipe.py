"""What the configurations of both training stages share: YAML, and checks that name a setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fsdino.errors import CheckpointError, UsageError
from fsdino.models.config import ModelConfig

R = TypeVar("R", bound="Recipe")

AUTO = "auto"
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """Settings of a run.

    Attributes:
        model: the model that the run is about.
    """

    model: ModelConfig

    @classmethod
    def from_yaml(cls: type[R], path: Path) -> R:
        """Read a recipe.

        Raises:
            UsageError: the file is missing, no YAML, or has settings that cannot be meant.
        """
        try:
            data = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UsageError(f"recipe {path} cannot be read: {error}") from error
        if not isinstance(data, Mapping) or "model" not in data:
            raise UsageError(f"recipe {path}: expected settings with a `model` section")
        unknown = sorted(set(data) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise UsageError(f"recipe {path}: unknown settings {', '.join(unknown)}")
        try:
            return cls(
                **{**data, "model": ModelConfig.from_dict(data["model"], "its model section")}
            )
        except (TypeError, CheckpointError, UsageError) as error:
            raise UsageError(f"recipe {path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML."""
        data = dataclasses.asdict(self)
        data["model"] = self.model.to_dict()
        return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}

    def _make_tuples(self, *names: str) -> None:
        """Turn YAML's lists into tuples, as frozen settings need them."""
        for name in names:
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def _check_choices(self, choices: Mapping[str, Sequence[str]]) -> None:
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UsageError(
                    f"unknown {name} {getattr(self, name)!r}: choose {', '.join(known)}"
                )

    def _check_numbers(
        self, at_least_1: Sequence[str], at_least_0: Sequence[str], positive: Sequence[str]
    ) -> None:
        """Check settings by name; None is no number."""
        for name in (*at_least_1, *at_least_0, *positive):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, (int, float)):  # YAML reads 1e-3 as text, 1.0e-3 as a number
                raise UsageError(f"{name} must be a number, such as 0.001, got {value!r}")
            if name in positive and not value > 0:
                raise UsageError(f"{name} must be greater than 0, got {value}")
            least = int(name in at_least_1)
            if value < least:
                raise UsageError(f"{name} must be at least {least}, got {value}")
