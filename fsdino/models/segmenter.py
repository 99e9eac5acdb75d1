"""From images to masks: encode supports, segment queries."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor

from fsdino.errors import DataError, FsdinoError, SupportWarning, UsageError
from fsdino.images import Flags, ImageLike, Pixels, label_of, read_image
from fsdino.masks import MaskLike, MaskRule, read_mask
from fsdino.models import companions, mark_arguments, tiling
from fsdino.models import queries as stream
from fsdino.models.encoders import Features, middle
from fsdino.models.mark_arguments import BoxesLike, LabelsLike, PointsLike
from fsdino.models.marking import BATCH, Marking
from fsdino.models.segmentation import Segmentation
from fsdino.models.shots import PooledShot, SupportFeatures, positions
from fsdino.models.supports import Support, picture
from fsdino.models.views import View, closer
from fsdino.resizing import area_share

# Below these, masks of other images are wrong more often than right: for a single image, which
# segments a crop of itself, and for several, each of which is segmented by the others.
LEAST_QUALITY, LEAST_QUALITY_OF_SEVERAL = 0.7, 0.5
ADVICE = (
    "masks of other images may be poor; more examples, a tighter mask, or an object that stands "
    "out from its surroundings help"
)
_VIEW = 0.6  # of both sides, of a second view of a single support
_SMALL = 0.02  # share of the image below which the second view is fitted, too
_CPU_PIXELS = 2**20  # of such a pass on a CPU, where more takes memory and no less time
_MOST_TILES = 2500


class Segmenter(Marking):
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

    @torch.inference_mode()
    def encode_support(
        self,
        images: ImageLike | Sequence[ImageLike],
        masks: MaskLike | Sequence[MaskLike | None] | None = None,
        *,
        boxes: BoxesLike | None = None,
        points: PointsLike | None = None,
        labels: LabelsLike | None = None,
        scribbles: ImageLike | Sequence[ImageLike | None] | None = None,
        quality: bool = False,
        warn: bool = True,
        mask_threshold: float | None = None,
        mask_value: int | str | None = None,
        invert_mask: bool = False,
    ) -> Support:
        """Encode one to any number of annotated images of one class.

        Each image has a mask, or one other kind of mark, which becomes a mask as `mark` makes it.
        Each argument is for one image, or a list with one entry for each image of a list, None
        for images that have another kind.

        Args:
            images: paths, PIL images, uint8 arrays [H, W, 3], tensors, bytes or open files; any
                sizes. A batch as in `segment` is a list of images.
            masks: of the image's size: bool, 0/1 or 0/255 arrays, PIL, or paths.
            boxes, points, labels, scribbles: as in `mark`.
            quality: also measure how well the support finds itself (`Support.quality`): each
                image is segmented by the others, or a mirrored close-up of a single image by the
                whole of it.
            warn: warn (`SupportWarning`) where the quality is low.
            mask_threshold: share of white, in (0, 1), from which a mask's pixel is foreground;
                for masks with gray areas, which are refused otherwise.
            mask_value: the value, or the colour such as "#ff0000", of the foreground; for masks
                with several.
            invert_mask: whether the masks show the background.

        Raises:
            UsageError: no image, another number of masks, a mask of another size, an image
                without a mask or mark or with two kinds, invalid marks.
            DataError: an unreadable image, a mask without foreground, a mark that finds nothing,
                weights that are not finite.
        """
        rule = MaskRule(mask_threshold, mask_value, invert_mask)
        many, images = stream.is_several(images), stream.as_list(images)
        if not images:
            raise UsageError("no support given: pass at least one image, and its mask or a mark")
        entries = mark_arguments.given(
            len(images),
            many=many,
            masks=None if masks is None else stream.as_list(masks),
            boxes=boxes,
            points=points,
            labels=labels,
            scribbles=scribbles,
        )
        arrays = [read_image(image, _name("image", k)) for k, image in enumerate(images)]
        flags = [
            self._mask_of(array, entry, image, rule)
            for array, entry, image in zip(arrays, entries, images, strict=True)
        ]
        single = len(arrays) == 1
        # A small object has few tokens; in a close-up it has more.
        small = single and self.fits and flags[0].mean() < _SMALL
        view = closer(arrays[0], flags[0], _VIEW) if single and (small or quality) else None
        if view is None:
            features = self._encode_arrays(arrays)
            support = self._support(features, flags)
        else:
            features = self._encode_arrays([*arrays, view.image])
            support = self._support(features[:1], flags, [(features[1], view)] if small else [])
        pictures = tuple(map(picture, arrays, flags))
        support = replace(support, pictures=pictures)
        if not quality:
            return support
        flags = flags if view is None else [*flags, view.mask]
        found = self._quality(features, flags, [1] if single else range(len(flags)))
        support = replace(support, quality=found)
        if warn and (words := doubt(support)) is not None:
            warnings.warn(f"the support {words}", SupportWarning, stacklevel=3)
        return support

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
        maps, scores = self._maps(array, features, [*asked.values()], [*asked])
        return Segmentation(
            array, maps.cpu().numpy(), tuple(asked), threshold, tuple(scores.tolist())
        )

    def _support(
        self,
        features: Sequence[Features],
        flags: Sequence[Flags],
        views: Sequence[tuple[Features, View]] = (),
    ) -> Support:
        """Encoded images, each with its mask bool [H, W], and views of the first one."""
        self._check_weights()
        for k, tokens in enumerate(features):
            tokens.check(f"support image {k + 1}")
        shots = [self.shot(f, flag) for f, flag in zip(features, flags, strict=True)]
        further = [self.shot(f, view.mask) for f, view in views]
        places = [k + positions(middle(shot.masks)) for k, shot in enumerate(shots)]
        places += [view.places(f.grid).to(self.device) for f, view in views]
        sizes = [(flag.shape[0], flag.shape[1]) for flag in flags]
        fit = self.fit([*shots, *further], places)
        return Support.of(shots, sizes, self.fingerprint(), fit)

    def _quality(
        self,
        features: Sequence[Features],
        flags: Sequence[Flags],
        asked: Sequence[int],
    ) -> float | None:
        """Mean IoU of some of the encoded images, each segmented by all others.

        None where there is only one.
        """
        if len(features) < 2:
            return None
        ious = []
        for k in asked:
            others = [n for n in range(len(features)) if n != k]
            support = self._support([features[n] for n in others], [flags[n] for n in others])
            size = (flags[k].shape[0], flags[k].shape[1])
            answer = self.answer(features[k], [support.features(1)], size, names=["foreground"])
            found = answer.logits[0, 0].sigmoid_().cpu().numpy()
            inside = found >= self.config.threshold
            ious.append((inside & flags[k]).sum() / max((inside | flags[k]).sum(), 1))
        return float(np.mean(ious))

    def shot(self, features: Features, flag: Flags) -> PooledShot:
        """One encoded image with its mask bool [H, W]."""
        share = area_share(flag, features.grid).to(self.device)[None]
        return PooledShot.of(features, self.level_masks(share, features))

    @overload
    def segment(  # type: ignore[overload-overlap]  # a path is a sequence, too
        self,
        query: ImageLike,
        support: Support | Mapping[str, Support],
        *,
        threshold: float | None = None,
        tiles: bool = False,
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        query: Sequence[ImageLike],
        support: Support | Mapping[str, Support],
        *,
        threshold: float | None = None,
        tiles: bool = False,
    ) -> list[Segmentation]: ...

    @torch.inference_mode()
    def segment(
        self,
        query: ImageLike | Sequence[ImageLike],
        support: Support | Mapping[str, Support],
        *,
        threshold: float | None = None,
        tiles: bool = False,
    ) -> Segmentation | list[Segmentation]:
        """Segment what the support shows in one image, or in each of a list.

        Args:
            query: image, or list of images; any sizes. A batch [B, C, H, W] or [B, H, W, C], an
                array or a tensor, uint8 or floats in [0, 1], is a list of images.
            support: from `encode_support`, or several by name (N-way), which share one encoder
                pass per image. In models with a training-free score each class has the objects of
                the others as background, so that its result depends on what it is asked with.
            threshold: probability from which a pixel belongs to the mask, in (0, 1); None takes
                the model's.
            tiles: cut images larger than the supports into overlapping tiles of the supports'
                size, so that objects appear at the supports' scale.

        Returns:
            A Segmentation at the query's own size, or a list of them.

        Raises:
            UsageError: no support, a support of another model, a threshold outside of (0, 1),
                too many tiles.
            DataError: an unreadable image, a support that is damaged or has other channels than
                the model's, logits that are not finite.
        """
        named = support if isinstance(support, Mapping) else {"foreground": support}
        self._check_supports(named)
        threshold = self.config.threshold if threshold is None else threshold
        if not 0 < threshold < 1:
            raise UsageError(f"threshold must lie between 0 and 1, got {threshold}")
        if isinstance(query, Iterator) and not hasattr(query, "read"):  # which files have
            kind = type(query).__name__
            raise UsageError(f"query is a {kind}: pass a list, or use segment_iter")
        many = isinstance(query, list | tuple)
        if (images := stream.unstacked(query)) is not None:
            query, many = images, True
        queries = stream.as_list(query)
        arrays = [read_image(x, _name("query", k)) for k, x in enumerate(queries)]
        dtype = next(self.parameters()).dtype
        supports = {name: s.to(self.device, dtype) for name, s in named.items()}
        for name, encoded in supports.items():
            self._check_content(name, encoded)
        if arrays:
            supports = companions.beside(self, named, supports)
        if tiles:
            found = [self._probabilities_tiled(array, supports) for array in arrays]
        else:
            found = []
            for start in range(0, len(arrays), self._batch):
                found += self._probabilities(arrays[start : start + self._batch], supports)
        results = [
            Segmentation(array, maps.cpu().numpy(), tuple(named), threshold, tuple(scores.tolist()))
            for array, (maps, scores) in zip(arrays, found, strict=True)
        ]
        return results if many else results[0]

    @overload
    def segment_iter(
        self,
        queries: Iterable[ImageLike],
        support: Support | Mapping[str, Support],
        *,
        threshold: float | None = None,
        tiles: bool = False,
        errors: Literal["raise"] = "raise",
    ) -> Iterator[Segmentation]: ...

    @overload
    def segment_iter(
        self,
        queries: Iterable[ImageLike],
        support: Support | Mapping[str, Support],
        *,
        threshold: float | None = None,
        tiles: bool = False,
        errors: Literal["yield"],
    ) -> Iterator[Segmentation | FsdinoError]: ...

    def segment_iter(
        self,
        queries: Iterable[ImageLike],
        support: Support | Mapping[str, Support],
        *,
        threshold: float | None = None,
        tiles: bool = False,
        errors: Literal["raise", "yield"] = "raise",
    ) -> Iterator[Segmentation | FsdinoError]:
        """Segment any number of images, one after another: files, frames, a generator.

        Results come in the images' order. The next two images are read in a thread while the model
        is busy, and at most a small batch more is in memory, at most 8 images; large images are
        batches of their own.

        Args:
            queries: images as in `segment`, drawn as they are needed.
            support, threshold, tiles: as in `segment`.
            errors: what happens to an image that cannot be read or segmented: "raise" ends the
                iteration with its error, "yield" gives the error in the place of the result.

        Raises:
            UsageError: as in `segment`, at the call; one image in the place of many.
            DataError: as in `segment`, when the image's turn comes.
        """
        if errors not in ("raise", "yield"):
            raise UsageError(f"errors must be 'raise' or 'yield', got {errors!r}")
        stream.check_iterable(queries)
        self.segment([], support, threshold=threshold, tiles=tiles)  # checks the arguments

        def ask(arrays: list[Pixels]) -> list[Segmentation]:
            return self.segment(arrays, support, threshold=threshold, tiles=tiles)

        def name(place: int, query: ImageLike) -> str:
            return label_of(query, _name("query", place))

        def results() -> Iterator[Segmentation | FsdinoError]:
            read = stream.read_ahead(
                queries, lambda k, x: label_of(x, _name("query", k)), read_image
            )
            size = stream.bytes_per_pixel(len(support) if isinstance(support, Mapping) else 1)
            for batch in stream.batches(read, size, images=self._batch):
                for result in stream.answers(batch, ask):
                    if isinstance(result, FsdinoError) and errors == "raise":
                        raise result
                    yield result

        return results()

    @property
    def _batch(self) -> int:
        """How many queries share an encoder pass."""
        if self.device.type != "cpu":
            return BATCH
        return min(max(_CPU_PIXELS // self.config.image_size**2, 1), BATCH)

    def _probabilities(
        self, arrays: Sequence[Pixels], supports: Mapping[str, Support]
    ) -> list[tuple[Tensor, Tensor]]:
        """Per image the maps [N, H, W], at its own size, and the scores [N]."""
        asked = [support.features(1) for support in supports.values()]
        encoded = self.encode_list([self._prepare(a) for a in arrays])
        return [
            self._maps(array, features, asked, [*supports])
            for array, features in zip(arrays, encoded, strict=True)
        ]

    def _maps(
        self,
        array: Pixels,
        features: Features,
        asked: Sequence[SupportFeatures],
        names: Sequence[str],
    ) -> tuple[Tensor, Tensor]:
        """The maps [N, H, W] of an encoded image, at its own size, and the scores [N]."""
        answer = self.answer(features, asked, (array.shape[0], array.shape[1]), names=names)
        return answer.logits[0].sigmoid_(), answer.presence[0]

    def _probabilities_tiled(
        self, array: Pixels, supports: Mapping[str, Support]
    ) -> tuple[Tensor, Tensor]:
        """The blended maps, and the scores of the tile that shows each class best."""
        sizes = [size for s in supports.values() for size in s.image_sizes]
        height, width = (int(np.median([size[i] for size in sizes])) for i in (0, 1))
        boxes = tiling.tile_boxes((array.shape[0], array.shape[1]), (height, width))
        if len(boxes) > _MOST_TILES:
            raise UsageError(
                f"the supports' size, {height} x {width}, cuts a query of {array.shape[0]} x "
                f"{array.shape[1]} into {len(boxes)} tiles, more than {_MOST_TILES}: use larger "
                "support images, or no tiles"
            )
        crops = [array[box.rows, box.columns] for box in boxes]
        found = []
        for start in range(0, len(crops), self._batch):
            found += self._probabilities(crops[start : start + self._batch], supports)
        maps = tiling.blend([m for m, _ in found], boxes, (array.shape[0], array.shape[1]))
        return maps, torch.stack([scores for _, scores in found]).amax(0)

    def _check_supports(self, named: Mapping[str, Support]) -> None:
        if not named or any(support is None for support in named.values()):
            raise UsageError("no support given: pass at least one, from encode_support")
        for support in named.values():
            if not isinstance(support, Support):
                raise UsageError(
                    f"support is a {type(support).__name__}, not a Support: encode_support makes "
                    "one of images and masks; several are a dict by name"
                )
        own = self.fingerprint()
        for name, support in named.items():
            if support.model_fingerprint != own:
                raise UsageError(
                    f"support {name!r} was made by another model "
                    f"({support.model_fingerprint}, this one is {own}): "
                    "encode it again with encode_support"
                )

    def _check_content(self, name: str, support: Support) -> None:
        """Refuse what damage or another program put into a support, before it becomes a mask."""
        problem = support.problem()
        if problem is None:
            wanted = [*self.encoder.levels]
            found = [(tokens.shape[0], tokens.shape[1]) for tokens in support.correlation[0]]
            pooled = support.foreground.shape[1]
            if wanted != found:
                problem = f"it has {_levels(found)}, this model has {_levels(wanted)}"
            elif pooled != self.encoder.channels:
                problem = f"its means have {pooled} channels, and not {self.encoder.channels}"
            elif support.fit is not None and support.fit.mean.shape[1] != wanted[0][0]:
                problem = f"what was fitted to it has {support.fit.mean.shape[1]} layers"
            elif support.fit is None and self.fits:
                problem = "it was made by an earlier version, which fitted nothing to it"
        if problem is not None:
            raise DataError(
                f"support {name!r} cannot be used: {problem}; encode it again with encode_support"
            )


def doubt(support: Support) -> str | None:
    """A warning for a support of low quality, to follow its name; None for others."""
    least = LEAST_QUALITY if support.shots == 1 else LEAST_QUALITY_OF_SEVERAL
    if support.quality is None or support.quality >= least:
        return None
    return f"finds itself with an IoU of {support.quality:.2f} only: {ADVICE}"


def _levels(levels: Sequence[tuple[int, int]]) -> str:
    """Layers and channels of each level, for people."""
    return " and ".join(f"{layers} layers of {channels} channels" for layers, channels in levels)


def _name(kind: str, index: int) -> str:
    return f"{kind} {index + 1}"
