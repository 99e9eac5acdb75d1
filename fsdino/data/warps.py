"""Warps of photographs and effects of a camera, for generated episodes."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageFilter
import torch
from torch.nn import functional

from fsdino.data.episodes import Image

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Window = tuple[int, int, int, int]  # left, top, right, bottom in pixels

_TURN = math.pi / 6
_STRETCH = 0.3  # largest logarithm of width over height
_TILT = 0.25  # how far the scale changes from one side of a view to the other
_EXPOSURE, _CONTRAST, _WARMTH, _SATURATION = 0.35, 0.3, 0.15, 0.4
_GRAY, _BLURRED, _COMPRESSED = 0.03, 0.25, 0.5  # shares of the views
_BLUR = (0.4, 1.6)  # pixels, of a view of 448
_QUALITY = (35, 95)


@dataclass(frozen=True, eq=False)
class Warp:
    """A view of a photograph: the position of each pixel of the view in it.

    Attributes:
        matrix: float64 [3, 3], from (x, y, 1) in the view to the photograph, both in pixels from
            the upper left corner.
        scale: pixels of the view for one of the photograph, at the anchor.
    """

    matrix: Doubles
    scale: float

    def places(self, window: Window) -> Floats:
        """Where the pixel centres of a window [h, w] of the view lie, float32 [h, w, 2], pixels."""
        left, top, right, bottom = window
        x = np.arange(left, right, dtype=np.float32)[None] + np.float32(0.5)
        y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5)
        rows = self.matrix.astype(np.float32)
        depth = 1 / (rows[2, 0] * x + rows[2, 1] * y + rows[2, 2])
        places = np.empty((bottom - top, right - left, 2), np.float32)
        for axis in (0, 1):
            place = rows[axis, 0] * x + rows[axis, 1] * y + rows[axis, 2]
            np.multiply(place, depth, out=places[..., axis])
        return places

    def seen(self, box: tuple[float, float, float, float], side: int) -> Window:
        """The window of a square view in which a box (pixels of the photograph) lies."""
        left, top, right, bottom = box
        corners = np.array([[left, left, right, right], [top, bottom, top, bottom], [1, 1, 1, 1]])
        x, y, depth = np.linalg.inv(self.matrix) @ corners
        x, y = x / depth, y / depth
        low = (math.floor(float(x.min())) - 2, math.floor(float(y.min())) - 2)
        high = (math.ceil(float(x.max())) + 2, math.ceil(float(y.max())) + 2)
        start = [min(max(v, 0), side) for v in low]
        stop = [min(max(v, 0), side) for v in high]
        return start[0], start[1], max(stop[0], start[0]), max(stop[1], start[1])


def draw_warp(
    rng: np.random.Generator,
    scale: float,
    anchor: tuple[float, float],
    place: tuple[float, float],
    side: int,
) -> Warp:
    """Draw a view: turned by up to 30 degrees, stretched, half of the time mirrored, and tilted.

    Args:
        rng: source of all random numbers.
        scale: pixels of the view for one of the photograph.
        anchor: (x, y) of a point of the photograph.
        place: (x, y) of that point in the view.
        side: side of the square view, in pixels.
    """
    turn, stretch, across, down = rng.uniform(-1, 1, 4).tolist()
    mirror = 1.0 if rng.random() < 1 / 2 else -1.0
    cosine, sine = math.cos(_TURN * turn), math.sin(_TURN * turn)
    squeeze = math.exp(_STRETCH * stretch / 2)
    linear = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag(
        [mirror / (squeeze * scale), squeeze / scale]
    )
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    tilt = np.eye(3)
    tilt[2, :2] = _TILT / 2 * np.array([across, down]) / side
    onto = np.array([[1, 0, anchor[0]], [0, 1, anchor[1]], [0, 0, 1.0]])
    away = np.array([[1, 0, -place[0]], [0, 1, -place[1]], [0, 0, 1.0]])
    return Warp(onto @ matrix @ tilt @ away, scale)


def sample(plane: torch.Tensor, size: tuple[int, int], places: Floats) -> torch.Tensor:
    """Interpolate bilinearly, mirrored beyond the borders.

    Args:
        plane: float32 [C, h, w] of a photograph, at any resolution.
        size: (H, W) of the photograph.
        places: [h', w', 2] in its pixels.

    Returns:
        float32 [C, h', w'].
    """
    factors = np.array([2 / size[1], 2 / size[0]], np.float32)
    grid = torch.from_numpy(places * factors - 1)[None]
    found = functional.grid_sample(
        plane[None], grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return found[0]


def view(image: Image, warp: Warp, window: Window) -> torch.Tensor:
    """A window of a view of a photograph, float32 [3, h, w] in 0..255; shrunk images are averaged.

    Args:
        image: uint8 [H, W, 3].
        warp: the view.
        window: part of it.
    """
    size = (image.shape[0], image.shape[1])
    places = warp.places(window)
    corners = places[[0, 0, -1, -1], [0, -1, 0, -1]]  # a quadrangle has no point beyond these
    low, high = corners.min(0), corners.max(0)
    inside = low.min() >= 0 and high[0] <= size[1] and high[1] <= size[0]
    part = image
    if inside:  # the rest of the photograph need not be converted
        start, stop = np.maximum(low.astype(int) - 8, 0), high.astype(int) + 9
        part = image[start[1] : stop[1], start[0] : stop[0]]
        places = places - start.astype(np.float32)
        size = (part.shape[0], part.shape[1])
    shrink = int(1 / warp.scale + 0.25)
    if shrink > 1:
        part = np.asarray(PIL.Image.fromarray(part).reduce(shrink))
        # The last cells may be cut off: cells, and not sides, map onto each other.
        size = (part.shape[0] * shrink, part.shape[1] * shrink)
    plane = torch.from_numpy(np.array(part)).permute(2, 0, 1).float()
    return sample(plane, size, places)


def expose(rng: np.random.Generator, layer: torch.Tensor) -> torch.Tensor:
    """Light a part of a view [3, h, w] a little differently from the others."""
    gains = 1 + 0.12 * rng.uniform(-1, 1) + 0.04 * rng.uniform(-1, 1, 3)
    return layer * torch.from_numpy(gains.astype(np.float32))[:, None, None]


def photograph(rng: np.random.Generator, view: torch.Tensor) -> Image:
    """The effects of a camera on a view: exposure, contrast, warmth, saturation, blur, JPEG.

    Args:
        rng: source of all random numbers.
        view: float32 [3, H, W] in 0..255.

    Returns:
        uint8 [H, W, 3].
    """
    pixels = view.clamp(0, 255).round_().byte().permute(1, 2, 0).contiguous().numpy()
    exposure, contrast, warmth, saturation = rng.uniform(-1, 1, 4).tolist()
    gray, blurred, compressed, width, quality = rng.random(5).tolist()
    gamma = math.exp(_EXPOSURE * exposure)
    levels = 0.5 + (1 + _CONTRAST * contrast) * ((np.arange(256) / 255) ** gamma - 0.5)
    tints = [1 + _WARMTH * warmth, 1.0, 1 - _WARMTH * warmth]
    table = np.clip(np.round(255 * np.outer(tints, levels)), 0, 255).astype(int)
    image = PIL.Image.fromarray(pixels).point(table.ravel().tolist())
    image = PIL.ImageEnhance.Color(image).enhance(
        0.0 if gray < _GRAY else 1 + _SATURATION * saturation
    )
    if blurred < _BLURRED:
        radius = (_BLUR[0] + (_BLUR[1] - _BLUR[0]) * width) * image.width / 448
        image = image.filter(PIL.ImageFilter.GaussianBlur(radius))
    if compressed < _COMPRESSED:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(_QUALITY[0] + (_QUALITY[1] - _QUALITY[0]) * quality))
        image = PIL.Image.open(file)
    return np.array(image)
