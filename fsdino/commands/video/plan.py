"""Which frames of a clip are segmented, and how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from fsdino.clips import Clip, Frame, Moment
from fsdino.errors import UsageError


@dataclass(frozen=True)
class Plan:
    """Which frames of a clip are segmented, and how.

    Attributes:
        memory: number of last frames that join the supports; see `Tracker`.
        threshold: probability from which a pixel belongs to an object; None is the model's.
        every: take each n-th frame of the clip.
        begin, end: first moment, and the one to stop before; None takes all.
        most: number of frames after which to stop.
    """

    memory: int = 0
    threshold: float | None = None
    every: int = 1
    begin: Moment | None = None
    end: Moment | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        if self.memory < 0 or self.every < 1 or (self.most is not None and self.most < 1):
            raise UsageError(
                f"memory must be at least 0, every and most at least 1; got {self.memory}, "
                f"{self.every} and {self.most}"
            )

    def chosen(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Those of a clip's frames that are segmented."""
        count = 0
        for frame in frames:
            if self.end is not None and self.end.reached(frame):
                return
            if frame.index % self.every or not (self.begin is None or self.begin.reached(frame)):
                continue
            yield frame
            count += 1
            if count == self.most:
                return

    def total(self, clip: Clip) -> int | None:
        """How many they are, about; None if the clip does not say."""
        if clip.info.frames is None:
            return self.most
        rate = Fraction(clip.info.rate)
        first, last = 0, clip.info.frames
        if self.begin is not None:
            first = self.begin.place(rate)
        if self.end is not None:
            last = min(last, self.end.place(rate))
        count = max(-(-last // self.every) - -(-first // self.every), 0)
        return count if self.most is None else min(count, self.most)
