"""The shape of SAM's image encoders, and how they see an image; without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsdino.images import Pixels
    from fsdino.models.weight_files import Stored

_BLOCK = re.compile(r"blocks\.(\d+)\.attn\.rel_pos_h")


@dataclass(frozen=True)
class Architecture:
    """What defines one of SAM's image encoders; the defaults are common to the official ones.

    Attributes:
        width: channels of its tokens.
        depth: number of blocks.
        heads: attention heads.
        global_blocks: blocks (from 0) that attend to the whole image, the others to windows.
        window: side of a window, in tokens.
        mlp_ratio: width of the feed-forward layers, in units of `width`.
        channels: of the embedding.
        image_size: side in pixels of the square input.
        patch_size: side of a token in pixels.
    """

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    window: int = 14
    mlp_ratio: float = 4.0
    channels: int = 256
    image_size: int = 1024
    patch_size: int = 16

    @classmethod
    def of(cls, state: Mapping[str, Stored]) -> Architecture:
        """Read it off the shapes of an image encoder's state dict.

        Raises:
            KeyError, IndexError, ValueError: it is not the state dict of a SAM image encoder.
        """
        width, _, patch_size, _ = state["patch_embed.proj.weight"].shape
        grid = state["pos_embed"].shape[1]
        spans = {
            int(match[1]): (tensor.shape[0] + 1) // 2  # tokens that the positions reach over
            for name, tensor in state.items()
            if (match := _BLOCK.fullmatch(name))
        }
        windows = [span for span in spans.values() if span != grid]
        return cls(
            width=width,
            depth=len(spans),
            heads=width // state["blocks.0.attn.rel_pos_h"].shape[1],
            global_blocks=tuple(sorted(block for block, span in spans.items() if span == grid)),
            window=windows[0] if windows else 0,
            mlp_ratio=state["blocks.0.mlp.lin1.weight"].shape[0] / width,
            channels=state["neck.0.weight"].shape[0],
            image_size=grid * patch_size,
            patch_size=patch_size,
        )

    @property
    def grid_side(self) -> int:
        """Cells along the longer side of an image: 64 of the official models."""
        return self.image_size // self.patch_size

    @property
    def most_bytes(self) -> int:
        """Bytes of a square image's embedding in half precision; others' are smaller."""
        return 2 * self.channels * self.grid_side**2

    def scaled_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels to which an image of (H, W) is scaled."""
        scale = self.image_size / max(size)
        height, width = (max(int(side * scale + 0.5), 1) for side in size)
        return height, width

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the embedding of an image of (H, W): cells whose centre is in the image."""
        height, width = (self.cells(pixels) for pixels in self.scaled_size(size))
        return height, width

    def extent(self, size: tuple[int, int]) -> tuple[float, float]:
        """(h, w) of an image of (H, W) in cells, exactly: rarely whole numbers."""
        height, width = self.scaled_size(size)
        return height / self.patch_size, width / self.patch_size

    def scale(self, image: Pixels) -> Pixels:
        """uint8 [H, W, 3] -> uint8 [h, w, 3] whose longer side is `image_size` (PIL, bilinear)."""
        height, width = self.scaled_size((image.shape[0], image.shape[1]))
        import numpy as np
        from PIL import Image

        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return np.array(resized)

    def cells(self, pixels: int) -> int:
        """Cells whose centre lies within a number of scaled pixels; at least one."""
        return max(int(pixels / self.patch_size + 0.5), 1)


# Segment Anything's own models.
ARCHITECTURES = {
    "vit_b": Architecture(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": Architecture(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": Architecture(1280, 32, 16, (7, 15, 23, 31)),
}
