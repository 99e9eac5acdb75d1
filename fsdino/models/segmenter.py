"""Segmentation with a model of PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fsdino.images import Flags, ImageLike, Pixels, read_image
from fsdino.masks import MaskLike, read_mask
from fsdino.models import companions
from fsdino.models.encoders import Features, middle
from fsdino.models.marking import BATCH, Marking
from fsdino.models.segmentation import Segmentation
from fsdino.models.segmenting import Segmenting
from fsdino.models.shots import PooledShot, SupportFeatures, positions
from fsdino.models.supports import Support
from fsdino.models.views import View
from fsdino.resizing import area_share

_CPU_PIXELS = 2**20  # of an encoder pass on a CPU, where more takes memory and no less time


class Segmenter(Marking, Segmenting[Features]):
    """A model that segments what annotated images show in other images, of any kind and size.

    FSDINO and its baselines are Segmenters; see `FewShotModel` for arguments and attributes.

    Example:
        >>> import fsdino
        >>> coins, more = (fsdino.samples()[name] for name in ("coins", "more-coins"))
        >>> model = fsdino.load()
        >>> support = model.encode_support(coins.image, coins.mask)
        >>> model.segment(more.image, support).found
        True
    """

    @property
    def default_threshold(self) -> float:
        """The configuration's."""
        return self.config.threshold

    @torch.inference_mode()
    def encode_objects(self, image: ImageLike, masks: Mapping[str, MaskLike]) -> dict[str, Support]:
        """Encode several objects of one annotated image, each with its mask, in one pass.

        Raises:
            UsageError: a mask of another size than the image.
            DataError: an unreadable image, a mask without foreground.
        """
        array = read_image(image, "image")
        size = (array.shape[0], array.shape[1])
        flags = {
            name: read_mask(mask, size, f"mask {name}", image=image) for name, mask in masks.items()
        }
        features = self.encode_list([self._prepare(array)])
        return {name: self._support(features, [flag]) for name, flag in flags.items()}

    def encode_image(self, array: Pixels) -> Features:
        """The tokens of an image uint8 [H, W, 3], from one encoder pass."""
        return self.encode_list([self._prepare(array)])[0]

    def segment_encoded(
        self,
        array: Pixels,
        features: Features,
        asked: Mapping[str, SupportFeatures],
        threshold: float,
    ) -> Segmentation:
        """The answer for an image uint8 [H, W, 3] that `encode_image` has encoded.

        Raises:
            DataError: logits that are not finite.
        """
        size = (array.shape[0], array.shape[1])
        maps, scores = self._map(features, size, [*asked.values()], [*asked])
        return Segmentation(
            array, maps.cpu().numpy(), tuple(asked), threshold, tuple(scores.tolist())
        )

    def _support(
        self,
        encoded: Sequence[Features],
        flags: Sequence[Flags],
        views: Sequence[tuple[Features, View]] = (),
    ) -> Support:
        """Encoded images, each with its mask bool [H, W], and views of the first one."""
        self._check_weights()
        for k, tokens in enumerate(encoded):
            tokens.check(f"support image {k + 1}")
        shots = [self.shot(f, flag) for f, flag in zip(encoded, flags, strict=True)]
        further = [self.shot(f, view.mask) for f, view in views]
        places = [k + positions(middle(shot.masks)) for k, shot in enumerate(shots)]
        places += [view.places(f.grid).to(self.device) for f, view in views]
        sizes = [(flag.shape[0], flag.shape[1]) for flag in flags]
        fit = self.fit([*shots, *further], places)
        return Support.of(shots, sizes, self.fingerprint(), fit)

    def shot(self, features: Features, flag: Flags) -> PooledShot:
        """One encoded image with its mask bool [H, W]."""
        share = area_share(flag, features.grid).to(self.device)[None]
        return PooledShot.of(features, self.level_masks(share, features))

    @property
    def _batch(self) -> int:
        """How many queries share an encoder pass."""
        if self.device.type != "cpu":
            return BATCH
        return min(max(_CPU_PIXELS // self.config.image_size**2, 1), BATCH)

    @property
    def _levels(self) -> Sequence[tuple[int, int]]:
        return self.encoder.levels

    @property
    def _pooled_channels(self) -> int:
        return self.encoder.channels

    def _placed(self, named: Mapping[str, Support]) -> dict[str, Support]:
        dtype = next(self.parameters()).dtype
        return {name: support.to(self.device, dtype) for name, support in named.items()}

    def _beside(
        self, named: Mapping[str, Support], placed: Mapping[str, Support]
    ) -> dict[str, Support]:
        return companions.beside(self, named, placed)

    def _maps(
        self,
        encoded: Sequence[Features],
        sizes: Sequence[tuple[int, int]],
        supports: Mapping[str, Support],
    ) -> list[tuple[Tensor, Tensor]]:
        asked = [support.features(1) for support in supports.values()]
        return [
            self._map(features, size, asked, [*supports])
            for features, size in zip(encoded, sizes, strict=True)
        ]

    def _map(
        self,
        features: Features,
        size: tuple[int, int],
        asked: Sequence[SupportFeatures],
        names: Sequence[str],
    ) -> tuple[Tensor, Tensor]:
        """The maps [N, H, W] of an encoded image, at its own size, and the scores [N]."""
        answer = self.answer(features, asked, size, names=names)
        return answer.logits[0].sigmoid_(), answer.presence[0]
