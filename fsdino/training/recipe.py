"""What the configurations of both training stages share: YAML, and checks that name a setting."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from fsdino.errors import CheckpointError, UsageError
from fsdino.models.config import ModelConfig
from fsdino.yaml_files import read_yaml

R = TypeVar("R", bound="Recipe")

AUTO = "auto"
DEVICES = (AUTO, "cpu")
DTYPES = ("float32", "bfloat16")
_LARGEST = 10**9  # of any other setting: products of two fit a computer's integers
_LARGEST_SEED = 2**63 - 1
_TITLES = {bool: "true or false", str: "text"}


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
            UsageError: the file is missing, no YAML, or has invalid settings.
        """
        try:
            data = read_yaml(path)
        except OSError as error:
            raise UsageError(f"recipe {path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"recipe {path} cannot be read: {error}") from error
        try:
            return cls.from_dict(data)
        except UsageError as error:
            raise UsageError(f"recipe {path}: {error}") from error

    @classmethod
    def from_dict(cls: type[R], data: Any) -> R:
        """The inverse of `to_dict`; settings that are not there have their default.

        Raises:
            UsageError: invalid settings.
        """
        if not isinstance(data, Mapping) or "model" not in data:
            raise UsageError("expected settings with a `model` section")
        unknown = sorted(map(str, set(data) - {field.name for field in dataclasses.fields(cls)}))
        if unknown:
            raise UsageError(f"unknown settings {', '.join(unknown)}")
        try:
            return cls(
                **{**data, "model": ModelConfig.from_dict(data["model"], "its model section")}
            )
        except (CheckpointError, TypeError) as error:  # names that are not text
            raise UsageError(str(error)) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML."""
        data = dataclasses.asdict(self)
        data["model"] = self.model.to_dict()
        return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}

    def _check_types(self) -> None:
        """Give every setting the type that its field has, or say which one cannot have it.

        Lists, as YAML has them, become tuples, and whole numbers floats where those are asked for.
        """
        types = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            if field.name != "model":
                value = _as_type(getattr(self, field.name), types[field.name], field.name)
                most = _LARGEST_SEED if field.name == "seed" else _LARGEST
                if any(isinstance(v, (int, float)) and abs(v) > most for v in _flat(value)):
                    raise UsageError(f"{field.name} must be at most {most:,}, got {value}")
                object.__setattr__(self, field.name, value)

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
            if name in positive and not value > 0:
                raise UsageError(f"{name} must be greater than 0, got {value}")
            least = int(name in at_least_1)
            if not value >= least:
                raise UsageError(f"{name} must be at least {least}, got {value}")


def _flat(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _as_type(value: Any, wanted: Any, name: str) -> Any:
    """A setting as its field's type has it; UsageError where it has another one."""
    if get_origin(wanted) is tuple:
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"{name} must be a list, got {value!r}")
        return tuple(_as_type(part, get_args(wanted)[0], name) for part in value)
    kinds = get_args(wanted) or (wanted,)  # of a union
    if value is None and type(None) in kinds:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if str in kinds and isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) in kinds:
        return value
    if float in kinds and number:
        return float(value)
    if float in kinds:  # YAML reads 1e-3 as text, 1.0e-3 as a number
        raise UsageError(f"{name} must be a number, such as 0.001, got {value!r}")
    if int in kinds:
        raise UsageError(f"{name} must be a number, and a whole one, got {value!r}")
    raise UsageError(f"{name} must be {_TITLES[kinds[0]]}, got {value!r}")
