"""Clips: the frames of a video file, or of a folder of images, one after another with their times.

Video files are decoded by PyAV (extra `video`), which is imported where it is needed.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fsdino import files
from fsdino.errors import (
    DataError,
    FsdinoError,
    UsageError,
    counted,
    first_line,
    printable,
    shown,
    shown_path,
)
from fsdino.image_files import check_pixels, scan_folder, why_not_image
from fsdino.images import Pixels, read_image

FOLDER_RATE = 25  # frames a second of a folder of images
# What FFmpeg may take a file for: containers of video, and nothing that names other files or
# addresses (playlists), is a single image, or turns text into pictures.
_FORMATS = (
    "3g2,3gp,amv,apng,asf,av1,avi,dv,f4v,flv,gif,h264,hevc,ivf,jpegxl_anim,m4a,m4v,matroska,mj2,"
    "mjpeg,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,webm,wtv,yuv4mpegpipe"
)
# FFmpeg's numbers of BT.709, FCC, BT.470BG, SMPTE 170M and 240M; RGB and unknown ones aside.
_COLORSPACES = frozenset({1, 4, 5, 6, 7})
_NEVER_ENDING = 3  # failed reads without a packet in between, after which a file has ended
_TIME = re.compile(r"(?:(?:(\d{1,4}):)?(\d{1,4}):)?(\d{1,9}(?:\.\d{0,9})?)", re.ASCII)
_FRAME = re.compile(r"(\d{1,12})f", re.ASCII)


@dataclass(frozen=True)
class Moment:
    """A place in a clip: a time, or the number of a frame.

    Attributes:
        seconds: since the clip's beginning; None where `frame` is given.
        frame: number of a frame, from 0; None where `seconds` is given.
    """

    seconds: Fraction | None = None
    frame: int | None = None

    @classmethod
    def parse(cls, text: str) -> Moment:
        """Read "3.5" (seconds), "0:03", "1:02:03.25", or "90f" (the frame number 90, from 0).

        Raises:
            UsageError: none of these.
        """
        if (frame := _FRAME.fullmatch(text)) is not None:
            return cls(frame=int(frame[1]))
        found = _TIME.fullmatch(text)
        if found is None:
            raise UsageError(
                f"{shown(text)} is not a time: write seconds (3.5), 0:03, 1:02:03.25, or the "
                "number of a frame as 90f"
            )
        hours, minutes, seconds = (Fraction(part or 0) for part in found.groups())
        return cls(seconds=hours * 3600 + minutes * 60 + seconds)

    def __str__(self) -> str:
        """As `parse` reads it."""
        if self.seconds is None:
            return f"{self.frame}f"
        return str(float(self.seconds))

    def before(self, other: Moment) -> bool:
        """Whether it lies before another one; True where a time and a number do not tell."""
        if self.seconds is not None and other.seconds is not None:
            return self.seconds < other.seconds
        if self.frame is not None and other.frame is not None:
            return self.frame < other.frame
        return True

    def place(self, rate: Fraction) -> int:
        """The number of the first frame at it or after it, in a clip of a constant rate."""
        if self.seconds is None:
            return self.frame or 0
        return math.ceil(self.seconds * rate)

    def reached(self, frame: Frame) -> bool:
        """Whether a frame lies at this place or after it."""
        if self.seconds is None:
            return frame.index >= (self.frame or 0)
        return frame.time >= self.seconds


@dataclass(frozen=True)
class Frame:
    """A frame of a clip; its pixels are converted when they are asked for.

    Attributes:
        index: its number, from 0; of a file, those that cannot be decoded are not counted.
        time: seconds since the clip's beginning.
        image: its file in a folder; the name that FFmpeg gives it when it takes the clip apart into
            "%06d.png", counted from 0.
        read: gives the pixels.
    """

    index: int
    time: Fraction
    image: str
    read: Callable[[], Pixels] = field(compare=False, repr=False)

    @property
    def pixels(self) -> Pixels:
        """uint8 [H, W, 3], upright.

        Raises:
            DataError: too many pixels.
        """
        return self.read()


@dataclass
class Damage:
    """What could not be decoded in one pass through a clip.

    Attributes:
        count: number of damaged parts, of about a frame each.
        first: description of the first one.
    """

    count: int = 0
    first: str = ""

    def note(self, where: str, reason: str) -> None:
        """Count a part that is skipped."""
        self.first = self.first or f"{where}: {reason}"
        self.count += 1


@dataclass(frozen=True)
class ClipInfo:
    """What is known of a clip before it is decoded.

    Attributes:
        size: (H, W) of its frames, upright.
        rate: mean number of frames a second.
        frames: their number, which may be an estimate; None where the file does not say.
        seconds: how long it lasts; None where the file does not say.
        time_base: unit of its times, in seconds.
        audio: whether it has sound.
    """

    size: tuple[int, int]
    rate: float
    frames: int | None
    seconds: float | None
    time_base: Fraction
    audio: bool


class Clip:
    """The frames of a file or folder; made by `open_clip`.

    Attributes:
        path: of the file or folder.
        info: see `ClipInfo`.
    """

    path: Path
    info: ClipInfo

    def __repr__(self) -> str:
        """One line: name, size, and frames, where their number is known."""
        (height, width), count = self.info.size, self.info.frames
        frames = "" if count is None else f", {counted(count, 'frame')}"
        name = shown_path(self.path.name)
        return f"Clip({name}, {height}x{width}{frames}, {self.info.rate:.4g} a second)"

    def frames(self, damage: Damage | None = None) -> Iterator[Frame]:
        """All frames in their order, decoded as they are drawn.

        What cannot be decoded is skipped, and noted in `damage`.

        Raises:
            DataError: there is no frame at all.
        """
        raise NotImplementedError

    def stamp(self) -> list[int]:
        """Numbers that change with the content: sizes in bytes and modification times in ns."""
        raise NotImplementedError

    def frame_at(self, moment: Moment) -> tuple[Fraction, Pixels]:
        """The frame that is shown at a moment: its time in seconds, and its pixels.

        Raises:
            UsageError: the clip ends before that.
            DataError: no frame can be decoded there.
        """
        before: Frame | None = None
        for frame in self._frames_near(moment):
            if moment.reached(frame):
                shown_then = before if before and frame.time != moment.seconds else frame
                found = frame if moment.seconds is None else shown_then
                return found.time, found.pixels
            before = frame
        assert before is not None  # `frames` gives at least one
        if moment.seconds is not None and moment.seconds < before.time + 1 / Fraction(
            self.info.rate
        ):
            return before.time, before.pixels
        asked = moment if moment.seconds is None else f"{float(moment.seconds):g} s"
        raise UsageError(
            f"clip {shown_path(self.path)} has ended before {asked}: its last frame is at "
            f"{float(before.time):.2f} s"
        )

    def _frames_near(self, moment: Moment) -> Iterator[Frame]:
        """Frames from some place before a moment on."""
        return self.frames()


def open_clip(path: str | os.PathLike[str]) -> Clip:
    """A video file, or a folder of images in the order of their names, as a clip.

    Files may be of any format and codec that FFmpeg decodes (MP4, MOV, MKV, WebM, AVI, MPEG, GIF
    ...); the content decides, not the name. Times are those of the file, counted from its
    beginning, also where frames come at irregular intervals; of a folder, 25 frames a second.
    Rotation that the file states is applied. Of several video streams, FFmpeg's choice is read.

    Returns:
        A clip: `frames()` iterates over its frames, each with `pixels` (uint8 [H, W, 3]), `time` in
        seconds and `index`; `info` has `size`, `rate`, `frames` and `seconds`.

    Raises:
        UsageError: a missing path, a folder without images.
        DataError: not a video, or one without frames; too many pixels.
        FsdinoError: PyAV is not installed.

    Example:
        >>> import os, fsdino
        >>> os.mkdir("frames")
        >>> for k in range(3):
        ...     fsdino.samples()["teacup"].image.rotate(k).save(f"frames/{k}.png")
        >>> clip = fsdino.open_clip("frames")
        >>> clip.info.size, [frame.pixels.shape for frame in clip.frames()][0]
        ((208, 320), (208, 320, 3))
    """
    place = Path(path)
    if place.is_dir():
        return _Folder(place)
    if not place.exists():
        raise UsageError(f"clip {shown_path(place)}: no such file or folder; check the path")
    return _File(place)


class _Folder(Clip):
    """A folder of images."""

    def __init__(self, path: Path) -> None:
        listing = scan_folder(path)
        if not listing.images:
            why = f" ({listing.summary()})" if listing.left_out else ""
            raise UsageError(f"clip {shown_path(path)}: there is no image in this folder{why}")
        self.path, self._images = path, listing.images
        names: dict[str, str] = {}
        for image in self._images:
            other = names.setdefault(image.stem.casefold(), image.name)
            if other != image.name:
                raise UsageError(
                    f"clip {shown_path(path)}: {printable(other)} and {printable(image.name)} are "
                    "one name without endings, which their masks would share: keep one of them"
                )
        height, width = next(self.frames()).pixels.shape[:2]
        count, rate = len(self._images), Fraction(FOLDER_RATE)
        self.info = ClipInfo(
            (height, width), FOLDER_RATE, count, float(count / rate), 1 / rate, False
        )

    def frames(self, damage: Damage | None = None) -> Iterator[Frame]:
        found = 0
        for index, image in enumerate(self._images):
            try:
                pixels = read_image(image, "frame")
            except DataError as error:
                if damage is not None:
                    damage.note(f"{index / FOLDER_RATE:.2f} s", str(error))
                continue
            found += 1
            yield Frame(index, Fraction(index, FOLDER_RATE), image.name, partial(_same, pixels))
        if not found:
            raise DataError(f"clip {shown_path(self.path)}: none of its images can be read")

    def stamp(self) -> list[int]:
        found = [file.stat() for file in self._images]
        return [len(found), sum(s.st_size for s in found), max(s.st_mtime_ns for s in found)]


def _same(pixels: Pixels) -> Pixels:
    return pixels


class _File(Clip):
    """A video file."""

    def __init__(self, path: Path) -> None:
        self.path, self._label = path, f"clip {shown_path(path)}"
        self._av = _load_av()
        with self._opened() as (container, stream):
            rate = stream.average_rate or stream.guessed_rate or Fraction(FOLDER_RATE)
            base = stream.time_base or 1 / Fraction(rate)
            seconds = _seconds(container, stream, base)
            count = stream.frames or (None if seconds is None else max(round(seconds * rate), 1))
            audio = bool(container.streams.audio)
        first = next(self.frames())
        height, width = first.pixels.shape[:2]
        self.info = ClipInfo((height, width), float(rate), count, seconds, Fraction(base), audio)

    def stamp(self) -> list[int]:
        status = self.path.stat()
        return [status.st_size, status.st_mtime_ns]

    def frames(self, damage: Damage | None = None) -> Iterator[Frame]:
        with self._opened() as (container, stream):
            yield from self._decoded(container, stream, damage or Damage(), None)

    def _frames_near(self, moment: Moment) -> Iterator[Frame]:
        if moment.seconds is None:  # only who has counted from the beginning knows numbers
            yield from self.frames()
            return
        with self._opened() as (container, stream):
            start = stream.start_time or 0
            with contextlib.suppress(self._av.FFmpegError):
                container.seek(start + int(moment.seconds / stream.time_base), stream=stream)
            yield from self._decoded(container, stream, Damage(), start)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """The container and its video stream.

        A file that Python opens is not taken for an address, and names no other files.
        """
        try:
            file = files.open_regular(self.path)
        except (OSError, ValueError) as error:
            raise UsageError(f"{self._label}: cannot be read ({first_line(error)})") from error
        with file:
            try:
                container = self._av.open(file, options={"format_whitelist": _FORMATS})
            except (self._av.FFmpegError, ValueError, OSError) as error:
                raise DataError(self._not_a_video(error)) from error
            with container:
                if not container.streams.video:
                    raise DataError(f"{self._label}: it has no video stream; pass a video")
                stream = container.streams.best("video")
                height, width = stream.codec_context.height, stream.codec_context.width
                self._check_size(height, width)
                yield container, stream

    def _not_a_video(self, error: Exception) -> str:
        kind = why_not_image(self.path)
        if kind is None:
            return f"{self._label}: this is an image; pass a video, or a folder of images"
        if kind == "a video":
            return (
                f"{self._label}: the video is damaged or incomplete ({_reason(error)}); record "
                "or download it again, or repair it with FFmpeg"
            )
        kind = "" if kind == "not an image" else f" but {kind}"
        return f"{self._label}: this is not a video{kind}; pass a video, or a folder of images"

    def _check_size(self, height: int, width: int) -> None:
        try:
            check_pixels((height, width))
        except Image.DecompressionBombError as error:
            raise DataError(f"{self._label}: {error}; scale the video down") from error

    def _decoded(
        self, container: Any, stream: Any, damage: Damage, start: int | None
    ) -> Iterator[Frame]:
        """Frames from where the container stands.

        Args:
            container, stream: opened.
            damage: notes what is skipped.
            start: time stamp of the clip's beginning; None takes that of the first frame.
        """
        rate = Fraction(stream.average_rate or stream.guessed_rate or FOLDER_RATE)
        base = Fraction(stream.time_base or 1 / rate)
        time = Fraction(-1)
        counter = itertools.count()
        for decoded in self._raw(container, stream, damage):
            if decoded.is_corrupt:
                damage.note(f"after {max(float(time), 0):.2f} s", "a frame is corrupt")
                continue
            if start is None:
                start = stream.start_time if stream.start_time is not None else decoded.pts or 0
            stated = None if decoded.pts is None else (decoded.pts - start) * base
            time = time + 1 / rate if stated is None or stated <= time else stated
            time = max(time, Fraction(0))
            index = next(counter)
            yield Frame(index, time, f"{index:06d}.png", self._reader(decoded))
        if time < 0:
            why = f" ({damage.first})" if damage.count else ""
            raise DataError(f"{self._label}: no frame can be decoded{why}; pass another video")

    def _raw(self, container: Any, stream: Any, damage: Damage) -> Iterator[Any]:
        """PyAV's frames; what fails is noted and skipped."""
        failed, seconds = 0, 0.0
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except (self._av.FFmpegError, OSError) as error:
                damage.note(f"after {seconds:.2f} s", _reason(error))
                failed += 1
                if failed >= _NEVER_ENDING:
                    return
                packets = container.demux(stream)
                continue
            if packet is None:
                return
            failed = 0
            try:
                found = packet.decode()
            except (self._av.FFmpegError, OSError) as error:
                if not isinstance(error, EOFError):  # of the packet that flushes the decoder
                    damage.note(f"after {seconds:.2f} s", _reason(error))
                continue
            if packet.pts is not None and packet.time_base is not None:
                seconds = max(seconds, float(packet.pts * packet.time_base))
            yield from found

    def _reader(self, decoded: Any) -> Callable[[], Pixels]:
        def read() -> Pixels:
            self._check_size(decoded.height, decoded.width)
            stated = decoded.colorspace if decoded.colorspace in _COLORSPACES else None
            pixels: Pixels = decoded.to_ndarray(format="rgb24", src_colorspace=stated)
            return np.ascontiguousarray(np.rot90(pixels, round(decoded.rotation / 90)))

        return read


def _seconds(container: Any, stream: Any, base: Fraction) -> float | None:
    """How long a file lasts, as it states itself."""
    if stream.duration:
        return float(stream.duration * base)
    return container.duration / 1e6 if container.duration else None


def _reason(error: Exception) -> str:
    """What FFmpeg says, without the function that said it."""
    return printable(getattr(error, "strerror", None) or first_line(error))


def _load_av() -> Any:
    """PyAV.

    Raises:
        FsdinoError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise FsdinoError(
            'video files need PyAV: pip install "fsdino[video]", or pass a folder of frames'
        ) from error
    return av
