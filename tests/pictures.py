"""Pictures and masks drawn for tests of what reads, writes and draws pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[Any]


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
