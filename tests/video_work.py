"""Shared by the tests of `fsdino video`: runs that end early, and what they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fsdino.commands.video.formats import VideoFormats
from fsdino.commands.video.plan import Plan
from fsdino.commands.video.work import segment_clip

BOTH = VideoFormats(("overlay", "coco"))


def run(
    model: Any, supports: Any, clip: Path, out: Path, *, stop: int | None = None, **plan: Any
) -> dict[str, Any] | None:
    """Segment a clip; give up after `stop` steps. Returns the summary, or None."""
    steps = segment_clip(model, supports, clip, out, Plan(threshold=0.3, **plan), BOTH)
    summary = None
    for count, step in enumerate(steps, 1):
        summary = step.summary
        if count == stop:
            break
    steps.close()
    return summary


def content(out: Path) -> dict[str, bytes]:
    """All files of a folder, hidden ones included."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
