"""The configuration of a model: what a `config.json` holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fsdino.errors import CheckpointError, UsageError

VARIANTS = ("full", "comp", "comp_frozen", "training_free", "hsnet")
MATCHERS = ("correspondence", "prototype")
_AT_LEAST_1 = (
    "image_size",
    "width",
    "adapter_layer",
    "adapter_width",
    "adapter_heads",
    "decoder_heads",
    "decoder_mlp",
    "prompt_hidden",
    "prompt_tokens",
    "correlation_stride",
)


@dataclass(frozen=True)
class ModelConfig:
    """Everything that defines a model except its weights.

    The defaults are FS-DINO on DINOv2 ViT-B/14 (arXiv 2504.15669); what the paper leaves open is
    this package's choice and can be changed here.

    Attributes:
        encoder: name of a timm ViT, e.g. "vit_small_patch14_reg4_dinov2.lvd142m".
        encoder_args: arguments for `timm.create_model` that differ from that name's defaults.
        conv_stem: replace the patch embedding by a stack of strided convolutions.
        pretrained: let timm download the encoder's weights. Nothing is downloaded otherwise.
        variant: "full"; "comp" (no 4D correlation); "comp_frozen" (comp with a frozen decoder);
            "training_free" (encoder only, masks from correspondences); "hsnet" (HSNet's 4D squeeze
            and 2D decoder in place of SAM's, a baseline).
        image_size: side in pixels that images are resized to; a multiple of the patch size.
        keep_aspect: keep the aspect ratio: the longer side becomes `image_size`, both are rounded
            to multiples of the patch size. Otherwise images are stretched to a square.
        mean, std: per-channel normalisation; None takes the encoder's own.
        adapter_layer: block (from 1) whose raw output feeds the adapter.
        correlation_layers: blocks (from 1) whose normalised outputs are correlated; None takes
            the last half.
        correlation_channels: output channels of the 4D blocks.
        correlation_stride: support stride of each 4D block.
        width: channels of adapter, prompts and decoder; 256 is SAM's.
        adapter_width: channels of the adapter's attention blocks.
        adapter_heads, decoder_heads: attention heads.
        decoder_mlp: width of the decoder's feed-forward layers; 2048 is SAM's.
        prompt_hidden: hidden width of the sparse prompt's bottleneck MLP.
        prompt_tokens: number of sparse prompt tokens.
        cosine_prompt, visual_prompt, correlation_prompt, contrastive: the four parts of the
            prompt generator (PCS, SVP, 4D and CE in the paper), each one a switch. None for
            `correlation_prompt` lets the variant decide.
        threshold: probability from which a pixel belongs to the mask.
        matcher: how "training_free" finds the mask: "correspondence" or "prototype".
        match_temperature, match_bias: calibrate the training-free score s:
            probability = sigmoid((s - match_bias) / match_temperature).

    Raises:
        UsageError: a value that cannot be meant; the message names it.
    """

    encoder: str = "vit_base_patch14_dinov2.lvd142m"
    encoder_args: Mapping[str, Any] = field(default_factory=dict)
    conv_stem: bool = False
    pretrained: bool = False
    variant: str = "full"
    image_size: int = 518
    keep_aspect: bool = False
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    adapter_layer: int = 3
    correlation_layers: tuple[int, ...] | None = None
    correlation_channels: tuple[int, ...] = (16, 64, 128)
    correlation_stride: int = 2
    width: int = 256
    adapter_width: int = 128
    adapter_heads: int = 4
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    prompt_hidden: int = 64
    prompt_tokens: int = 1
    cosine_prompt: bool = True
    visual_prompt: bool = True
    correlation_prompt: bool | None = None
    contrastive: bool = True
    threshold: float = 0.5
    matcher: str = "correspondence"
    match_temperature: float = 0.1
    match_bias: float = 0.0

    def __post_init__(self) -> None:
        _choice("variant", self.variant, VARIANTS)
        _choice("matcher", self.matcher, MATCHERS)
        for name in ("correlation_channels", "correlation_layers", "mean", "std"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        self._check_sizes()
        if not 0 < self.threshold < 1:
            raise UsageError(f"threshold must lie between 0 and 1, got {self.threshold}")
        if self.match_temperature <= 0:
            raise UsageError(
                f"match_temperature must be greater than 0, got {self.match_temperature}"
            )
        if self.variant not in {"training_free", "hsnet"} and not (
            self.cosine_prompt or self.uses_correlation
        ):
            raise UsageError(
                "cosine_prompt and correlation_prompt are both off: the decoder needs one of them"
            )

    def _check_sizes(self) -> None:
        for name in _AT_LEAST_1:
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % 8 or self.width % (2 * self.decoder_heads):
            raise UsageError(
                f"width must be a multiple of 8 and of twice the decoder_heads "
                f"({self.decoder_heads}), got {self.width}"
            )
        if self.adapter_width % self.adapter_heads:
            raise UsageError(
                f"adapter_width must be a multiple of the adapter_heads ({self.adapter_heads}), "
                f"got {self.adapter_width}"
            )
        channels = self.correlation_channels
        if not channels or any(c < 1 or c % 4 for c in channels):
            raise UsageError(
                f"correlation_channels must be multiples of 4 (GroupNorm has 4 groups), got "
                f"{', '.join(map(str, channels)) or 'none'}"
            )
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and len(value) != 3:
                raise UsageError(f"{name} must have 3 values (RGB), got {len(value)}")

    @property
    def uses_correlation(self) -> bool:
        """Whether a 4D correlation prior is part of the trained model."""
        if self.correlation_prompt is not None:
            return self.correlation_prompt
        return self.variant == "full"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and YAML."""
        data = {**dataclasses.asdict(self), "encoder_args": dict(self.encoder_args)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`.

        Raises:
            CheckpointError: fields that no version of fsdino up to this one has written.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise CheckpointError(
                f"config.json has unknown fields {', '.join(unknown)}: it was written by a newer "
                "fsdino (pip install --upgrade fsdino) or by another program"
            )
        try:
            if not isinstance(data.get("encoder", ""), str):
                raise TypeError("encoder is no name")
            if not isinstance(data.get("encoder_args", {}), Mapping):
                raise TypeError("encoder_args is no mapping")
            return cls(**data)
        except (TypeError, UsageError) as error:
            raise CheckpointError(
                f"config.json is not a usable model configuration: {error}"
            ) from error


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"unknown {name} {value!r}: choose from {', '.join(choices)}")
