"""The `fsdino` command: options, one class per command, and errors as one line.

Heavy modules are imported inside the commands, so that `fsdino --help` answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import logging
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import tyro

from fsdino.devices import check_dtype, find_device, find_dtype
from fsdino.errors import DataError, FsdinoError, UsageError, is_out_of_memory
from fsdino.models.names import DEFAULT as DEFAULT_MODEL
from fsdino.models.names import DRAWN as DRAWN_MODEL
from fsdino.version import __version__

if TYPE_CHECKING:
    from fsdino.apps.data import Check
    from fsdino.apps.demo import Results
    from fsdino.apps.folder import Outcome, Output
    from fsdino.apps.supports import SupportFiles
    from fsdino.bench.compare import Comparison
    from fsdino.evaluation.evaluate import Settings
    from fsdino.evaluation.record import Difference
    from fsdino.models.config import ModelConfig
    from fsdino.models.segmenter import Segmenter
    from fsdino.models.supports import Support
    from fsdino.processes import Processes
    from fsdino.training.distillation.config import DistillConfig
    from fsdino.training.distillation.distill import Distillation
    from fsdino.training.meta.config import TrainConfig
    from fsdino.training.meta.train import Trainer
    from fsdino.training.recipe import Recipe
    from fsdino.training.team import Team

logger = logging.getLogger("fsdino.cli")

_VIDEOS = "davis17"
_INTERRUPTED = 130  # exit code
RECIPES = Path(__file__).resolve().parent / "recipes"

Json = Annotated[bool, tyro.conf.arg(name="json", help_behavior_hint="")]
Integer = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
Number = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Integers = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...", help_behavior_hint="")]
Name = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
Layout = Annotated[
    Literal["auto", "class-folders", "pairs", "labels"], tyro.conf.arg(help_behavior_hint="")
]
Value = Annotated[str | None, tyro.conf.arg(metavar="INT|none", help_behavior_hint="")]
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
Dtype = Annotated[
    str, tyro.conf.arg(metavar="float32|float16|bfloat16", help_behavior_hint="(default: float32)")
]
Part = Literal["pcs", "svp", "4d", "ce", "score"]
Learning = Annotated[
    Literal["trained", "frozen"] | None,
    tyro.conf.arg(metavar="trained|frozen", help_behavior_hint=""),
]

_DESCRIPTION = """\
Few-shot segmentation: mark an object in one image, find it in others.

