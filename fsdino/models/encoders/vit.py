"""timm's ViTs as frozen encoders, DINOv2 as in Meta's own code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from fsdino.errors import UsageError
from fsdino.models import attention
from fsdino.models.config import ModelConfig
from fsdino.models.encoders.features import Encoder, Features, create_timm, stack_layers


class ViTEncoder(Encoder):
    """A timm ViT that returns patch tokens of the blocks the segmenter reads, in one pass.

    Plain DINOv2 models resample their position embeddings as Meta's own code does (scale factors
    (h + 0.1) / 37, bicubic, no antialiasing), which timm does not; the `reg4` models resample to
    the target size with antialiasing in both.

    Args:
        config: `encoder`, `encoder_args`, `conv_stem`, `pretrained`, `mean`, `std`,
            `adapter_layer` and `correlation_layers` are read.

    Raises:
        UsageError: timm has no such model, or it is not a ViT; a layer outside of its depth; its
            weights cannot be downloaded.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        further = {"embed_layer": ConvStem} if config.conv_stem else {}
        self.vit: Any = create_timm(config, dynamic_img_size=True, **further)
        if not hasattr(self.vit, "blocks") or not hasattr(self.vit, "patch_embed"):
            raise UsageError(
                f"encoder {config.encoder!r} is not a vision transformer: choose a timm ViT"
            )
        self.depth = len(self.vit.blocks)
        self.channels: int = self.vit.embed_dim
        self.patch_size: int = self.vit.patch_embed.patch_size[0]
        self._choose_layers(config)
        self.read_layers = sorted({self.shallow_layer, *self.correlation_layers, self.depth})
        self.layer_widths = (self.channels,) * len(self.correlation_layers)
        self._set_normalisation(config, self.vit.pretrained_cfg)
        # The plain DINOv2 models, whose class token has a position embedding of its own.
        self.meta_resampling = (
            "dinov2" in config.encoder
            and isinstance(self.vit, VisionTransformer)
            and not self.vit.no_embed_class
        )

    @property
    def network(self) -> nn.Module:
        """timm's module."""
        return self.vit  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Features:
        """Encode images of one size.

        Args:
            images: [B, 3, H, W] RGB in [0, 1], H and W multiples of the patch size.

        Raises:
            UsageError: a size that is not a multiple of the patch size.
        """
        return self._features(self._tokens(images, self.read_layers), images)

    def shallow(self, images: Tensor) -> Tensor:
        """`Features.shallow` alone, [B, C, h, w]; the blocks after the adapter's do not run."""
        layer = self.shallow_layer
        return _to_map(self._tokens(images, [layer])[layer], self._grid(images))

    def forward_list(
        self, images: Sequence[Tensor], packed: attention.PackedAttention | None = None
    ) -> list[Features]:
        """Encode images [3, H, W] of different sizes, each with B = 1 in the result.

        One pass over all of them where a variable-length attention is usable (`attention.packed`,
        or the one given), else one by one.
        """
        alike = len({image.shape for image in images}) == 1
        if alike or not self._packable():
            return super().forward_list(images)
        packed = packed or self._packed(images[0])
        if packed is None:
            return super().forward_list(images)
        grids = [self._grid(image) for image in images]
        embedded = [self._embed(image[None], g)[0] for image, g in zip(images, grids, strict=True)]
        lengths = [len(tokens) for tokens in embedded]
        x = torch.cat(embedded)  # [N, C]
        kept = {}
        for index, block in enumerate(self.vit.blocks, start=1):
            x = x + block.ls1(attention.attend(block.attn, block.norm1(x), lengths, packed))
            x = x + block.ls2(block.mlp(block.norm2(x)))
            if index in self.read_layers:
                kept[index] = [t[None, self.vit.num_prefix_tokens :] for t in x.split(lengths)]
        return [
            self._features({layer: tokens[n] for layer, tokens in kept.items()}, image[None])
            for n, image in enumerate(images)
        ]

    def _tokens(self, images: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Raw patch tokens [B, h*w, C] of blocks in ascending order; later ones do not run."""
        grid = self._grid(images)
        if not isinstance(self.vit, VisionTransformer):
            outputs = self.vit.forward_intermediates(
                self._normalise(images),
                indices=[layer - 1 for layer in layers],
                output_fmt="NLC",
                stop_early=True,
                intermediates_only=True,
            )
            return dict(zip(layers, outputs, strict=True))
        tokens = self._embed(images, grid)
        kept = {}
        for index, block in enumerate(self.vit.blocks[: layers[-1]], start=1):
            tokens = block(tokens)
            if index in layers:
                kept[index] = tokens[:, self.vit.num_prefix_tokens :]
        return kept

    def _packable(self) -> bool:
        """Whether the blocks are the pre-norm ones that `forward_list` runs on packed tokens."""
        return isinstance(self.vit, VisionTransformer) and all(
            type(block) is Block and attention.packable(block.attn) for block in self.vit.blocks
        )

    def _packed(self, image: Tensor) -> attention.PackedAttention | None:
        dtype = next(self.vit.parameters()).dtype
        if torch.is_autocast_enabled(image.device.type):
            dtype = torch.get_autocast_dtype(image.device.type)
        return attention.packed(image.device, dtype, self.vit.blocks[0].attn.head_dim)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens along both sides of an image.

        Raises:
            UsageError: a side that is not a multiple of the patch size.
        """
        if height % self.patch_size or width % self.patch_size:
            raise UsageError(
                f"images must have sides that are multiples of the patch size {self.patch_size}, "
                f"got {height} x {width}"
            )
        return height // self.patch_size, width // self.patch_size

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return self.grid(images.shape[-2], images.shape[-1])

    def _embed(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Images -> tokens with positions [B, prefix + h*w, C]."""
        patches = self.vit.patch_embed(self._normalise(images))  # [B, h, w, C]
        if self.meta_resampling:
            tokens = self._add_meta_positions(patches.flatten(1, 2), grid)
        else:
            tokens = self.vit._pos_embed(patches)
        return self.vit.norm_pre(tokens)  # type: ignore[no-any-return]

    def _add_meta_positions(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Class token and positions as `interpolate_pos_encoding` in Meta's dinov2 adds them."""
        positions = self.vit.pos_embed  # [1, 1 + 37*37, C]
        patches = positions[:, 1:]
        side = self.vit.patch_embed.grid_size
        if grid != side:
            patches = F.interpolate(
                patches.float().transpose(1, 2).unflatten(2, side),
                scale_factor=((grid[0] + 0.1) / side[0], (grid[1] + 0.1) / side[1]),
                mode="bicubic",
            )
            patches = patches.flatten(2).transpose(1, 2).to(positions.dtype)
        class_token = (self.vit.cls_token + positions[:, :1]).expand(tokens.shape[0], -1, -1)
        return torch.cat([class_token, tokens + patches], dim=1)

    def _features(self, kept: Mapping[int, Tensor], images: Tensor) -> Features:
        """Raw patch tokens [B, h*w, C] of the blocks that are read -> Features of the images."""
        grid = self._grid(images)
        normed = {
            layer: self.vit.norm(kept[layer]) for layer in {*self.correlation_layers, self.depth}
        }
        correlation = stack_layers([normed[layer] for layer in self.correlation_layers], grid)
        shallow, last = _to_map(kept[self.shallow_layer], grid), _to_map(normed[self.depth], grid)
        return Features(shallow, last, (correlation,), self._guide(images, grid))


def _to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, h*w, C] -> [B, C, h, w]."""
    return tokens.transpose(1, 2).unflatten(2, grid)  # type: ignore[no-any-return]


class ConvStem(PatchEmbed):
    """Patch embedding by 3x3 convolutions, for small encoders trained from scratch.

    Takes the place of timm's PatchEmbed (Xiao et al., Early Convolutions Help Transformers See
    Better, 2021): one convolution of stride 2 per halving, each but the first followed by two of
    stride 1, all with batch normalisation and ReLU; then a 1x1 convolution.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        width, patch = self.proj.out_channels, self.patch_size[0]
        steps = patch.bit_length() - 1
        if patch != 2**steps or steps < 1:
            raise UsageError(f"conv_stem needs a patch size that is a power of 2, got {patch}")
        layers: list[nn.Module] = []
        inner = 3
        for step in range(steps):
            outer = width >> (steps - 1 - step)
            for stride in (2, 1, 1) if step else (2,):
                layers += [nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)]
                layers += [nn.BatchNorm2d(outer), nn.ReLU()]
                inner = outer
        self.proj = nn.Sequential(*layers, nn.Conv2d(width, width, 1))  # type: ignore[assignment]
