"""Writing videos that browsers play: in parts that can be joined without encoding them again.

PyAV (extra `video`) is imported where it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from types import TracebackType
from typing import Any

import numpy as np

from fsdino.errors import FsdinoError
from fsdino.images import Pixels

_MOST_UNITS = 65_535  # in a second, which MPEG-4 part 2 can count
_FINE = Fraction(1, 60_000)  # seconds
_H264 = {"preset": "veryfast", "crf": "20"}
_MPEG4 = {"qscale": "3"}
_BT709 = _LIMITED = 1  # FFmpeg's numbers of the colours that players expect


class VideoWriter:
    """A video in an MP4 file: H.264 if this PyAV has an encoder for it, else MPEG-4 part 2.

    A context manager. Pixels are stored as yuv420p, and the last row or column is repeated where
    a side is odd. No frame refers to a later one, so that files can be joined by `join_videos`, and
    the same frames give the same bytes.

    Args:
        path: of the file, which is replaced.
        size: (H, W) of the frames.
        time_base: unit of the times that will be passed, in seconds. MPEG-4 rounds finer ones.

    Raises:
        FsdinoError: PyAV is not installed, or the file cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], size: tuple[int, int], time_base: Fraction
    ) -> None:
        try:
            import av
        except ImportError as error:
            raise FsdinoError('videos need PyAV: pip install "fsdino[video]"') from error
        self._av, self._path = av, os.fspath(path)
        self._height, self._width = (side + side % 2 for side in size)
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self._base = time_base
        if codec == "mpeg4" and time_base.denominator > _MOST_UNITS:
            self._base = _FINE
        self._container: Any = av.open(self._path, "w", format="mp4")
        options = _H264 if codec == "libx264" else _MPEG4
        stream: Any = self._container.add_stream(codec, options=dict(options))
        stream.width, stream.height, stream.pix_fmt = self._width, self._height, "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = self._base
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED
        context.max_b_frames = 0
        context.thread_count = 1  # the bytes depend on it
        self._stream, self._last = stream, -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()

    def write(self, pixels: Pixels, time: Fraction) -> None:
        """Add a frame.

        Args:
            pixels: uint8 [H, W, 3]; scaled where it is of another size.
            time: seconds since the file's beginning, later than that of the frame before.
        """
        height, width = pixels.shape[:2]
        even = np.pad(pixels, [(0, height % 2), (0, width % 2), (0, 0)], mode="edge")
        frame: Any = self._av.VideoFrame.from_ndarray(even, format="rgb24")
        frame = frame.reformat(
            self._width, self._height, "yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED
        )
        frame.pts = self._last = max(round(time / self._base), self._last + 1)
        frame.time_base = self._base
        self._container.mux(self._stream.encode(frame))


def join_videos(
    parts: Iterable[tuple[str | os.PathLike[str], Fraction]], path: str | os.PathLike[str]
) -> None:
    """Put files of `VideoWriter` one after another, without encoding them again.

    The index is at the file's beginning, so that a browser plays it while it loads.

    Args:
        parts: at least one file, and when it begins, in seconds; drawn one by one.
        path: of the whole file, which is replaced.
    """
    import av

    with av.open(os.fspath(path), "w", format="mp4", options={"movflags": "+faststart"}) as whole:
        stream: Any = None
        for part, begin in parts:
            with av.open(os.fspath(part)) as source:
                [own] = source.streams.video
                if stream is None:
                    stream = whole.add_stream_from_template(own)
                    stream.time_base = own.time_base
                for packet in source.demux(own):
                    if packet.dts is None:  # the end of the part
                        continue
                    offset = round(begin / packet.time_base)
                    assert packet.pts is not None
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = stream
                    whole.mux(packet)
