"""The configurations of both stages, where they are alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


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
