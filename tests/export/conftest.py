"""Two models with their exports, made once for all tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

import fsdino
from fsdino.export.write import export_model
from fsdino.models.fsdino import FSDINO
from fsdino.models.segmenter import Segmenter
from pyramids import NETWORKS
from tiny_models import tiny_model

SIDE = 64  # pixels that images are resized to: 4 x 4 tokens


@dataclass(frozen=True)
class TinyExport:
    """A small model, and the folder that it was exported to as ONNX."""

    model: Segmenter
    folder: Path


@pytest.fixture
def compiles_packages() -> None:
    """Packages of AOTInductor for other processors than this one."""
    if TorchVersion(torch.__version__) < "2.13":
        pytest.skip("PyTorch before 2.13 compiles packages for this processor only")


def _exported(model: Segmenter, folder: Path) -> TinyExport:
    export_model(model, folder, name="tiny")
    return TinyExport(model, folder)


@pytest.fixture(scope="session")
def training_free() -> FSDINO:
    """A model on a ResNet, which fits a classifier to its supports."""
    name, arguments = NETWORKS["ResNet"]
    return tiny_model(
        encoder=name, encoder_args=arguments, image_size=SIDE, variant="training_free"
    )


@pytest.fixture(scope="session")
def tiny_export(training_free: FSDINO, tmp_path_factory: pytest.TempPathFactory) -> TinyExport:
    """The training-free model."""
    return _exported(training_free, tmp_path_factory.mktemp("free"))


@pytest.fixture(scope="session")
def tiny_full_export(tmp_path_factory: pytest.TempPathFactory) -> TinyExport:
    """A bundled model with all parts of the paper's, which fits nothing."""
    return _exported(fsdino.load("fsdino-tiny"), tmp_path_factory.mktemp("full"))
