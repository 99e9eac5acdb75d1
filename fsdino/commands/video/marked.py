"""Frames of the clip itself as supports: `--at [NAME=]TIME MASK ...`."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fsdino.clips import Clip, Moment
from fsdino.commands.segment.supports import UNNAMED
from fsdino.errors import SupportWarning, UsageError
from fsdino.masks import MaskRule

if TYPE_CHECKING:
    from fsdino.models.segmenter import Segmenter
    from fsdino.models.supports import Support

_NAMED = re.compile(r"(?P<name>[^=]+)=(?P<time>.+)")


@dataclass(frozen=True)
class MarkedFrames:
    """Frames of the clip that show one class.

    Attributes:
        name: of the class.
        moments: where the frames are.
        masks: a file for each.
        rule: which pixels of mask files are foreground; None where they say so themselves.
    """

    name: str
    moments: tuple[Moment, ...]
    masks: tuple[Path, ...]
    rule: MaskRule | None = None

    def digest(self) -> str:
        """Hash of the places and the masks' contents; the clip is not part of it."""
        digest = hashlib.sha256(repr((*map(str, self.moments), self.rule)).encode())
        for mask in self.masks:
            digest.update(hashlib.sha256(mask.read_bytes()).digest())
        return digest.hexdigest()[:16]

    def encode(self, model: Segmenter, clip: Clip) -> Support:
        """The support as `model` sees it, with its quality.

        Raises:
            UsageError: the clip has ended by then, a mask of another size than the frames.
            DataError: a frame that cannot be decoded, a mask without foreground.
        """
        images = [clip.frame_at(moment)[1] for moment in self.moments]
        rule = self.rule or MaskRule()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SupportWarning)  # the command says it with the name
            return model.encode_support(
                images,
                [*self.masks],
                quality=True,
                mask_threshold=rule.threshold,
                mask_value=rule.value,
                invert_mask=rule.invert,
            )


def parse(groups: Sequence[Sequence[str]], rule: MaskRule | None = None) -> list[MarkedFrames]:
    """Read the values of a repeatable `--at`, one class each.

    Raises:
        UsageError: a frame without a mask, a missing file, a time that is not one.
    """
    return [_group(group, rule) for group in groups]


def _group(values: Sequence[str], rule: MaskRule | None) -> MarkedFrames:
    if not values or len(values) % 2:
        raise UsageError("--at needs TIME MASK: pass one mask after each time")
    name, first = UNNAMED, values[0]
    if (named := _NAMED.fullmatch(first)) is not None:
        name, first = named["name"], named["time"]
    masks = tuple(map(Path, values[1::2]))
    for mask in masks:
        if not mask.is_file():
            raise UsageError(f"--at {first}: no such file {mask}; pass the mask of the frame")
    moments = tuple(map(Moment.parse, (first, *values[2::2])))
    return MarkedFrames(name, moments, masks, rule)