With every command: --debug shows the traceback of an error, --verbose logs details.
fsdino --version prints the version.
"""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """See what it does: a report with pictures, offline, in about a minute.

    Segments the photographs that are installed with fsdino, then drawings of the generated data
    set's held-out fold, compares both with the truth and with what needs no training, and times
    the kernels. Builds the C++ kernels first, where they are not built and a compiler is there.
    """

    out: Path
    """Folder for report.html, demo.json, photographs/ and overlays/."""
    model: str = DEFAULT_MODEL
    """Name, folder or hub id (hf:owner/name) of the model that segments the photographs."""
    drawn_model: str = DRAWN_MODEL
    """Likewise, for the drawings: one that was trained without the data set's fold 3."""
    episodes: int = 24
    """How many drawn episodes to segment and score."""
    pictures: int = 3
    """How many of them to show for each number of shots."""
    workload: str = "W6"
    """Workload of the kernel table; see `fsdino benchmark`."""
    repeats: int = 3
    """Rounds of the kernel timing."""
    as_json: Json = False
    """Print the numbers as one JSON object instead of tables."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        _wait_without_spinning()
        for name in (self.model, self.drawn_model):
            _check_model(name)
        from fsdino.apps import build, demo, demo_report, report

        build.run_if_possible()
        settings = demo.Settings(
            self.model, self.drawn_model, self.episodes, self.pictures, self.workload,
            self.repeats,
            command=shlex.join(["fsdino", *sys.argv[1:]]),
        )  # fmt: skip
        results = demo.run(settings, self.out)
        report.write(self.out / "report.html", demo_report.render(results))
        if self.as_json:
            print(json.dumps(results.to_dict()))
        else:
            _print_demo(results)
            print(f"\n{self.out / 'report.html'}: open it in a browser ({results.seconds:.0f} s)")
        return _check_passed([results.kernels])


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Segment images, or folders of images, by a few marked examples.

    One class: fsdino segment --support cat.jpg cat.png --query photos/ --out found/

    Several, each with a name: --support cat=a.jpg a.png --support dog=b.jpg b.png c.jpg c.png

    Says how well each support finds itself, and warns where that promises little;
    --check-support does only this.

    Writes masks/NAME.png (0 and 255, or one label per class), overlays/NAME.jpg (or .png where an
    image is too long for JPEG) and results.jsonl. The same command goes on where it was
    interrupted. With
    `torchrun --nproc-per-node N -m fsdino segment ...` processes share the queries.
    """

    support: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]],
        tyro.conf.arg(metavar="[NAME=]IMAGE MASK ...", help_behavior_hint="(required)"),
    ] = ()
    """Marked examples of a class, or a file from --save-support; again for every further class."""
    query: Annotated[
        tuple[Path, ...], tyro.conf.arg(metavar="IMAGE|FOLDER ...", help_behavior_hint="(required)")
    ] = ()
    """What to segment; folders are searched with their subfolders."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(required)")] = (
        None
    )
    """Folder for the results."""
    check_support: Flag = False
    """Only say how well each support finds itself; needs no --query and no --out."""
    model: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint=f"(default: {DEFAULT_MODEL})")
    ] = None
    """Name (see `fsdino models`), folder or hub id (hf:owner/name) of a model."""
    weights: File = None
    """Weights of --model dinov2-b and the like, instead of a download: Meta's
    dinov2_vit*14*_pretrain.pth or timm's model.safetensors."""
    image_size: Integer = None
    """Side in pixels that --model dinov2-b and the like resize images to (default: 518)."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a GPU where there is one."""
    dtype: Dtype = "float32"
    """Floating type of the weights."""
    threshold: Number = None
    """Probability from which a pixel belongs to a mask; default: the model's own."""
    tiles: Flag = False
    """Cut large queries into overlapping tiles of the support images' size."""
    max_megapixels: Number = None
    """Size up to which images are read; default: Pillow's limit of 179."""
    save_support: File = None
    """Also save the encoded support, to pass as --support FILE.safetensors later."""
    overwrite: Flag = False
    """Start again in a folder that holds the results of another call; other files stay."""
    as_json: Json = False
    """Print the results as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        _wait_without_spinning()
        check_dtype(self.dtype)
        _check_model(self.model or DEFAULT_MODEL, self.weights, self.image_size)
        from fsdino import processes as sharing

        with contextlib.ExitStack() as stack:
            if self.max_megapixels is not None:
                stack.enter_context(self._pixel_limit(self.max_megapixels))
            return self._run(stack.enter_context(sharing.processes()), stack)

    def _run(self, processes: Processes, stack: contextlib.ExitStack) -> int:
        from fsdino.apps import folder, supports

        files = supports.parse(self.support)
        is_main = processes.rank == 0
        if self.save_support is not None:
            supports.check_saving(self.save_support, files)
        if self.check_support:
            self._check_support(files, is_main)
            return 0
        if self.out is None:
            raise UsageError("no --out given: pass --out with a folder for the results")
        out = self.out
        queries = folder.find_queries(self.query, out)
        if queries.left_out and is_main:
            logger.warning("%s", queries.summary())
        model = self._load()
        encoded, threshold = self._encode(model, files, is_main)
        call = {
            "format": folder.FORMAT,
            "model": model.fingerprint(),
            "support": {support.name: support.digest() for support in files},
            "threshold": threshold,
            "tiles": self.tiles,
            "dtype": self.dtype,
        }
        if self.save_support is not None and is_main:
            stack.enter_context(supports.saving(self.save_support))
        overwrite = self.overwrite and is_main
        output = stack.enter_context(
            contextlib.closing(
                processes.in_turn(lambda: folder.Output(out, call, overwrite=overwrite))
            )
        )
        if self.save_support is not None and is_main:
            encoded[files[0].name].save(self.save_support)
        outcome = folder.segment_files(
            model,
            encoded,
            queries,
            output,
            threshold=threshold,
            tiles=self.tiles,
            processes=processes,
        )
        if not is_main:
            return 0
        if self.as_json:
            found = {"model_name": self.model or DEFAULT_MODEL, "quality": _qualities(encoded)}
            left_out = [{"file": f, "reason": reason} for f, reason in queries.left_out.items()]
            rest = {**outcome.to_dict(out), "left_out": left_out}
            print(json.dumps({**call, **found, **rest}))
        else:
            _print_segments(outcome, output, len(queries.left_out))
        if outcome.failed:
            reasons = "; ".join(outcome.failed.values())
            raise DataError(
                f"{len(outcome.failed)} of {len(queries)} queries failed, the others are in "
                f"{out}: {reasons}"
            )
        return 0

    def _encode(
        self, model: Segmenter, files: Sequence[SupportFiles], is_main: bool
    ) -> tuple[dict[str, Support], float]:
        """The supports and the threshold, both checked; tells the supports' quality."""
        from fsdino.apps import supports

        encoded = {support.name: support.encode(model) for support in files}
        threshold = model.config.threshold if self.threshold is None else self.threshold
        model.segment([], encoded, threshold=threshold)  # checks both before anything is written
        for name, support in encoded.items() if is_main else ():
            if not self.as_json:
                print(supports.quality(name, support), flush=True)
            warning = supports.warning(name, support)
            if warning is not None:
                logger.warning("%s", warning)
        return encoded, threshold

    def _check_support(self, files: Sequence[SupportFiles], is_main: bool) -> None:
        """Tell the supports' quality, and save what --save-support asks for."""
        from fsdino.apps import supports

        model = self._load()
        encoded, _ = self._encode(model, files, is_main)
        if not is_main:
            return
        if self.save_support is not None:
            with supports.saving(self.save_support):
                encoded[files[0].name].save(self.save_support)
        if self.as_json:
            called = {"model": model.fingerprint(), "model_name": self.model or DEFAULT_MODEL}
            digests = {support.name: support.digest() for support in files}
            print(json.dumps({**called, "support": digests, "quality": _qualities(encoded)}))

    def _pixel_limit(self, megapixels: float) -> contextlib.AbstractContextManager[None]:
        from fsdino import image_files

        if not 0 < megapixels < 1e6:
            raise UsageError(
                f"--max-megapixels must lie between 0 and a million, got {megapixels:g}"
            )
        return image_files.pixel_limit(max(int(megapixels * 1e6), 1))

    def _load(self) -> Segmenter:
        from fsdino.models import zoo
        from fsdino.processes import local_device

        name = self.model or DEFAULT_MODEL
        if name == DRAWN_MODEL:
            logger.info(
                "%s was trained on generated drawings; for photographs, leave out --model, or "
                "pass another one",
                name,
            )
        return zoo.load(
            name,
            device=local_device(find_device(self.device)),
            dtype=self.dtype,
            weights=self.weights,
            image_size=self.image_size,
        )


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
            _check_model(name)
        from fsdino.training.meta.train import Trainer

        config = self.configure()
        with _team(config.device) as team:
            try:
                trainer = Trainer(config, self.out, resume=self.resume, team=team)
                if team.is_main:
                    _print_parameters(trainer.model)
                self._fit(trainer)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(_kept_run(self.out)) from None
        if team.is_main:
            best = "the best by validation" if config.validation else "the same, not validated"
            print(f"trained model: {self.out / 'model'}; {best}: {self.out / 'best'}")
        return 0

    def configure(self) -> TrainConfig:
        """The recipe with what the options change."""
        import dataclasses

        from fsdino.training.meta.config import TrainConfig

        config = TrainConfig.from_yaml(_find_recipe(self.recipe, "train"))
        given = _given(self, config)
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

        if not trainer.team.is_main:
            trainer.fit()
            return
        config = trainer.config
        with Progress("train", config.steps, done=trainer.start, unit="steps") as progress:

            def report(step: int, loss: float, miou: float | None) -> None:
                quality = "" if miou is None else f", {config.select_on} mIoU {miou:.1f} %"
                progress.advance(note=f"loss {loss:.3f}{quality}")

            trainer.report = report
            trainer.fit()


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
        _check_model(self.model)
        from fsdino.training.distillation.distill import Distillation

        config = self.configure()
        with _team(config.device) as team:
            distillation = Distillation(config, self.out, resume=self.resume, team=team)
            self._prepare(distillation)
            result = self._fit(distillation)
        if team.is_main and self.as_json:
            print(json.dumps(result))
        elif team.is_main:
            _print_distillation(result)
        return 0

    def configure(self) -> DistillConfig:
        """The recipe, or a new configuration, with what the options change."""
        import dataclasses

        from fsdino.training.distillation.config import DistillConfig

        if self.recipe:
            config = DistillConfig.from_yaml(_find_recipe(self.recipe, "distill"))
            if self.model is not None or self.encoder is not None:
                raise UsageError("the recipe says which model: leave out --model and --encoder")
        else:
            config = DistillConfig(self._model(), encoder_from=self.model)
        given = _given(self, config)
        if self.no_cache:
            given["use_cache"] = False
        config = dataclasses.replace(config, **given)
        if not config.images:
            raise UsageError("no images: pass --images, folders or .tar shards")
        if not config.teacher_checkpoint:
            raise UsageError("no teacher: pass --teacher-checkpoint, such as sam_vit_h_4b8939.pth")
        if _knows_nothing(config):
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
        if not count or not distillation.team.is_main:
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
            if not distillation.team.is_main:
                return distillation.fit()
            start, steps = distillation.start, distillation.steps
            with Progress("distill", steps, done=start, unit="steps") as progress:

                def report(step: int, loss: float, cosine: float | None) -> None:
                    quality = "" if cosine is None else f", held-out cosine {cosine:.3f}"
                    progress.advance(note=f"MSE {loss:.4f}{quality}")

                return distillation.fit(report)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_kept_run(self.out)) from None


