"""Small video files, made by PyAV itself: lossless, so that their frames are known exactly."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH = 48, 64


def moving(count: int, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    """Frames uint8 [H, W, 3] of a bright box that moves over a pattern of its own."""
    rows, columns = np.mgrid[:height, :width]
    ground = np.stack([rows * 3 % 256, columns * 2 % 256, (rows + columns) % 256], 2)
    frames = []
    for k in range(count):
        frame = ground.astype(np.uint8)
        frame[10:30, 5 + k : 25 + k] = (250, 20 + k, 30)
        frames.append(frame)
    return frames


def box(k: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """bool [H, W]: the box of frame k of `moving`."""
    mask = np.zeros((height, width), bool)
    mask[10:30, 5 + k : 25 + k] = True
    return mask


def write_clip(
    path: Path,
    frames: Sequence[np.ndarray],
    times: Sequence[Fraction] | None = None,
    *,
    sound: bool = False,
    codec: str = "png",
) -> Path:
    """Write a clip; the codec png is lossless and needs a .mov or .avi file.

    Args:
        path: of the file.
        frames: uint8 [H, W, 3].
        times: in seconds; 25 frames a second by default.
        sound: add a second of silence.
        codec: of FFmpeg.
    """
    import av

    with av.open(str(path), "w") as container:
        video: Any = container.add_stream(codec, rate=25)
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "rgb24" if codec == "png" else "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        audio: Any = container.add_stream("aac", rate=8000) if sound else None
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            time = Fraction(k, 25) if times is None else times[k]
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
            silence.sample_rate = 8000
            container.mux(audio.encode(silence))
            container.mux(audio.encode(None))
    return path


def turn(path: Path, quarters: int) -> None:
    """State in a .mov or .mp4 file that its frames have to be turned clockwise by quarter turns.

    The matrix [a b 0; c d 0; 0 0 1] of the track's header moves (x, y) to (ax + cy, bx + dy), with
    y downwards (ISO/IEC 14496-12, 8.3.2).
    """
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    a, b, c, d = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)][quarters % 4]
    one = 1 << 16
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    content[place : place + 36] = matrix
    path.write_bytes(content)


def break_frame(path: Path, number: int) -> None:
    """Overwrite the middle of a frame's data, in a file of the codec png."""
    content = bytearray(path.read_bytes())
    place = -1
    for _ in range(number + 1):
        place = content.index(b"\x89PNG", place + 1)
    content[place : place + 60] = bytes(60)
    path.write_bytes(content)
