"""Pictures and masks drawn for tests of what reads, writes and draws pixels."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

Array = npt.NDArray[Any]
PHOTOGRAPHS = Path(__file__).with_name("photographs")


def picture(height: int, width: int) -> Array:
    """uint8 [H, W, 3] without any symmetry: ramps along both axes and a bright corner."""
    rows = np.linspace(0, 200, height, dtype=np.float32)[:, None]
    columns = np.linspace(0, 200, width, dtype=np.float32)[None]
    pixels = np.stack(
        [rows + 0 * columns, columns + 0 * rows, np.abs(rows - columns) + 20], axis=2
    ).astype(np.uint8)
    pixels[: height // 5, : width // 7] = (250, 240, 230)
    return pixels


def disc(height: int, width: int) -> npt.NDArray[np.bool_]:
    """bool [H, W]: an ellipse, off the middle."""
    y, x = np.ogrid[:height, :width]
    scaled = ((y - 0.4 * height) / (0.25 * height)) ** 2 + ((x - 0.6 * width) / (0.2 * width)) ** 2
    result: npt.NDArray[np.bool_] = scaled < 1
    return result


def one_line(error: pytest.ExceptionInfo[BaseException], *parts: str) -> None:
    """The message is one line and holds these parts."""
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def png(
    width: int, height: int, depth: int, color: int, rows: list[bytes], *chunks: tuple[bytes, bytes]
) -> bytes:
    """A PNG file, written after its specification and not by Pillow."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


# What turns the stored pixels upright, by EXIF orientation (TIFF 6.0, tag 274).
UPRIGHT: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


FLAGS = disc(60, 80)
BYTES = FLAGS.astype(np.uint8)
GRAY = BYTES * np.uint8(255)
RED = np.stack([GRAY, 0 * GRAY, 0 * GRAY], axis=2)
