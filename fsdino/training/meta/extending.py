"""The schedule of a resumed run: the former one, or a longer one if the run was finished."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsdino.errors import UsageError
from fsdino.training.meta.config import TrainConfig

logger = logging.getLogger("fsdino.training")


def follow_on(
    config: TrainConfig, before: Mapping[str, Any], folder: Path, step: int, *, stopped: bool
) -> TrainConfig:
    """The former schedule of a resumed run, or its extension, which begins again.

    Args:
        config: configuration of this call.
        before: the configuration that the run was started with.
        folder: folder of the run, for messages.
        step: steps done.
        stopped: whether `patience` had ended it.

    Raises:
        UsageError: fewer steps than it has, or more before it is finished, or other `restarts`.
    """
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
    return dataclasses.replace(config, restarts=restarts)
