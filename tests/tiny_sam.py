"""A Segment Anything model small enough for tests, with the official names of its weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn

from tiny_models import randomise

SIDE, GRID, WIDTH = 32, 8, 16


def build(seed: int = 5) -> Sam:
    """A SAM for images of 32 pixels, tokens of 4 and embeddings of 16 channels."""
    transformer = TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=32, num_heads=2)
    sam = Sam(
        ImageEncoderViT(
            img_size=SIDE, patch_size=SIDE // GRID, embed_dim=8, depth=2, num_heads=2,
            out_chans=WIDTH, norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True,
            window_size=3, global_attn_indexes=(1,),
        ),
        PromptEncoder(
            embed_dim=WIDTH, image_embedding_size=(GRID, GRID), input_image_size=(SIDE, SIDE),
            mask_in_chans=4,
        ),
        MaskDecoder(transformer_dim=WIDTH, transformer=transformer, iou_head_hidden_dim=WIDTH),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )  # fmt: skip
    randomise(sam, seed)
    return sam.eval()


def write(folder: Path, seed: int = 5) -> Path:
    """Write its state dict under the name of an official file."""
    path = folder / "sam_vit_b_01ec64.pth"
    torch.save(build(seed).state_dict(), path)
    return path
