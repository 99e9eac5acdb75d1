"""The settings of a run as options of a command, with the recipe's values as defaults."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from fsdino.models.config import ModelConfig
from fsdino.training.recipe import Recipe

# The settings of a run as options of their own, `--model.NAME` those of its model.
S = TypeVar("S", bound=Recipe)
C = TypeVar("C")
AsOptions = Annotated[S, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]

_READERS: dict[type, Callable[[str], Any]] = {
    int: int,
    float: float,
    str: str,
    bool: {"True": True, "False": False}.__getitem__,
}


def skim(command: type[C], settings: type[Recipe], arguments: Sequence[str]) -> C:
    """The arguments of a command without the checks of its settings, and without --help.

    The recipe, wherever it stands, gives the settings that are not there: they can be checked only
    when it is known. What is not given is empty here.
    """
    model = _unchecked(ModelConfig)
    config = _unchecked(settings, model=model)
    kind = dataclasses.make_dataclass(
        command.__name__,
        [("config", AsOptions[config])],  # type: ignore[misc, valid-type]
        bases=(command,),
        frozen=True,
        kw_only=True,
    )
    given = [argument for argument in arguments if argument not in {"-h", "--help"}]
    with optional_values():
        found: C = tyro.cli(
            kind,
            prog=f"fsdino {command.__name__.lower()}",
            args=given,
            default=kind(recipe="", out=Path(), config=config(model())),
        )
    return found


def _unchecked(kind: type, **types: type) -> Any:
    """A dataclass with the fields of another, some of other types, that takes any value of them."""
    namespace = {"__doc__": kind.__doc__, "__post_init__": lambda self: None}
    return dataclasses.make_dataclass(
        kind.__name__, list(types.items()), bases=(kind,), namespace=namespace, frozen=True
    )


def optional_values() -> ConstructorRegistry:
    """How tyro reads a setting that may be None: one value or several, or the word None."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        kinds = get_args(info.type) if get_origin(info.type) in (Union, UnionType) else ()
        if type(None) not in kinds:
            return None
        one, *others = (kind for kind in kinds if kind is not type(None))
        several = get_origin(one) is tuple
        kind = get_args(one)[0] if several else one
        if kind not in _READERS:
            return None
        kinds = (kind, *others)
        metavar = "|".join(k.__name__.upper() for k in kinds) + (" ..." if several else "")

        def read(values: list[str]) -> Any:
            if values == ["None"]:
                return None
            found = tuple(_read(value, kinds) for value in values)
            return found if several else found[0]

        def show(value: Any) -> list[str]:
            return list(map(str, value)) if isinstance(value, tuple) else [str(value)]

        return PrimitiveConstructorSpec(
            nargs="*" if several else 1,
            metavar=metavar,
            instance_from_str=read,
            is_instance=lambda value: value is None or isinstance(value, (*kinds, tuple)),
            str_from_instance=show,
        )

    return registry


def _read(value: str, kinds: Sequence[type]) -> Any:
    """A value as the first of some types that it can be.

    Raises:
        ValueError: it can be none of them.
    """
    for kind in kinds:
        with contextlib.suppress(ValueError, KeyError):
            return _READERS[kind](value)
    raise ValueError(f"{value!r} is not {' or '.join(kind.__name__ for kind in kinds)}")
