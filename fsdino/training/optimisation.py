"""A step of either stage: passes, learning rate, and losses that are not finite."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from fsdino.devices import find_dtype
from fsdino.errors import FsdinoError
from fsdino.processes import Processes
from fsdino.training.recipe import AUTO, Recipe

logger = logging.getLogger("fsdino.training")


def adamw(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over what is trained; only matrices decay."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate)


def warmup_cosine(step: int, steps: int, warmup: int, floor: float) -> float:
    """Factor of the peak learning rate: linear warm-up, then cosine decay to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """A floating type by a setting's name; "auto" is bfloat16 on GPUs and float32 elsewhere."""
    if name == AUTO:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return find_dtype(name)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set it for all groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


class NanGuard:
    """Steps whose loss or gradients are not finite: skipped and counted; too many are an error.

    Args:
        limit: number of consecutive ones that stops the run.
        count: of skipped steps so far, for a checkpoint's state.
    """

    def __init__(self, limit: int, count: int = 0) -> None:
        self.limit, self.count, self._row = limit, count, 0

    def skips(self, step: int, loss: float, norm: float) -> bool:
        """Whether the step must not change the weights.

        All processes come to the same answer where loss and norm are those of all.

        Raises:
            FsdinoError: too many consecutive ones.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            self._row = 0
            return False
        self.count += 1
        self._row += 1
        logger.warning(
            "step %d skipped: the loss is %s, the gradients' norm %s (%d skipped so far)",
            step, loss, norm, self.count,
        )  # fmt: skip
        if self._row >= self.limit:
            raise FsdinoError(
                f"{self._row} consecutive steps had no finite loss, up to step {step}: the weights "
                "are as before them; start in another --out with a lower learning_rate, or float32"
            )
        return True


class Descent:
    """Steps of AdamW, the same ones in every process.

    Args:
        processes: those that a step's passes are spread over.
        wrapped: what is trained, from `Processes.wrap`.
        clipped: the part whose gradients' norm is limited.
        config: `learning_rate`, `decay`, `warmup`, `weight_decay`, `gradient_clip` and `nan_limit`
            are read.

    Attributes:
        optimizer: for checkpoints.
        guard: counts skipped steps.
    """

    def __init__(
        self,
        processes: Processes,
        wrapped: nn.Module,
        clipped: nn.Module,
        config: Recipe,
    ) -> None:
        self.processes, self.wrapped = processes, wrapped
        self.clipped, self.config = clipped, config
        self.optimizer = adamw(wrapped.parameters(), config.learning_rate, config.weight_decay)
        self.guard = NanGuard(config.nan_limit)

    @property
    def learning_rate(self) -> float:
        """Of the last step."""
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def step(
        self, number: int, schedule: tuple[int, int], passes: Sequence[Callable[[], Tensor]]
    ) -> float:
        """Change the weights once, unless the loss or its gradients are not finite.

        Args:
            number: of the step, from 0.
            schedule: first step of the schedule that it belongs to, and the one after its last.
            passes: each calls the wrapped module and returns this process's share of its loss;
                shares add up within a process, and become a mean over processes.

        Returns:
            The loss.

        Raises:
            FsdinoError: too many consecutive steps without a finite loss.
        """
        first, last = schedule
        floor = 0.01 if self.config.decay else 1.0
        factor = warmup_cosine(number - first, last - first, self.config.warmup, floor)
        set_learning_rate(self.optimizer, self.config.learning_rate * factor)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.processes.device)
        for index, loss_of_pass in enumerate(passes, start=1):
            total += self.processes.backward(self.wrapped, loss_of_pass, last=index == len(passes))
        loss = self.processes.sum(total)[0] / self.processes.count
        limit = self.config.gradient_clip
        norm = torch.nn.utils.clip_grad_norm_(self.clipped.parameters(), limit)
        if not self.guard.skips(number, loss, norm.item()):
            self.optimizer.step()
        return loss