DatasetName = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")]


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """Look a data set over: what is there, what is missing and where to get it, what is damaged.

    Reads every file, and counts the images of each fold and class. Exit code 1 when something that
    evaluation needs is missing or damaged.
    """

    dataset: DatasetName
    """pascal5i, pascal5i-leak-safe, coco20i, fss1000, davis17 or folder."""
    root: Path
    """Its folder."""
    splits: Folder = None
    """Folder of HSNet's split lists; default: lists derived from the annotations."""
    layout: Layout = "auto"
    """Of folder: CLASS/IMAGE with its mask, images with masks of one class, or label maps of
    several classes; auto takes the one that fits."""
    ignore: Value = None
    """Of label maps: value of undecided pixels, or none; default: 255."""
    background: Value = None
    """Of label maps: 0 (the default), or none where 0 is a class."""
    as_json: Json = False
    """Print everything as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        from fsdino.apps import data

        found = data.check(
            self.dataset,
            self.root,
            self.splits,
            layout=self.layout,
            ignore=self.ignore,
            background=self.background,
        )
        if self.as_json:
            print(json.dumps(found.to_dict()))
        else:
            _print_check(found)
        if not found.passed:
            raise DataError(f"{self.dataset} is not complete: {found.summary()}")
        return 0


@dataclass(frozen=True, kw_only=True)
class DataPrepare:
    """Make a data set's masks and lists once, where they are not part of it.

    Rasterises COCO's masks (needs the extra fsdino[train]) and derives split lists. The same
    command goes on where it was interrupted.
    """

    dataset: DatasetName
    """pascal5i, coco20i, fss1000, davis17 or folder."""
    root: Path
    """Its folder."""
    out: File = None
    """Folder for the results, to pass as --splits later; default: a cache that is found by itself,
    below ~/.cache/fsdino or FSDINO_CACHE."""
    as_json: Json = False
    """Print what was made as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        from fsdino.apps import data

        made = data.prepare(self.dataset, self.root, self.out)
        if self.as_json:
            print(json.dumps({title: str(path) for title, path in made.items()}))
        elif made:
            _print_table(["", ""], [[key, str(path)] for key, path in made.items()], numbers=False)
        else:
            print(f"{self.dataset} is read as it is: nothing to prepare")
        return 0


