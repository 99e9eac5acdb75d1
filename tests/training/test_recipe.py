"""The configurations of both stages, where they are alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fsdino.models.config import ModelConfig
from fsdino.training.distillation.config import DistillConfig
from fsdino.training.meta.config import TrainConfig
from fsdino.training.recipe import Recipe


def test_configurations_leave_torch_alone() -> None:
    """Commands take their options from the configurations before anything slow is imported."""
    code = (
        "import sys\n"
        "from fsdino.training.distillation.config import DistillConfig\n"
        "from fsdino.training.meta.config import TrainConfig\n"
        "TrainConfig.from_dict({'model': {}})\n"
        "DistillConfig.from_dict({'model': {}})\n"
        "print(*sorted({'torch', 'timm', 'torchvision', 'triton'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (TrainConfig, "encoder_weights"),
        (TrainConfig, "root"),
        (DistillConfig, "teacher_checkpoint"),
    ],
)
def test_a_path_is_one_setting_however_it_is_written(kind: type[Recipe], name: str) -> None:
    """A run that began with `sam.pth` is resumed with `./sam.pth`; no path stays none."""
    one, other = (kind(ModelConfig(), **{name: path}) for path in ("a/sam.pth", "./a//sam.pth/"))
    assert one == other
    assert getattr(one, name) == str(Path("a/sam.pth"))
    empty = getattr(kind(ModelConfig()), name)
    assert not empty and empty == getattr(kind(ModelConfig(), **{name: empty}), name)
