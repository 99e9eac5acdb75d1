"""Few-shot segmentation with a frozen DINOv2 encoder.

    model = fsdino.load()  # fsdino-photo; list_models() names the others
    support = model.encode_support(images, masks)  # K annotated images of one class: a Support
    result = model.segment(query, support)  # a Segmentation, or a list of them
    result.mask, result.score, result.overlay()

The public names, of which `help(fsdino.load)` and the like say more:

    load               a model by name, from a folder, or from the hub
    list_models        the models that have a name, each a ModelInfo
    samples            photographs with masks to try a model on, each a Sample
    read_labelled      labelled photographs by class, each a Labelled: folders, LabelMe, COCO, YOLO
    open_clip          the frames of a video
    track              objects through those frames
    export_coco        many results as one COCO file
    Segmenter          what `load` gives: encode_support, segment, segment_iter, mark
    FSDINO             the network, a Segmenter; to build and to train one
    ModelConfig        the settings of an FSDINO
    Support            marked examples of a class, encoded; can be saved
    Segmentation       a result: mask, probability, score, overlay, formats of other tools
    Instance           one object of a result
    ops                the 4D correlation operations
    CenterPivotConv4d  a layer of them
    FsdinoError        every error: UsageError, DataError, CheckpointError, BackendError

They are imported on first use, so that `import fsdino` costs nothing.
"""

from __future__ import annotations

import os.path
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING

from fsdino.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from fsdino import ops
    from fsdino.clips import open_clip
    from fsdino.data.labelled import Labelled, read_labelled
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
    from fsdino.models.video import track
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
    "Labelled",
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
    "open_clip",
    "ops",
    "read_labelled",
    "samples",
    "track",
]

_HOMES = {
    "BackendError": "fsdino.errors",
    "CenterPivotConv4d": "fsdino.models.hypercorrelation",
    "CheckpointError": "fsdino.errors",
    "DataError": "fsdino.errors",
    "FSDINO": "fsdino.models.fsdino",
    "FsdinoError": "fsdino.errors",
    "Instance": "fsdino.models.instances",
    "Labelled": "fsdino.data.labelled",
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
    "open_clip": "fsdino.clips",
    "read_labelled": "fsdino.data.labelled",
    "samples": "fsdino.sample_photographs",
    "track": "fsdino.models.video",
}

_HERE = os.path.dirname(os.path.abspath(__file__))


class _Checkout:
    """Finds `fsdino.kernels` and `fsdino.csrc` in a checkout, where they lie one folder up.

    Installed, they lie in here. With that folder in `__path__`, tests and benchmarks would be
    modules of the package, too, and `help(fsdino)` would list them.
    """

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in ("fsdino.kernels", "fsdino.csrc"):
            return None
        return PathFinder.find_spec(fullname, [*(path or ()), os.path.dirname(_HERE)])


if not os.path.isdir(os.path.join(_HERE, "kernels")):
    sys.meta_path.insert(0, _Checkout)  # before that of another checkout, installed editable

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
    return sorted(__all__)
