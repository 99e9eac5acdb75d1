"""Stage 1: the adapter learns to give the outputs of SAM's image encoder, from coarse to fine."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsdino.errors import CheckpointError, DataError, FsdinoError, UsageError
from fsdino.files import read_json_lines, write_json
from fsdino.models import zoo
from fsdino.models.adapter import Adapter
from fsdino.models.checkpoints import weights_hash, write_tensors
from fsdino.models.encoders import Encoder
from fsdino.processes import Processes, threads
from fsdino.training.distillation.agreement import (
    agreement,
    on_students_grid,
    on_teachers_grid,
    stack_targets,
)
from fsdino.training.distillation.config import DistillConfig, Stage
from fsdino.training.distillation.corpus import Corpus, find_images
from fsdino.training.distillation.embeddings import EmbeddingCache
from fsdino.training.distillation.pairs import HeldOutPairs, Pair, TrainingPairs
from fsdino.training.distillation.targets import Targets
from fsdino.training.distillation.teacher import load_teacher
from fsdino.training.loop import Loop
from fsdino.training.optimisation import Descent, dtype_of
from fsdino.training.reading import read_ahead
from fsdino.training.recipe import Schedule
from fsdino.training.run import METRICS
from fsdino.training.state import own_random

logger = logging.getLogger("fsdino.training")

ADAPTER_FILE, RESULT_FILE = "adapter.safetensors", "result.json"

_NO_EXTENSION = (
    "stage 1 has one schedule over all its epochs and cannot be extended: resume with the epochs "
    "that it began with, or start in another --out"
)


class Distillation(Loop[list[Pair], dict[str, Any]]):
    """Distils a teacher into an adapter, in one run folder.

    Beside what every run has (`Run`), the folder gets `images.json` (which images, which could not
    be read), `adapter.safetensors` (what `fsdino train` takes as `adapter_weights`) and
    `result.json` (mean squared error and cosine on held-out images, by stage and step). Call
    `prepare`, then `fit`, which returns what stands in `result.json`.

    Args:
        config: what to do.
        folder: the run's.
        resume: continue what it holds.
        processes: those that work together, from `Processes.for_training`; None joins them.

    Attributes:
        adapter: what learns.
        targets: the teacher's embeddings of the images.

    Raises:
        UsageError, DataError, CheckpointError: see `Run`, `find_images`, `load_teacher` and
            `fsdino.models.zoo`; a teacher of another width, a size that the encoder cannot see.
    """

    config: DistillConfig
    measures_start = True

    def __init__(
        self,
        config: DistillConfig,
        folder: Path,
        *,
        resume: bool = False,
        processes: Processes | None = None,
    ) -> None:
        super().__init__(config, processes)
        count = self.processes.count
        if config.batch_size % count:
            raise UsageError(
                f"batch_size {config.batch_size} cannot be shared by {count} processes: "
                "use a multiple"
            )
        with self._opening():
            corpus = find_images(
                [Path(source) for source in config.images],
                percent=config.percent,
                held_out=config.held_out,
            )
            self.encoder = _encoder(config)
            self.teacher = load_teacher(config.teacher_checkpoint, config.teacher)
            self._check_shapes()
            model = config.model
            self.adapter = Adapter(
                self.encoder.channels, model.width, model.adapter_width, model.adapter_heads
            )
            self._hashes = {
                "encoder": weights_hash(self.encoder.state_dict()),
                "teacher": self.teacher.fingerprint(),
                "images": _hash(corpus),
            }
            self._open_run(folder, resume=resume, reasons={"epochs": _NO_EXTENSION})
            self._begin(corpus)

    def _begin(self, corpus: Corpus) -> None:
        """Make what learns, and take over what the folder holds."""
        config, device = self.config, self.processes.device
        self._types = {
            name: dtype_of(getattr(config, name), device)
            for name in ("dtype", "encoder_dtype", "teacher_dtype")
        }
        teacher_dtype = self._types["teacher_dtype"]
        cache: EmbeddingCache | None = None
        if config.use_cache:
            place = Path(config.cache) if config.cache else self.run.folder / "embeddings"
            kind = str(teacher_dtype).removeprefix("torch.")
            cache = EmbeddingCache(place, self._hashes["teacher"], kind)
        self.targets = Targets(
            config,
            corpus,
            self.teacher,
            teacher_dtype,
            cache,
            self.run,
            self.processes,
            self._hashes,
        )
        self.encoder.to(device)
        self.teacher.to(device)
        self.modules = {"adapter": self.adapter}
        self.wrapped = self.processes.wrap(self.adapter)
        self.descent = Descent(self.processes, self.wrapped, self.adapter, config)
        self._restore()

    def prepare(self, report: Callable[[int], None] | None = None) -> None:
        """Have every image's embedding in the cache, and leave out images that cannot be read.

        Says beforehand how much space that takes. What a run has finished once, it does not do
        again. Without a cache there is nothing to do.

        Args:
            report: called with the number of images that this process has just finished.

        Raises:
            KeyboardInterrupt: asked to stop; what is computed is kept.
            FsdinoError: not enough space, or the disk cannot be written; what is computed is kept.
            DataError: no image is left to learn from, or to measure on.
        """
        try:
            with threads(self.config.threads):
                self.targets.prepare(report)
        except BaseException as error:
            if isinstance(error, Exception):
                self.run.abandon()
            self.run.close()
            raise

    def images_to_embed(self) -> int:
        """How many images `prepare` of this process goes through."""
        return self.targets.missing()

    # ------------------------------------------------------------------------------- learning

    @property
    def corpus(self) -> Corpus:
        """The images; those that cannot be read are left out by `prepare`."""
        return self.targets.corpus

    @property
    def schedule(self) -> Schedule:
        """One over all stages, for the images that are there."""
        return self.config.schedule(len(self.corpus.training))

    def load(self) -> Iterable[list[Pair]]:
        """This process's pairs of each step."""
        pairs = TrainingPairs(
            self.targets.reader(),
            self.corpus.training,
            self._stages(),
            self.config.batch_size,
            self.config.seed,
            self.processes.rank,
            self.processes.count,
        )
        return read_ahead(pairs, self.config.workers, range(self.start, self.schedule.steps))

    def passes(self, pairs: list[Pair]) -> Sequence[Callable[[], Tensor]]:
        """The losses of this process's images, as many at once as share a pass."""
        at_once = self.config.images_per_pass or len(pairs)

        def share(first: int) -> Tensor:
            grid = self.config.loss_grid
            mse, _ = self._agreement(pairs[first : first + at_once], self.wrapped, grid)
            return mse.sum() / len(pairs)

        return [partial(share, first) for first in range(0, len(pairs), at_once)]

    def _agreement(
        self, pairs: Sequence[Pair], module: nn.Module, grid: str
    ) -> tuple[Tensor, Tensor]:
        """Mean squared error and cosine [B] on a grid, 0 for images that cannot be used."""
        device, side = self.processes.device, self.teacher.architecture.grid_side
        found = self.targets.of(pairs)
        used = torch.tensor([target is not None for target in found], device=device)
        blank = torch.zeros(self.teacher.architecture.channels, 1, 1, dtype=torch.float16)
        targets = [blank if target is None else target for target in found]
        images = torch.stack([pair.image for pair in pairs]).to(device)
        extents = torch.tensor([pair.extent for pair in pairs], device=device)
        with torch.no_grad(), self._autocast("encoder_dtype"):
            tokens = self.encoder.shallow(images)
        with self._autocast("dtype"):
            answer = module(tokens if self._types["dtype"] == tokens.dtype else tokens.float())
        if grid == "student":
            stacked = on_students_grid(targets, (answer.shape[2], answer.shape[3]))
            inside = torch.ones(len(answer), *answer.shape[2:], dtype=torch.bool)
            answer = answer.float()
        else:
            stacked, inside = stack_targets(targets, side)
            answer = on_teachers_grid(answer, extents, side)
        values = agreement(answer, stacked.to(device), inside.to(device))
        mse, cosine = (torch.where(used, value, 0.0) for value in values)
        return mse, cosine

    def _autocast(self, name: str) -> torch.autocast:
        dtype = self._types[name]
        return torch.autocast(self.processes.device.type, dtype, enabled=dtype != torch.float32)

    def metrics(self, done: int, loss: float | None, *, measured: bool) -> dict[str, Any]:
        """The image size and the loss; and both numbers on the held-out images, at that size."""
        stage = next(stage for stage in self._stages() if done <= stage.last)
        values: dict[str, Any] = {"image_size": stage.image_size}
        if loss is not None:
            values["loss"] = loss
        if measured:
            error, self.quality = self._measure(done, stage)
            values |= {
                "held_out_mse": error,
                "held_out_cosine": self.quality,
                "learning_rate": self.descent.learning_rate,
                "skipped_steps": self.descent.guard.count,
                "unreadable_images": len(self.targets.inventory.unreadable)
                + len(self.targets.lost),
            }
        return values

    def _measure(self, done: int, stage: Stage) -> tuple[float, float]:
        """Mean squared error and cosine on the held-out images, seen at a stage's size."""
        own = self.processes.share(self.corpus.held_out)
        size = self.config.images_per_pass or self.config.batch_size
        pairs = HeldOutPairs(self.targets.reader(), own, stage.image_size, size)
        sums = torch.zeros(3, dtype=torch.float64)
        self.adapter.eval()
        with torch.no_grad(), own_random():
            for batch in read_ahead(pairs, self.config.workers, range(len(pairs))):
                mse, cosine = self._agreement(batch, self.adapter, "teacher")
                usable = sum(not pair.error for pair in batch)
                sums += torch.tensor([mse.sum(), cosine.sum(), usable], dtype=torch.float64)
        self.adapter.train()
        error_sum, cosine_sum, count = self.processes.sum(*sums)
        if not count:
            raise DataError("no held-out image can be read now: fix this and rerun with --resume")
        if not math.isfinite(error_sum + cosine_sum):
            raise FsdinoError(
                f"step {done}: the held-out images give no finite numbers ({error_sum:g}, "
                f"{cosine_sum:g}): start in another --out with a lower learning_rate, or float32"
            )
        return error_sum / count, cosine_sum / count

    def _stages(self) -> tuple[Stage, ...]:
        return self.config.stages(len(self.corpus.training))

    # --------------------------------------------------------------------------- in and out

    def finish(self, done: int) -> dict[str, Any]:
        """Write the adapter and the result; returns the result, to the first process."""
        folder, targets = self.run.folder, self.targets
        for lost in self.processes.gather(targets.lost):
            targets.lost |= lost
        if not self.processes.is_first:
            return {}
        metadata = {
            "format": "fsdino-adapter-1",
            "encoder": self._hashes["encoder"],
            "encoder_name": self.config.model.encoder,
            "adapter_layer": str(self.encoder.shallow_layer),
            "teacher": self._hashes["teacher"],
        }
        write_tensors(folder / ADAPTER_FILE, self.adapter.state_dict(), metadata)
        result = {
            "adapter": str(folder / ADAPTER_FILE),
            "images": len(self.corpus.training),
            "held_out": len(self.corpus.held_out),
            "unreadable": {**targets.inventory.unreadable, **targets.lost},
            "skipped_steps": self.descent.guard.count,
            "stages": _by_stage(folder / METRICS, self._stages()),
        }
        write_json(folder / RESULT_FILE, result)
        return result

    def state(self) -> dict[str, Any]:
        """Counts, and what decides whether another run is the same one."""
        return {"hashes": self._hashes, "cosine": self.quality, "lost": self.targets.lost}

    def take_over(self, step: int, state: Mapping[str, Any] | None) -> None:
        """Check encoder, teacher and images; put back what could not be read."""
        if state is None:
            return
        changed = [name for name, value in self._hashes.items() if state["hashes"][name] != value]
        if changed:
            raise CheckpointError(
                f"{self.run.folder} began with other files ({', '.join(changed)}): pass those, or "
                "start in another --out"
            )
        self.quality, self.targets.lost = state["cosine"], state["lost"]

    def _check_shapes(self) -> None:
        found, wanted = self.teacher.architecture.channels, self.config.model.width
        if found != wanted:
            raise UsageError(
                f"the teacher's embedding has {found} channels, the model's width is {wanted}: "
                "use a model of that width"
            )
        patch = self.encoder.patch_size
        wrong = [size for size in self.config.image_sizes if size % patch]
        if wrong:
            raise UsageError(
                f"image_sizes must be multiples of the encoder's tokens of {patch} pixels, got "
                f"{', '.join(map(str, wrong))}"
            )


