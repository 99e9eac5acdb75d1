"""One visitor's video: its objects are followed, and the result is shown and packed."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsdino.clips import Clip, Damage, Frame
from fsdino.commands.serve.engine import Engine
from fsdino.commands.serve.examples import Examples
from fsdino.commands.video.formats import COCO, FILES, OVERLAY, VideoFormats
from fsdino.commands.video.output import Output
from fsdino.commands.video.plan import Plan
from fsdino.commands.video.work import describe, work

MOST_FRAMES = 1500  # of a video that are searched: a minute
_FORMATS = VideoFormats((OVERLAY, COCO))
_PACKED = ("masks/*.png", "results.jsonl", *FILES.values())


@dataclass
class FilmRun:
    """The answers for the frames of a video.

    Attributes:
        folder: of its files; goes with the run.
        total: number of frames, about; None if the video does not say.
        done: number of frames that were searched.
        summary: what was found, as `Output.finish` returns it; None before the end.
        stopped: set where the visitor wants no more; the frames so far are kept.
        key: that the page's addresses name.
    """

    folder: Path
    total: int | None
    done: int = 0
    summary: dict[str, Any] | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    @property
    def overlay(self) -> Path:
        """The video with what was found."""
        return self.folder / FILES[OVERLAY]

    def close(self) -> None:
        """Remove the files."""
        self.stopped.set()
        shutil.rmtree(self.folder, ignore_errors=True)

    def archive(self) -> Path:
        """Pack masks, video and annotations into a zip file in the run's folder."""
        path = self.folder / f"{secrets.token_hex(8)}.zip"
        with zipfile.ZipFile(path, "w") as archive:  # all of them are compressed already
            for pattern in _PACKED:
                for file in sorted(self.folder.glob(pattern)):
                    archive.write(file, file.relative_to(self.folder))
        return path


class _Endable(Clip):
    """A clip that ends early when the visitor wants no more, so that its results are whole."""

    def __init__(self, clip: Clip, stopped: threading.Event) -> None:
        self.path, self.info = clip.path, clip.info
        self._clip, self._stopped = clip, stopped

    def frames(self, damage: Damage | None = None) -> Iterator[Frame]:
        for frame in self._clip.frames(damage):
            yield frame
            if self._stopped.is_set():
                return

    def stamp(self) -> list[int]:
        return self._clip.stamp()


def follow(
    engine: Engine, model: str, examples: Examples, clip: Clip, folder: Path
) -> Iterator[FilmRun]:
    """Follow all classes through a video; yields the run at its begin and after each frame.

    Other visitors' calls of the model go in between.

    Raises:
        UsageError: no example, or one that another model has made.
        DataError: a video of which no frame can be decoded.
    """
    plan = Plan(most=MOST_FRAMES)
    run = FilmRun(folder, plan.total(clip))
    with engine.use(model) as loaded:
        supports = examples.supports(loaded)
        call = describe(clip, plan, _FORMATS, loaded)
        output = Output(folder, call, [*supports], _FORMATS)
        steps = work(loaded, supports, _Endable(clip, run.stopped), output, plan)
    with contextlib.closing(output):
        yield run
        while run.summary is None:
            with engine.use(model):
                step = next(steps)
            run.done, run.summary = step.done, step.summary
            yield run
