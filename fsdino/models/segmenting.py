"""From images to masks, whatever runs the model: encode supports, segment queries."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Generic, Literal, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from fsdino.errors import DataError, FsdinoError, SupportWarning, UsageError
from fsdino.images import Flags, ImageLike, Pixels, label_of, read_image
from fsdino.masks import MaskLike, MaskRule
from fsdino.models import mark_arguments, tiling
from fsdino.models import queries as stream
from fsdino.models.mark_arguments import BoxesLike, Given, LabelsLike, PointsLike
from fsdino.models.segmentation import Segmentation
from fsdino.models.supports import Support, picture
from fsdino.models.views import View, closer

# Below these, masks of other images are wrong more often than right: for a single image, which
# segments a crop of itself, and for several, each of which is segmented by the others.
LEAST_QUALITY, LEAST_QUALITY_OF_SEVERAL = 0.7, 0.5
ADVICE = (
    "masks of other images may be poor; more examples, a tighter mask, or an object that stands "
    "out from its surroundings help"
)
_VIEW = 0.6  # of both sides, of a second view of a single support
_SMALL = 0.02  # share of the image below which the second view is fitted, too
_MOST_TILES = 2500

E = TypeVar("E")  # an encoded image


class Segmenting(Generic[E]):
    """What segments images by annotated ones, of any kind and size.

    `fsdino.models.segmenter.Segmenter` does it with a model of PyTorch,
    `fsdino.export.segmenter.ExportedSegmenter` with an exported one. Each says what an encoded
    image is, and how supports and maps are made of such.
    """

    @property
    @abstractmethod
    def default_threshold(self) -> float:
        """Probability from which a pixel belongs to a mask, unless a call says otherwise."""

    @property
    @abstractmethod
    def fits(self) -> bool:
        """Whether the model fits something to its supports."""

    @property
    @abstractmethod
    def _pooled_channels(self) -> int:
        """Of the last tokens, whose means a support has."""

    @property
    @abstractmethod
    def _levels(self) -> Sequence[tuple[int, int]]:
        """Layers and channels of each level of a support's tokens."""

    @property
    @abstractmethod
    def _batch(self) -> int:
        """How many queries are encoded together."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of configuration and weights: supports of another model are told apart by it."""

    @abstractmethod
    def _mask_of(self, array: Pixels, entry: Given, image: ImageLike, rule: MaskRule) -> Flags:
        """The mask bool [H, W] of an image uint8 [H, W, 3], read or made from marks."""

    @abstractmethod
    def _encode_arrays(self, arrays: Sequence[Pixels]) -> Sequence[E]:
        """Encode images uint8 [H, W, 3]."""

    @abstractmethod
    def _support(
        self, encoded: Sequence[E], flags: Sequence[Flags], views: Sequence[tuple[E, View]] = ()
    ) -> Support:
        """The support of encoded images, each with its mask bool [H, W].

        Args:
            encoded: the images.
            flags: their masks.
            views: encoded views of the first image.
        """

    @abstractmethod
    def _placed(self, named: Mapping[str, Support]) -> dict[str, Support]:
        """Supports where the model is, and in the type of its weights."""

    @abstractmethod
    def _beside(
        self, named: Mapping[str, Support], placed: Mapping[str, Support]
    ) -> dict[str, Support]:
        """Placed supports whose classifiers have the objects of the others as background.

        Args:
            named: the supports, as they are known to the caller.
            placed: the same by `_placed`.
        """

    @abstractmethod
    def _maps(
        self,
        encoded: Sequence[E],
        sizes: Sequence[tuple[int, int]],
        supports: Mapping[str, Support],
    ) -> list[tuple[Tensor, Tensor]]:
        """For each encoded query the maps [N, H, W] of N supports, and their scores [N].

        Args:
            encoded: the queries.
            sizes: H and W of each.
            supports: placed ones.

        Raises:
            DataError: maps that are not finite.
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
            encoded = self._encode_arrays(arrays)
            support = self._support(encoded, flags)
        else:
            encoded = self._encode_arrays([*arrays, view.image])
            support = self._support(encoded[:1], flags, [(encoded[1], view)] if small else [])
        pictures = tuple(map(picture, arrays, flags))
        support = replace(support, pictures=pictures)
        if not quality:
            return support
        flags = flags if view is None else [*flags, view.mask]
        found = self._quality(encoded, flags, [1] if single else range(len(flags)))
        support = replace(support, quality=found)
        if warn and (words := doubt(support)) is not None:
            warnings.warn(f"the support {words}", SupportWarning, stacklevel=3)
        return support

    def _quality(
        self,
        encoded: Sequence[E],
        flags: Sequence[Flags],
        asked: Sequence[int],
    ) -> float | None:
        """Mean IoU of some of the encoded images, each segmented by all others.

        None where there is only one.
        """
        if len(encoded) < 2:
            return None
        ious = []
        for k in asked:
            others = [n for n in range(len(encoded)) if n != k]
            support = self._support([encoded[n] for n in others], [flags[n] for n in others])
            size = (flags[k].shape[0], flags[k].shape[1])
            [(maps, _)] = self._maps([encoded[k]], [size], {"foreground": support})
            inside = maps[0].cpu().numpy() >= self.default_threshold
            ious.append((inside & flags[k]).sum() / max((inside | flags[k]).sum(), 1))
        return float(np.mean(ious))

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
        threshold = self.default_threshold if threshold is None else threshold
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
        supports = self._placed(named)
        for name, encoded in supports.items():
            self._check_content(name, encoded)
        if arrays:
            supports = self._beside(named, supports)
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

    def _probabilities(
        self, arrays: Sequence[Pixels], supports: Mapping[str, Support]
    ) -> list[tuple[Tensor, Tensor]]:
        """Per image the maps [N, H, W], at its own size, and the scores [N]."""
        sizes = [(array.shape[0], array.shape[1]) for array in arrays]
        return self._maps(self._encode_arrays(arrays), sizes, supports)

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
        problem = support.problem() or self._misfit(support)
        if problem is not None:
            raise DataError(
                f"support {name!r} cannot be used: {problem}; encode it again with encode_support"
            )

    def _misfit(self, support: Support) -> str | None:
        """Why the model cannot use a support that is whole, in a few words; None if it can."""
        wanted = [*self._levels]
        found = [(tokens.shape[0], tokens.shape[1]) for tokens in support.correlation[0]]
        pooled = support.foreground.shape[1]
        if wanted != found:
            return f"it has {_described(found)}, this model has {_described(wanted)}"
        if pooled != self._pooled_channels:
            return f"its means have {pooled} channels, and not {self._pooled_channels}"
        if support.fit is not None and support.fit.mean.shape[1] != wanted[0][0]:
            return f"what was fitted to it has {support.fit.mean.shape[1]} layers"
        if support.fit is None and self.fits:
            return "it was made by an earlier version, which fitted nothing to it"
        return None


def doubt(support: Support) -> str | None:
    """A warning for a support of low quality, to follow its name; None for others."""
    least = LEAST_QUALITY if support.shots == 1 else LEAST_QUALITY_OF_SEVERAL
    if support.quality is None or support.quality >= least:
        return None
    return f"finds itself with an IoU of {support.quality:.2f} only: {ADVICE}"


def _described(levels: Sequence[tuple[int, int]]) -> str:
    """Layers and channels of each level, for people."""
    return " and ".join(f"{layers} layers of {channels} channels" for layers, channels in levels)


def _name(kind: str, index: int) -> str:
    return f"{kind} {index + 1}"
