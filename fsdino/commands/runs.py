"""What `fsdino train` and `fsdino distill` share: recipes, processes, and what is kept."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from fsdino.errors import UsageError
from fsdino.training.recipe import Recipe

if TYPE_CHECKING:
    from fsdino.processes import Processes
    from fsdino.training.distillation.config import DistillConfig
    from fsdino.training.meta.config import TrainConfig

# The settings of a run as options of their own, `--model.NAME` those of its model.
S = TypeVar("S", bound=Recipe)
AsOptions = Annotated[S, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@contextlib.contextmanager
def joined_for_training(device: str) -> Iterator[Processes]:
    """The processes of a training run; all but the first keep to errors."""
    from fsdino.processes import Processes

    processes = Processes.for_training(device)
    if not processes.is_first:
        logging.getLogger("fsdino").setLevel(logging.ERROR)
    try:
        yield processes
    finally:
        processes.close()


def has_random_weights(config: TrainConfig | DistillConfig) -> bool:
    """Whether a run starts from an encoder with random weights."""
    given = (config.encoder_from, config.encoder_weights, config.model.encoder_weights)
    return given == (None, None, None) and not config.model.pretrained


def find_recipe(name: str, command: Literal["train", "distill"]) -> Path:
    """The file of a recipe: a path, or the name of one that ships for a command."""
    every = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    shipped = {
        stem: path
        for stem, path in every.items()
        if stem.startswith("distill-") == (command == "distill")
    }
    if name in shipped:
        return shipped[name]
    if name in every:
        other = "train" if command == "distill" else "distill"
        raise UsageError(
            f"recipe {name!r} is for fsdino {other}: pass one of: {', '.join(shipped)}"
        )
    path = Path(name)
    if path.is_dir():
        raise UsageError(f"recipe {name}: a YAML file is needed, this is a folder")
    if not path.is_file():
        known = ", ".join(shipped) or "none ships with this version"
        raise UsageError(f"unknown recipe {name!r}: pass a YAML file, or one of: {known}")
    return path


def kept_run(folder: Path) -> str:
    """The last checkpoint of an interrupted run, and how to continue."""
    from fsdino.training.run import checkpoint_files

    kept = [int(path.stem) for path in checkpoint_files(folder)]
    said = f"step {kept[-1]} is kept" if kept else "no checkpoint was due yet"
    return f"{said} in {folder}; the same command with --resume continues it"


def first_argument(arguments: Sequence[str]) -> str | None:
    """The recipe among a command's arguments: it comes first, so that it is known before others."""
    return arguments[0] if arguments and not arguments[0].startswith("-") else None


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether only the options are to be shown."""
    return bool({"-h", "--help"} & set(arguments))


def check_files(settings: Recipe, names: Sequence[str]) -> None:
    """Refuse a file of weights that is not there, by the name of its setting.

    Raises:
        UsageError: it is missing.
    """
    for name in names:
        file = getattr(settings, name)
        if file is not None and not Path(file).is_file():
            raise UsageError(f"--{name.replace('_', '-')} {file}: no such file")


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


_READERS: dict[type, Callable[[str], Any]] = {int: int, float: float, str: str}
_READERS[bool] = {"True": True, "False": False}.__getitem__


def _read(value: str, kinds: Sequence[type]) -> Any:
    """A value as the first of some types that it can be.

    Raises:
        ValueError: it can be none of them.
    """
    for kind in kinds:
        with contextlib.suppress(ValueError, KeyError):
            return _READERS[kind](value)
    raise ValueError(f"{value!r} is not {' or '.join(kind.__name__ for kind in kinds)}")
