"""HSNet's backbones: torchvision's ResNets and VGG, the maps of late layers in three levels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from fsdino.errors import UsageError
from fsdino.models.config import ModelConfig
from fsdino.models.encoders.features import Encoder, Features, middle

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_STRIDES = (8, 16, 32)  # pixels of a token's side in each level
# Layers of VGG-16 that are read, by their numbers in torchvision's `features`: convolutions before
# their ReLU, and the last pooling.
_VGG_LEVELS = ((17, 19, 21), (24, 26, 28), (30,))


class BackboneEncoder(Encoder):
    """The frozen backbone of HSNet (Min, Kang, Cho, ICCV 2021), of torchvision's networks.

    ResNet-50 and ResNet-101: every bottleneck of layers 2 to 4, after the residual addition and
    before its ReLU. VGG-16: the outputs of `features` 17, 19, 21, 24, 26, 28 and 30. The maps of
    one size are a level, and none is resampled. A network has torchvision's names, with its
    classifier, which never runs: a published checkpoint holds it, too.

    Tokens on one grid, which other methods than HSNet read, are the middle level's: `last` and
    `shallow` are its last layer.

    Args:
        config: `encoder`, "resnet50", "resnet101" or "vgg16"; `mean` and `std`, ImageNet's if None.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.net: Any = torchvision.models.get_model(config.encoder, weights=None)
        widths = self._widths()
        self._levels = tuple((len(level), level[0]) for level in widths)
        flat = [width for level in widths for width in level]
        self.depth, self.channels = len(flat), middle(self._levels)[1]
        self.patch_size = middle(_STRIDES)
        self.correlation_layers = tuple(range(1, self.depth + 1))
        self.read_layers, self.layer_widths = list(self.correlation_layers), tuple(flat)
        self.shallow_layer = self._levels[0][0] + self._levels[1][0]
        self._set_normalisation(config, _IMAGENET)

    @property
    def network(self) -> nn.Module:
        """torchvision's module."""
        return self.net  # type: ignore[no-any-return]

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Layers and channels, (L_i, C_i), of each level: fine, middle, coarse."""
        return self._levels

    def train(self, mode: bool = True) -> BackboneEncoder:
        """As in PyTorch; the network stays in eval mode, as HSNet's does in training."""
        super().train(mode)
        self.net.eval()
        return self

    def forward(self, images: Tensor) -> Features:
        """Encode images of one size.

        Args:
            images: [B, 3, H, W] RGB in [0, 1], of at least 32 pixels a side.

        Raises:
            UsageError: they are smaller.
        """
        height, width = images.shape[-2:]
        if min(height, width) < _STRIDES[-1]:
            raise UsageError(
                f"images of {height} x {width} pixels: HSNet's backbone needs sides of at least "
                f"{_STRIDES[-1]}"
            )
        levels = tuple(torch.stack(maps, 1) for maps in self._maps(self._normalise(images)))
        last = middle(levels)[:, -1]
        guide = self._guide(images, (last.shape[-2], last.shape[-1]))
        return Features(last, last, levels, guide)

    def shallow(self, images: Tensor) -> Tensor:
        """`Features.shallow` alone, [B, C, h, w]."""
        features: Features = self(images)
        return features.shallow

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens along both sides in the middle level."""
        return middle(self.level_grids(height, width))

    def level_grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Tokens along both sides of an image in each level."""
        rounds_up = not isinstance(self.net, torchvision.models.VGG)
        return tuple(
            ((height + extra) // stride, (width + extra) // stride)
            for stride in _STRIDES
            for extra in [stride - 1 if rounds_up else 0]
        )

    def _widths(self) -> list[list[int]]:
        if isinstance(self.net, torchvision.models.VGG):
            sides = [m.out_channels for m in self.net.features if isinstance(m, nn.Conv2d)]
            return [[sides[-1]] * len(level) for level in _VGG_LEVELS]
        stages = (self.net.layer2, self.net.layer3, self.net.layer4)
        return [[block.conv3.out_channels for block in stage] for stage in stages]

    def _maps(self, x: Tensor) -> Iterator[list[Tensor]]:
        """The layers [B, C, h, w] of each level, for normalised images."""
        net = self.net
        if isinstance(net, torchvision.models.VGG):
            found: dict[int, Tensor] = {}
            for number, module in enumerate(net.features):
                # A ReLU of torchvision's overwrites what it is given, which may be a map to keep.
                x = found[number] = x.relu() if isinstance(module, nn.ReLU) else module(x)
            yield from ([found[number] for number in level] for level in _VGG_LEVELS)
            return
        x = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))
        for stage in (net.layer2, net.layer3, net.layer4):
            level = []
            for block in stage:
                level.append(_before_relu(block, x))
                x = level[-1].relu()
            yield level


def _before_relu(block: Any, x: Tensor) -> Tensor:
    """A bottleneck of torchvision's without its last ReLU: [B, C, h, w]."""
    out = block.bn1(block.conv1(x)).relu_()
    out = block.bn2(block.conv2(out)).relu_()
    out = block.bn3(block.conv3(out))
    out += x if block.downsample is None else block.downsample(x)
    return out  # type: ignore[no-any-return]
