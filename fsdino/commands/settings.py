"""The settings of a run as options of a command, with the recipe's values as defaults."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from fsdino.training.recipe import Recipe

# The settings of a run as options of their own, `--model.NAME` those of its model.
S = TypeVar("S", bound=Recipe)
AsOptions = Annotated[S, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]

_READERS: dict[type, Callable[[str], Any]] = {
    int: int,
    float: float,
    str: str,
    bool: {"True": True, "False": False}.__getitem__,
}


def first_argument(arguments: Sequence[str]) -> str | None:
    """The recipe among a command's arguments: it comes first, so that it is known before others."""
    return arguments[0] if arguments and not arguments[0].startswith("-") else None


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether only the options are to be shown."""
    return bool({"-h", "--help"} & set(arguments))


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
