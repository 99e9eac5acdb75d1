"""What the configurations of both training stages share: settings, YAML, checks that name one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from fsdino.errors import CheckpointError, UsageError
from fsdino.models.config import ModelConfig

R = TypeVar("R", bound="Recipe")

AUTO = "auto"
DEVICES = (AUTO, "cpu")
DTYPES = ("float32", "bfloat16")
_LARGEST = 10**9  # of any other setting: products of two fit a computer's integers
_LARGEST_SEED = 2**63 - 1
_TITLES = {bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Schedule:
    """When the learning rate rises and falls.

    Attributes:
        steps: of the whole run.
        restarts: steps at which it begins again, ascending, between 0 and `steps`.
        ends: numbers of steps done at which a part of the run ends: the model is measured then, and
            a checkpoint written.
    """

    steps: int
    restarts: tuple[int, ...] = ()
    ends: frozenset[int] = frozenset()

    def around(self, step: int) -> tuple[int, int]:
        """First step, and the one after the last, of the rise and fall that a step belongs to."""
        bounds = (0, *self.restarts, self.steps)
        return next((first, last) for first, last in pairwise(bounds) if step < last)


@dataclass(frozen=True)
class Recipe:
    """Settings of a run.

    Attributes:
        model: the model that the run is about.
        learning_rate: peak learning rate, after a linear warm-up.
        decay: whether it then decays to 1 % of itself, by a cosine.
        warmup: steps of the warm-up.
        weight_decay: AdamW's weight decay, for matrices only.
        gradient_clip: largest gradient norm.
        nan_limit: number of consecutive steps without a finite loss that stops the run; fewer are
            skipped.
        seed: seed of weights, data and their order.
        device: "auto" (a GPU for each process where there is one) or "cpu".
        dtype: floating type of the trained part: "float32", or "bfloat16" under autocast.
        encoder_dtype: floating type of a frozen encoder; "auto" is bfloat16 on GPUs.
        threads: CPU threads of the training process; 0 leaves them as they are.
        workers: processes that read ahead; the results do not depend on it.
        validate_every: steps between measurements.
        checkpoint_every: steps between checkpoints.

    Raises:
        UsageError: an invalid value; the message names it.
    """

    # Settings that may differ on resume: they do not affect results, or only their rounding.
    free: ClassVar[tuple[str, ...]] = ("device", "threads", "workers", "checkpoint_every")
    # Settings that are paths: however one is written, it is the same setting on resume.
    paths: ClassVar[tuple[str, ...]] = ("encoder_weights",)

    model: ModelConfig
    learning_rate: float = 1e-3
    decay: bool = True
    warmup: int = 200
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    nan_limit: int = 10
    seed: int = 0
    device: str = AUTO
    dtype: str = "float32"
    encoder_dtype: str = AUTO
    threads: int = 0
    workers: int = 1
    validate_every: int = 1000
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        self._check_types()
        self._check_choices({"device": DEVICES, "dtype": DTYPES, "encoder_dtype": (AUTO, *DTYPES)})
        self._check_numbers(
            at_least_1=("nan_limit", "validate_every", "checkpoint_every"),
            at_least_0=("warmup", "weight_decay", "seed", "threads", "workers"),
            positive=("learning_rate", "gradient_clip"),
        )

    @classmethod
    def from_yaml(cls: type[R], path: Path) -> R:
        """Read a recipe.

        Raises:
            UsageError: the file is missing, is not YAML, or has invalid settings.
        """
        from fsdino.yaml_files import read_yaml  # only here, so that --help starts fast

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

        Lists, as YAML has them, become tuples, and whole numbers floats where those are asked for;
        paths lose what says nothing, such as the `./` of `./sam.pth`.
        """
        types = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            if field.name != "model":
                value = _as_type(getattr(self, field.name), types[field.name], field.name)
                most = _LARGEST_SEED if field.name == "seed" else _LARGEST
                if any(isinstance(v, (int, float)) and abs(v) > most for v in _flat(value)):
                    raise UsageError(f"{field.name} must be at most {most:,}, got {value}")
                if field.name in self.paths and value:
                    value = str(Path(value))
                object.__setattr__(self, field.name, value)

    def _check_choices(self, choices: Mapping[str, Sequence[str]]) -> None:
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UsageError(
                    f"unknown {name} {getattr(self, name)!r}: choose {', '.join(known)}"
                )

    def _check_numbers(
        self,
        *,
        at_least_1: Sequence[str] = (),
        at_least_0: Sequence[str] = (),
        positive: Sequence[str] = (),
    ) -> None:
        """Check settings by name; None is not a number."""
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
