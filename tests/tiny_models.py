"""Models small enough for tests, with weights that make every part matter; and pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from fsdino.models import zoo
from fsdino.models.config import ModelConfig
from fsdino.models.fsdino import FSDINO

PATCH = 14
SIDE = 5 * PATCH  # the tiny models' image_size: a grid of 5 x 5 tokens
SMALL = {"img_size": SIDE, "embed_dim": 24, "depth": 4, "num_heads": 2}


def tiny_config(**changes: Any) -> ModelConfig:
    """FS-DINO on a DINOv2 of four blocks and 24 channels."""
    settings: dict[str, Any] = {
        "encoder": "vit_small_patch14_dinov2",
        "encoder_args": SMALL,
        "image_size": SIDE,
        "adapter_layer": 2,
        "correlation_channels": (4, 8),
        "width": 16,
        "adapter_width": 8,
        "adapter_heads": 2,
        "decoder_heads": 2,
        "decoder_mlp": 32,
        "prompt_hidden": 8,
    }
    return ModelConfig(**{**settings, **changes})


def tiny_model(seed: int = 0, **changes: Any) -> FSDINO:
    """An FSDINO with random weights in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for the decoder's random positions, which are not parameters
        model = zoo.assemble(tiny_config(**changes))
    assert isinstance(model, FSDINO)
    randomise(model, seed)
    return model.eval()


def randomise(module: nn.Module, seed: int) -> None:
    """Weights of a size that keeps activations of order 1; norms and LayerScale near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith((".gamma", "pos_embed", "cls_token", "reg_token")):
                parameter.copy_(noise)
            elif parameter.ndim >= 2:
                parameter.copy_(noise * max(parameter[0].numel(), 1) ** -0.5)
            else:  # biases near 0, the weights of norms near 1
                parameter.copy_(0.1 * noise + float(name.endswith(".weight")))


def episode(
    batch: int, shots: int, side: int = SIDE, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Support images [B, K, 3, H, W], masks [B, K, H, W] of one box, queries [B, 3, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    supports = torch.rand(batch, shots, 3, side, side, generator=generator)
    masks = torch.zeros(batch, shots, side, side)
    masks[..., side // 4 : side // 2 + 5, side // 3 : side - 9] = 1
    return supports, masks, torch.rand(batch, 3, side, side, generator=generator)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3] noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def box_mask(height: int, width: int) -> np.ndarray:
    """bool [H, W] with a box in the middle."""
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : height - height // 3, width // 3 : width - width // 5] = True
    return mask
