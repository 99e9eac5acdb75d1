"""The processes of a run, joined by `accelerate`; one where no launcher started more.

`torchrun --nproc-per-node N -m fsdino ...` and `accelerate launch -m fsdino ...` say in the
environment who is who: gloo joins CPUs, NCCL joins GPUs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fsdino.errors import FsdinoError, UsageError
from fsdino.processes import PATIENCE, Processes

T = TypeVar("T")

DEVICES = ("auto", "cpu")


class Team:
    """This process among those that train together.

    Args:
        device: "auto" takes this process's NVIDIA GPU where there is one; "cpu".

    Attributes:
        device: where this process computes.
        processes: who this is, and what is shared: `rank`, `count`, `share`, `gather`, `in_turn`.

    Raises:
        UsageError: another device.
        FsdinoError: accelerate is not installed.
    """

    def __init__(self, device: str = "auto") -> None:
        if device not in DEVICES:
            raise UsageError(f"device {device!r}: choose {' or '.join(DEVICES)}")
        try:
            from accelerate import Accelerator, InitProcessGroupKwargs
        except ImportError as error:
            raise FsdinoError('training needs accelerate: pip install "fsdino[train]"') from error
        # Other accelerators have no kernels here, and Apple's has no float64. Autocast is the
        # trainer's own: accelerate would share one choice among all runs.
        on_cpu = device == "cpu" or not torch.cuda.is_available()
        self._accelerator: Any = Accelerator(
            cpu=on_cpu,
            mixed_precision="no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        self.device: torch.device = self._accelerator.device
        self.processes = Processes(self._accelerator.process_index, self._accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.processes.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Move a module to this process's device; gradients become the mean over processes."""
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        return wrapped

    def backward(self, module: nn.Module, loss: Callable[[], Tensor], *, last: bool) -> Tensor:
        """Compute a loss with a wrapped module, and its gradients on top of those that are there.

        Args:
            module: from `wrap`.
            loss: calls it.
            last: of this step: now the gradients of all processes become their mean.

        Returns:
            The loss, detached.
        """
        alone = contextlib.nullcontext() if last else self._accelerator.no_sync(module)
        with alone:
            value = loss()
            self._accelerator.backward(value)
        return value.detach()

    def sum(self, *values: float | Tensor) -> list[float]:
        """The sum over all processes of each value; every process must call it."""
        stacked = torch.stack(
            [torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in values]
        )
        if self.processes.count > 1:
            stacked = self._accelerator.reduce(stacked, "sum")
        return stacked.tolist()

    def close(self) -> None:
        """Part from the others, at the end of the program."""
        self._accelerator.end_training()