DataCommand = (
    Annotated[DataCheck, tyro.conf.subcommand("check")]
    | Annotated[DataPrepare, tyro.conf.subcommand("prepare")]
)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score a model on a benchmark, or compare two results.

    Every number carries its protocol: hsnet (HSNet's published episodes, K shots by vote), joint
    (the same episodes, one pass with K supports), with -original (scored at the images' own sizes)
    and -seeded (other seeds or numbers of episodes). Interrupted runs go on where they stopped.
    With `torchrun --nproc-per-node N -m fsdino evaluate ...` processes share the work.
    """

    model: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="[MODEL]", help_behavior_hint="")
    ] = DRAWN_MODEL
    """Name (see `fsdino models`), folder or hub id (hf:owner/name) of a model."""
    weights: File = None
    """Weights of dinov2-b and the like, instead of a download: Meta's dinov2_vit*14*_pretrain.pth
    or timm's model.safetensors."""
    data: str = "procedural"
    """pascal5i, coco20i, fss1000, davis17, folder, procedural or pascal5i-leak-safe."""
    root: Folder = None
    """The data set's folder."""
    splits: Folder = None
    """Folder of HSNet's lists; without, lists are derived from the annotations."""
    layout: Layout = "auto"
    """How --data folder is read; see `fsdino data check`."""
    ignore: Value = None
    """Of its label maps: value of undecided pixels, or none; default: 255."""
    background: Value = None
    """Of its label maps: 0 (the default), or none where 0 is a class."""
    fold: Integer = None
    """Fold whose classes are novel; default: 0, of the procedural set 3."""
    shots: int = 1
    """Supports per episode."""
    protocol: str = "joint"
    """How it is scored; see above."""
    fusion: Annotated[Literal["joint", "vote"] | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Turns the protocol into its sibling with that fusion of K shots."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...", help_behavior_hint="")] = ()
    """Seeds of the draws; the protocol becomes its -seeded sibling."""
    episodes: Integer = None
    """Episodes of each seed; the protocol becomes its -seeded sibling."""
    out: File = None
    """result.json to write; the rows of its episodes are kept beside it."""
    overwrite: Flag = False
    """Start anew where the result of another call is."""
    save_pictures: int = 0
    """Draw so many of the best and of the worst episodes, beside the result."""
    skip_bad: Flag = False
    """Go on where a file cannot be used; such episodes are counted and named."""
    compare: Annotated[
        tuple[Path, Path] | None, tyro.conf.arg(metavar="A B", help_behavior_hint="")
    ] = None
    """Two results on the same episodes: print their differences, and evaluate nothing."""
    matcher: Annotated[
        Literal["correspondence", "prototype"] | None, tyro.conf.arg(help_behavior_hint="")
    ] = None
    """The model's encoder alone: 4D matching or prototypes, training-free."""
    memory: int = 0
    """Of davis17: so many of the last frames join the first one as supports."""
    image_size: Integer = None
    """Side in pixels that images are stretched to; default: the model's own."""
    threshold: Number = None
    """Probability from which a pixel belongs to a mask; default: the model's own."""
    batch_size: int = 8
    """Episodes in a forward pass."""
    workers: Integer = None
    """Processes that read ahead; default: by the number of cores."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a GPU where there is one."""
    dtype: Dtype = "float32"
    """Other types run under autocast."""
    as_json: Json = False
    """Print the result as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        _wait_without_spinning()
        if self.compare is not None:
            return self._compare(*self.compare)
        self._check_options()
        check_dtype(self.dtype)
        _check_model(self.model, self.weights)
        from fsdino import processes as sharing

        with sharing.processes() as processes:
            result = self._evaluate(processes)
            if processes.rank == 0:
                if self.as_json:
                    print(json.dumps(result))
                elif self.data == _VIDEOS:
                    _print_videos(result, self.out)
                else:
                    _print_result(result, self.out)
        return 0

    def _check_options(self) -> None:
        """Refuse options that would be without effect: a result must not seem to follow them."""
        from fsdino.models.registry import REGISTERED

        episodic = {
            "--shots": self.shots != 1, "--seeds": bool(self.seeds),
            "--fold": self.fold is not None,
            "--episodes": self.episodes is not None, "--protocol": self.protocol != "joint",
            "--fusion": self.fusion is not None, "--splits": self.splits is not None,
            "--layout": self.layout != "auto", "--ignore": self.ignore is not None,
            "--background": self.background is not None,
            "--save-pictures": self.save_pictures > 0, "--skip-bad": self.skip_bad,
            "--image-size": self.image_size is not None and self.model not in REGISTERED,
        }  # fmt: skip
        videos = self.data == _VIDEOS
        given = [option for option, used in episodic.items() if used] if videos else []
        if self.memory and not videos:
            given = ["--memory"]
        if given:
            raise UsageError(f"--data {self.data} does not take {', '.join(given)}: leave it out")

    def _compare(self, first: Path, second: Path) -> int:
        from fsdino.evaluation import record

        lines = record.compare(first, second)
        if self.as_json:
            print(json.dumps([line.to_dict() for line in lines]))
        else:
            _print_differences(lines, (first, second))
        return 0

    def _evaluate(self, processes: Processes) -> dict[str, Any]:
        from fsdino import processes as sharing
        from fsdino.apps import evaluation
        from fsdino.evaluation import protocols
        from fsdino.evaluation.evaluate import Settings
        from fsdino.models import registry, zoo

        seeded = bool(self.seeds) or self.episodes is not None
        protocol = protocols.find(self.protocol, fusion=self.fusion, seeded=seeded)
        seeds = self.seeds or (0,)
        request = evaluation.Request(
            self.data, self.root, self.splits, self.fold, self.shots, seeds, self.episodes,
            self.layout, self.ignore, self.background,
        )  # fmt: skip
        device = sharing.local_device(find_device(self.device))
        size = self.image_size if self.model in registry.REGISTERED else None
        model = zoo.load(self.model, device=device, weights=self.weights, image_size=size)
        if self.matcher is not None:
            model = zoo.training_free(model, self.matcher)
        settings = Settings(
            model.config.image_size if self.image_size is None else self.image_size,
            protocol,
            model.config.threshold if self.threshold is None else self.threshold,
            self.batch_size,
            device,
            find_dtype(self.dtype),
            min(sharing.cores() - 1, 4) if self.workers is None else self.workers,
            self.skip_bad,
        )
        with sharing.threads(max(sharing.cores() - settings.workers, 1)):
            if self.data == _VIDEOS:
                return self._evaluate_videos(model, settings, processes)
            return evaluation.run(
                model,
                self.model,
                request,
                settings,
                out=self.out,
                overwrite=self.overwrite,
                pictures=self.save_pictures,
                processes=processes,
            )

    def _evaluate_videos(
        self, model: Segmenter, settings: Settings, processes: Processes
    ) -> dict[str, Any]:
        from fsdino.apps import evaluation

        if self.out is None:
            raise UsageError(f"{_VIDEOS} needs --out: masks are written beside the result")
        return evaluation.run_videos(
            model,
            self.model,
            self.root,
            settings,
            memory=self.memory,
            out=self.out,
            overwrite=self.overwrite,
            processes=processes,
        )


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Time the 4D ops on standard workloads: every backend beside the eager baseline.

    Results are checked against float64 first; backends take turns in one process, and medians
    are compared. W4, W6 and W12 have 4, 6 and 12 layers, W12x8 a batch of 8, HR a 74 x 74 grid;
    T... are the same with a backward pass. GFLOP/s count the operations of the eager formulation;
    sgemm is a large matrix product, timed in the same turns.
    """

    workloads: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ("W6",)
    """Which workloads."""
    parts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ("chain",)
    """Of chain, correlation, blocks, blocks-contiguous, fused-block and fused-chain."""
    backends: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")
    ] = ()
    """Only these backends; default: all that can run here."""
    threads: Annotated[
        tuple[int, ...], tyro.conf.arg(metavar="INT ...", help_behavior_hint="")
    ] = ()
    """CPU threads; several are timed one after the other. Default: as PyTorch chooses."""
    foreground: Number = None
    """Share of support tokens of weight 1, the rest 0; default: weights +1 and -1."""
    memory: Flag = False
    """Also measure peak memory on the CPU, each backend in a process of its own."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a GPU where there is one."""
    dtype: Dtype = "float32"
    """Floating type of all inputs."""
    repeats: int = 5
    """Rounds in which every backend runs once."""
    as_json: Json = False
    """Print the results as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        check_dtype(self.dtype)
        from fsdino.bench import compare
        from fsdino.environment import environment

        device, dtype = find_device(self.device), find_dtype(self.dtype)
        if self.foreground is not None and not 0 <= self.foreground <= 1:
            raise UsageError(f"--foreground must be between 0 and 1, got {self.foreground}")
        comparisons = []
        for workload in compare.find_workloads(self.workloads):
            bench = compare.Bench(workload, device=device, dtype=dtype, foreground=self.foreground)
            for part, threads in itertools.product(self.parts, self.threads or (None,)):
                comparison = bench.compare(
                    part,
                    threads=threads,
                    repeats=self.repeats,
                    only=self.backends,
                    measure_memory=self.memory,
                )
                comparisons.append(comparison)
                if not self.as_json:
                    print_comparison(comparison)
        if self.as_json:
            rows = [comparison.to_dict() for comparison in comparisons]
            print(json.dumps({"environment": environment(), "workloads": rows}))
        return _check_passed(comparisons)


@dataclass(frozen=True, kw_only=True)
class Build:
    """Compile the C++ kernels for the installed PyTorch.

    Takes a C++ compiler and a minute or two, once: the result is kept in ~/.cache/fsdino, or in
    the folder that FSDINO_CACHE names, and is used from then on. MAX_JOBS limits how many
    compilers run at once.
    """

    force: Flag = False
    """Compile again where a build is there."""
    as_json: Json = False
    """Print the result as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        from fsdino.apps import build

        extension = build.run(force=self.force)
        if self.as_json:
            print(json.dumps(extension.to_dict()))
        else:
            _print_extension(extension.to_dict())
        return 0


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the models that go by a name: parts, size, licence, and whether they are here.

    Models on DINOv2 have no trained part. Naming one where a model is asked for downloads its
    weights, once, into the cache of the Hugging Face hub (~/.cache/huggingface, or HF_HOME).
    """

    download: Name = None
    """Fetch the weights of this model now, so that it works without a network later."""
    as_json: Json = False
    """Print the list, or the model that was fetched, as JSON."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        import dataclasses

        from fsdino.models import registry

        file = None if self.download is None else registry.download(self.download)
        found = [dataclasses.asdict(model) for model in registry.list_models()]
        if self.download is not None:
            [model] = [model for model in found if model["name"] == self.download]
            if self.as_json:
                print(json.dumps({**model, "file": None if file is None else str(file)}))
            else:
                print(f"{self.download} is here: {file or 'installed with fsdino'}")
        elif self.as_json:
            print(json.dumps(found))
        else:
            _print_models(found)
        return 0


