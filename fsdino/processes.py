"""Work shared by the processes that `torchrun` starts; one process where it did not."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from fsdino.errors import FsdinoError

T = TypeVar("T")

# How long a process waits for the others. PyTorch's own 10 or 30 minutes would end those that wait
# for one that embeds, validates or looks through files; a launcher ends all when one has died.
PATIENCE = timedelta(days=1)

_joined: list[distributed.ProcessGroup | None] = []  # the group that this module made, if any


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work.

    Attributes:
        rank: 0 .. count - 1.
        count: of processes, on all machines.
    """

    rank: int = 0
    count: int = 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that are this process's, taken in turns."""
        return items[self.rank :: self.count]

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of ranks; all processes wait here.

        Raises:
            FsdinoError: another process ended without its value.
        """
        if self.count == 1:
            return [value]
        values: list[T | None] = [None] * self.count
        try:
            distributed.all_gather_object(values, value)
        except RuntimeError as error:
            raise FsdinoError(
                "another process of this job has failed: see its error above or in its own log"
            ) from error
        return values  # type: ignore[return-value]

    def by_first(self, work: Callable[[], T]) -> T | None:
        """Let the first process do what is done once for all; what it raises, all raise.

        Returns what the work returns to the first process, and None to the others.

        Raises:
            FsdinoError: the first process's.
        """
        value: T | None = None
        error: FsdinoError | None = None
        if not self.rank:
            try:
                value = work()
            except FsdinoError as raised:
                error = raised
        error = self.gather(error)[0]
        if error is not None:
            raise error
        return value

    def in_turn(self, work: Callable[[], T]) -> T:
        """Let the first process do what prepares files, then the others, which find them.

        None of them goes on before all are done.
        """
        if self.rank:
            self.gather(None)
        value = work()
        if not self.rank:
            self.gather(None)
        self.gather(None)
        return value


@contextlib.contextmanager
def processes() -> Iterator[Processes]:
    """The processes of this job, joined with gloo, which also runs beside GPUs.

    Only rows of numbers are exchanged. `torchrun` says in the environment who is who. They stay
    joined until they end: one that left and joined again could meet the group that the others have
    not left yet, and all would wait for ever. One that fails leaves at once, so that those who wait
    for it are told.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=PATIENCE)
        _joined.append(distributed.group.WORLD)
        atexit.register(_leave)
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    except BaseException:
        _leave()
        raise


def _leave() -> None:
    """Leave the group that `processes` joined; one that the caller made is the caller's."""
    if distributed.is_initialized() and distributed.group.WORLD in _joined:
        distributed.destroy_process_group()
    _joined.clear()


def is_first() -> bool:
    """Whether this process does what is done once for all that share the work."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process on its machine, where "cuda" was asked for without a number."""
    if str(device) == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def cores() -> int:
    """Cores of this process: its share of those that the processes on its machine may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch compute with so many threads, so that readers beside it have cores to run on."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
