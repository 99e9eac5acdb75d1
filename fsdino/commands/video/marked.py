"""Frames of the clip itself as supports: `--at [NAME=]TIME`, with a mask or marks."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsdino.clips import Clip, Moment
from fsdino.commands import marks
from fsdino.commands.marks import ImageMarks
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
            mark = frame.mark.read_bytes() if isinstance(frame.mark, Path) else repr(frame.mark)
            content = mark.encode() if isinstance(mark, str) else mark
            digest.update(str(frame.moment).encode() + hashlib.sha256(content).digest())
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
        drawn = [ImageMarks() if isinstance(f.mark, Path) else f.mark for f in self.frames]
        rule = MaskRule() if self.rule is None or not any(files) else self.rule
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SupportWarning)  # the command says it with the name
            return model.encode_support(
                images,
                files if any(files) else None,
                boxes=_listed([mark.boxes for mark in drawn]),
                points=_listed([mark.points for mark in drawn]),
                labels=_listed([mark.labels for mark in drawn]),
                quality=True,
                mask_threshold=rule.threshold,
                mask_value=rule.value,
                invert_mask=rule.invert,
            )


def _listed(entries: Sequence[Sequence[Any]]) -> list[Sequence[Any] | None] | None:
    """An entry for each image, None where there is none; None where no image has one."""
    return [entry or None for entry in entries] if any(entries) else None


def parse(groups: Sequence[Sequence[str]], rule: MaskRule | None = None) -> list[MarkedFrames]:
    """Read the values of a repeatable `--at`, with the marks that `marks.fold` put among them.

    Values of one name are frames of one class.

    Raises:
        UsageError: a frame with neither mask nor mark, a missing file, a time that is not one.
    """
    found: dict[str, list[MarkedFrame]] = {}
    for group in groups:
        name, values = UNNAMED, list(group)
        if values and (named := _NAMED.fullmatch(values[0])) is not None:
            name, values[0] = named["name"], named["time"]
        found.setdefault(name, []).extend(_frames(values))
    return [MarkedFrames(name, tuple(frames), rule) for name, frames in found.items()]


def _frames(values: Sequence[str]) -> Iterator[MarkedFrame]:
    """The frames of one `--at`: times, each with a mask or marks."""
    parts = marks.split(values)
    time: str | None = None
    for time, given in parts:
        moment = Moment.parse(time)
        if given:
            yield MarkedFrame(moment, marks.read(given))
            continue
        mask, more = next(parts, ("", []))
        if not mask:
            raise UsageError(f"--at {time} has no mark: pass its mask after it, or --box, --point")
        if more:
            raise UsageError(f"--at {time} has a mask and marks: pass one of them")
        if not Path(mask).is_file():
            raise UsageError(f"--at {time}: no such file {mask}; pass the mask of the frame")
        yield MarkedFrame(moment, Path(mask))
    if time is None:
        raise UsageError("--at needs a time: pass one, and its mask or --box or --point after it")
