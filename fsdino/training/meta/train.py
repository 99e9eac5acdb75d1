"""Stage 2: train the segmenter on episodes of base classes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsdino.devices import find_dtype
from fsdino.errors import CheckpointError, DataError, UsageError
from fsdino.models.checkpoints import weights_hash
from fsdino.models.segmenter import Segmenter
from fsdino.processes import Processes
from fsdino.training.loop import Loop
from fsdino.training.meta import footprint, start
from fsdino.training.meta.config import TrainConfig
from fsdino.training.meta.extending import follow_on
from fsdino.training.meta.features import FeatureStore, FrozenEncoder
from fsdino.training.meta.losses import TokenClassifier
from fsdino.training.meta.objective import Objective
from fsdino.training.meta.steps import Step, Steps, part
from fsdino.training.meta.validation import Validation
from fsdino.training.optimisation import Descent, dtype_of
from fsdino.training.recipe import AUTO, Schedule
from fsdino.training.state import frozen_hash
from fsdino.version import __version__

logger = logging.getLogger("fsdino.training")

_UNSELECTED = "nothing: the last model of a run without validation"


class Trainer(Loop[Step, Segmenter]):
    """Trains one configuration in one run folder.

    Beside what every run has (`Run`), the folder gets the last model in `model`, and the best one
    in `best`; without validation they are the same.

    Args:
        config: what to train.
        folder: the run's; see `Run`.
        resume: continue what the folder holds. A finished run is extended where `config` has more
            steps than it: the schedule begins again.
        processes: those that train together, from `Processes.for_training`; None joins them.

    Attributes:
        config: with the steps at which the schedule of an extended run began again.
        model: what is trained.

    Raises:
        UsageError, DataError, CheckpointError: see `Run`, `Steps` and `fsdino.models.zoo`.
    """

    config: TrainConfig

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        *,
        resume: bool = False,
        processes: Processes | None = None,
    ) -> None:
        if config.select_on == "novel":
            logger.warning("the best model is selected on the novel classes of the fold")
        super().__init__(config, processes)
        _check_processes(config, self.processes.count)
        with self._opening():
            # All that a run reads later is opened before anything is written.
            self.model = start.build(config)
            self.steps = self.processes.in_turn(lambda: Steps(config, self.processes))
            self.validation = self.processes.in_turn(
                lambda: Validation(config) if config.validation else None
            )
            self.measures = config.validation
            self._open_run(folder, resume=resume)
            self._begin()

    def _begin(self) -> None:
        """Make what learns, and take over what the folder holds."""
        config = self.config
        classifier = None
        if config.class_weight:
            classifier = TokenClassifier(self.model.encoder.channels, self.steps.classes)
        self.objective = Objective(
            self.model,
            classifier,
            config.dice_weight,
            config.prototype_weight,
            config.class_weight,
            config.contrast_weight,
            find_dtype(config.dtype),
        )
        self.modules = {"model": self.model}
        if classifier is not None:
            self.modules["classifier"] = classifier
        self.wrapped = self.processes.wrap(self.objective)
        self.descent = Descent(self.processes, self.wrapped, self.model, config)
        self.best: float | None = None
        self.stale = 0  # validations since the best
        self.replaced = 0  # episodes that could not be read
        self.batch: dict[int, int] = {}  # episodes of a pass, by K
        self._frozen_hash = frozen_hash(self.model)
        self._restore()
        if self.config != config:
            self.run.change(self.config.to_dict())
        self.frozen = None if config.train_encoder else self._frozen_encoder()
        self._plan_batches()
        self.model.train()

    @property
    def schedule(self) -> Schedule:
        """That of the configuration."""
        return self.config.schedule

    def load(self) -> Iterable[Step]:
        """This process's share of each step."""
        return self.steps.load(self.start)

    def check(self, number: int, step: Step) -> None:
        """Raise where one of the processes could not read an image; name what was replaced."""
        unreadable, replaced = self.processes.sum(step.batch is None, len(step.bad))
        if unreadable:
            reason = step.bad[-1] if step.bad else "another process could not read an image"
            raise DataError(
                f"step {number}: {reason}; a checkpoint is written: fix this and rerun with "
                "--resume, or with --skip-bad, too"
            )
        self.replaced += int(replaced)
        for reason in step.bad:
            logger.warning("step %d: another episode in place of one: %s", number, reason)

    def passes(self, step: Step) -> Sequence[Callable[[], Tensor]]:
        """The losses of this process's episodes, as many at once as share a pass."""
        assert step.batch is not None
        own, count = len(step.batch), self.processes.count
        at_once = self.batch.get(step.batch.support_masks.shape[1], own)
        passes = []
        for first in range(0, own, at_once):
            last = min(first + at_once, own)
            # Gradients become the mean over processes, the loss is one over all episodes.
            weight = (last - first) * count / step.total
            passes.append(partial(self._loss, step, first, last, weight))
        return passes

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

    def metrics(self, done: int, loss: float | None, *, measured: bool) -> dict[str, Any]:
        """Loss, learning rate and counts; and the score of the validation."""
        if measured:
            self._validate(done)
        values = {
            "loss": loss,
            "learning_rate": self.descent.learning_rate,
            "skipped_steps": self.descent.guard.count,
            "replaced_episodes": self.replaced,
        }
        if measured:
            values[f"{self.config.select_on}_miou"] = self.quality
        return values

    def has_stopped(self) -> bool:
        """Whether `patience` has ended the run."""
        return 0 < self.config.patience <= self.stale

    def finish(self, done: int) -> Segmenter:
        """Write the last model; without validation it is the best, too."""
        self.model.eval()
        if self.validation is None:
            self.model.provenance = self._provenance(done)
        if self.processes.is_first:
            for name in ("model", "best") if self.validation is None else ("model",):
                self.model.save_pretrained(self.run.folder / name)
        return self.model

    def _validate(self, done: int) -> None:
        """Score the model, and keep it if it is the best so far."""
        assert self.validation is not None
        miou = self.validation.score(self.model, self.processes)
        if not math.isfinite(miou):
            logger.warning("step %d: validation gave no number, but %s", done, miou)
        self.quality = miou if math.isfinite(miou) else None
        better = self.quality is not None and (self.best is None or self.quality > self.best)
        self.best = self.quality if better else self.best
        self.stale = 0 if better or done in self.config.restarts else self.stale + 1
        self.model.provenance = self._provenance(done)
        if better and self.processes.is_first:
            self.model.save_pretrained(self.run.folder / "best")

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
            "selected_on": self.validation.selected_on if self.validation else _UNSELECTED,
            "selection_miou": self.quality,
            "version": __version__,
        }

    def _frozen_encoder(self) -> FrozenEncoder:
        config = self.config
        trained = find_dtype(config.dtype)
        dtype = dtype_of(config.encoder_dtype, self.processes.device)
        store = None
        if config.feature_cache is not None:
            encoder = weights_hash(self.model.encoder.state_dict())
            read = self.model.encoder
            layers = (read.read_layers, read.correlation_layers, read.patch_size)
            colours = (read.mean.flatten().tolist(), read.std.flatten().tolist())
            key = f"{encoder} {layers} {colours} {dtype}"
            store = FeatureStore(
                Path(config.feature_cache), key, dtype, len(self.model.encoder.levels)
            )
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

    # --------------------------------------------------------------------- in and out

    def save(self, done: int) -> None:
        """Write a checkpoint, and what waits for a shard of the feature cache to become full."""
        super().save(done)
        if self.frozen is not None and self.frozen.store is not None:
            self.frozen.store.flush()

    def state(self) -> dict[str, Any]:
        """Scores and counts, and what decides whether another run is the same one."""
        return {
            "miou": self.quality,
            "best": self.best,
            "stale": self.stale,
            "replaced": self.replaced,
            "batch": self.batch,
            "frozen": self._frozen_hash,
            "lists": self.steps.lists_hash,
            "photographs": self._photographs_hash(),
        }

    def take_over(self, step: int, state: Mapping[str, Any] | None) -> None:
        """Check frozen weights and data; put back scores, counts and the schedule."""
        if state is not None:
            self._check_sources(state)
            self.quality, self.best, self.stale = state["miou"], state["best"], state["stale"]
            self.replaced = state["replaced"]
            if self.config.episodes_per_batch == AUTO:  # another choice would round otherwise
                self.batch = {int(shots): number for shots, number in state["batch"].items()}
        if self.run.before is not None:
            folder, stopped = self.run.folder, self.has_stopped()
            self.config = follow_on(self.config, self.run.before, folder, step, stopped=stopped)
        if step in self.config.restarts:
            self.stale = 0
        if self.quality is not None:
            self.model.provenance = self._provenance(step)

    def _check_sources(self, state: Mapping[str, Any]) -> None:
        folder = self.run.folder
        if state["frozen"] != self._frozen_hash:
            raise CheckpointError(
                f"{folder} was trained on other frozen weights: pass the files that it began with"
            )
        if state["lists"] != self.steps.lists_hash:
            raise UsageError(
                f"{folder} was trained on other lists of images than --root and --splits give now: "
                "pass those that it began with"
            )
        if state.get("photographs") != self._photographs_hash():
            raise UsageError(
                f"{folder} was trained on other photographs than --photographs gives now: pass the "
                "folder that it began with"
            )

    def _photographs_hash(self) -> str | None:
        photographs = self.steps.photographs
        return None if photographs is None else photographs.digest


def _check_processes(config: TrainConfig, count: int) -> None:
    fewest = min(config.episodes_per_step(shots) for shots in config.shots)
    if fewest < count:
        raise UsageError(
            f"a step has {fewest} episodes of {max(config.shots)} shots, too few for {count} "
            f"processes: use at least {count * (max(config.shots) + 1)} images_per_step"
        )
    if count > 1 and config.train_encoder and config.model.conv_stem:
        logger.warning("batch statistics of the encoder are those of each process's own episodes")
