"""Work shared by processes: who they are, what each does and gathers, and how they train together.

`torchrun --nproc-per-node N -m fsdino ...` and `accelerate launch -m fsdino ...` say in the
environment who is who; where neither did, there is one process. Shared work is joined by gloo,
which also runs beside GPUs; training by `accelerate`, with gloo on CPUs and NCCL on GPUs.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from fsdino.errors import FsdinoError

T = TypeVar("T")

# How long a process waits for the others. PyTorch's own 10 or 30 minutes would end those that wait
# for one that embeds, validates or looks through files; a launcher ends all when one has died.
PATIENCE = timedelta(days=1)

_joined: list[distributed.ProcessGroup | None] = []  # the group that this module made, if any


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work.

    Made by `processes` for work whose results are gathered, and by `for_training` for models that
    are trained together; `Processes()` is one process alone, for work.

    Attributes:
        rank: 0 .. count - 1.
        count: of processes, on all machines.
        device: where sums are made and a wrapped module is trained.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _accelerator: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def for_training(cls, device: str = "auto") -> Processes:
        """The processes of this job, joined by accelerate.

        Args:
            device: "auto" takes this process's NVIDIA GPU where there is one; "cpu".

        Raises:
            FsdinoError: accelerate is not installed.
        """
        try:
            from accelerate import Accelerator, InitProcessGroupKwargs
        except ImportError as error:
            raise FsdinoError('training needs accelerate: pip install "fsdino[train]"') from error
        # Other accelerators have no kernels here, and Apple's has no float64. Autocast is the
        # trainer's own: accelerate would share one choice among all runs.
        found = Accelerator(
            cpu=device == "cpu" or not torch.cuda.is_available(),
            mixed_precision="no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        return cls(found.process_index, found.num_processes, found.device, found)

    def __reduce__(self) -> tuple[type[Processes], tuple[int, int, torch.device]]:
        """A loader's worker shares the work, but trains nothing."""
        return Processes, (self.rank, self.count, self.device)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that does what is done once for all, such as writing."""
        return self.rank == 0

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
        with _told_of_failures():
            distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def sum(self, *values: float | Tensor) -> list[float]:
        """The sum over all processes of each value, in float64; every process must call it.

        Raises:
            FsdinoError: another process ended without its values.
        """
        stacked = torch.stack(
            [torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in values]
        )
        if self.count > 1:
            with _told_of_failures():
                distributed.all_reduce(stacked)
        return stacked.tolist()

    def by_first(self, work: Callable[[], T]) -> T | None:
        """Let the first process do what is done once for all; what it raises, all raise.

        Returns what the work returns to the first process, and None to the others.

        Raises:
            FsdinoError: the first process's.
        """
        value: T | None = None
        error: FsdinoError | None = None
        if self.is_first:
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

        None of them continues before all are done.
        """
        if not self.is_first:
            self.gather(None)
        value = work()
        if self.is_first:
            self.gather(None)
        self.gather(None)
        return value

    def wrap(self, module: nn.Module) -> nn.Module:
        """Move a module to this process's device; gradients become the mean over processes.

        This, `backward` and `close` need processes that `for_training` joined.
        """
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        return wrapped

    def backward(self, module: nn.Module, loss: Callable[[], Tensor], *, last: bool) -> Tensor:
        """Compute a loss with a wrapped module, and its gradients on top of those that are there.

        Args:
            module: from `wrap`.
            loss: calls it.
            last: whether it is the last of this step: then the gradients of all processes become
                their mean.

        Returns:
            The loss, detached.
        """
        alone = contextlib.nullcontext() if last else self._accelerator.no_sync(module)
        with alone:
            value = loss()
            self._accelerator.backward(value)
        return value.detach()

    def close(self) -> None:
        """Part from the others, at the end of the program."""
        self._accelerator.end_training()


@contextlib.contextmanager
def processes() -> Iterator[Processes]:
    """The processes of this job, joined by gloo: only rows of numbers are exchanged.

    They stay joined until they end: one that left and joined again could meet the group that the
    others have not left yet, and all would wait for ever. One that fails leaves at once, so that
    those who wait for it are told.
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


@contextlib.contextmanager
def _told_of_failures() -> Iterator[None]:
    """Say why an exchange ended where PyTorch only says that it did."""
    try:
        yield
    except RuntimeError as error:
        raise FsdinoError(
            "another process of this job has failed: see its error above or in its own log"
        ) from error


def _leave() -> None:
    """Leave the group that `processes` joined; one that the caller made is the caller's."""
    if distributed.is_initialized() and distributed.group.WORLD in _joined:
        distributed.destroy_process_group()
    _joined.clear()


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
def threads(count: int | None) -> Iterator[None]:
    """Let PyTorch compute with `count` CPU threads inside; None or 0 leaves their number as it is.

    Fewer than there are cores leave some to processes that read beside it.
    """
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
