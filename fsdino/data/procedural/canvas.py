"""Pixels of the procedural set: scenes painted back to front, with light and noise."""

from __future__ import annotations

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from fsdino.data.episodes import Image, Mask
from fsdino.data.procedural.classes import Fold, ObjectClass
from fsdino.data.procedural.scenes import OTHER, Layer, Scene, draw_scene
from fsdino.data.procedural.shapes import Points
from fsdino.data.procedural.textures import Floats

_SUPERSAMPLING = 4


class Canvas:
    """A square picture being painted back to front: colours, and the target's visibility."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.offset = (max(1, round(0.010 * size)), max(1, round(0.014 * size)))
        rows, columns = size + self.offset[1], size + self.offset[0]
        self.planes = np.zeros((3, rows, columns), dtype=np.float32)
        self.visible = np.zeros((rows, columns), dtype=np.float32)
        self.ticks = (np.arange(size) + 0.5) / size

    def paint(self, layer: Layer) -> None:
        """Paint one layer and the shadow it throws."""
        low = np.clip(np.floor(layer.outline.min(axis=0) * self.size), 0, self.size).astype(int)
        high = np.clip(np.ceil(layer.outline.max(axis=0) * self.size), 0, self.size).astype(int)
        (left, top), (right, bottom) = low.tolist(), high.tolist()
        if right <= left or bottom <= top:
            return
        cover = self._cover(layer.outline, left, top, right, bottom)
        if layer.shadow:
            right_by, down_by = self.offset
            below = np.s_[top + down_by : bottom + down_by, left + right_by : right + right_by]
            self.planes[(slice(None), *below)] *= 1 - layer.shadow * cover
        here = np.s_[top:bottom, left:right]
        blend = layer.texture(*self._coordinates(layer.to_texture, left, top, right, bottom))
        base, difference = layer.colours[0], layer.colours[1] - layer.colours[0]
        colour = base[:, None, None] + difference[:, None, None] * blend
        colour *= self._light(layer, left, top, right, bottom)
        region = self.planes[(slice(None), *here)]
        colour -= region
        colour *= cover
        region += colour
        shown = self.visible[here]
        shown *= 1 - cover
        if layer.label < OTHER:
            shown += cover

    def finish(self, scene: Scene, rng: np.random.Generator) -> tuple[Image, Mask]:
        """Light the scene, add noise, and return the image and the target's visible mask."""
        size = self.size
        slope = np.multiply.outer(scene.slope, self.ticks - 0.5).astype(np.float32)
        light = 1 + slope[0] + slope[1][:, None]
        gain = np.array(scene.gain, dtype=np.float32)[:, None, None]
        planes = self.planes[:, :size, :size] * light * gain
        planes += np.float32(scene.noise) * rng.standard_normal((size, size), dtype=np.float32)
        planes += np.float32(0.5)
        np.clip(planes, 0, 255, out=planes)
        image = np.ascontiguousarray(planes.astype(np.uint8).transpose(1, 2, 0))
        return image, self.visible[:size, :size] >= np.float32(0.5)

    def _cover(self, outline: Points, left: int, top: int, right: int, bottom: int) -> Floats:
        """Return how much of each pixel of the window the outline covers, 0..1."""
        side = _SUPERSAMPLING
        board = Pillow.new("L", ((right - left) * side, (bottom - top) * side))
        points = (outline * self.size - np.array([left, top])) * side - 0.5
        ImageDraw.Draw(board).polygon(points.ravel().tolist(), fill=255)
        return np.asarray(board.reduce(side), dtype=np.float32) * np.float32(1 / 255)

    def _coordinates(
        self, matrix: Points, left: int, top: int, right: int, bottom: int
    ) -> tuple[Floats, Floats]:
        """Return texture coordinates u, v at the window's pixel centres."""
        across = np.multiply.outer(matrix[:, 0], self.ticks[left:right]).astype(np.float32)
        down = np.multiply.outer(matrix[:, 1], self.ticks[top:bottom]) + matrix[:, 2:]
        sums = across[:, None, :] + down.astype(np.float32)[:, :, None]
        np.reciprocal(sums[2], out=sums[2])
        sums[:2] *= sums[2]
        return sums[0], sums[1]

    def _light(self, layer: Layer, left: int, top: int, right: int, bottom: int) -> Floats:
        """Return a brightness that falls off linearly across the layer's extent."""
        low, high = layer.outline.min(axis=0), layer.outline.max(axis=0)
        middle, extent = (low + high) / 2, high - low
        across = layer.shade[0] * (self.ticks[left:right] - middle[0]) / extent[0]
        down = layer.shade[1] * (self.ticks[top:bottom] - middle[1]) / extent[1]
        light: Floats = (1 + across.astype(np.float32)) + down.astype(np.float32)[:, None]
        return light


def render(
    rng: np.random.Generator, kind: ObjectClass, fold: Fold, image_size: int
) -> tuple[Image, Mask]:
    """Draw one scene with an object of one of a fold's classes: an image and the visible mask."""
    scene = draw_scene(rng, kind, fold)
    canvas = Canvas(image_size)
    for layer in scene.layers:
        canvas.paint(layer)
    return canvas.finish(scene, rng)
