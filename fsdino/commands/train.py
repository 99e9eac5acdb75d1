"""`fsdino train`: its options."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fsdino.commands.info import print_parts
from fsdino.commands.options import Flag, check_model
from fsdino.commands.runs import (
    check_files,
    find_recipe,
    has_random_weights,
    joined_for_training,
    kept_run,
)
from fsdino.commands.settings import AsOptions, skim
from fsdino.errors import UsageError
from fsdino.models.config import ModelConfig
from fsdino.training.meta.config import TrainConfig

if TYPE_CHECKING:
    from fsdino.models.segmenter import Segmenter
    from fsdino.training.meta.train import Trainer

logger = logging.getLogger("fsdino.commands")


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a segmenter on episodes of base classes: stage 2.

    Every setting of the recipe is an option; `fsdino train RECIPE --help` shows their values. The
    folder of the run holds the configuration, checkpoints, metrics.jsonl and files for TensorBoard;
    the last model is in model/, the best one in best/. Ctrl-C writes a checkpoint, and --resume
    continues the run. With `torchrun --nproc-per-node N -m fsdino train ...` or
    `accelerate launch -m fsdino train ...` processes share the episodes of each step.
    """

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """A YAML file, or the name of a recipe that ships with fsdino."""
    out: Path
    """Folder of the run."""
    resume: Flag = False
    """Continue the run in that folder."""
    config: AsOptions[TrainConfig]

    @classmethod
    def begin(cls, arguments: Sequence[str]) -> Train:
        """What the options change: the settings of the recipe.

        Raises:
            UsageError: there is no such recipe.
        """
        recipe = skim(cls, TrainConfig, arguments).recipe
        config = TrainConfig(ModelConfig())
        if recipe:
            config = TrainConfig.from_yaml(find_recipe(recipe, "train"))
        return cls(recipe=tyro.MISSING, out=tyro.MISSING, config=config)

    def run(self) -> int:
        """Run the command; returns the exit code."""
        config = self.config
        self.check()
        check_files(config, ("encoder_weights", "decoder_weights", "adapter_weights"))
        for name in (config.start_from, config.encoder_from):
            check_model(name)
        self._check_data()
        from fsdino.training.meta.train import Trainer

        with joined_for_training(config.device) as processes:
            try:
                trainer = Trainer(config, self.out, resume=self.resume, processes=processes)
                if processes.is_first:
                    _print_parameters(trainer.model)
                self._fit(trainer)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(kept_run(self.out)) from None
        if processes.is_first:
            best = "the best by validation" if config.validation else "the same, not validated"
            print(f"trained model: {self.out / 'model'}; {best}: {self.out / 'best'}")
        return 0

    def check(self) -> None:
        """Refuse a frozen encoder with random weights; warn of such an adapter.

        Raises:
            UsageError: the encoder would not learn, and nothing says where its weights come from.
        """
        config = self.config
        if config.start_from is not None:
            return
        if not config.train_encoder and has_random_weights(config):
            raise UsageError(
                "the encoder is frozen and has random weights: pass --encoder-weights or "
                "--encoder-from"
            )
        has_adapter = config.model.variant not in ("hsnet", "hsnet_head")
        if has_adapter and not config.train_adapter and config.adapter_weights is None:
            logger.warning(
                "the adapter is frozen and has random weights: pass --adapter-weights, or "
                "--train-adapter"
            )

    def _check_data(self) -> None:
        """Refuse a data set that is not there, before anything is read."""
        from fsdino.data.catalog import check_episodes

        config = self.config
        check_episodes(
            config.data,
            fold=config.fold,
            root=None if config.root is None else Path(config.root),
            splits=None if config.splits is None else Path(config.splits),
            layout=config.layout,
            ignore=config.ignore,
            background=config.background,
        )

    def _fit(self, trainer: Trainer) -> None:
        """Train to the end, with progress from the first process."""
        from fsdino.progress import Progress

        if not trainer.processes.is_first:
            trainer.fit()
            return
        config = trainer.config
        with Progress("train", config.steps, done=trainer.start, unit="steps") as progress:

            def report(step: int, loss: float, miou: float | None) -> None:
                quality = "" if miou is None else f", {config.select_on} mIoU {miou:.1f} %"
                progress.advance(note=f"loss {loss:.3f}{quality}")

            trainer.fit(report)


def _print_parameters(model: Segmenter) -> None:
    from fsdino.models import zoo

    print_parts(
        {part: dict(zip(("trained", "frozen"), counts, strict=True))
         for part, counts in zoo.parameter_table(model).items()}
    )  # fmt: skip
