"""What `fsdino train` and `fsdino distill` share: recipes, processes, and what is kept."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fsdino.errors import UsageError
from fsdino.training.recipe import Recipe

if TYPE_CHECKING:
    from fsdino.processes import Processes
    from fsdino.training.distillation.config import DistillConfig
    from fsdino.training.meta.config import TrainConfig


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


def check_files(settings: Recipe, names: Sequence[str]) -> None:
    """Refuse a file of weights that is not there, by the name of its setting.

    Raises:
        UsageError: it is missing.
    """
    for name in names:
        file = getattr(settings, name)
        if file is not None and not Path(file).is_file():
            raise UsageError(f"--{name.replace('_', '-')} {file}: no such file")
