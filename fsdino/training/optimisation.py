"""What both training stages share of a step: groups, schedule, and losses that are no numbers."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

import torch
from torch import nn

from fsdino.errors import FsdinoError

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


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.01) -> float:
    """Factor of the peak learning rate: linear warm-up, then cosine decay to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set it for all groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


class NanGuard:
    """Steps whose loss or gradients are no numbers: skipped, counted, and too many an error.

    Args:
        limit: so many in a row stop the run.
        count: of skipped steps so far, for a checkpoint's state.
    """

    def __init__(self, limit: int, count: int = 0) -> None:
        self.limit, self.count, self._row = limit, count, 0

    def skips(self, step: int, loss: float, norm: float) -> bool:
        """Whether the step must not change the weights.

        All processes come to the same answer where loss and norm are those of all.

        Raises:
            FsdinoError: it is one too many in a row.
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
                f"{self._row} steps in a row had no finite loss, up to step {step}: the weights "
                "are as before them; start in another --out with a lower learning_rate, or float32"
            )
        return True
