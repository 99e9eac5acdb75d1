"""`fsdino distill`: its options and its table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fsdino.commands.options import (
    File,
    Flag,
    Folder,
    Integer,
    Integers,
    Json,
    Name,
    Number,
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
from fsdino.tables import print_table

if TYPE_CHECKING:
    from fsdino.models.config import ModelConfig
    from fsdino.training.distillation.config import DistillConfig
    from fsdino.training.distillation.distill import Distillation


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Stage 1 of training: teach the adapter what SAM's image encoder sees, from images alone.

    fsdino distill distill-dinov2-b --encoder-weights dinov2_vitb14_pretrain.pth
    --teacher-checkpoint sam_vit_h_4b8939.pth --images sa-1b/ --out runs/distill

    The teacher's embeddings are computed once and kept (about 2 MB an image; said beforehand). Then
    the adapter learns, on small images first. `fsdino train --adapter-weights
    runs/distill/adapter.safetensors` takes the result. Ctrl-C writes a checkpoint, and --resume
    goes on. Options that are not given come from the recipe, if there is one. With
    `torchrun --nproc-per-node N -m fsdino distill ...` processes share the images.
    """

    recipe: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="[RECIPE]", help_behavior_hint="")
    ] = ""
    """A YAML file, or the name of a recipe that ships with fsdino, such as distill-dinov2-b."""
    out: Path
    """Folder of the run."""
    resume: Flag = False
    """Continue the run in that folder."""
    images: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="PATH ...", help_behavior_hint="")
    ] = ()
    """Folders, .tar shards (SA-1B's, not unpacked), lists of paths (.txt), images."""
    teacher_checkpoint: File = None
    """A Segment Anything checkpoint, such as sam_vit_h_4b8939.pth (Apache-2.0)."""
    teacher: Name = None
    """vit_b, vit_l or vit_h that it must hold; default: whichever it holds."""
    model: Name = None
    """Name or folder of a model: its encoder, and the measures of its adapter."""
    encoder: Name = None
    """Instead of --model: a timm ViT such as vit_base_patch14_dinov2.lvd142m."""
    encoder_weights: File = None
    """Its weights: one of Meta's dinov2_vit*14*_pretrain.pth (Apache-2.0)."""
    percent: Number = None
    """How much of the images, by a stable hash of their names; default: 100."""
    held_out: Number = None
    """Share of those that both numbers are measured on; default: 0.01."""
    image_sizes: Integers = ()
    """Sides in pixels, stage after stage; default: 126 252 518."""
    epochs: Integers = ()
    """Of each stage, or one number for all; default: 2."""
    batch_size: Integer = None
    """Images of a step, of all processes together; default: 32."""
    images_per_pass: Integer = None
    """Images of one pass, whose gradients add up; default: all at once."""
    learning_rate: Number = None
    """Peak learning rate; default: 0.001."""
    warmup: Integer = None
    """Steps until it is reached; default: 500."""
    cache: Folder = None
    """Folder for embeddings that runs share; default: in --out."""
    no_cache: Flag = False
    """Compute embeddings on the fly, again in each epoch."""
    seed: Integer = None
    """Of weights and order."""
    device: Name = None
    """auto (a GPU for each process where there is one) or cpu."""
    dtype: Name = None
    """Of the adapter: float32, or bfloat16 under autocast."""
    workers: Integer = None
    """Processes that read images."""
    threads: Integer = None
    """CPU threads of the training process."""
    validate_every: Integer = None
    """Steps between measurements on held-out images."""
    checkpoint_every: Integer = None
    """Steps between checkpoints."""
    as_json: Json = False
    """Print the result as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        check_model(self.model)
        from fsdino.training.distillation.distill import Distillation

        config = self.configure()
        with joined_for_training(config.device) as processes:
            distillation = Distillation(config, self.out, resume=self.resume, processes=processes)
            self._prepare(distillation)
            result = self._fit(distillation)
        if processes.is_first and self.as_json:
            print(json.dumps(result))
        elif processes.is_first:
            _print_distillation(result)
        return 0

    def configure(self) -> DistillConfig:
        """The recipe, or a new configuration, with what the options change."""
        import dataclasses

        from fsdino.training.distillation.config import DistillConfig

        if self.recipe:
            config = DistillConfig.from_yaml(find_recipe(self.recipe, "distill"))
            if self.model is not None or self.encoder is not None:
                raise UsageError("the recipe says which model: leave out --model and --encoder")
        else:
            config = DistillConfig(self._model(), encoder_from=self.model)
        given = given_settings(self, config)
        if self.no_cache:
            given["use_cache"] = False
        config = dataclasses.replace(config, **given)
        if not config.images:
            raise UsageError("no images: pass --images, folders or .tar shards")
        if not config.teacher_checkpoint:
            raise UsageError("no teacher: pass --teacher-checkpoint, such as sam_vit_h_4b8939.pth")
        if has_random_weights(config):
            raise UsageError("the encoder has random weights: pass --encoder-weights")
        return config

    def _model(self) -> ModelConfig:
        from fsdino.models import zoo
        from fsdino.models.config import ModelConfig

        if (self.model is None) == (self.encoder is None):
            raise UsageError("pass a recipe, --model, or --encoder with --encoder-weights")
        return ModelConfig(self.encoder) if self.encoder else zoo.load(str(self.model)).config

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
                f"embeddings are kept for {self.out}; the same command with --resume goes on"
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
