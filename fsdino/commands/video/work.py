"""Segment a clip into a folder: a stream that can be interrupted and resumed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fsdino.clips import Clip, Damage, Frame, open_clip
from fsdino.commands.segment.supports import MAX_CLASSES
from fsdino.commands.video.formats import VideoFormats
from fsdino.commands.video.output import FORMAT, Output
from fsdino.commands.video.plan import Plan
from fsdino.errors import FsdinoError, UsageError
from fsdino.models.checkpoints import weights_hash
from fsdino.models.segmenter import Segmenter
from fsdino.models.supports import Support
from fsdino.models.video import Tracker


@dataclass(frozen=True)
class Step:
    """What happened last.

    Attributes:
        done: number of frames that are finished, those of earlier calls included.
        total: how many there are, about; None if nobody knows.
        time: of the frame, in seconds.
        labels: [H, W] of the frame, 0 to the number of classes; None if it was finished before.
        summary: of the whole, when it is finished, as `Output.finish` returns it; else None.
    """

    done: int
    total: int | None
    time: float
    labels: npt.NDArray[np.integer[Any]] | None = None
    summary: dict[str, Any] | None = None


def segment_clip(
    model: Segmenter,
    supports: Mapping[str, Support],
    clip: str | os.PathLike[str],
    out: str | os.PathLike[str],
    plan: Plan | None = None,
    formats: VideoFormats | None = None,
) -> Iterator[Step]:
    """Segment a video file or a folder of frames into a folder, as `fsdino video` does.

    `out` then holds masks/NAME.png, results.jsonl, and by `formats` overlay.mp4 and
    annotations.json; the same call resumes where it was interrupted.

    Args:
        model: in eval mode.
        supports: what each object looks like, by name.
        clip: file or folder.
        out: folder for the results, of this call alone.
        plan: which frames, and how; all by default.
        formats: what is written; an overlay video by default.

    Yields:
        A step after each frame, and a last one with the summary.

    Raises:
        UsageError: `out` belongs to another call; see also `Tracker` and `open_clip`.
        DataError: not a video; no frame can be decoded.
        FsdinoError: a file cannot be written; PyAV is missing.
    """
    opened, plan, formats = open_clip(clip), plan or Plan(), formats or VideoFormats()
    call = {
        "model": model.fingerprint(),
        "support": {name: _hash(support) for name, support in supports.items()},
        **describe(opened, plan, formats, model),
    }
    with contextlib.closing(Output(Path(out), call, [*supports], formats)) as output:
        yield from work(model, supports, opened, output, plan)


def describe(clip: Clip, plan: Plan, formats: VideoFormats, model: Segmenter) -> dict[str, Any]:
    """What decides the results beside model and supports, for the record of the call."""
    threshold = model.config.threshold if plan.threshold is None else plan.threshold
    return {
        "format": FORMAT,
        "clip": {"name": clip.path.name, "stamp": clip.stamp()},
        "threshold": threshold,
        "memory": plan.memory,
        "every": plan.every,
        "from": None if plan.begin is None else str(plan.begin),
        "to": None if plan.end is None else str(plan.end),
        "max_frames": plan.most,
        **formats.call(),
    }


def _hash(support: Support) -> str:
    return weights_hash({str(k): tensor for k, tensor in enumerate(support.tensors())})


def work(
    model: Segmenter, supports: Mapping[str, Support], clip: Clip, output: Output, plan: Plan
) -> Iterator[Step]:
    """Segment the frames that `output` does not hold yet, and put the results together.

    One frame is in memory, and what `Tracker` keeps of the last ones. Frames of an earlier call are
    decoded again, since a file decodes alike only from its beginning, and are not segmented again.

    Raises:
        KeyboardInterrupt: with a message about what was stored.
        FsdinoError: see `segment_clip`.
    """
    if len(supports) > MAX_CLASSES:
        raise UsageError(f"{len(supports)} supports: at most {MAX_CLASSES} fit one label image")
    tracker = Tracker(model, supports, memory=plan.memory, threshold=plan.threshold)
    total = plan.total(clip)
    if output.summary is not None:
        done = output.summary["frames"]
        yield Step(done, done, output.summary["to"], summary=output.summary)
        return
    damage, known, time = Damage(), output.done, 0.0
    try:
        for place, frame in enumerate(plan.chosen(clip.frames(damage))):
            time = float(frame.time)
            if place < known:
                _recall(tracker, frame, place, known, output, clip)
                if place == known - 1:
                    yield Step(known, total, time)
                continue
            found = tracker.segment(frame.pixels)
            output.add(frame, found, clip)
            yield Step(output.done, total, time, found.compact_labels())
        summary = output.finish(clip, damage)
    except KeyboardInterrupt:
        kept = f"{output.done} frames are done and kept in {output.folder}"
        raise KeyboardInterrupt(f"{kept}; the same command does the rest") from None
    yield Step(summary["frames"], summary["frames"], time, summary=summary)


def _recall(
    tracker: Tracker, frame: Frame, place: int, known: int, output: Output, clip: Clip
) -> None:
    """Take up a frame of an earlier call: into the memory, and into the part that was not whole."""
    recent, undrawn = place >= known - tracker.memory, place >= output.part
    if not recent and not undrawn:
        return
    row = output.row(place)
    if row.frame != frame.index:
        raise FsdinoError(
            f"frame {frame.index} of the clip was frame {row.frame} in the call before: "
            "repeat it with --overwrite"
        )
    if recent:
        tracker.remember(frame.pixels, output.labels(row))
    if undrawn:
        output.replay(frame, row, clip)
