"""Few-shot segmentation with a frozen DINOv2 encoder.

The public names are imported on first use, so that `import fsdino` costs nothing.
"""

from __future__ import annotations

import os.path
from typing import TYPE_CHECKING

from fsdino.version import __version__

if TYPE_CHECKING:
    from fsdino import ops
    from fsdino.errors import BackendError, CheckpointError, DataError, FsdinoError, UsageError
    from fsdino.models.coco_export import export_coco
    from fsdino.models.config import ModelConfig
    from fsdino.models.fsdino import FSDINO
    from fsdino.models.hypercorrelation import CenterPivotConv4d
    from fsdino.models.instances import Instance
    from fsdino.models.registry import ModelInfo, list_models
    from fsdino.models.segmentation import Segmentation
    from fsdino.models.segmenter import Segmenter
    from fsdino.models.supports import Support
    from fsdino.models.zoo import load
    from fsdino.sample_photographs import Sample, samples

__all__ = [
    "FSDINO",
    "BackendError",
    "CenterPivotConv4d",
    "CheckpointError",
    "DataError",
    "FsdinoError",
    "Instance",
    "ModelConfig",
    "ModelInfo",
    "Sample",
    "Segmentation",
    "Segmenter",
    "Support",
    "UsageError",
    "__version__",
    "export_coco",
    "list_models",
    "load",
    "ops",
    "samples",
]

_HOMES = {
    "BackendError": "fsdino.errors",
    "CenterPivotConv4d": "fsdino.models.hypercorrelation",
    "CheckpointError": "fsdino.errors",
    "DataError": "fsdino.errors",
    "FSDINO": "fsdino.models.fsdino",
    "FsdinoError": "fsdino.errors",
    "Instance": "fsdino.models.instances",
    "ModelConfig": "fsdino.models.config",
    "ModelInfo": "fsdino.models.registry",
    "Sample": "fsdino.sample_photographs",
    "Segmentation": "fsdino.models.segmentation",
    "Segmenter": "fsdino.models.segmenter",
    "Support": "fsdino.models.supports",
    "UsageError": "fsdino.errors",
    "export_coco": "fsdino.models.coco_export",
    "list_models": "fsdino.models.registry",
    "load": "fsdino.models.zoo",
    "samples": "fsdino.sample_photographs",
}

# In a checkout `kernels` and `csrc` lie one folder up; installed, they lie in here.
_HERE = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_HERE, "kernels")):
    __path__.append(os.path.dirname(_HERE))

# Hidden from type checkers, which would otherwise accept any name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name == "ops":
            return import_module("fsdino.ops")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