@dataclass(frozen=True, kw_only=True)
class Info:
    """Show versions, devices, and which backend would run each op here, and why.

    With a model: its configuration and the number of parameters of each part.
    """

    model: Annotated[
        tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[MODEL]", help_behavior_hint="")
    ] = None
    """Name, folder or hub id (hf:owner/name) of a model."""
    as_json: Json = False
    """Print everything as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        _check_model(self.model)
        from fsdino.apps import info

        collected = info.collect(self.model)
        if self.as_json:
            print(json.dumps(collected))
        else:
            _print_info(collected)
        return 0


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Segment, tyro.conf.subcommand("segment")]
    | Annotated[Distill, tyro.conf.subcommand("distill")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[
        DataCommand,
        tyro.conf.subcommand("data", description="Check and prepare benchmarks on disk."),
    ]
    | Annotated[Models, tyro.conf.subcommand("models")]
    | Annotated[Benchmark, tyro.conf.subcommand("benchmark")]
    | Annotated[Build, tyro.conf.subcommand("build")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)


class _Command(Protocol):
    def run(self) -> int:
        """Run the command; returns the exit code."""
        ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0, 1 for a failure, 2 for a usage error, 130 for an interruption (128 + SIGINT, as shells say).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be of any bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _main(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:  # outside of a command's own work
        print(f"fsdino: {_one_line(KeyboardInterrupt())}", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # whoever read our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _main(given: list[str]) -> int:
    debug, verbose = "--debug" in given, "--verbose" in given
    given = [argument for argument in given if argument not in {"--debug", "--verbose"}]
    if given == ["--version"]:
        print(f"fsdino {__version__}")
        return 0
    try:
        command: _Command = tyro.cli(
            Command,
            prog="fsdino",
            description=_DESCRIPTION,
            args=given,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    with _logging_to_stderr(logging.DEBUG if verbose else logging.INFO), _warnings(verbose):
        try:
            return command.run()
        except BrokenPipeError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exc()
            print(f"fsdino: {_one_line(error)}", file=sys.stderr)
            if isinstance(error, KeyboardInterrupt):
                return _INTERRUPTED
            return error.exit_code if isinstance(error, FsdinoError) else 1


def _one_line(error: BaseException) -> str:
    """What happened and what to do about it."""
    message = " ".join(str(error).split())
    if isinstance(error, FsdinoError):
        return f"error: {message}"
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted: {message or 'the same command starts again'}"
    if is_out_of_memory(error):
        return (
            "error: out of memory: use smaller images, a smaller model or batch, --dtype bfloat16, "
            "or another --device"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return f"error: {error.filename or 'output'}: {error.strerror}{_remedy(error)}"
    return f"internal error: {type(error).__name__}: {message} (run with --debug for the traceback)"


def _remedy(error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "; free some space and run the same command again"
    if isinstance(error, PermissionError):
        return "; choose another place, or change its permissions"
    return ""


class _Stderr(logging.Handler):
    """Writes to whatever sys.stderr is now, which a live progress bar replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        print(f"fsdino: {kind}{record.getMessage()}", file=sys.stderr)


