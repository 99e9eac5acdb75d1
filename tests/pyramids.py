"""Networks with stages small enough for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fsdino.models.config import ModelConfig
from fsdino.models.encoders import PyramidEncoder, create
from tiny_models import tiny_config

# Per family: a name in timm, and what makes it small.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "EfficientNet": ("tf_efficientnet_lite0", {}),
    "ResNet": ("resnet18", {"layers": (1, 2, 1, 1), "channels": (8, 12, 16, 24)}),
    "ConvNeXt": ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24)}),
    "Swin": (
        "swin_tiny_patch4_window7_224",
        {"depths": (1, 1, 2, 1), "embed_dim": 8, "num_heads": (1, 2, 2, 4), "window_size": 4},
    ),
    "RegNet": ("regnetx_002", {}),
    "MobileNet": ("mobilenetv3_small_050", {}),
}


def pyramid_config(family: str, **changes: Any) -> ModelConfig:
    """A pipeline on one of them, at 64 pixels: 4 x 4 tokens."""
    name, arguments = NETWORKS[family]
    own = {"encoder": name, "encoder_args": arguments, "image_size": 64}
    return tiny_config(**{**own, **changes})


def pyramid(family: str, seed: int = 0, **changes: Any) -> PyramidEncoder:
    """A random network as an encoder, with the statistics of norms random, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = create(pyramid_config(family, **changes))
    assert isinstance(encoder, PyramidEncoder)
    shake(encoder, seed)
    return encoder.eval()


def shake(module: nn.Module, seed: int) -> None:
    """Weights and running statistics that no layer's defaults equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point() and not name.endswith(("attn_mask", "mean", "std")):
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.add_(0.1 * tensor.abs().mean().clamp_min(0.1) * noise)
            elif name.endswith("running_mean"):
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
