"""Stage 1: the adapter learns to answer as SAM's image encoder does, from coarse to fine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fsdino.errors import CheckpointError, DataError, FsdinoError, UsageError
from fsdino.files import read_json, read_json_lines, write_json
from fsdino.models import zoo
from fsdino.models.adapter import Adapter
from fsdino.models.checkpoints import weights_hash, write_tensors
from fsdino.models.encoders import Encoder, create
from fsdino.processes import Processes, threads
from fsdino.training.distillation.agreement import agreement, on_teachers_grid, stack_targets
from fsdino.training.distillation.config import DISTILL_FREE, DistillConfig, Stage
from fsdino.training.distillation.corpus import Corpus, ImageFile, find_images
from fsdino.training.distillation.embeddings import EmbeddingCache, Inventory, fill
from fsdino.training.distillation.pairs import HeldOutPairs, Pair, PairReader, TrainingPairs
from fsdino.training.distillation.teacher import load_teacher
from fsdino.training.interrupt import Interrupt, leave_to_trainer
from fsdino.training.optimisation import Descent
from fsdino.training.recipe import AUTO
from fsdino.training.run import (
    METRICS,
    Run,
    own_generator,
    own_random,
    pack,
    random_state,
    set_random,
    unpack,
)

logger = logging.getLogger("fsdino.training")

ADAPTER_FILE, RESULT_FILE, INVENTORY_FILE = "adapter.safetensors", "result.json", "images.json"

# Called with the number of steps done, the loss, and the cosine agreement on held-out images.
Report = Callable[[int, float, float | None], None]

_LOG_EVERY = 50  # steps
_NO_EXTENSION = (
    "stage 1 has one schedule over all its epochs and cannot be extended: resume with the epochs "
    "that it began with, or start in another --out"
)


class Distillation:
    """Distils a teacher into an adapter, in one run folder.

    Beside what every run has (`Run`), the folder gets `images.json` (which images, which could not
    be read), `adapter.safetensors` (what `fsdino train` takes as `adapter_weights`) and
    `result.json` (mean squared error and cosine on held-out images, by stage and step).

    Args:
        config: what to do.
        folder: the run's.
        resume: continue what it holds.
        processes: those that work together, from `Processes.for_training`; None joins them.

    Attributes:
        adapter: what learns.
        corpus: the images; those that cannot be read are left out by `prepare`.
        start: steps that an earlier run did.

    Raises:
        UsageError, DataError, CheckpointError: see `Run`, `find_images`, `load_teacher` and
            `fsdino.models.zoo`; a teacher of another width, a size that the encoder cannot see.
    """

    def __init__(
        self,
        config: DistillConfig,
        folder: Path,
        *,
        resume: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self.config = config
        self.processes = processes or Processes.for_training(config.device)
        count = self.processes.count
        if config.batch_size % count:
            raise UsageError(
                f"batch_size {config.batch_size} cannot be shared by {count} processes: "
                "use a multiple"
            )
        with threads(config.threads):
            self._open(folder, resume=resume)

    def _open(self, folder: Path, *, resume: bool) -> None:
        """Open all that a run reads later, before anything is written; then the run's folder."""
        config, processes = self.config, self.processes
        torch.manual_seed(config.seed)
        self.corpus = find_images(
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
            "images": _hash(self.corpus),
        }
        self.run = processes.in_turn(
            lambda: Run(
                folder,
                config.to_dict(),
                resume=resume,
                free=DISTILL_FREE,
                main=processes.is_first,
                complete=lambda data: DistillConfig.from_dict(data).to_dict(),
                reasons={"epochs": _NO_EXTENSION},
            )
        )
        try:
            self._begin()
        except BaseException:
            self.run.abandon()
            raise

    def _begin(self) -> None:
        """Make what learns, and take over what the folder holds."""
        config, device = self.config, self.processes.device
        self._types = {
            name: _dtype(getattr(config, name), device)
            for name in ("dtype", "encoder_dtype", "teacher_dtype")
        }
        self.cache: EmbeddingCache | None = None
        if config.use_cache:
            place = Path(config.cache) if config.cache else self.run.folder / "embeddings"
            kind = str(self._types["teacher_dtype"]).removeprefix("torch.")
            self.cache = EmbeddingCache(place, self._hashes["teacher"], kind)
        self.inventory = Inventory(unreadable=dict(self.corpus.unreadable))
        self.lost: dict[str, str] = {}  # images that could not be read while learning
        self.encoder.to(device)
        self.teacher.to(device)
        self.wrapped = self.processes.wrap(self.adapter)
        self.descent = Descent(self.processes, self.wrapped, self.adapter, config)
        self.cosine: float | None = None
        self._due: float | None = None  # loss of a step whose measurement failed
        self._random = random_state()
        self.start = self._restore()

    # ---------------------------------------------------------------- the teacher's embeddings

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
                self._prepare(report)
        except BaseException as error:
            if isinstance(error, Exception):
                self.run.abandon()
            self.run.close()
            raise

    def _prepare(self, report: Callable[[int], None] | None) -> None:
        if self.cache is None:
            return
        files = (*self.corpus.training, *self.corpus.held_out)
        stored, processes = self._stored_inventory(), self.processes
        known = processes.gather(stored is not None)  # another run may be mending the cache
        if stored is not None and all(known):
            self.inventory = stored
        else:
            if self.processes.is_first:
                self.cache.announce(files, self.teacher.architecture.most_bytes)
            found = self._fill(processes.share(files), report)
            for part in processes.gather(found):
                self.inventory.contents |= part.contents
                self.inventory.unreadable |= part.unreadable
            self.cache.refresh()
            processes.in_turn(self._store_inventory)
        self._leave_out_unreadable()

    def images_to_embed(self) -> int:
        """How many images `prepare` of this process goes through."""
        if self.cache is None or self._stored_inventory() is not None:
            return 0
        return len(self.processes.share(range(len(self.corpus))))

    def _fill(
        self, files: Sequence[ImageFile], report: Callable[[int], None] | None = None
    ) -> Inventory:
        assert self.cache is not None
        config = self.config
        return fill(
            self.cache,
            self.teacher,
            files,
            dtype=self._types["teacher_dtype"],
            batch_size=config.teacher_batch,
            workers=config.workers,
            report=report,
        )

    def _leave_out_unreadable(self) -> None:
        bad = self.inventory.unreadable
        training, held_out = (
            tuple(file for file in files if file.name not in bad)
            for files in (self.corpus.training, self.corpus.held_out)
        )
        if bad:
            logger.warning(
                "%d of %d images cannot be used; %s names them",
                len(bad), len(self.corpus), self.run.folder / INVENTORY_FILE,
            )  # fmt: skip
        if not training or not held_out:
            what = "to measure on" if training else "to learn from"
            raise DataError(
                f"no image {what} can be read ({len(bad)} of {len(self.corpus)} are unreadable): "
                f"see {self.run.folder / INVENTORY_FILE}"
            )
        self.corpus = Corpus(training, held_out, bad)

    def _stored_inventory(self) -> Inventory | None:
        """What the run that goes on had found, if images, teacher and cache are as they were."""
        assert self.cache is not None
        if self.run.before is None:  # a start that failed left it: images may have been mended
            return None
        path = self.run.folder / INVENTORY_FILE
        try:
            data = read_json(path)
            kept = {name: data[name] for name in ("hashes", "images", "unreadable")}
            if data.get("sha256") != _json_hash(kept):
                raise ValueError("its content is not what was written")
            stored = Inventory(kept["images"], kept["unreadable"])
            there = all(content in self.cache for content in stored.contents.values())
            return stored if there and kept["hashes"] == self._hashes else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s is damaged (%s): looking through the images again", path, error)
            return None

    def _store_inventory(self) -> None:
        if self.processes.is_first:
            data = {
                "hashes": self._hashes,
                "images": self.inventory.contents,
                "unreadable": self.inventory.unreadable,
            }
            sha256 = _json_hash(data)
            write_json(self.run.folder / INVENTORY_FILE, {**data, "sha256": sha256})

    # ------------------------------------------------------------------------------- learning

    @property
    def steps(self) -> int:
        """Of the whole schedule, for the images that are there."""
        return self._stages()[-1].last

    def fit(self, report: Report | None = None) -> dict[str, Any]:
        """Learn to the end; returns what stands in `result.json`.

        Args:
            report: called after every step.

        Raises:
            KeyboardInterrupt: asked to stop; a checkpoint is written.
            FsdinoError: too many steps in a row without a finite loss, or a measurement that is not
                finite; a checkpoint is written.
        """
        self._began = time.monotonic()
        stages = self._stages()
        with self.run, threads(self.config.threads), Interrupt() as interrupt:
            set_random(self._random)
            if self._due is not None:
                self._record(self.start, self._due, stages)
                self._save(self.start)
            elif self.start == 0:
                self._measure(0, stages[0])
            for number, pairs in zip(range(self.start, self.steps), self._load(), strict=True):
                if self.processes.sum(interrupt.asked)[0]:
                    self._save(number)
                    raise KeyboardInterrupt
                stage = next(s for s in stages if number < s.last)
                loss, done = self._step(number, pairs), number + 1
                self._record(done, loss, stages)
                if done % self.config.checkpoint_every == 0 or done == stage.last:
                    self._save(done)
                if report is not None:
                    report(done, loss, self.cosine)
            result = self._finish(stages)
        self.processes.gather(None)
        return result

    def _record(self, done: int, loss: float, stages: Sequence[Stage]) -> None:
        """Measure and log where that is due. An error there costs no step: a checkpoint is written.

        A resumed run then begins with what failed.
        """
        stage, self._due = next(s for s in stages if done <= s.last), loss
        try:
            if done % self.config.validate_every == 0 or done == stage.last:
                self._measure(done, stage, loss=loss)
            elif done % _LOG_EVERY == 0:
                self.run.log(done, image_size=stage.image_size, loss=loss)
        except Exception:
            with contextlib.suppress(FsdinoError):  # the disk is full, perhaps
                self._save(done)
            raise
        self._due = None

    def _stages(self) -> tuple[Stage, ...]:
        return self.config.stages(len(self.corpus.training))

    def _load(self) -> Iterator[list[Pair]]:
        processes = self.processes
        pairs = TrainingPairs(
            self._reader(),
            self.corpus.training,
            self._stages(),
            self.config.batch_size,
            self.config.seed,
            processes.rank,
            processes.count,
        )
        loader: DataLoader[list[Pair]] = DataLoader(
            pairs,
            batch_size=None,
            sampler=range(self.start, self.steps),
            num_workers=self.config.workers,
            prefetch_factor=2 if self.config.workers else None,
            worker_init_fn=leave_to_trainer,
            generator=own_generator(),
        )
        return iter(loader)

    def _reader(self) -> PairReader:
        return PairReader(self.teacher.architecture, self.cache, self.inventory.contents)

    def _step(self, number: int, pairs: list[Pair]) -> float:
        """Change the adapter once; returns the mean loss over the images of all processes."""
        at_once = self.config.images_per_pass or len(pairs)

        def share(first: int) -> Tensor:
            mse, _ = self._agreement(pairs[first : first + at_once], self.wrapped)
            return mse.sum() / len(pairs)

        passes = [partial(share, first) for first in range(0, len(pairs), at_once)]
        try:
            return self.descent.step(number, (0, self.steps), passes)
        except FsdinoError:
            self._save(number)
            raise

    def _agreement(self, pairs: Sequence[Pair], module: nn.Module) -> tuple[Tensor, Tensor]:
        """Mean squared error and cosine [B], 0 for images that cannot be used."""
        device, side = self.processes.device, self.teacher.architecture.grid_side
        targets = self._targets(pairs)
        used = torch.tensor([target is not None for target in targets], device=device)
        blank = torch.zeros(self.teacher.architecture.channels, 1, 1, dtype=torch.float16)
        stacked, inside = stack_targets([blank if t is None else t for t in targets], side)
        images = torch.stack([pair.image for pair in pairs]).to(device)
        extents = torch.tensor([pair.extent for pair in pairs], device=device)
        with torch.no_grad(), self._autocast("encoder_dtype"):
            tokens = self.encoder.shallow(images)
        with self._autocast("dtype"):
            answer = module(tokens if self._types["dtype"] == tokens.dtype else tokens.float())
        found = agreement(
            on_teachers_grid(answer, extents, side), stacked.to(device), inside.to(device)
        )
        mse, cosine = (torch.where(used, value, 0.0) for value in found)
        return mse, cosine

    def _autocast(self, name: str) -> torch.autocast:
        dtype = self._types[name]
        return torch.autocast(self.processes.device.type, dtype, enabled=dtype != torch.float32)

    def _targets(self, pairs: Sequence[Pair]) -> list[Tensor | None]:
        """The teacher's embeddings; None for images that cannot be used, which are named."""
        for pair in pairs:
            if pair.error:
                logger.warning("left out of a step: %s", pair.error)
                self.lost[pair.file.name] = pair.error
        if self.cache is None:
            seen = [pair.scaled for pair in pairs if pair.scaled is not None]
            size = self.config.teacher_batch
            answers = [
                embedding
                for first in range(0, len(seen), size)
                for embedding in self.teacher(
                    seen[first : first + size], self._types["teacher_dtype"]
                )
            ]
            following = iter(answers)
            return [None if pair.scaled is None else next(following) for pair in pairs]
        return [
            None if pair.error else self._mended(pair) if pair.target is None else pair.target
            for pair in pairs
        ]

    def _mended(self, pair: Pair) -> Tensor | None:
        """An embedding that could not be read, from its shard computed again."""
        assert self.cache is not None
        contents = self.inventory.contents
        content = contents[pair.file.name]
        found = self.cache.get(content, pair.shape)
        if found is not None:  # another process was faster
            return found
        lost = self.cache.drop_shard_of(content) | {content}
        known = (*self.corpus.training, *self.corpus.held_out)
        damaged = [other for other in known if contents[other.name] in lost]
        logger.warning("computing %d embeddings again", len(damaged))
        self._fill(damaged)
        return self.cache.get(content, pair.shape)

    def _measure(self, done: int, stage: Stage, **values: Any) -> None:
        """Log both numbers on the held-out images, seen at a stage's size."""
        own = self.processes.share(self.corpus.held_out)
        size = self.config.images_per_pass or self.config.batch_size
        pairs = HeldOutPairs(self._reader(), own, stage.image_size, size)
        sums = torch.zeros(3, dtype=torch.float64)
        self.adapter.eval()
        loader: DataLoader[list[Pair]] = DataLoader(
            pairs,
            batch_size=None,
            num_workers=self.config.workers,
            worker_init_fn=leave_to_trainer,
            generator=own_generator(),
        )
        with torch.no_grad(), own_random():
            for batch in loader:
                mse, cosine = self._agreement(batch, self.adapter)
                usable = sum(not pair.error for pair in batch)
                sums += torch.tensor([mse.sum(), cosine.sum(), usable], dtype=torch.float64)
        self.adapter.train()
        error, cosine_sum, count = self.processes.sum(*sums)
        if not count:
            raise DataError(
                "no held-out image can be read any more: fix that and rerun with --resume"
            )
        if not math.isfinite(error + cosine_sum):
            raise FsdinoError(
                f"step {done}: the held-out images give no finite numbers ({error:g}, "
                f"{cosine_sum:g}): start in another --out with a lower learning_rate, or float32"
            )
        self.cosine = cosine_sum / count
        self.run.log(
            done,
            image_size=stage.image_size,
            **values,
            held_out_mse=error / count,
            held_out_cosine=self.cosine,
            learning_rate=self.descent.learning_rate,
            skipped_steps=self.descent.guard.count,
            unreadable_images=len(self.inventory.unreadable) + len(self.lost),
            seconds=round(time.monotonic() - self._began, 1),
        )

    # --------------------------------------------------------------------------- in and out

    def _finish(self, stages: Sequence[Stage]) -> dict[str, Any]:
        """Write the adapter and the result."""
        folder = self.run.folder
        result: dict[str, Any] = {}
        for lost in self.processes.gather(self.lost):
            self.lost |= lost
        if self.processes.is_first:
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
                "unreadable": {**self.inventory.unreadable, **self.lost},
                "skipped_steps": self.descent.guard.count,
                "stages": _by_stage(folder / METRICS, stages),
            }
            write_json(folder / RESULT_FILE, result)
        return result

    def _save(self, done: int) -> None:
        state = {
            "hashes": self._hashes,
            "cosine": self.cosine,
            "skipped": self.descent.guard.count,
            "lost": self.lost,
            "due": self._due,
        }
        self.run.save(done, pack({"adapter": self.adapter}, self.descent.optimizer), state)

    def _restore(self) -> int:
        checkpoint = self.run.load()
        if checkpoint is None:
            self.run.forget_after(-1)
            return 0
        step, tensors, state = checkpoint
        try:
            self._take_over(tensors, state)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"the checkpoints of {self.run.folder} were written by another version ({error}): "
                "start in another --out"
            ) from error
        # What is measured again is not kept: a step whose measurement failed, or the start.
        self.run.forget_after(step if self._due is None and step else step - 1)
        logger.info("resuming %s at step %d", self.run.folder, step)
        return step

    def _take_over(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        changed = [name for name, value in self._hashes.items() if state["hashes"][name] != value]
        if changed:
            raise CheckpointError(
                f"{self.run.folder} began with other files ({', '.join(changed)}): pass those, or "
                "start in another --out"
            )
        unpack(tensors, {"adapter": self.adapter}, self.descent.optimizer)
        self.cosine, self.descent.guard.count = state["cosine"], state["skipped"]
        self.lost, self._due = state["lost"], state.get("due")
        self._random = {"random.cpu": tensors["random.cpu"]}
        if "random.cuda" in tensors:
            self._random["random.cuda"] = tensors["random.cuda"]

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
    if config.encoder_from is not None:
        encoder = zoo.load(config.encoder_from).encoder
    else:
        encoder = create(config.model)
    if config.encoder_weights is not None:
        zoo.load_dinov2(encoder, config.encoder_weights)
    return encoder.requires_grad_(False).eval()


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == AUTO:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _hash(corpus: Corpus) -> str:
    """Which images there are, and which of them are held out."""
    keys = [[file.key for file in files] for files in (corpus.training, corpus.held_out)]
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16]


def _json_hash(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


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