@contextlib.contextmanager
def _logging_to_stderr(level: int) -> Iterator[None]:
    logger, handler = logging.getLogger("fsdino"), _Stderr()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


@contextlib.contextmanager
def _warnings(shown: bool) -> Iterator[None]:
    """Other libraries' warnings address programmers: they are shown with --verbose."""
    with warnings.catch_warnings():
        if not shown:
            warnings.filterwarnings("ignore", module=r"(torch|timm|huggingface_hub)(\.|$)")
        yield


def _check_model(
    name: str | None, weights: Path | None = None, image_size: int | None = None
) -> None:
    """Say at once, before slow imports, that a model's weights are not here and cannot be had."""
    from fsdino.models import registry

    if name is not None:
        registry.check(name, weights, image_size)


@contextlib.contextmanager
def _team(device: str) -> Iterator[Team]:
    """The processes of a training run; all but the first keep to errors."""
    from fsdino.training.team import Team

    team = Team(device)
    if not team.is_main:
        logging.getLogger("fsdino").setLevel(logging.ERROR)
    try:
        yield team
    finally:
        team.close()


def _given(command: Train | Distill, config: Recipe) -> dict[str, Any]:
    """The options that were given and bear the name of a setting; a model is no setting."""
    import dataclasses

    known = {field.name for field in dataclasses.fields(config)} - {"model"}
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(command).items()
        if name in known and value is not None and value is not False and value != ()
    }


def _check_start(config: TrainConfig) -> None:
    """Refuse a frozen encoder that knows nothing; a word about such an adapter."""
    if config.start_from is not None:
        return
    if not config.train_encoder and _knows_nothing(config):
        raise UsageError(
            "the encoder is frozen and has random weights: pass --encoder-weights or --encoder-from"
        )
    has_adapter = config.model.variant != "hsnet"
    if has_adapter and not config.train_adapter and config.adapter_weights is None:
        logger.warning(
            "the adapter is frozen and has random weights: pass --adapter-weights, or --adapter "
            "trained"
        )


def _knows_nothing(config: TrainConfig | DistillConfig) -> bool:
    """Whether a run starts from an encoder with random weights."""
    given = (config.encoder_from, config.encoder_weights, config.model.encoder_weights)
    return given == (None, None, None) and not config.model.pretrained


def _find_recipe(name: str, command: Literal["train", "distill"]) -> Path:
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


def _kept_run(folder: Path) -> str:
    from fsdino.training.run import checkpoint_files

    kept = [int(path.stem) for path in checkpoint_files(folder)]
    said = f"step {kept[-1]} is kept" if kept else "no checkpoint was due yet"
    return f"{said} in {folder}; the same command with --resume goes on"


def _check_passed(comparisons: Sequence[Comparison]) -> int:
    """0, or an error that names the implementations whose results were wrong."""
    wrong = [
        f"{timing.name} on {comparison.workload} (error {timing.error:.2g} times the allowed)"
        for comparison in comparisons
        for timing in comparison.timings
        if not timing.passed
    ]
    if wrong:
        raise FsdinoError(f"wrong results, so not timed: {', '.join(wrong)}; please report this")
    return 0


