"""HSNet (Min, Kang, Cho, Hypercorrelation Squeeze for Few-Shot Segmentation, ICCV 2021), whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsdino import ops
from fsdino.errors import UsageError
from fsdino.images import Flags
from fsdino.models import hsnet_files
from fsdino.models.config import ModelConfig
from fsdino.models.encoders import Encoder, Features
from fsdino.models.hypercorrelation import CenterPivotBlock4d
from fsdino.models.segmenter import Segmenter
from fsdino.models.shots import PooledShot, Shot, SupportFeatures
from fsdino.resizing import nearest_mask

_CHANNELS = (16, 64, 128)
# Kernels and support strides of each level's blocks, fine to coarse.
_KERNELS = ((5, 5, 3), (5, 3, 3), (3, 3, 3))
_STRIDES = ((4, 4, 2), (4, 2, 2), (2, 2, 2))


class HSNet(Segmenter):
    """HSNet with the weights' names of its own code behind `save_hsnet` and `fsdino.load`.

    Each level's correlation of the query with the masked support goes through three center-pivot 4D
    blocks. From the coarse level to the fine one, the squeezed volume is upsampled along the query
    dims, added to the next and mixed by three more. The mean over the support is decoded to two
    channels, background and foreground. Only this head learns: the backbone stays as it is.

    The one logit that models have is foreground minus background. Several shots are asked one by
    one, and their logits averaged. Evaluation by the protocol "hsnet" decides as HSNet does: a tie
    is background, and votes of several shots are counted.

    Args:
        config: `encoder` names the backbone, "resnet50", "resnet101" or "vgg16".
        encoder: a `BackboneEncoder`; models may share one.
    """

    level_count = len(_KERNELS)

    def __init__(self, config: ModelConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        width = _CHANNELS[-1]
        self.squeeze = nn.ModuleList(
            _blocks((layers, *_CHANNELS), kernels, strides)
            for (layers, _), kernels, strides in zip(
                encoder.levels, _KERNELS, _STRIDES, strict=True
            )
        )
        self.mix = nn.ModuleList(
            _blocks((width,) * 4, (3, 3, 3), (1, 1, 1)) for _ in encoder.levels[1:]
        )
        half = width // 2
        self.before = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, half), nn.ReLU())
        self.after = nn.Sequential(_conv(half, half), nn.ReLU(), _conv(half, 2))
        self.set_trainable()

    def level_masks(self, masks: Tensor, features: Features) -> tuple[Tensor, ...]:
        """HSNet's: the input's masks brought to each grid by bilinear interpolation.

        Corners are aligned, and nothing is averaged, so a coarse grid may miss a small object.

        Args:
            masks: [B, H, W] in [0, 1], at the size of the model's input.
            features: of the images.
        """
        return tuple(
            F.interpolate(
                masks[:, None].float(), level.shape[-2:], mode="bilinear", align_corners=True
            )[:, 0]
            for level in features.correlation
        )

    def shot(self, features: Features, flag: Flags) -> PooledShot:
        """One encoded image with its mask bool [H, W], whose single pixels HSNet takes."""
        side = self.config.image_size
        mask = nearest_mask(flag, (side, side)).to(self.device)
        return PooledShot.of(features, self.level_masks(mask[None], features))

    def decode(self, query: Features, support: SupportFeatures) -> tuple[Tensor, None]:
        """Logits of the queries' masks: [B, 1, 2h, 2w] of the fine level's h and w."""
        mean = support.each(query, self.channels).mean(0)
        return mean[:, 1:] - mean[:, :1], None

    def channels(self, query: Features, shot: Shot) -> Tensor:
        """HSNet's own output, logits of background and foreground by one shot: [B, 2, 2h, 2w]."""
        mixed: Tensor | None = None
        levels = [*zip(query.correlation, shot.correlation, shot.masks, strict=True)]
        for index in reversed(range(len(levels))):
            squeezed = _squeeze(self.squeeze[index].children(), *levels[index])
            if mixed is not None:
                if squeezed.shape[4:] != mixed.shape[4:]:
                    raise UsageError(
                        f"supports with levels of {[tuple(mask.shape[1:]) for mask in shot.masks]} "
                        "tokens: their sides in pixels must be multiples of 32"
                    )
                size = (squeezed.shape[2], squeezed.shape[3])
                squeezed = self.mix[index](squeezed + _upsample_query(mixed, size))
            mixed = squeezed
        assert mixed is not None
        maps = self.before(mixed.mean((4, 5)))
        size = (2 * maps.shape[2], 2 * maps.shape[3])
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=True)
        found: Tensor = self.after(maps)
        return found

    def resize(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """By HSNet's rule, bilinear with aligned corners: [B, V, h, w] -> [B, V, H, W]."""
        exact = logits if logits.dtype == torch.float64 else logits.float()
        found: Tensor = F.interpolate(exact, size, mode="bilinear", align_corners=True)
        return found

    def save_hsnet(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint that HSNet's own code loads, and `fsdino.load`, too.

        Args:
            path: of the file, "best_model.pt" for one.

        Raises:
            FsdinoError: the folder is missing, not writable or full.
        """
        hsnet_files.write(self.state_dict(), path)


def _squeeze(blocks: Iterable[nn.Module], query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """A level's hypercorrelation through its blocks: [B, C, hq, wq, hs, ws].

    The mask is multiplied into the features, whose lengths then cancel it but for where it is 0.
    These positions are told to the kernels, which skip them. Nothing holds the correlation, 100 MB
    of the fine level at 400 pixels, longer than the first block needs it.

    Args:
        blocks: of the level.
        query, support: [B, L, C, h, w].
        mask: [B, hs, ws].
    """
    masked = support * mask[:, None, None].to(support.dtype)
    volume = ops.correlation4d(query, masked, (mask > 0).to(query.dtype))
    del masked
    for block in blocks:
        volume = block(volume)
    return volume


def _upsample_query(volume: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring the query dims of [B, C, hq, wq, hs, ws] to a size, bilinear with aligned corners."""
    if volume.shape[2:4] == size:
        return volume
    maps = volume.permute(0, 4, 5, 1, 2, 3)
    found: Tensor = F.interpolate(maps.flatten(0, 2), size, mode="bilinear", align_corners=True)
    return found.unflatten(0, maps.shape[:3]).permute(0, 3, 4, 5, 1, 2)  # type: ignore[no-any-return]


def _blocks(
    channels: Sequence[int], kernels: Sequence[int], strides: Sequence[int]
) -> nn.Sequential:
    return nn.Sequential(
        *(
            CenterPivotBlock4d(i, o, kernel_size=kernel, support_stride=stride)
            for (i, o), kernel, stride in zip(pairwise(channels), kernels, strides, strict=True)
        )
    )


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
