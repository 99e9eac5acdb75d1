"""Frozen encoders: one image in, tokens on one grid out."""

from __future__ import annotations

from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from fsdino.models.config import ModelConfig
from fsdino.models.encoders.features import Encoder, Features, check_name, timm_module
from fsdino.models.encoders.pyramid import PyramidEncoder
from fsdino.models.encoders.vit import ViTEncoder

__all__ = ["Encoder", "Features", "PyramidEncoder", "ViTEncoder", "create"]


def create(config: ModelConfig) -> Encoder:
    """The encoder that a configuration names, of the family that timm has it in.

    Args:
        config: see `ViTEncoder` and `PyramidEncoder`.

    Raises:
        UsageError: timm has no such model, or one of neither family; see there.
    """
    check_name(config.encoder)
    # timm's two classes of plain ViTs; what it builds of others is no stack of equal blocks.
    classes = timm_module(config.encoder).values()
    is_vit = any(kind in (VisionTransformer, Eva) for kind in classes)
    return ViTEncoder(config) if is_vit else PyramidEncoder(config)
