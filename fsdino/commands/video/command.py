"""`fsdino video`: its options and what it prints."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fsdino.commands.options import (
    Device,
    Integer,
    InvertMask,
    Json,
    MaskThreshold,
    MaskValue,
    Model,
    Out,
    Overwrite,
    Threshold,
    Weights,
    WeightsDtype,
    check_folder,
    check_model,
    check_range,
    check_threshold,
    wait_without_spinning,
)
from fsdino.commands.segment import mark_options, supports
from fsdino.commands.segment.mark_options import BoxOption, PointOption, ScribbleOption
from fsdino.commands.video.formats import VideoFormats
from fsdino.devices import check_device, check_dtype, find_device
from fsdino.errors import DataError, UsageError, counted
from fsdino.models.names import DEFAULT as DEFAULT_MODEL

if TYPE_CHECKING:
    from fsdino.clips import Clip
    from fsdino.commands.segment.mark_options import ImageMarks
    from fsdino.commands.segment.supports import SupportFiles
    from fsdino.commands.video.marked import MarkedFrames
    from fsdino.commands.video.output import Output
    from fsdino.commands.video.plan import Plan
    from fsdino.models.segmenter import Segmenter
    from fsdino.models.supports import Support

logger = logging.getLogger("fsdino.commands")

Time = Annotated[str | None, tyro.conf.arg(metavar="TIME", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Video:
    """Segment a video, or a folder of its frames, by a few marked examples.

    By photographs: fsdino video clip.mp4 --support cat.jpg cat.png --out out/

    By a frame of the clip itself: fsdino video clip.mp4 --at 0:03 --box 10,20,200,220 --out out/

    Several objects, each with a name: --support cat=a.jpg a.png --at dog=0:03 b.png 0:07 c.png

    Writes masks/NAME.png for every frame (0 and 255, or one label per class), results.jsonl, and a
    video with overlays, without sound; --format adds COCO annotations. The same command resumes
    where it was interrupted. Needs the extra fsdino[video] (a folder of frames: for the overlays).
    """

    clip: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO|FOLDER")]
    """Video file, or folder with a frame in each image, in the order of their names."""
    support: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]],
        tyro.conf.arg(metavar="[NAME=]IMAGE [MASK] ...|FOLDER|JSON", help_behavior_hint=""),
    ] = ()
    """Marked examples of a class, as in `fsdino segment`; again for every further class."""
    at: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]],
        tyro.conf.arg(metavar="[NAME=]TIME [MASK] ...", help_behavior_hint=""),
    ] = ()
    """A marked frame of the clip: its time (3.5, 0:03, 1:02:03.25) or number (90f), and its mask,
    or --box, --point or --scribble after it; again for every further frame. Frames before it are
    segmented by it, too."""
    box: BoxOption = ()
    """Instead of a mask, a box around the object in the frame or image of the --at or --support
    before it, in pixels; X1 and Y1 lie just outside. Several are joined."""
    point: PointOption = ()
    """Instead of a mask, a point on the object in the --at or --support before it."""
    not_point: PointOption = ()
    """A point that is not on the object, beside --point."""
    scribble: ScribbleOption = ()
    """Instead of a mask, an image file of the frame's size: 0 unknown, 1 object, 2 background."""
    mask_threshold: MaskThreshold = None
    mask_value: MaskValue = None
    invert_mask: InvertMask = False
    out: Out = None
    memory: Annotated[int, tyro.conf.arg(metavar="INT")] = 0
    """Number of last frames that, with the masks found in them, join the examples."""
    threshold: Threshold = None
    every: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Take each n-th frame."""
    begin: Annotated[
        str | None, tyro.conf.arg(name="from", metavar="TIME", help_behavior_hint="")
    ] = None
    """Where to begin; TIME as in --at."""
    end: Annotated[str | None, tyro.conf.arg(name="to", metavar="TIME", help_behavior_hint="")] = (
        None
    )
    """Where to stop; the frame there is left out."""
    max_frames: Integer = None
    """Maximum number of frames."""
    model: Model = None
    weights: Weights = None
    image_size: Integer = None
    """Side in pixels that --model dinov2-b and the like resize frames to (default: 518)."""
    device: Device = "auto"
    dtype: WeightsDtype = "float32"
    format: Annotated[
        str, tyro.conf.arg(metavar="NAME,NAME,...", help_behavior_hint="(default: png,overlay)")
    ] = "png,overlay"
    """What to write: png (masks, always written), overlay (overlay.mp4), coco
    (annotations.json)."""
    split: Annotated[str, tyro.conf.arg(metavar="connected|watershed")] = "connected"
    """What an object is for --format coco: connected pixels; watershed also cuts touching
    objects."""
    min_area: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Number of pixels from which an object counts for --format coco."""
    overwrite: Overwrite = False
    as_json: Json = False
    """Print the results as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        wait_without_spinning()
        check_dtype(self.dtype)
        check_device(self.device)
        check_threshold(self.threshold)
        check_range("--memory", self.memory, 0)
        check_range("--every", self.every, 1)
        check_range("--max-frames", self.max_frames, 1)
        check_model(self.model or DEFAULT_MODEL, self.weights, self.image_size)
        formats = VideoFormats.parse(self.format, self.split, self.min_area)
        if self.out is None:
            raise UsageError("no --out given: pass --out with a folder for the results")
        check_folder(self.out)
        from fsdino.clips import Moment, open_clip
        from fsdino.commands.video import marked
        from fsdino.commands.video.plan import Plan

        rule = supports.mask_rule(self.mask_threshold, self.mask_value, self.invert_mask)
        frames = marked.parse(self.at, self._marks("--at", len(self.at)), rule)
        if not self.support and not frames:
            raise UsageError(
                "no example given: pass --at TIME and a mask, --box or --point, or --support IMAGE "
                "MASK"
            )
        files = []
        if self.support:
            marks = self._marks("--support", len(self.support))
            files = supports.parse(self.support, rule, marks)
        examples: list[SupportFiles | MarkedFrames] = [*files, *frames]
        supports.check_names([one.name for one in examples])
        begin, end = (
            None if time is None else Moment.parse(time) for time in (self.begin, self.end)
        )
        if begin is not None and end is not None and not begin.before(end):
            raise UsageError(f"--from {self.begin} must lie before --to {self.end}")
        plan = Plan(self.memory, self.threshold, self.every, begin, end, self.max_frames)
        return self._run(open_clip(self.clip), examples, plan, formats)

    def _run(
        self,
        clip: Clip,
        examples: Sequence[SupportFiles | MarkedFrames],
        plan: Plan,
        formats: VideoFormats,
    ) -> int:
        from fsdino.commands.video.marked import MarkedFrames
        from fsdino.commands.video.output import Output
        from fsdino.commands.video.work import describe

        assert self.out is not None
        model = self._load()
        encoded = {
            one.name: one.encode(model, clip)
            if isinstance(one, MarkedFrames)
            else one.encode(model)
            for one in examples
        }
        model.segment([], encoded, threshold=self.threshold)  # before anything is written
        self._tell_quality(encoded)
        call = {
            "model": model.fingerprint(),
            "support": {one.name: one.digest() for one in examples},
            "dtype": self.dtype,
            **describe(clip, plan, formats, model),
        }
        output = Output(self.out, call, [*encoded], formats, overwrite=self.overwrite)
        with contextlib.closing(output):
            summary = self._work(model, encoded, clip, output, plan)
        self._report({**call, "model_name": self.model or DEFAULT_MODEL}, summary, output, encoded)
        return 0

    def _work(
        self,
        model: Segmenter,
        encoded: Mapping[str, Support],
        clip: Clip,
        output: Output,
        plan: Plan,
    ) -> dict[str, Any]:
        """Segment the clip with a progress display; returns the summary."""
        from fsdino.commands.video.work import work
        from fsdino.progress import Progress

        total, known = plan.total(clip), output.done
        if known:
            logger.info("%d frames are done already", known)
        with Progress("video", total, done=known, unit="frames") as progress:
            for step in work(model, encoded, clip, output, plan):
                progress.report(step.done, step.total)
                if step.summary is not None:
                    return step.summary
        raise AssertionError("unreachable: the last step has the summary")

    def _tell_quality(self, encoded: Mapping[str, Support]) -> None:
        for name, support in encoded.items():
            if not self.as_json:
                print(supports.quality(name, support), flush=True)
            warning = supports.warning(name, support)
            if warning is not None:
                logger.warning("%s", warning)

    def _report(
        self,
        call: Mapping[str, Any],
        summary: Mapping[str, Any],
        output: Output,
        encoded: Mapping[str, Support],
    ) -> None:
        """Print what was found.

        Raises:
            DataError: parts of the clip were damaged; says how many, and where.
        """
        written = [str(output.folder / name) for name in output.written]
        if self.as_json:
            quality = {name: support.quality for name, support in encoded.items()}
            print(json.dumps({**call, "quality": quality, **summary, "files": written}))
        else:
            frames = summary["frames"]
            print(f"{frames} masks in {output.folder}, and {', '.join(output.written)}")
            for name, count in summary["shown_in"].items():
                print(f"{name}: in {count} of {frames} frames")
            if summary["sound"] and "overlay.mp4" in output.written:
                print("the sound of the clip is left out of overlay.mp4")
        if summary["damaged"]:
            raise DataError(
                f"{counted(summary['damaged'], 'damaged part')} of {self.clip} skipped "
                f"({summary['damage']}); the results of the other {summary['frames']} frames are "
                f"in {output.folder}"
            )

    def _marks(self, owner: str, count: int) -> list[ImageMarks | None]:
        """The marks of each value of --at or --support."""
        return mark_options.by_owner(
            owner,
            count,
            box=self.box,
            point=self.point,
            not_point=self.not_point,
            scribble=self.scribble,
        )

    def _load(self) -> Segmenter:
        from fsdino.models import zoo

        return zoo.load(
            self.model or DEFAULT_MODEL,
            device=find_device(self.device),
            dtype=self.dtype,
            weights=self.weights,
            image_size=self.image_size,
        )
