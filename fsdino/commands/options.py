"""Options that several commands share, and what several do first."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Annotated

import tyro

from fsdino.data import names
from fsdino.errors import FsdinoError, UsageError
from fsdino.models.names import DEFAULT as DEFAULT_MODEL

Json = Annotated[
    bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(name="json", help_behavior_hint="")
]
Integer = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
Number = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Name = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
Layout = Annotated[names.Layout, tyro.conf.arg(help_behavior_hint="")]
Value = Annotated[str | None, tyro.conf.arg(metavar="INT|none", help_behavior_hint="")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]
Dtype = Annotated[
    str, tyro.conf.arg(metavar="float32|float16|bfloat16", help_behavior_hint="(default: float32)")
]

# Options that are the same in several commands, with their help.
Model = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="NAME",
        help_behavior_hint=f"(default: {DEFAULT_MODEL})",
        help="Name (see `fsdino models`), folder or hub id (hf:owner/name) of a model.",
    ),
]
Weights = Annotated[
    File,
    tyro.conf.arg(
        help="Weights of --model dinov2-b and the like, instead of a download: Meta's "
        "dinov2_vit*14*_pretrain.pth or timm's model.safetensors."
    ),
]
Device = Annotated[
    str, tyro.conf.arg(help="cpu, cuda or cuda:N; auto takes a GPU if there is one.")
]
WeightsDtype = Annotated[Dtype, tyro.conf.arg(help="Floating type of the weights.")]
Threshold = Annotated[
    Number,
    tyro.conf.arg(
        help="Probability from which a pixel belongs to a mask; default: the model's own."
    ),
]
MaskThreshold = Annotated[
    Number,
    tyro.conf.arg(
        help="Brightness from which a pixel of a mask file is foreground, as a share of white; for "
        "masks with gray areas."
    ),
]
MaskValue = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="INT|#RRGGBB",
        help="Value or colour of the foreground in mask files that have several.",
    ),
]
InvertMask = Annotated[Flag, tyro.conf.arg(help="The mask files show the background.")]
Out = Annotated[
    Path | None,
    tyro.conf.arg(metavar="DIR", help_behavior_hint="(required)", help="Folder for the results."),
]
Overwrite = Annotated[
    Flag,
    tyro.conf.arg(
        help="Start again in a folder that holds the results of another call; other files stay."
    ),
]


def check_model(
    name: str | None, weights: Path | None = None, image_size: int | None = None
) -> None:
    """Say at once, before slow imports, that a model's weights are not here and cannot be had."""
    from fsdino.models import registry

    if name is not None:
        registry.check(name, weights, image_size)


def wait_without_spinning() -> None:
    """Let threads sleep while they wait: where others run, spinning costs ten times the work.

    OpenMP reads it when torch is imported, so that later it would only reach other processes.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def check_range(option: str, value: float | None, least: float, most: float = math.inf) -> None:
    """Refuse a number outside its range; None was not given.

    Raises:
        UsageError: it is below `least` or above `most`; names the option.
    """
    if value is not None and not least <= value <= most:
        span = f"at least {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
        raise UsageError(f"{option} must be {span}, got {value:g}")


def check_threshold(value: float | None) -> None:
    """Refuse what is not a probability between 0 and 1; None was not given.

    Raises:
        UsageError: it is not.
    """
    if value is not None and not 0 < value < 1:
        raise UsageError(f"--threshold must lie between 0 and 1, got {value:g}")


def check_folder(out: Path) -> None:
    """Refuse an --out that is not a folder which can be written, or created, before any work.

    Raises:
        UsageError: it is a file, or one stands in its path.
        FsdinoError: there is no permission to write.
    """
    whole = out.absolute()
    place = next(path for path in (whole, *whole.parents) if os.path.exists(path))
    if not place.is_dir():
        what = "this" if place == whole else str(place)
        raise UsageError(f"--out {out}: a folder is needed, {what} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise FsdinoError(
            f"--out {out}: no permission to write in {place}; change it, or pass another --out"
        )