def _print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", *, numbers: bool = True
) -> None:
    """A table on stdout; columns of `numbers`, all but the first, are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=title or None, title_justify="left", box=box.SIMPLE_HEAD, show_header=any(headers)
    )
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index and numbers else "left")
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)


def _wait_without_spinning() -> None:
    """Let threads sleep while they wait: where others run, spinning costs ten times the work.

    OpenMP reads it when torch is imported, so that later it would only reach other processes.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _print_demo(results: Results) -> None:
    means = results.mean_iou()
    rows = [
        [answer.support.name, answer.query.name, *(f"{answer.iou[m]:.2f}" for m in means)]
        for answer in results.photographs
    ]
    rows.append(["mean", "", *(f"{value:.2f}" for value in means.values())])
    _print_table(
        ["support", "query", *means], rows, f"Photographs: IoU with the truth of {len(rows) - 1}"
    )
    _print_table(
        ["", "support images", "mIoU %", "FB-IoU %"],
        [
            [method, str(shots), f"{score.miou:.1f}", f"{score.fb_iou:.1f}"]
            for (method, shots), score in results.scores.items()
        ],
        f"Drawings, {results.settings.drawn_model}: IoU with the truth over {len(results.answers)} "
        "held-out episodes",
    )
    print_comparison(results.kernels)


def print_comparison(comparison: Comparison) -> None:
    """A table on stdout: time, ratio, speed and, where it was measured, memory."""
    from fsdino.bench import compare

    peak = f"; sgemm {comparison.peak / 1e9:.1f} GFLOP/s"
    _print_table(*compare.table(comparison), comparison.title + peak)


def _qualities(encoded: Mapping[str, Support]) -> dict[str, float | None]:
    """How well each support finds itself; None where that is not known."""
    return {name: support.quality for name, support in encoded.items()}


def _print_segments(outcome: Outcome, output: Output, left_out: int) -> None:
    from fsdino.image_files import printable

    shown = 20
    if len(outcome.rows) <= shown:
        _print_table(
            ["query", "foreground %", "seconds"],
            [
                [printable(Path(r.query).name), f"{100 * r.foreground:.1f}", f"{r.seconds:.2f}"]
                for r in outcome.rows
            ],
        )
    again = f", {outcome.resumed} of them from before" if outcome.resumed else ""
    rest = f"; {left_out} files left out" if left_out else ""
    print(f"{len(outcome.rows)} masks and overlays in {output.folder}{again}{rest}")


def _print_result(result: Mapping[str, Any], out: Path | None) -> None:
    """A table on stdout: the metrics, then the classes."""
    seeds = len(result["miou_by_seed"])
    episodes = f"{result['episodes']} episodes" + (f" × {seeds} seeds" if seeds > 1 else "")
    fold = "" if result["fold"] is None else f", fold {result['fold']}"
    print(
        f"{result['model']} on {result['dataset']}{fold}, {result['shots']}-shot, protocol "
        f"{result['protocol']}, {episodes}, {result['lists']} lists"
    )
    rows = [["mIoU", f"{result['miou']:.2f}{_plus_minus(result['miou_interval'])}"]]
    over_seeds = result["miou_interval_over_seeds"]
    if over_seeds is not None:
        rows.append(["", f"{_plus_minus(over_seeds)} over seeds"])
    for key, name in (("fb_iou", "FB-IoU"), ("dice", "Dice"), ("boundary_iou", "boundary IoU")):
        rows.append([name, f"{result[key]:.2f}"])
    if result["skipped"]:
        rows.append(["skipped episodes", str(len(result["skipped"]))])
    _print_table(["percent, 95 % interval over episodes", ""], rows)
    training = result["training"] or {}
    if training.get("selected_on", "base classes") != "base classes":
        print(f"the model was selected on the {training['selected_on']}")
    names, values = result["class_names"], result["per_class"]
    shown = 24
    if len(values) <= shown:
        _print_table(["class", "IoU %"], [[names[c], f"{values[c]:.2f}"] for c in values])
    if out is not None:
        print(f"{out}: the result; {out.stem}.episodes.jsonl: its episodes")


def _print_videos(result: Mapping[str, Any], out: Path | None) -> None:
    """A table on stdout: J, F and J&F in total and of each sequence."""
    scores = {"all objects": result, **result["per_sequence"]}
    _print_table(
        ["percent", "J&F", "J", "F"],
        [[n, *(f"{s[k]:.2f}" for k in ("j_and_f", "j", "f"))] for n, s in scores.items()],
        f"{result['model']} on {result['dataset']}, memory of {result['memory']} frames",
    )
    if out is not None:
        print(f"{out}: the result; {out.with_suffix('') / 'masks'}: the masks")


def _print_differences(lines: Sequence[Difference], files: tuple[Path, Path]) -> None:
    names = [file.stem for file in files]
    if names[0] == names[1]:
        names = list(map(str, files))
    _print_table(
        ["", *names, "difference"],
        [
            [
                line.name, f"{line.first:.2f}", f"{line.second:.2f}",
                f"{line.difference:+.2f}{_plus_minus(line.half_width)}",
            ]
            for line in lines
        ],
        "percent on the same episodes, ± half of the 95 % interval over episodes",
    )  # fmt: skip


def _plus_minus(half_width: float | None) -> str:
    return "" if half_width is None else f" ± {half_width:.2f}"


