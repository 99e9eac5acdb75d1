"""Frames of the clip itself as supports: `--at [NAME=]TIME`, with a mask or marks."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fsdino.clips import Clip, Moment
from fsdino.commands.segment.mark_options import ImageMarks, arguments
from fsdino.commands.segment.supports import UNNAMED
from fsdino.errors import SupportWarning, UsageError
from fsdino.masks import MaskRule

if TYPE_CHECKING:
    from fsdino.models.segmenter import Segmenter
    from fsdino.models.supports import Support

_NAMED = re.compile(r"(?P<name>[^=]+)=(?P<time>.+)")


@dataclass(frozen=True)
class MarkedFrame:
    """A frame of the clip, and what is marked in it.

    Attributes:
        moment: where it is.
        mark: a mask's file, or marks.
    """

    moment: Moment
    mark: Path | ImageMarks


@dataclass(frozen=True)
class MarkedFrames:
    """Frames of the clip that show one class.

    Attributes:
        name: of the class.
        frames: one or more.
        rule: which pixels of mask files are foreground; None where they say so themselves.
    """

    name: str
    frames: tuple[MarkedFrame, ...]
    rule: MaskRule | None = None

    def digest(self) -> str:
        """Hash of the places, the masks' contents and the marks; the clip is not part of it."""
        digest = hashlib.sha256(repr(self.rule).encode())
        for frame in self.frames:
            digest.update(str(frame.moment).encode())
            mark = frame.mark
            for part in [mark] if isinstance(mark, Path) else mark.digest_parts():
                content = part.read_bytes() if isinstance(part, Path) else part
                digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()[:16]

    def encode(self, model: Segmenter, clip: Clip) -> Support:
        """The support as `model` sees it, with its quality.

        Raises:
            UsageError: the clip has ended by then, a mask of another size than the frames, marks
                outside of them.
            DataError: a frame that cannot be decoded, a mask without foreground.
        """
        images = [clip.frame_at(frame.moment)[1] for frame in self.frames]
        files = [frame.mark if isinstance(frame.mark, Path) else None for frame in self.frames]
        marks = [None if isinstance(f.mark, Path) else f.mark for f in self.frames]
        rule = MaskRule() if self.rule is None or not any(files) else self.rule
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SupportWarning)  # the command says it with the name
            return model.encode_support(
                images,
                files,
                **arguments(marks),
                quality=True,
                mask_threshold=rule.threshold,
                mask_value=rule.value,
                invert_mask=rule.invert,
            )


def parse(
    groups: Sequence[Sequence[str]],
    rule: MaskRule | None = None,
    marks: Sequence[ImageMarks | None] = (),
) -> list[MarkedFrames]:
    """Read the values of a repeatable `--at`: `[NAME=]TIME MASK [TIME MASK ...]`.

    Of a group with marks, the last frame has no mask. Values of one name are frames of one class.

    Args:
        groups: the values.
        rule: which pixels of mask files are foreground.
        marks: of each group; empty where none has any.

    Raises:
        UsageError: a frame with neither mask nor mark, or with both; a missing file; a time that is
            not one.
    """
    found: dict[str, list[MarkedFrame]] = {}
    for group, mark in zip(groups, marks or [None] * len(groups), strict=True):
        name, values = UNNAMED, list(group)
        if values and (named := _NAMED.fullmatch(values[0])) is not None:
            name, values[0] = named["name"], named["time"]
        found.setdefault(name, []).extend(_frames(values, mark))
    return [MarkedFrames(name, tuple(frames), rule) for name, frames in found.items()]


def _frames(values: Sequence[str], marks: ImageMarks | None) -> Iterator[MarkedFrame]:
    """The frames of one `--at`: times, each with a mask, or the last one with marks."""
    if not values:
        raise UsageError("--at needs a time: pass one, and its mask or --box or --point after it")
    masks = [*values[1::2], *([] if len(values) % 2 == 0 else [None])]
    for place, (time, mask) in enumerate(zip(values[0::2], masks, strict=True), start=1):
        moment = Moment.parse(time)
        own = marks if 2 * place >= len(values) else None
        if mask is None:
            if own is None:
                raise UsageError(
                    f"--at {time} has no mark: pass its mask after it, or --box, --point or "
                    "--scribble"
                )
            yield MarkedFrame(moment, own)
            continue
        if own is not None:
            raise UsageError(f"--at {time} has a mask and marks: pass one of them")
        if not Path(mask).is_file():
            raise UsageError(f"--at {time}: no such file {mask}; pass the mask of the frame")
        yield MarkedFrame(moment, Path(mask))
