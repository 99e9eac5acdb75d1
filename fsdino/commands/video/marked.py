"""Frames of the clip itself as supports: `--at [NAME=]TIME`, with a mask or marks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fsdino.clips import Clip, Moment
from fsdino.commands.segment import supports
from fsdino.commands.segment.mark_options import ImageMarks
from fsdino.errors import UsageError
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
            mark = frame.mark
            parts = [mark] if isinstance(mark, Path) else mark.digest_parts()
            for part in (str(frame.moment).encode(), *parts):
                content = part.read_bytes() if isinstance(part, Path) else part
                digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()[:16]

    def encode(self, model: Segmenter, clip: Clip) -> Support:
        """The support as `model` sees it, with its quality.

        Raises:
            UsageError: the clip ends before that, a mask of another size than the frames, marks
                outside of them.
            DataError: a frame that cannot be decoded, a mask without foreground.
        """
        images = [clip.frame_at(frame.moment)[1] for frame in self.frames]
        files = [frame.mark if isinstance(frame.mark, Path) else None for frame in self.frames]
        marks = [None if isinstance(frame.mark, Path) else frame.mark for frame in self.frames]
        return supports.encode_marked(model, images, files, marks, self.rule)


def parse(
    groups: Sequence[Sequence[str]],
    marks: Sequence[ImageMarks | None],
    rule: MaskRule | None = None,
) -> list[MarkedFrames]:
    """Read the values of a repeatable `--at`; those of one name are frames of one class.

    Args:
        groups: times, each with the file of a mask. Of a group with marks, the last time has none.
        marks: of each group.
        rule: which pixels of mask files are foreground.

    Raises:
        UsageError: a frame with neither mask nor mark, or with both, a missing file, a time that is
            not one.
    """
    found: dict[str, list[MarkedFrame]] = {}
    for group, mark in zip(groups, marks, strict=True):
        name, values = supports.UNNAMED, list(group)
        if values and (named := _NAMED.fullmatch(values[0])) is not None:
            name, values[0] = named["name"], named["time"]
        found.setdefault(name, []).extend(_frames(values, mark))
    return [MarkedFrames(name, tuple(frames), rule) for name, frames in found.items()]


def _frames(values: list[str], mark: ImageMarks | None) -> Iterator[MarkedFrame]:
    """The frames of one `--at`."""
    if not values:
        raise UsageError("--at needs a time: pass one, and its mask or --box or --point after it")
    alone = len(values) % 2 == 1
    if alone and mark is None:
        raise UsageError(
            f"--at {values[-1]} has no mark: pass its mask after it, or --box, --point or "
            "--scribble"
        )
    if mark is not None and not alone:
        raise UsageError(f"--at {values[-2]} has a mask, {values[-1]}, and marks: pass one of them")
    for time, file in zip(values[::2], values[1::2], strict=False):
        moment = Moment.parse(time)
        if not Path(file).is_file():
            raise UsageError(f"--at {time}: no such file {file}; pass the mask of the frame")
        yield MarkedFrame(moment, Path(file))
    if mark is not None:
        yield MarkedFrame(Moment.parse(values[-1]), mark)