def _encoder(config: DistillConfig) -> Encoder:
    """The frozen student encoder."""
    encoder = zoo.find_encoder(config.model, config.encoder_from, config.encoder_weights)
    return encoder.requires_grad_(False).eval()


def _hash(corpus: Corpus) -> str:
    """Which images there are, and which of them are held out."""
    keys = [[file.key for file in files] for files in (corpus.training, corpus.held_out)]
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16]


def _by_stage(metrics: Path, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """The curve of both numbers, for each stage; what damage took from the metrics is missing."""
    names = ("step", "held_out_mse", "held_out_cosine")
    rows, _ = read_json_lines(metrics)
    measured = [
        row for row in rows if all(isinstance(row.get(name), (int, float)) for name in names)
    ]
    curves = [
        [row for row in measured if stage.first < row["step"] <= stage.last] for stage in stages
    ]
    curves[0] = [row for row in measured if row["step"] == 0] + curves[0]
    return [
        {
            "image_size": stage.image_size,
            "steps": stage.steps,
            "held_out_mse": curve[-1]["held_out_mse"] if curve else None,
            "held_out_cosine": curve[-1]["held_out_cosine"] if curve else None,
            "curve": [{name: row[name] for name in names} for row in curve],
        }
        for stage, curve in zip(stages, curves, strict=True)
    ]
