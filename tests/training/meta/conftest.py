"""Runs that several suites of stage 2 compare with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_sets import save_jpeg
from fsdino.training.meta.config import TrainConfig
from fsdino.training.meta.train import Trainer
from training_work import (
    CONFIG,
    FROZEN,
)


@pytest.fixture
def plain_memory(one_thread: None) -> None:
    """Bits are compared: no filling of fresh memory, one thread."""
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """An unbroken run."""
    folder = tmp_path_factory.mktemp("whole")
    Trainer(CONFIG, folder).fit()
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> TrainConfig:
    """A run on a folder of two classes with ten images each."""
    root = tmp_path / "photos"
    for name in ("cat", "dog"):
        for i in range(10):
            save_jpeg(root / name / f"{i}.jpg", i, 40, 40)
            mask = np.zeros((40, 40), np.uint8)
            mask[: 20 if name == "cat" else 30, :15] = 255
            Image.fromarray(mask).save(root / name / f"{i}.png")
    return dataclasses.replace(
        FROZEN, data="folder", root=str(root), image_sizes=(), workers=1, validate_every=6
    )
