"""The loop of both training stages: steps, measurements, checkpoints; resumable at any moment."""

from __future__ import annotations

import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from fsdino.errors import CheckpointError, FsdinoError
from fsdino.processes import Processes, threads
from fsdino.training.interrupt import Interrupt
from fsdino.training.optimisation import Descent
from fsdino.training.recipe import Recipe, Schedule
from fsdino.training.run import Run
from fsdino.training.state import pack, random_among, random_state, set_random, unpack

logger = logging.getLogger("fsdino.training")

Item = TypeVar("Item")
Result = TypeVar("Result")

# Called with the number of steps done, the step's loss, and the last measurement's quality: mIoU in
# percent (stage 2) or cosine (stage 1).
Report = Callable[[int, float, float | None], None]

_LOG_EVERY = 50  # steps


class Loop(ABC, Generic[Item, Result]):
    """One training run in one folder; both stages are made of it.

    A stage opens what it reads, then calls `_open_run`, makes `modules` and `descent`, and calls
    `_restore`, all inside `_opening`. `fit` does the rest, and asks the stage for what differs.

    Args:
        config: what to train.
        processes: those that train together, from `Processes.for_training`; None joins them.

    Attributes:
        run: the folder.
        modules: what a checkpoint holds.
        descent: how they learn.
        start: steps that an earlier run did.
        quality: of the last measurement.
        measures: whether the model is measured while it learns.
        measures_start: whether it is also measured before the first step.
    """

    run: Run
    modules: dict[str, nn.Module]
    descent: Descent
    start: int
    measures = True
    measures_start = False

    def __init__(self, config: Recipe, processes: Processes | None) -> None:
        self.config = config
        self.processes = processes or Processes.for_training(config.device)
        self.quality: float | None = None
        self._due: float | None = None  # loss of a step whose measurement failed
        self._random: dict[str, Tensor] = {}

    # --------------------------------------------------------------------- what a stage supplies

    @property
    @abstractmethod
    def schedule(self) -> Schedule:
        """When the learning rate rises and falls, and where the run ends."""

    @abstractmethod
    def load(self) -> Iterable[Item]:
        """What each step from `start` on learns from: this process's share."""

    @abstractmethod
    def passes(self, item: Item) -> Sequence[Callable[[], Tensor]]:
        """The passes of a step; see `Descent.step`."""

    @abstractmethod
    def metrics(self, done: int, loss: float | None, *, measured: bool) -> dict[str, Any]:
        """What metrics.jsonl holds of a step.

        Args:
            done: steps done.
            loss: of the last one; None before the first.
            measured: measure the model first, and set `quality`.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps as JSON, beside what the loop itself keeps."""

    @abstractmethod
    def take_over(self, step: int, state: Mapping[str, Any] | None) -> None:
        """Check that a checkpoint belongs to this run, and put back what `state` said.

        Args:
            step: steps done.
            state: None if there is no checkpoint.

        Raises:
            UsageError, CheckpointError: data or weights are others; the message says which.
        """

    @abstractmethod
    def finish(self, done: int) -> Result:
        """Write what the run was for."""

    def check(self, number: int, item: Item) -> None:
        """Raise, in all processes, what makes a step impossible; a checkpoint is written then."""

    def has_stopped(self) -> bool:
        """Whether the run ends before its last step."""
        return False

    # ------------------------------------------------------------------------------- the loop

    def fit(self, report: Report | None = None) -> Result:
        """Train to the end; returns what the stage makes.

        Args:
            report: called after every step.

        Raises:
            KeyboardInterrupt: the run was asked to stop; a checkpoint is written.
            FsdinoError: too many steps without a finite loss, a measurement that is not finite, or
                data that cannot be read; a checkpoint is written.
        """
        self._began = time.monotonic()
        with self.run, threads(self.config.threads), Interrupt() as interrupt:
            set_random(self._random)
            if self._due is not None:
                self._record(self.start, self._due)
                self.save(self.start)
            elif self.measures_start and self.start == 0:
                self._log(0, None, measured=True)
            done = self.start
            for number, item in enumerate(self._items(), start=self.start):
                self._stop_if_asked(number, interrupt)
                with self._saved_on_error(number):
                    self.check(number, item)
                loss, done = self.step(number, item), number + 1
                self._record(done, loss)
                if done % self.config.checkpoint_every == 0 or done in self.schedule.ends:
                    self.save(done)
                if report is not None:
                    report(done, loss, self.quality)
                if self.has_stopped():
                    self.save(done)
                    break
            result = self.finish(done)
        self.processes.gather(None)
        return result

    def step(self, number: int, item: Item) -> float:
        """Change the weights once; returns the mean loss over the items of all processes.

        Raises:
            FsdinoError: one step too many without a finite loss; a checkpoint is written.
        """
        with self._saved_on_error(number):
            return self.descent.step(number, self.schedule.around(number), self.passes(item))

    def save(self, done: int) -> None:
        """Write a checkpoint.

        Raises:
            FsdinoError: see `Run.save`.
        """
        own = {"skipped": self.descent.guard.count, "due": self._due}
        tensors = pack(self.modules, self.descent.optimizer)
        self.run.save(done, tensors, {**self.state(), **own})

    def _items(self) -> Iterable[Item]:
        return () if self.has_stopped() else self.load()

    def _stop_if_asked(self, done: int, interrupt: Interrupt) -> None:
        """Stop all processes between two steps where one of them was asked to."""
        [asked] = self.processes.sum(interrupt.asked)
        if asked:
            self.save(done)
            raise KeyboardInterrupt

    def _record(self, done: int, loss: float) -> None:
        """Measure and log where that is due; an error there costs no step.

        A checkpoint is written then, and a resumed run begins with what failed.
        """
        self._due = loss
        ended = done in self.schedule.ends
        try:
            if self.measures and (done % self.config.validate_every == 0 or ended):
                self._log(done, loss, measured=True)
            elif done % _LOG_EVERY == 0 or ended:
                self._log(done, loss, measured=False)
        except Exception:
            with contextlib.suppress(FsdinoError):  # the disk is full, perhaps
                self.save(done)
            raise
        self._due = None

    def _log(self, done: int, loss: float | None, *, measured: bool) -> None:
        values = self.metrics(done, loss, measured=measured)
        if measured:
            values["seconds"] = round(time.monotonic() - self._began, 1)
        self.run.log(done, **values)

    @contextlib.contextmanager
    def _saved_on_error(self, done: int) -> Iterator[None]:
        try:
            yield
        except FsdinoError:
            self.save(done)
            raise

    # ------------------------------------------------------------------------ the run's folder

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        """Seed what is drawn inside, and note the state that training continues from.

        An error leaves the folder to the next start.
        """
        with threads(self.config.threads):
            torch.manual_seed(self.config.seed)
            try:
                yield
            except BaseException:
                if "run" in vars(self):
                    self.run.abandon()
                raise
            self._random = self._random or random_state()

    def _open_run(
        self,
        folder: Path,
        *,
        resume: bool,
        reasons: Mapping[str, str] | None = None,
    ) -> None:
        """Open the folder, the first process before the others; see `Run`.

        Args:
            folder: the run's.
            resume: continue what it holds.
            reasons: what an error adds for a setting that must not differ.
        """
        kind = type(self.config)
        self.run = self.processes.in_turn(
            lambda: Run(
                folder,
                self.config.to_dict(),
                resume=resume,
                free=kind.free,
                first=self.processes.is_first,
                complete=lambda data: kind.from_dict(data).to_dict(),
                reasons=reasons,
            )
        )

    def _restore(self) -> None:
        """Take over what the folder holds.

        Raises:
            CheckpointError: it was written by another version, or for another run.
        """
        step, tensors, state = self.run.load() or (0, {}, None)
        try:
            self.take_over(step, state)
            if state is not None:
                unpack(tensors, self.modules, self.descent.optimizer)
                self.descent.guard.count, self._due = state["skipped"], state.get("due")
                self._random = random_among(tensors)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"the checkpoints of {self.run.folder} were written by another version ({error}): "
                "start in another --out"
            ) from error
        # What is measured again is not kept: a step whose measurement failed, or the start.
        self.run.forget_after(step if self._due is None and step else step - 1)
        if state is not None:
            logger.info("resuming %s at step %d", self.run.folder, step)
        self.start = step
