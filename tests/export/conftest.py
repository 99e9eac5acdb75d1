"""Small models with their exports, made once for all tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

from fsdino.export.write import export_model
from fsdino.models.segmenter import Segmenter
from pyramids import NETWORKS
from tiny_models import tiny_model

SIDE = 64  # pixels that images are resized to: 4 x 4 tokens


@dataclass(frozen=True)
class TinyExport:
    """A model with random weights, and the folder that it was exported to as ONNX."""

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
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> TinyExport:
    """A training-free model on a ResNet, which fits a classifier to its supports."""
    name, arguments = NETWORKS["ResNet"]
    model = tiny_model(
        encoder=name, encoder_args=arguments, image_size=SIDE, variant="training_free"
    )
    return _exported(model, tmp_path_factory.mktemp("free"))


@pytest.fixture(scope="session")
def tiny_full_export(tmp_path_factory: pytest.TempPathFactory) -> TinyExport:
    """A model with all parts of the paper's, on a DINOv2, which fits nothing."""
    return _exported(tiny_model(correlation_channels=(4,)), tmp_path_factory.mktemp("full"))
