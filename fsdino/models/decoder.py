"""SAM's mask decoder for a batch of images with one prompt each."""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor


class MaskDecoder(SamMaskDecoder):
    """`segment_anything`'s MaskDecoder, from which weights load by name.

    SAM repeats one image for many prompts; here every image has its own prompt. Only the
    single-mask output (index 0) is computed. The IoU head and the other masks' output layers get
    no gradient and are frozen (DDP would stop on them).

    Args:
        width: channels; 256 is SAM's.
        heads: attention heads of the two-way transformer.
        mlp: hidden width of its feed-forward layers; 2048 is SAM's.
    """

    def __init__(self, width: int = 256, heads: int = 8, mlp: int = 2048) -> None:
        transformer = TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=mlp, num_heads=heads)
        super().__init__(transformer_dim=width, transformer=transformer, iou_head_hidden_dim=width)
        self.positions = _Positions(width // 2)
        self.freeze_unused()

    def freeze_unused(self) -> None:
        """Exclude what the single-mask output does not use from training."""
        unused = (self.iou_prediction_head, *list(self.output_hypernetworks_mlps)[1:])
        for module in unused:
            module.requires_grad_(False)

    def forward(  # type: ignore[override]
        self, image: Tensor, sparse: Tensor, dense: Tensor
    ) -> Tensor:
        """Mask logits at four times the token grid.

        Args:
            image: [B, width, h, w] image embedding.
            sparse: [B, T, width] prompt tokens; T may be 0.
            dense: [B, width, h, w] prompt map.

        Returns:
            [B, 1, 4h, 4w].
        """
        batch, width, height, columns = image.shape
        outputs = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([outputs.expand(batch, -1, -1), sparse.to(outputs.dtype)], dim=1)
        positions = self.positions((height, columns)).to(image.dtype)
        positions = positions.expand(batch, -1, -1, -1)
        hidden, source = self.transformer(image + dense, positions, tokens)
        source = source.transpose(1, 2).reshape(batch, width, height, columns)
        upscaled = self.output_upscaling(source)  # [B, width/8, 4h, 4w]
        kernel = self.output_hypernetworks_mlps[0](hidden[:, 1])  # token 0 is the IoU token
        return torch.einsum("bc,bchw->bhw", kernel, upscaled)[:, None]


# Prefixes of an official SAM checkpoint that the decoder does not need.
SAM_LEFTOVERS = (
    "image_encoder.",
    "prompt_encoder.point_embeddings.",
    "prompt_encoder.not_a_point_embed.",
    "prompt_encoder.mask_downscaling.",
    "prompt_encoder.no_mask_embed.",
    "pixel_mean",
    "pixel_std",
)


class _Positions(PositionEmbeddingRandom):
    """SAM's random Fourier positions; they stay float32 when the model is cast."""

    def _apply(self, fn: Any, recurse: bool = True) -> _Positions:
        name = "positional_encoding_gaussian_matrix"
        exact = getattr(self, name)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        cast = getattr(self, name)
        if cast.dtype != exact.dtype:  # casting back would keep the rounding
            setattr(self, name, exact.to(cast.device))
        return self
