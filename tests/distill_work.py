"""A distillation where other processes find it by name."""

from __future__ import annotations

from pathlib import Path

import torch

from fsdino.processes import Processes
from fsdino.training.distillation.config import DistillConfig
from fsdino.training.distillation.distill import Distillation


def together(out: Path) -> None:
    """In each of two processes: the run of `out/config.yaml`, and the rest of that in `out/one`."""
    torch.set_num_threads(1)
    processes = Processes.for_training("cpu")
    config = DistillConfig.from_yaml(out / "config.yaml")
    for name in ("two", "one"):
        distillation = Distillation(config, out / name, resume=name == "one", processes=processes)
        distillation.prepare()
        distillation.fit()
    processes.close()
