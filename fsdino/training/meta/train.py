"""Stage 2: train the segmenter on episodes of base classes."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsdino.data.episodes import Episodes
from fsdino.data.files import FileEpisodes
from fsdino.data.folder import Folder
from fsdino.errors import CheckpointError, DataError, FsdinoError, UsageError
from fsdino.evaluation import protocols
from fsdino.evaluation.evaluate import Settings, evaluate
from fsdino.evaluation.predictors import ModelPredictor
from fsdino.models import zoo
from fsdino.models.checkpoints import weights_hash
from fsdino.models.config import WEIGHTS_FIELDS
from fsdino.models.fsdino import FSDINO
from fsdino.models.segmenter import Segmenter
from fsdino.processes import Processes, threads
from fsdino.training.interrupt import Interrupt
from fsdino.training.meta import footprint
from fsdino.training.meta.config import FREE, TrainConfig
from fsdino.training.meta.features import FeatureStore, FrozenEncoder
from fsdino.training.meta.losses import TokenClassifier
from fsdino.training.meta.objective import Objective
from fsdino.training.meta.steps import Step, Steps, open_training, part
from fsdino.training.optimisation import Descent
from fsdino.training.recipe import AUTO
from fsdino.training.run import (
    Run,
    frozen_hash,
    own_random,
    pack,
    random_state,
    set_random,
    unpack,
)
from fsdino.version import __version__

logger = logging.getLogger("fsdino.training")

# Called with the number of steps done, the step's loss and the last validation's mIoU.
Report = Callable[[int, float, float | None], None]

_LOG_EVERY = 50  # steps


class Trainer:
    """Trains one configuration in one run folder.

    Args:
        config: what to train.
        folder: the run's; see `Run`.
        resume: continue what the folder holds. A finished run is extended where `config` has more
            steps than it: the schedule begins again.
        report: called after every step.
        processes: those that train together, from `Processes.for_training`; None joins them.

    Attributes:
        config: with the steps at which the schedule of an extended run began again.
        model: what is trained.
        start: steps that an earlier run did.

    Raises:
        UsageError, DataError, CheckpointError: see `Run`, `Steps` and `fsdino.models.zoo`.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        *,
        resume: bool = False,
        report: Report | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.config, self.report = config, report
        if config.select_on == "novel":
            logger.warning("the best model is selected on the novel classes of the fold")
        self.processes = processes or Processes.for_training(config.device)
        _check_processes(config, self.processes.count)
        with threads(config.threads):
            self._open(folder, resume=resume)

    def _open(self, folder: Path, *, resume: bool) -> None:
        """Open all that a run reads later, before anything is written; then the run's folder."""
        config, processes = self.config, self.processes
        torch.manual_seed(config.seed)
        self.model = _build(config)
        self.steps = processes.in_turn(lambda: Steps(config, processes))
        self.validation = processes.in_turn(self._open_validation)
        self.selected_on = self._selected_on()
        self.run = processes.in_turn(
            lambda: Run(
                folder,
                config.to_dict(),
                resume=resume,
                free=(*FREE, "steps", "restarts"),
                main=processes.is_first,
                complete=lambda data: TrainConfig.from_dict(data).to_dict(),
            )
        )
        try:
            self._begin()
        except BaseException:
            self.run.abandon()
            raise

    def _begin(self) -> None:
        """Make what learns, and take over what the folder holds."""
        config = self.config
        classifier = None
        if config.class_weight:
            classifier = TokenClassifier(self.model.encoder.channels, self.steps.classes)
        self.objective = Objective(
            self.model,
            classifier,
            config.prototype_weight,
            config.class_weight,
            config.contrast_weight,
            getattr(torch, config.dtype),
        )
        self.wrapped = self.processes.wrap(self.objective)
        self.descent = Descent(self.processes, self.wrapped, self.model, config)
        self.miou: float | None = None
        self.best: float | None = None
        self.stale = 0  # validations since the best
        self.replaced = 0  # episodes that could not be read
        self.batch: dict[int, int] = {}  # episodes of a pass, by K
        self._due: float | None = None  # loss of a step whose validation failed
        self._random: dict[str, Tensor] | None = None
        self._frozen_hash = frozen_hash(self.model)
        self.start = self._restore()
        self.frozen = None if config.train_encoder else self._frozen_encoder()
        self._plan_batches()
        if self._random is None:
            self._random = random_state()
        if self.config != config:
            self.run.change(self.config.to_dict())

    def fit(self) -> Segmenter:
        """Train to the end; the last model lies in `folder/model`, the best in `folder/best`.

        Raises:
            KeyboardInterrupt: the run was asked to stop; a checkpoint is written.
            DataError: an image cannot be read; a checkpoint is written.
            FsdinoError: too many steps without a finite loss, or a validation whose output is not
                finite; a checkpoint is written.
        """
        config = self.config
        self.model.train()
        self._began = time.monotonic()
        with self.run, threads(config.threads), Interrupt() as interrupt:
            assert self._random is not None
            set_random(self._random)
            if self._due is not None:
                self._record(self.start, self._due)
                self._save(self.start)
            done = self.start
            for number, step in enumerate(self._steps_left(), start=self.start):
                self._check(number, step, interrupt)
                loss = self._step(number, step)
                done = number + 1
                self._record(done, loss)
                if done % config.checkpoint_every == 0 or done in config.ends:
                    self._save(done)
                if self.report is not None:
                    self.report(done, loss, self.miou)
                if self._has_stopped():
                    self._save(done)
                    break
            self.model.eval()
            self._keep_last(done)
        self.processes.gather(None)
        return self.model

    def _record(self, done: int, loss: float) -> None:
        """Validate and log where that is due; an error there costs no step.

        A checkpoint is written then, and a resumed run begins with what failed.
        """
        config, self._due = self.config, loss
        try:
            if config.validation and (done % config.validate_every == 0 or done in config.ends):
                self._validate(done, loss)
            elif done % _LOG_EVERY == 0 or done in config.ends:
                self._log(done, loss)
        except Exception:
            with contextlib.suppress(FsdinoError):  # the disk is full, perhaps
                self._save(done)
            raise
        self._due = None

    def _keep_last(self, done: int) -> None:
        """Write the last model; without validation it is the best, too."""
        if not self.config.validation:
            self.model.provenance = self._provenance(done)
        if self.processes.is_first:
            for name in ("model",) if self.config.validation else ("model", "best"):
                self.model.save_pretrained(self.run.folder / name)

    def _steps_left(self) -> Any:
        return () if self._has_stopped() else self.steps.load(self.start)

    def _has_stopped(self) -> bool:
        return 0 < self.config.patience <= self.stale

    def _check(self, number: int, step: Step, interrupt: Interrupt) -> None:
        """Stop all processes between two steps where one of them has to."""
        stopped, unreadable, replaced = self.processes.sum(
            interrupt.asked, step.batch is None, len(step.bad)
        )
        if stopped or unreadable:
            self._save(number)
        if stopped:
            raise KeyboardInterrupt
        if unreadable:
            reason = step.bad[-1] if step.bad else "another process could not read an image"
            raise DataError(
                f"step {number}: {reason}; a checkpoint is written: mend that and go on with "
                "--resume, or with --skip-bad, too"
            )
        self.replaced += int(replaced)
        for reason in step.bad:
            logger.warning("step %d: another episode in place of one: %s", number, reason)

    def _step(self, number: int, step: Step) -> float:
        """Change the weights once; returns the mean loss over the episodes of all processes."""
        assert step.batch is not None
        own, count = len(step.batch), self.processes.count
        at_once = self.batch.get(step.batch.support_masks.shape[1], own)
        passes = []
        for first in range(0, own, at_once):
            last = min(first + at_once, own)
            # Gradients become the mean over processes, the loss is one over all episodes.
            weight = (last - first) * count / step.total
            passes.append(partial(self._loss, step, first, last, weight))
        try:
            return self.descent.step(number, self.config.schedule(number), passes)
        except FsdinoError:
            self._save(number)
            raise

    def _loss(self, step: Step, first: int, last: int, weight: float) -> Tensor:
        """Mean loss over some of this process's episodes, times their weight."""
        assert step.batch is not None
        batch = part(step.batch, first, last).to(self.processes.device, non_blocking=True)
        images = torch.cat([batch.query_images[:, None], batch.support_images], 1).flatten(0, 1)
        masks = torch.cat([batch.query_masks[:, None], batch.support_masks], 1).flatten(0, 1)
        shots = batch.support_masks.shape[1]
        names = [name for names in step.names[first:last] for name in names]
        seen = images if self.frozen is None else self.frozen(images, names)
        loss: Tensor = self.wrapped(seen, masks, shots, batch.class_ids)
        return weight * loss

    def _validate(self, done: int, loss: float) -> None:
        """Score the model by the evaluation protocol; keep it if it is the best so far."""
        config = self.config
        assert self.validation is not None
        settings = Settings(
            config.model.image_size,
            protocols.find("joint", seeded=True),
            device=self.processes.device,
            dtype=getattr(torch, config.dtype),
            workers=0 if config.data == "procedural" else config.workers,
            skip_bad=config.skip_bad,
        )
        self.model.eval()
        predict, processes = ModelPredictor(self.model), self.processes
        with own_random():
            miou = evaluate(predict, self.validation, settings, processes=processes).miou
        self.model.train()
        if not math.isfinite(miou):
            logger.warning("step %d: validation gave no number, but %s", done, miou)
        self.miou = miou if math.isfinite(miou) else None
        better = self.miou is not None and (self.best is None or self.miou > self.best)
        self.best = self.miou if better else self.best
        self.stale = 0 if better or done in config.restarts else self.stale + 1
        self.model.provenance = self._provenance(done)
        if better and self.processes.is_first:
            self.model.save_pretrained(self.run.folder / "best")
        seconds = round(time.monotonic() - self._began, 1)
        self._log(done, loss, **{f"{config.select_on}_miou": self.miou}, seconds=seconds)

    def _open_validation(self) -> Episodes | None:
        """The episodes that the best model is chosen by; None where none is."""
        config = self.config
        if not config.validation:
            return None
        return open_training(
            config,
            config.validation_shots,
            config.validation_episodes,
            config.model.image_size if config.data == "procedural" else None,
            "val" if config.select_on == "novel" else "base_val",
        )

    def _selected_on(self) -> str:
        """What the best model is chosen by, as its provenance says it."""
        if self.validation is None:
            return "nothing: the last model of a run without validation"
        if self.config.select_on == "novel":
            return "novel classes of the fold"
        found = "base classes"
        if isinstance(self.validation, FileEpisodes) and isinstance(self.validation.source, Folder):
            one, none = self.validation.source.few_images()
            classes = len(self.validation.classes)
            for few, what in (
                (one, "one image each that is not trained on"),
                (none, "images that are trained on"),
            ):
                if few:
                    logger.warning("validation asks %s for %s", ", ".join(few), what)
                    found += f"; of {len(few)} of {classes} classes {what}"
        return found

    def _provenance(self, done: int) -> dict[str, Any]:
        """What every result of the model says about its training."""
        config = self.config
        extended: dict[str, Any] = {}
        if config.restarts:
            extended["restarts"] = list(config.restarts)
        if self.steps.photographs is not None:
            extended["photograph_share"] = config.photograph_share
            extended["photographs"] = len(self.steps.photographs)
            extended["photographs_sha256"] = self.steps.photographs.digest
        return {
            "data": config.data,
            "fold": config.fold,
            "step": done,
            **extended,
            "selected_on": self.selected_on,
            "selection_miou": self.miou,
            "version": __version__,
        }

    def _log(self, done: int, loss: float, **values: Any) -> None:
        rate = self.descent.learning_rate
        counts = {"skipped_steps": self.descent.guard.count, "replaced_episodes": self.replaced}
        self.run.log(done, loss=loss, learning_rate=rate, **counts, **values)

    def _frozen_encoder(self) -> FrozenEncoder:
        config = self.config
        trained = getattr(torch, config.dtype)
        gpu = self.processes.device.type == "cuda"
        name = config.encoder_dtype
        dtype = getattr(torch, name) if name != AUTO else torch.bfloat16 if gpu else torch.float32
        store = None
        if config.feature_cache is not None:
            encoder = weights_hash(self.model.encoder.state_dict())
            read = self.model.encoder
            layers = (read.read_layers, read.correlation_layers, read.patch_size)
            colours = (read.mean.flatten().tolist(), read.std.flatten().tolist())
            images = f"{config.data} {Path(config.root or '').resolve()}"
            key = f"{encoder} {layers} {colours} {dtype} {images}"
            store = FeatureStore(Path(config.feature_cache), key)
            side = max(config.sizes)
            one = torch.zeros(1, 3, side, side, device=self.processes.device)
            features = FrozenEncoder(self.model, dtype, dtype)(one, ["one"])
            store.announce(self.steps.images * len(set(config.sizes)), features)
        return FrozenEncoder(self.model, dtype, trained, store)

    def _plan_batches(self) -> None:
        """Say what an episode takes, and choose how many share a pass where that is wanted."""
        config, processes = self.config, self.processes
        for shots in sorted(set(config.shots)):
            each = self.activation_bytes(shots)
            logger.info(
                "activations of a %d-shot episode at %d pixels: %.1f MB",
                shots, max(config.sizes), each / 1e6,
            )  # fmt: skip
            most = math.ceil(config.episodes_per_step(shots) / processes.count)
            if isinstance(config.episodes_per_batch, int):
                self.batch[shots] = config.episodes_per_batch
            elif config.episodes_per_batch == AUTO and shots not in self.batch:
                sharing = processes.count if self.processes.device.type == "cpu" else 1
                free = footprint.free_bytes(self.processes.device)
                fits = footprint.episodes_that_fit(each, free, most, sharing)
                self.batch[shots] = min(processes.gather(fits))
                logger.info("%d of %d episodes a pass", self.batch[shots], most)

    def activation_bytes(self, shots: int) -> int:
        """Bytes that the trained part keeps of a K-shot episode for the backward pass."""
        side, device = max(self.config.sizes), self.processes.device
        images = torch.zeros(shots + 1, 3, side, side, device=device)
        masks = torch.ones(shots + 1, side, side, device=device)
        ids = torch.zeros(1, dtype=torch.int64)
        self.objective.eval()  # batch norm must not learn from this
        seen = images
        if self.frozen is not None:
            alone = FrozenEncoder(self.model, self.frozen.dtype, self.frozen.out)
            seen = alone(images, [str(n) for n in range(len(images))])  # type: ignore[assignment]
        parameters = [*self.objective.parameters(), *self.objective.buffers()]
        each = footprint.activation_bytes(
            lambda: self.objective(seen, masks, shots, ids), parameters
        )
        self.objective.train()
        return each

    def _modules(self) -> dict[str, torch.nn.Module]:
        modules: dict[str, torch.nn.Module] = {"model": self.model}
        if self.objective.classifier is not None:
            modules["classifier"] = self.objective.classifier
        return modules

    def _photographs_hash(self) -> str | None:
        photographs = self.steps.photographs
        return None if photographs is None else photographs.digest

    def _save(self, done: int) -> None:
        state = {
            "miou": self.miou,
            "best": self.best,
            "stale": self.stale,
            "skipped": self.descent.guard.count,
            "replaced": self.replaced,
            "due": self._due,
            "batch": self.batch,
            "frozen": self._frozen_hash,
            "lists": self.steps.lists_hash,
            "photographs": self._photographs_hash(),
        }
        self.run.save(done, pack(self._modules(), self.descent.optimizer), state)

    def _restore(self) -> int:
        checkpoint = self.run.load()
        if checkpoint is None:
            self._follow_on(0, stopped=False)
            self.run.forget_after(0)
            return 0
        step, tensors, state = checkpoint
        try:
            self._take_over(step, tensors, state)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"the checkpoints of {self.run.folder} were written by another version ({error}): "
                "start in another --out"
            ) from error
        self.run.forget_after(step if self._due is None else step - 1)
        logger.info("resuming %s at step %d", self.run.folder, step)
        return step

    def _take_over(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        if state["frozen"] != self._frozen_hash:
            raise CheckpointError(
                f"{self.run.folder} was trained on other frozen weights: pass the files that it "
                "began with"
            )
        if state["lists"] != self.steps.lists_hash:
            raise UsageError(
                f"{self.run.folder} was trained on other lists of images than --root and --splits "
                "give now: pass those that it began with"
            )
        if state.get("photographs") != self._photographs_hash():
            raise UsageError(
                f"{self.run.folder} was trained on other photographs than --photographs gives now: "
                "pass the folder that it began with"
            )
        unpack(tensors, self._modules(), self.descent.optimizer)
        self.miou, self.best, self.stale = state["miou"], state["best"], state["stale"]
        self.descent.guard.count, self.replaced = state["skipped"], state["replaced"]
        if self.config.episodes_per_batch == AUTO:  # another choice would round otherwise
            self.batch = {int(shots): number for shots, number in state["batch"].items()}
        self._due = state.get("due")
        self._random = {"random.cpu": tensors["random.cpu"]}
        if "random.cuda" in tensors:
            self._random["random.cuda"] = tensors["random.cuda"]
        self._follow_on(step, stopped=self._has_stopped())
        if step in self.config.restarts:
            self.stale = 0
        if self.miou is not None:
            self.model.provenance = self._provenance(step)

    def _follow_on(self, step: int, *, stopped: bool) -> None:
        """Take over the schedule of the run that goes on, or extend it.

        Args:
            step: steps done.
            stopped: whether `patience` had ended it.

        Raises:
            UsageError: fewer steps than it has, or more before it is finished.
        """
        before, config, folder = self.run.before, self.config, self.run.folder
        if before is None:
            return
        steps, restarts = int(before["steps"]), tuple(before["restarts"])
        if config.restarts not in ((), restarts):
            raise UsageError(
                f"restarts {config.restarts}: the schedule of {folder} began again at {restarts}: "
                "leave restarts out, or start in another --out"
            )
        if config.steps < steps:
            raise UsageError(
                f"steps {config.steps}: the run in {folder} has {steps}: pass --steps {steps} to "
                "resume it, more to extend it, or another --out"
            )
        if config.steps > steps:
            if step < steps and not stopped:
                raise UsageError(
                    f"steps {config.steps}: the run in {folder} is at step {step} of {steps}, and "
                    f"only a finished one can be extended: first resume it with --steps {steps}"
                )
            restarts = (*restarts, step)
            logger.info(
                "extending %s from step %d to %d: its schedule begins again, with a warm-up",
                folder, step, config.steps,
            )  # fmt: skip
        self.config = dataclasses.replace(config, restarts=restarts)


def _build(config: TrainConfig) -> Segmenter:
    """The model with the weights that a run starts from."""
    if config.start_from is not None:
        return _continued(config, config.start_from)
    encoder = zoo.load(config.encoder_from).encoder if config.encoder_from else None
    model = zoo.assemble(config.model, encoder)
    if config.encoder_weights is not None:
        zoo.load_dinov2(model.encoder, config.encoder_weights)
    for load, path in (
        (zoo.load_sam_decoder, config.decoder_weights),
        (zoo.load_adapter, config.adapter_weights),
    ):
        if path is None:
            continue
        if not isinstance(model, FSDINO):
            raise UsageError(f"variant {config.model.variant!r} has no part that {path} is for")
        load(model, path)
    return _set_trainable(model, config)


def _continued(config: TrainConfig, name: str) -> Segmenter:
    model = zoo.load(name)
    found, asked = model.config.to_dict(), config.model.to_dict()
    other = [key for key in asked if found.get(key) != asked[key] and key not in WEIGHTS_FIELDS]
    if other:
        raise UsageError(
            f"start_from: {name} was built with another {other[0]}, {found.get(other[0])!r} and "
            f"not {asked[other[0]]!r}: give its own model section"
        )
    return _set_trainable(model, config)


def _set_trainable(model: Segmenter, config: TrainConfig) -> Segmenter:
    model.set_trainable(
        encoder=config.train_encoder,
        adapter=config.train_adapter,
        decoder=config.train_decoder,
    )
    return model


def _check_processes(config: TrainConfig, count: int) -> None:
    fewest = min(config.episodes_per_step(shots) for shots in config.shots)
    if fewest < count:
        raise UsageError(
            f"a step has {fewest} episodes of {max(config.shots)} shots, too few for {count} "
            f"processes: use at least {count * (max(config.shots) + 1)} images_per_step"
        )
    if count > 1 and config.train_encoder and config.model.conv_stem:
        logger.warning("batch statistics of the encoder are those of each process's own episodes")
