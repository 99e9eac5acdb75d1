"""Videos that are written: what players read, and parts joined as they are."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from clip_files import moving
from fsdino.clips import open_clip
from fsdino.video_writer import VideoWriter, join_videos

TIMES = [Fraction(t, 90_000) for t in (0, 3003, 6006, 20_000, 50_000, 53_003)]


def write(path: Path, frames: list[np.ndarray], times: list[Fraction]) -> Path:
    size = (frames[0].shape[0], frames[0].shape[1])
    with VideoWriter(path, size, Fraction(1, 90_000)) as writer:
        for frame, time in zip(frames, times, strict=True):
            writer.write(frame, time)
    return path


def test_what_browsers_play(tmp_path: Path) -> None:
    """H.264 in yuv420p, even sides, times as they are, colours close to those given."""
    frames = moving(6, 47, 63)
    path = write(tmp_path / "a.mp4", frames, TIMES)
    with av.open(str(path)) as container:
        [stream] = container.streams.video
        expected = "h264" if "libx264" in av.codecs_available else "mpeg4"
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == (expected, "yuv420p")
        assert (stream.width, stream.height) == (64, 48)
    found = list(open_clip(path).frames())
    assert [frame.time for frame in found] == TIMES
    for frame, given in zip(found, frames, strict=True):
        pixels = frame.pixels[:47, :63].astype(int)
        assert np.abs(pixels - given).mean() < 6
        assert np.abs(pixels[14:26, 12:20] - given[14:26, 12:20]).max() < 20  # inside the box


def test_without_an_encoder_for_h264(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MPEG-4 part 2, which rounds times to its own unit."""
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    path = write(tmp_path / "a.mp4", moving(6), TIMES)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    times = [frame.time for frame in open_clip(path).frames()]
    assert [float(time) for time in times] == pytest.approx([float(t) for t in TIMES], abs=1e-4)


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    files = [write(tmp_path / name, moving(6), TIMES) for name in ("a.mp4", "b.mp4")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_parts_are_joined_without_a_change(tmp_path: Path) -> None:
    """Every frame decodes to the same pixels as in its part, at its own time."""
    frames, parts = moving(6), []
    for name, part in (("a.mp4", slice(0, 3)), ("b.mp4", slice(3, 5)), ("c.mp4", slice(5, 6))):
        times = [time - TIMES[part.start] for time in TIMES[part]]
        parts.append((write(tmp_path / name, frames[part], times), TIMES[part.start]))
    join_videos(parts, tmp_path / "whole.mp4")
    found = list(open_clip(tmp_path / "whole.mp4").frames())
    own = [frame.pixels for path, _ in parts for frame in open_clip(path).frames()]
    assert [frame.time for frame in found] == TIMES
    assert all(np.array_equal(f.pixels, pixels) for f, pixels in zip(found, own, strict=True))
    content = (tmp_path / "whole.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays while it loads
