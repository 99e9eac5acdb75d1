"""The teacher of stage 1: SAM's image encoder, as Segment Anything runs it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from fsdino.errors import CheckpointError, UsageError
from fsdino.images import Pixels
from fsdino.models.checkpoints import compare_shapes, load_exactly, weights_hash
from fsdino.models.weight_files import Stored, open_state_dict
from fsdino.training.distillation.architecture import ARCHITECTURES, Architecture

logger = logging.getLogger("fsdino.training")

_PREFIX = "image_encoder."
_MOST_BLOCKS = 128  # ViT-H has 32
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of Sam, on 0..255


def build_encoder(architecture: Architecture) -> ImageEncoderViT:
    """An image encoder of Segment Anything, with random weights."""
    return ImageEncoderViT(
        img_size=architecture.image_size,
        patch_size=architecture.patch_size,
        embed_dim=architecture.width,
        depth=architecture.depth,
        num_heads=architecture.heads,
        mlp_ratio=architecture.mlp_ratio,
        out_chans=architecture.channels,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
        use_rel_pos=True,
        window_size=architecture.window,
        global_attn_indexes=architecture.global_blocks,
    )


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
        self.encoder = build_encoder(architecture)
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
            _check(found, state, path)
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


def _check(
    architecture: Architecture, state: Mapping[str, Stored], path: str | os.PathLike[str]
) -> None:
    """Compare an architecture with a state dict before memory is taken for it.

    Raises:
        ValueError: more blocks than a SAM image encoder has.
        CheckpointError: tensors of other names or shapes.
    """
    if architecture.depth > _MOST_BLOCKS:
        raise ValueError(f"{architecture.depth} blocks")
    with torch.device("meta"):
        own = build_encoder(architecture).state_dict()
    compare_shapes(
        {name: tuple(tensor.shape) for name, tensor in own.items()},
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        path,
    )
