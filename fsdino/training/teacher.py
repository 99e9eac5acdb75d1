"""The teacher of stage 1: SAM's image encoder, as Segment Anything runs it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from fsdino.errors import CheckpointError, UsageError
from fsdino.images import Pixels
from fsdino.models.checkpoints import (
    Stored,
    compare_shapes,
    load_exactly,
    open_state_dict,
    weights_hash,
)

logger = logging.getLogger("fsdino.training")

_PREFIX = "image_encoder."
_MOST_BLOCKS = 128  # ViT-H has 32
_BLOCK = re.compile(r"blocks\.(\d+)\.attn\.rel_pos_h")
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of Sam, on 0..255


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
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return np.array(resized)

    def cells(self, pixels: int) -> int:
        """Cells whose centre is in so many scaled pixels; at least one."""
        return max(int(pixels / self.patch_size + 0.5), 1)

    def check(self, state: Mapping[str, Stored], path: str | os.PathLike[str]) -> None:
        """Compare it with a state dict before memory is taken for it.

        Raises:
            ValueError: more blocks than a SAM image encoder has.
            CheckpointError: tensors of other names or shapes.
        """
        if self.depth > _MOST_BLOCKS:
            raise ValueError(f"{self.depth} blocks")
        with torch.device("meta"):
            own = self.build().state_dict()
        compare_shapes(
            {name: tuple(tensor.shape) for name, tensor in own.items()},
            {name: tuple(tensor.shape) for name, tensor in state.items()},
            path,
        )

    def build(self) -> ImageEncoderViT:
        """The encoder, with random weights."""
        return ImageEncoderViT(
            img_size=self.image_size,
            patch_size=self.patch_size,
            embed_dim=self.width,
            depth=self.depth,
            num_heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            out_chans=self.channels,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
            use_rel_pos=True,
            window_size=self.window,
            global_attn_indexes=self.global_blocks,
        )


# Segment Anything's own models.
ARCHITECTURES = {
    "vit_b": Architecture(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": Architecture(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": Architecture(1280, 32, 16, (7, 15, 23, 31)),
}


class Teacher(nn.Module):
    """A frozen SAM image encoder that embeds images of any size.

    An image is scaled so that its longer side is `image_size`, normalised, and padded at the bottom
    and on the right. The padded part of the embedding is cut off: cells whose centre is not in the
    image.

    Args:
        architecture: what to build; weights are random unless loaded (`load_teacher`).
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder = architecture.build()
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", _MEAN), ("std", _STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def pad(self, image: Pixels) -> Tensor:
        """A scaled image -> float32 [3, image_size, image_size], normalised, then padded by 0."""
        pixels = torch.from_numpy(image).to(self.mean.device).permute(2, 0, 1)
        side = self.architecture.image_size
        padded = torch.zeros(3, side, side, device=self.mean.device)
        padded[:, : pixels.shape[1], : pixels.shape[2]] = (pixels - self.mean) / self.std
        return padded

    @torch.inference_mode()
    def forward(self, images: Sequence[Pixels], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Embed scaled images (`Architecture.scale`).

        Args:
            images: uint8 [h, w, 3] each.
            dtype: bfloat16 and float16 compute under autocast.

        Returns:
            float16 [C, h', w'] each, on the CPU, without the padded part (`Architecture.grid`).
        """
        device = self.mean.device
        batch = torch.stack([self.pad(image) for image in images])
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            embedded = self.encoder(batch)  # [B, C, S, S]
        embedded = embedded.to("cpu", torch.float16)
        cells = self.architecture.cells
        return [
            embedding[:, : cells(image.shape[0]), : cells(image.shape[1])].clone()
            for embedding, image in zip(embedded, images, strict=True)
        ]

    def fingerprint(self) -> str:
        """Hash of the weights."""
        return weights_hash(self.encoder.state_dict())


def load_teacher(path: str | os.PathLike[str], name: str = "auto") -> Teacher:
    """The image encoder of a Segment Anything checkpoint (official ones: Apache-2.0).

    Args:
        path: `sam_vit_h_4b8939.pth` and the like, or any model of `segment_anything`'s in the same
            names, as .pth or .safetensors; its architecture is read off the shapes.
        name: "vit_b", "vit_l" or "vit_h" that the file must hold, or "auto".

    Raises:
        UsageError: there is no such file or name.
        CheckpointError: the file is damaged, holds no SAM model, or another one than `name`.
    """
    if name != "auto" and name not in ARCHITECTURES:
        known = ", ".join(["auto", *ARCHITECTURES])
        raise UsageError(f"unknown teacher {name!r}: choose from {known}")
    with open_state_dict(path) as stored:
        state = {
            key.removeprefix(_PREFIX): tensor
            for key, tensor in stored.items()
            if key.startswith(_PREFIX)
        }
        try:
            found = Architecture.of(state)
            found.check(state, path)
            teacher = Teacher(found)
        except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
            raise CheckpointError(
                f"weights {path} hold no image encoder of Segment Anything: pass a sam_vit_*.pth"
            ) from error
        if name != "auto" and found != ARCHITECTURES[name]:
            known = next((n for n, a in ARCHITECTURES.items() if a == found), "of another size")
            raise CheckpointError(f"weights {path} hold no {name}, their encoder is {known}")
        load_exactly(teacher.encoder, state, path)
    logger.info("teacher from %s (Segment Anything, Apache-2.0)", path)
    return teacher
