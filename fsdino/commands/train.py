"""`fsdino train`: its options."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fsdino.commands.info import print_parts
from fsdino.commands.options import (
    File,
    Flag,
    Folder,
    Integer,
    Integers,
    Name,
    Number,
    Value,
    check_model,
)
from fsdino.commands.runs import (
    find_recipe,
    given_settings,
    has_random_weights,
    joined_for_training,
    kept_run,
)
from fsdino.errors import UsageError

if TYPE_CHECKING:
    from fsdino.models.segmenter import Segmenter
    from fsdino.training.meta.config import TrainConfig
    from fsdino.training.meta.train import Trainer

logger = logging.getLogger("fsdino.commands")

Part = Literal["pcs", "svp", "4d", "ce", "score"]
Learning = Annotated[
    Literal["trained", "frozen"] | None,
    tyro.conf.arg(metavar="trained|frozen", help_behavior_hint=""),
]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a segmenter on episodes of base classes.

    The run folder keeps the configuration, checkpoints, metrics.jsonl and TensorBoard's files; the
    last model is in its folder model/, the best in best/. Ctrl-C writes a checkpoint, and --resume
    goes on. Options that are not given come from the recipe. With
    `torchrun --nproc-per-node N -m fsdino train ...` or `accelerate launch -m fsdino train ...`
    processes share the episodes of each step.
    """

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """A YAML file, or the name of a recipe that ships with fsdino."""
    out: Path
    """Folder of the run."""
    resume: Flag = False
    """Continue the run in that folder."""
    data: Name = None
    """Data set whose base classes are trained on; see `fsdino data check`."""
    root: Folder = None
    """Folder of the data set."""
    splits: Folder = None
    """Folder of HSNet's split lists; default: lists derived from the annotations."""
    layout: Name = None
    """Of a folder of your own: auto, class-folders, pairs or labels; see docs/data.md."""
    ignore: Value = None
    """Value of label maps that is not scored, or none; default: 255."""
    background: Value = None
    """Value of label maps that is not a class, or none; default: 0."""
    fold: Integer = None
    """Fold that is held out of training."""
    photographs: Folder = None
    """Folder of photographs without labels, whose regions serve as classes."""
    photograph_share: Number = None
    """Share of the episodes that are made from photographs, 0 to 1."""
    variant: Name = None
    """full, comp (no 4D correlation), comp_frozen (comp, with a frozen decoder) or hsnet."""
    without: Annotated[
        tuple[Part, ...], tyro.conf.arg(metavar="pcs|svp|4d|ce|score ...", help_behavior_hint="")
    ] = ()
    """Parts of the prompt generator to leave out."""
    adapter: Learning = None
    """Whether the adapter learns."""
    decoder: Learning = None
    """Whether the decoder learns."""
    start_from: Name = None
    """Name or folder of a model that the run goes on from, with all its weights."""
    encoder_from: Name = None
    """Name or folder of a model whose encoder is taken."""
    encoder_weights: File = None
    """One of Meta's DINOv2 files."""
    decoder_weights: File = None
    """An official SAM file."""
    adapter_weights: File = None
    """What `fsdino distill` wrote."""
    steps: Integer = None
    """Optimiser steps. With --resume, more of them extend a finished run."""
    images_per_step: Integer = None
    """Distinct images in a step, of all processes together."""
    episodes_per_batch: Name = None
    """Episodes of one pass, whose gradients add up; auto takes what fits into memory."""
    shots: Integers = ()
    """K of each step is drawn from these."""
    learning_rate: Number = None
    """Peak learning rate."""
    seed: Integer = None
    """Of weights, episodes and schedule."""
    device: Name = None
    """auto (a GPU for each process where there is one) or cpu."""
    dtype: Name = None
    """Of the trained part: float32, or bfloat16 under autocast."""
    feature_cache: Folder = None
    """Folder that keeps a frozen encoder's features."""
    workers: Integer = None
    """Processes that prepare episodes."""
    threads: Integer = None
    """CPU threads of the training process."""
    skip_bad: Flag = False
    """Take another episode where an image cannot be read, and name it."""
    no_validation: Flag = False
    """Train on all images of a folder; the last model is the best."""
    validate_every: Integer = None
    """Steps between validations."""
    validation_episodes: Integer = None
    """Episodes of one validation."""
    select_on: Name = None
    """What the best model is chosen by: base (classes) or novel, which every result then says."""
    patience: Integer = None
    """Validations without a better one that end the run; 0 never does."""
    checkpoint_every: Integer = None
    """Steps between checkpoints."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        for name in (self.start_from, self.encoder_from):
            check_model(name)
        from fsdino.training.meta.train import Trainer

        config = self.configure()
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

    def configure(self) -> TrainConfig:
        """The recipe with what the options change."""
        import dataclasses

        from fsdino.training.meta.config import TrainConfig

        config = TrainConfig.from_yaml(find_recipe(self.recipe, "train"))
        given = given_settings(self, config)
        given |= {
            f"train_{part}": value == "trained"
            for part, value in (("adapter", self.adapter), ("decoder", self.decoder))
            if value is not None
        }
        if self.no_validation:
            given["validation"] = False
        for name in ("ignore", "background"):
            if given.get(name, "").lstrip("-").isdecimal():
                given[name] = int(given[name])
        if self.episodes_per_batch is not None and self.episodes_per_batch.isdecimal():
            given["episodes_per_batch"] = int(self.episodes_per_batch)
        parts = {
            "pcs": "cosine_prompt", "svp": "visual_prompt", "4d": "correlation_prompt",
            "ce": "contrastive", "score": "score_prompt",
        }  # fmt: skip
        changes: dict[str, Any] = {parts[part]: False for part in self.without}
        if self.variant is not None:
            changes["variant"] = self.variant
        given["model"] = dataclasses.replace(config.model, **changes)
        config = dataclasses.replace(config, **given)
        _check_start(config)
        return config

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


def _check_start(config: TrainConfig) -> None:
    """Refuse a frozen encoder that knows nothing; a word about such an adapter."""
    if config.start_from is not None:
        return
    if not config.train_encoder and has_random_weights(config):
        raise UsageError(
            "the encoder is frozen and has random weights: pass --encoder-weights or --encoder-from"
        )
    has_adapter = config.model.variant != "hsnet"
    if has_adapter and not config.train_adapter and config.adapter_weights is None:
        logger.warning(
            "the adapter is frozen and has random weights: pass --adapter-weights, or --adapter "
            "trained"
        )


def _print_parameters(model: Segmenter) -> None:
    from fsdino.models import zoo

    print_parts(
        {part: dict(zip(("trained", "frozen"), counts, strict=True))
         for part, counts in zoo.parameter_table(model).items()}
    )  # fmt: skip
