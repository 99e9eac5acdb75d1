"""`fsdino distill`: its options and its table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fsdino.commands.options import Flag, Json, Name, check_model
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
from fsdino.tables import print_table
from fsdino.training.distillation.config import DistillConfig

if TYPE_CHECKING:
    from fsdino.training.distillation.distill import Distillation


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Train the adapter on the features of SAM's image encoder, from images alone: stage 1.

    fsdino distill distill-dinov2-b --encoder-weights dinov2_vitb14_pretrain.pth
    --teacher-checkpoint sam_vit_h_4b8939.pth --images sa-1b/ --out runs/distill

    Every setting of the recipe is an option; `fsdino distill RECIPE --help` shows their values. The
    teacher's embeddings are computed once and kept, about 2 MB for each image. Then the adapter
    learns, on small images first. `fsdino train --adapter-weights FILE` takes the result,
    adapter.safetensors. Ctrl-C writes a checkpoint, and --resume continues the run.
    With `torchrun --nproc-per-node N -m fsdino distill ...` processes share the images.
    """

    recipe: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="[RECIPE]", help_behavior_hint="")
    ] = ""
    """A YAML file, or the name of a recipe that ships with fsdino, such as distill-dinov2-b."""
    out: Path
    """Folder of the run."""
    resume: Flag = False
    """Continue the run in that folder."""
    model: Name = None
    """Instead of a recipe: name or folder of a model, for its encoder and its adapter's sizes."""
    as_json: Json = False
    """Print the result as one JSON object."""

    config: AsOptions[DistillConfig]

    @classmethod
    def begin(cls, arguments: Sequence[str]) -> Distill:
        """What the options change: the settings of the recipe, or of a model's encoder.

        Raises:
            UsageError: there is no such recipe or model, or both are given.
        """
        given = skim(cls, DistillConfig, arguments)
        recipe, model = given.recipe, given.model
        if recipe and model is not None:
            raise UsageError("the recipe says which model: leave out --model")
        if recipe:
            config = DistillConfig.from_yaml(find_recipe(recipe, "distill"))
        elif model is not None:
            check_model(model)
            config = DistillConfig(_read_config(model), encoder_from=model)
        else:
            config = DistillConfig(ModelConfig())
        return cls(recipe=recipe, out=tyro.MISSING, config=config)

    def run(self) -> int:
        """Run the command; returns the exit code."""
        config = self.config
        self.check()
        check_files(config, ("encoder_weights", "teacher_checkpoint"))
        check_model(config.encoder_from)
        from fsdino.training.distillation.distill import Distillation

        with joined_for_training(config.device) as processes:
            distillation = Distillation(config, self.out, resume=self.resume, processes=processes)
            self._prepare(distillation)
            result = self._fit(distillation)
        if processes.is_first and self.as_json:
            print(json.dumps(result))
        elif processes.is_first:
            _print_distillation(result)
        return 0

    def check(self) -> None:
        """Refuse a run without images, a teacher, or an encoder with weights.

        Raises:
            UsageError: one of them is missing.
        """
        config = self.config
        if not (self.recipe or self.model) and has_random_weights(config):
            raise UsageError("pass a recipe, --model, or --encoder-weights with --model.encoder")
        if not config.images:
            raise UsageError("no images: pass --images, folders or .tar shards")
        if not config.teacher_checkpoint:
            raise UsageError("no teacher: pass --teacher-checkpoint, such as sam_vit_h_4b8939.pth")
        if has_random_weights(config):
            raise UsageError("the encoder has random weights: pass --encoder-weights")

    def _prepare(self, distillation: Distillation) -> None:
        from fsdino.progress import Progress

        count = distillation.images_to_embed()
        if not count or not distillation.processes.is_first:
            distillation.prepare()
            return
        try:
            with Progress("teacher's embeddings", count) as progress:
                distillation.prepare(progress.advance)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"embeddings are kept for {self.out}; the same command with --resume continues it"
            ) from None

    def _fit(self, distillation: Distillation) -> dict[str, Any]:
        """Learn to the end, with progress from the first process."""
        from fsdino.progress import Progress

        try:
            if not distillation.processes.is_first:
                return distillation.fit()
            start, steps = distillation.start, distillation.schedule.steps
            with Progress("distill", steps, done=start, unit="steps") as progress:

                def report(step: int, loss: float, cosine: float | None) -> None:
                    quality = "" if cosine is None else f", held-out cosine {cosine:.3f}"
                    progress.advance(note=f"MSE {loss:.4f}{quality}")

                return distillation.fit(report)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(kept_run(self.out)) from None


def _read_config(name: str) -> ModelConfig:
    """The configuration of a model."""
    from fsdino.models import zoo

    return zoo.load(name).config


def _print_distillation(result: Mapping[str, Any]) -> None:
    print_table(
        ["image size", "steps", "held-out MSE", "held-out cosine"],
        [
            [str(stage["image_size"]), f"{stage['steps']:,}",
             *("lost" if stage[name] is None else f"{stage[name]:.4f}"
               for name in ("held_out_mse", "held_out_cosine"))]
            for stage in result["stages"]
        ],
        f"{result['images']:,} images, and {result['held_out']:,} held out, after each stage",
    )  # fmt: skip
    if result["unreadable"]:
        print(f"{len(result['unreadable'])} images could not be read: result.json names them")
    print(f"adapter: {result['adapter']}; pass it to fsdino train --adapter-weights")
