"""Frozen encoders: one image in, tokens on one grid out."""

from __future__ import annotations

from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from fsdino.models.config import ModelConfig
from fsdino.models.encoders.backbone import BackboneEncoder
from fsdino.models.encoders.features import (
    GUIDE,
    Encoder,
    Features,
    check_name,
    middle,
    timm_module,
)
from fsdino.models.encoders.pyramid import PyramidEncoder
from fsdino.models.encoders.vit import ViTEncoder
from fsdino.models.encoders.weights import load_installed

__all__ = [
    "GUIDE",
    "BackboneEncoder",
    "Encoder",
    "Features",
    "PyramidEncoder",
    "ViTEncoder",
    "create",
    "middle",
]


def create(config: ModelConfig) -> Encoder:
    """The encoder that a configuration names: HSNet's, or of the family that timm has it in.

    Its weights are random unless `config.encoder_weights` or `config.pretrained` names some.

    Args:
        config: see `BackboneEncoder`, `ViTEncoder` and `PyramidEncoder`.

    Raises:
        UsageError: timm has no such model, or one of neither family; see there.
        CheckpointError: the package of `config.encoder_weights` is not installed or damaged, or has
            the weights of another network.
    """
    if config.variant == "hsnet":
        return BackboneEncoder(config)
    check_name(config.encoder)
    # timm's two classes of plain ViTs; what it builds of others is not a stack of equal blocks.
    classes = timm_module(config.encoder).values()
    is_vit = any(kind in (VisionTransformer, Eva) for kind in classes)
    encoder: Encoder = ViTEncoder(config) if is_vit else PyramidEncoder(config)
    if config.encoder_weights is not None:
        load_installed(encoder.network, config.encoder, config.encoder_weights)
        encoder.note_installed(config.encoder_weights)
    return encoder
