"""Networks with stages (EfficientNet, ResNet, ConvNeXt, Swin, ...) as frozen encoders."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fsdino.errors import UsageError
from fsdino.models.config import ModelConfig
from fsdino.models.encoders.features import Encoder, Features, create_timm, timm_module

_CONTAINERS = ("stages", "layers", "blocks", "features")  # what timm's networks keep stages in
_NUMBERED = re.compile(r"(layer|stage|s|level)\d+")  # or they are attributes
_TINY = (8, 12)  # an image that shows how a network runs; one that does not pad cannot take it
_LARGER = (64, 96)  # one for those


@dataclass(frozen=True)
class Plan:
    """How a network is run block by block.

    Attributes:
        stem: paths of the modules before the first block, in order.
        blocks: for each block its modules' paths, in order; what lies between two stages belongs
            to the block after it.
        widths: channels of each block's output.
        least: side in pixels below which the last block's map would be empty; 1 where the network
            pads.
        channels_last: the maps are [B, H, W, C].
    """

    stem: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    widths: tuple[int, ...]
    least: int
    channels_last: bool


class PyramidEncoder(Encoder):
    """A timm network with stages; the maps of chosen blocks on one token grid.

    Blocks are counted from 1 over all stages. The output of each block that is read is resampled to
    ceil(side / token_stride) tokens: means over areas where that is coarser, bilinear where it is
    finer. Narrower outputs are padded with channels of zeros to the widest, which leaves cosines as
    they are. `Features.last` is the highest of the correlation layers; no block after the last one
    that is read runs. Batch normalisation stays in eval mode even where the encoder is trained.

    Args:
        config: `encoder`, `encoder_args`, `pretrained`, `mean`, `std`, `adapter_layer`,
            `correlation_layers` and `token_stride` are read.

    Raises:
        UsageError: timm has no such model, or not one with stages that run one after another; a
            layer outside of its depth; its weights cannot be downloaded.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.conv_stem:
            raise UsageError(f"conv_stem is for ViTs, not for {config.encoder}: set it to false")
        free = {"strict_img_size": False} if _has_fixed_size(config.encoder) else {}
        self.net: Any = create_timm(config, **free)
        for module in self.net.modules():
            if isinstance(module, PatchEmbed):
                module.dynamic_img_pad = True  # sides that are not multiples of its patches
        self.plan = _plan(self.net, config.encoder)
        self.depth = len(self.plan.blocks)
        self.patch_size = config.token_stride
        self._choose_layers(config)
        self.read_layers = sorted({self.shallow_layer, *self.correlation_layers})
        self.layer_widths = tuple(self.plan.widths[n - 1] for n in self.correlation_layers)
        self.channels = max(self.plan.widths[n - 1] for n in self.read_layers)
        self._set_normalisation(config, self.net.pretrained_cfg)

    @property
    def network(self) -> nn.Module:
        """timm's module."""
        return self.net  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> PyramidEncoder:
        """As in PyTorch, but for batch normalisation, whose statistics never change."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.training = False
        return self

    def forward(self, images: Tensor) -> Features:
        """Encode images of one size.

        Args:
            images: [B, 3, H, W] RGB in [0, 1], of any size.

        Returns:
            Tokens on a grid of ceil(H / token_stride) x ceil(W / token_stride).
        """
        maps = self._maps(images, self.read_layers)
        correlation = torch.stack([maps[layer] for layer in self.correlation_layers], dim=1)
        last = maps[max(self.correlation_layers)]
        guide = self._guide(images, (last.shape[-2], last.shape[-1]))
        return Features(maps[self.shallow_layer], last, (correlation,), guide)

    def shallow(self, images: Tensor) -> Tensor:
        """`Features.shallow` alone, [B, C, h, w]; the blocks after the adapter's do not run."""
        return self._maps(images, [self.shallow_layer])[self.shallow_layer]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens along both sides of an image, rounded up."""
        return -(-height // self.patch_size), -(-width // self.patch_size)

    def _maps(self, images: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Tokens [B, C, h, w] of blocks in ascending order; later ones do not run."""
        height, width = images.shape[-2:]
        grid = self.grid(height, width)
        full = (max(height, self.plan.least), max(width, self.plan.least))
        x = self._normalise(images)
        if full != (height, width):
            x = F.pad(x, (0, full[1] - width, 0, full[0] - height), mode="replicate")
        # CPUs convolve this memory order a fifth faster, and GPUs prefer it, too.
        x = self._run(self.plan.stem, x.contiguous(memory_format=torch.channels_last))
        kept = {}
        for number, paths in enumerate(self.plan.blocks[: layers[-1]], start=1):
            x = self._run(paths, x)
            if number in layers:
                tokens = x.permute(0, 3, 1, 2) if self.plan.channels_last else x
                rows = -(
                    -tokens.shape[2] * height // full[0]
                )  # rows of the image, not of its padding
                columns = -(-tokens.shape[3] * width // full[1])
                tokens = to_grid(tokens[..., :rows, :columns], grid)
                kept[number] = F.pad(tokens, (0, 0, 0, 0, 0, self.channels - tokens.shape[1]))
        return kept

    def _run(self, paths: Sequence[str], x: Tensor) -> Tensor:
        for path in paths:
            x = self.net.get_submodule(path)(x)
        return x


def to_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample maps [B, C, H, W]: area means along sides that shrink, bilinear along the others."""
    size = (maps.shape[-2], maps.shape[-1])
    shrunk = (min(size[0], grid[0]), min(size[1], grid[1]))
    if shrunk != size:
        maps = F.adaptive_avg_pool2d(maps, shrunk)
    if shrunk != grid:
        maps = F.interpolate(maps, grid, mode="bilinear", align_corners=False)
    return maps.contiguous()


def _has_fixed_size(name: str) -> bool:
    """Whether a network by default refuses images of another size than its own."""
    return any(
        "strict_img_size" in inspect.signature(kind).parameters
        for kind in timm_module(name).values()
        if isinstance(kind, type) and hasattr(kind, "forward_intermediates")
    )


def _plan(net: Any, name: str) -> Plan:
    """How to run a network block by block, or stage by stage where its blocks are not a chain.

    timm's own pass over a small image shows whether every module takes just the output of the one
    before it. Only such a chain can be cut off after any of its blocks.

    Raises:
        UsageError: it has no stages, or they are not a chain.
    """
    stages = _stages(net)
    if len(stages) > 1:
        before = [child for child, _ in net.named_children()]
        stem = tuple(before[: before.index(stages[0].partition(".")[0])])
        fine = [block for stage in stages for block in _blocks(net.get_submodule(stage), stage)]
        for blocks in (fine, [(stage,) for stage in stages]):
            for size in (_TINY, _LARGER):
                shapes = _shapes(net, stem, blocks, size)
                if shapes is not None:
                    last = getattr(net, "output_fmt", "NCHW") == "NHWC"
                    widths = tuple(shape[-1 if last else 1] for shape in shapes)
                    least = 1 if size == _TINY else size[0] // shapes[-1][1 if last else 2]
                    return Plan(stem, tuple(blocks), widths, least, last)
    raise UsageError(
        f"encoder {name!r} is neither a plain ViT nor a network whose stages run one after "
        "another on images of any size: choose a ViT, EfficientNet, ResNet, ConvNeXt or Swin"
    )


def _stages(net: nn.Module) -> list[str]:
    """Paths of a network's stages, in order."""
    for name in _CONTAINERS:
        held = getattr(net, name, None)
        if isinstance(held, nn.Sequential | nn.ModuleList):
            return [f"{name}.{index}" for index, _ in held.named_children()]
    return [name for name, _ in net.named_children() if _NUMBERED.fullmatch(name)]


def _blocks(stage: nn.Module, path: str) -> list[tuple[str, ...]]:
    """The modules of each block of a stage; a stage of unknown structure is one block."""
    children = [name for name, _ in stage.named_children()]
    if isinstance(stage, nn.Sequential) or all(re.fullmatch(r"b\d+", name) for name in children):
        return [(f"{path}.{name}",) for name in children] or [(path,)]
    held = getattr(stage, "blocks", None)
    if not isinstance(held, nn.Sequential | nn.ModuleList) or not len(held):
        return [(path,)]
    place = children.index("blocks")
    found = [[f"{path}.blocks.{name}"] for name, _ in held.named_children()]
    found[0] = [*(f"{path}.{name}" for name in children[:place]), *found[0]]
    found[-1] += [f"{path}.{name}" for name in children[place + 1 :]]
    return [tuple(block) for block in found]


def _shapes(
    net: Any, stem: tuple[str, ...], blocks: Sequence[tuple[str, ...]], size: tuple[int, int]
) -> list[torch.Size] | None:
    """Shapes of the blocks' outputs for an image; None where the modules are not a chain."""
    paths = [*stem, *(path for block in blocks for path in block)]
    calls: dict[str, tuple[Any, Any]] = {}
    handles = [
        net.get_submodule(path).register_forward_hook(
            lambda _, given, found, path=path: calls.update({path: (given, found)})
        )
        for path in paths
    ]
    training, first = net.training, next(net.parameters())
    image = torch.zeros(1, 3, *size, dtype=first.dtype, device=first.device)
    try:
        with torch.no_grad():
            net.eval().forward_features(image)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError):
        return None  # the network takes images of other sizes
    finally:
        net.train(training)
        for handle in handles:
            handle.remove()
    last: Any = image
    for path in paths:
        given, found = calls.get(path, ((), None))
        if len(given) != 1 or given[0] is not last:
            return None
        last = found
    shapes = [calls[block[-1]][1].shape for block in blocks]
    return shapes if all(len(shape) == 4 for shape in shapes) else None