def _print_check(found: Check) -> None:
    from fsdino.image_files import printable

    shown = 20
    print(f"{found.dataset} in {found.root}")  # no table: addresses are there to be copied
    for part in found.parts:
        state = "there" if part.found else "MISSING" if part.needed else "not there"
        print(f"  {state:9}  {part.path}" + (f" ({part.note})" if part.note else ""))
        if not part.found:
            print(f"             get {part.archive}")
    for title, value in found.reading.items():
        if isinstance(value, Mapping):
            lines = [f"{printable(name)}: {about}" for name, about in value.items()]
            print(f"  {title}: {len(lines)}")
            more = [f"    ... and {len(lines) - shown} more; --json names all"]
            print("\n".join([f"    {line}" for line in lines[:shown]] + more[: len(lines) > shown]))
        else:
            print(f"  {title}: {value}")
    if found.folds:
        _print_table(
            ["fold", "split", "lists", "classes", "images", "not there"],
            [
                ["–" if fold.fold is None else str(fold.fold), fold.split,
                 "derived" if fold.derived else "published", str(len(fold.classes)),
                 f"{sum(fold.classes.values()):,}", f"{fold.missing:,}"]
                for fold in found.folds
            ],
            "Images in the split lists, once for each class in them",
        )  # fmt: skip
    if found.note is not None:
        print(found.note)
    for fold in found.folds:
        if fold.split == "val" and fold.fold is not None:
            counts = ", ".join(f"{name} {count}" for name, count in fold.classes.items())
            print(f"fold {fold.fold}: {counts}")
    for name, reason in list(found.bad.items())[:shown]:
        print(f"{printable(name)}: {reason}")
    if len(found.bad) > shown:
        print(f"... and {len(found.bad) - shown} more; --json names all")
    masks = "with their masks"
    if found.masked < found.read:
        masks = f"({found.masked:,} of them with a mask)"
    print(f"{found.read:,} images read {masks}, {len(found.bad):,} cannot be used")


def _print_distillation(result: Mapping[str, Any]) -> None:
    _print_table(
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


def _print_parameters(model: Segmenter) -> None:
    from fsdino.models import zoo

    _print_parts(
        {part: dict(zip(("trained", "frozen"), counts, strict=True))
         for part, counts in zoo.parameter_table(model).items()}
    )  # fmt: skip


def _print_parts(parts: Mapping[str, Mapping[str, int]]) -> None:
    kinds = ("trained", "frozen")
    rows = [[part, *(f"{counts[kind]:,}" for kind in kinds)] for part, counts in parts.items()]
    totals = [f"{sum(counts[kind] for counts in parts.values()):,}" for kind in kinds]
    _print_table(["parameters", *kinds], [*rows, ["all", *totals]])


def _print_models(models: Sequence[Mapping[str, Any]]) -> None:
    _print_table(
        ["model", "here", "parameters", "size", "licence", "commercial use"],
        [
            [model["name"], "yes" if model["present"] else "no",
             f"{model['parameters'] / 1e6:,.1f} M", f"{model['size'] / 1e6:,.0f} MB",
             model["licence"], "yes" if model["commercial_use"] else "no"]
            for model in models
        ],
        numbers=False,
    )  # fmt: skip
    for model in models:  # no table: addresses are there to be copied
        print(f"{model['name']}: {', '.join(model['parts'])}; {model['source']}")


def _print_info(collected: Mapping[str, Any]) -> None:
    versions = {**collected["environment"], **collected["packages"]}
    facts = [[name, version or "not installed"] for name, version in versions.items()]
    facts.append(["bundled models", ", ".join(collected["models"]) or "none"])
    _print_table(["", ""], facts, numbers=False)
    for device, by_dtype in collected["backends"].items():
        for dtypes, table in _group_equal(by_dtype):
            title = f"backends on {device}, {dtypes}, in auto's order"
            _print_backends(title, table)
    _print_native(collected["cpp"])
    if collected["forced_backend"]:
        print(f"FSDINO_BACKEND={collected['forced_backend']} forces that backend")
    model = collected.get("model")
    if model is not None:
        print(f"{model['name']}, fingerprint {model['fingerprint']}")
        facts = [[key, str(value)] for key, value in model["config"].items()]
        _print_table(["", ""], facts, numbers=False)
        _print_parts(model["parameters"])


def _print_backends(title: str, table: Mapping[str, Mapping[str, str]]) -> None:
    """What each backend does for each op; below, once, why some cannot."""
    from fsdino.apps import info

    able = (info.RUNS, info.COULD_RUN)
    names = list(next(iter(table.values())))
    rows = [
        [op, *(choices[name] if choices[name] in able else "no" for name in names)]
        for op, choices in table.items()
    ]
    _print_table(["op", *names], rows, title, numbers=False)
    for name in names:
        groups = _group_equal({op: choices[name] for op, choices in table.items()})
        for ops, choice in groups:
            if choice not in able:
                print(
                    f"{name}: no, {choice}" if len(groups) == 1 else f"{name}: no {ops}, {choice}"
                )


def _print_native(cpp: Mapping[str, Any]) -> None:
    """The extension in use, and why others that were found are not."""
    if cpp["extension"] is not None:
        _print_extension(cpp["extension"])
    for problem in cpp["problems"]:
        print(f"C++ kernels, not used: {problem}")


def _print_extension(extension: Mapping[str, Any]) -> None:
    seconds = extension["seconds"]
    how = "with the package" if seconds is None else f"in {seconds:.0f} s"
    print(f"C++ kernels, compiled {how}: {extension['path']}")
    facts = [
        [key, "none" if value in (None, []) else str(value)]
        for key, value in extension["build_info"].items()
    ]
    if extension.get("without_cuda"):
        facts.append(["without CUDA", extension["without_cuda"]])
    _print_table(["", ""], facts, numbers=False)


def _group_equal(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Values by key, with the keys of equal neighbours joined."""
    groups: list[tuple[str, Any]] = []
    for key, value in values.items():
        if groups and groups[-1][1] == value:
            groups[-1] = (f"{groups[-1][0]}, {key}", value)
        else:
            groups.append((key, value))
    return groups
