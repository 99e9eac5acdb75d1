"""The two graphs of an export: what shows a class, and what looks for it.

`SupportGraph` turns annotated images into the tensors of a support, `QueryGraph` an image and such
tensors into probabilities. Both take images as files have them, of any size; the token grid is one
for an export. Numbers of classes, shots and views are dims of the tensors, so that one graph serves
them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fsdino.export import fitting, resampling
from fsdino.export.folder import Slot
from fsdino.export.shots import StackedFit, StackedSupport
from fsdino.models.encoders import Features
from fsdino.models.few_shot import Answer, FewShotModel
from fsdino.models.fsdino import FSDINO
from fsdino.models.hsnet import HSNet
from fsdino.models.shots import PooledShot, Shot

CLASSES, SHOTS, VIEWS, HEIGHT, WIDTH = "classes", "shots", "views", "height", "width"

_FIT = ("fit_mean", "fit_scale", "fit_weight", "fit_bias", "fit_levels", "fit_tokens", "fit_sides")


def support_slots(model: FewShotModel, size: tuple[int, int]) -> list[Slot]:
    """What a support is made of, as `SupportGraph` returns it.

    Args:
        model: whose supports they are.
        size: (h, w) of the model's input in pixels.
    """
    channels = model.encoder.channels
    slots = [
        Slot("foreground", "float32", (SHOTS, channels)),
        Slot("background", "float32", (SHOTS, channels)),
    ]
    levels = [*zip(model.encoder.levels, model.encoder.level_grids(*size), strict=True)]
    ends = [f"_{number}" for number in range(len(levels))] if len(levels) > 1 else [""]
    for end, (level, grid) in zip(ends, levels, strict=True):
        slots.append(Slot(f"correlation{end}", "float32", (SHOTS, *level, *grid)))
    slots += [
        Slot(f"masks{end}", "float32", (SHOTS, *grid))
        for end, (_, grid) in zip(ends, levels, strict=True)
    ]
    if model.fits:
        ((layers, width), grid), *_ = levels
        per_channel = (layers, width)
        shapes: Sequence[tuple[str | int, ...]] = (
            per_channel, per_channel, per_channel, (), (6,), (VIEWS, *per_channel, *grid),
            (VIEWS, *grid),
        )  # fmt: skip
        slots += [Slot(name, "float32", dims) for name, dims in zip(_FIT, shapes, strict=True)]
    return slots


def asked_slots(model: FewShotModel, size: tuple[int, int]) -> list[Slot]:
    """The slots of supports that `QueryGraph` takes, each with a dim of classes before the others.

    Args:
        model, size: see `support_slots`.
    """
    wanted = _read(model)
    return [
        Slot(slot.name, slot.dtype, (CLASSES, *slot.dims))
        for slot in support_slots(model, size)
        if slot.name.rstrip("_0123456789") in wanted
    ]


def _read(model: FewShotModel) -> set[str]:
    """Names, without their levels, of the support's tensors that the model's decoding reads."""
    fitted = set(_FIT) if model.fits else set[str]()
    if not isinstance(model, FSDINO):
        return {"correlation", "masks"}
    if model.adapter is None:
        return fitted or {"foreground", "background"}
    read = fitted
    if model.config.cosine_prompt or model.visual_prompt is not None:
        read.add("foreground")
    if model.prior is not None:
        read |= {"correlation", "masks"}
    return read


class SupportGraph(nn.Module):
    """Annotated images of one class to the tensors of a support.

    Args:
        model: whose supports they are.
        size: (h, w) of the model's input in pixels.
    """

    def __init__(self, model: FewShotModel, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.size = model, size
        self.outputs = support_slots(model, size)
        self.inputs = [
            Slot("image", "uint8", (SHOTS, HEIGHT, WIDTH, 3)),
            Slot("mask", "uint8", (SHOTS, HEIGHT, WIDTH)),
            Slot("sizes", "int64", (SHOTS, 2)),
        ]
        if model.fits:
            self.inputs.append(Slot("places", "float32", (SHOTS, 3)))

    def forward(
        self, image: Tensor, mask: Tensor, sizes: Tensor, places: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The tensors of `support_slots`.

        Args:
            image: uint8 [K, H, W, 3] RGB; each lies at the top left, the rest counts nothing.
            mask: uint8 [K, H, W], 0 for background, anything else for the object.
            sizes: int64 [K, 2], height and width of each image in pixels.
            places: float32 [K, 3], of models that fit something: see `fitting.fit`.
        """
        features = self.model.encode(resampling.image(image, self.size, sizes))
        flags = mask.float().clamp(max=1)  # onnxruntime before 1.21 cannot compare uint8
        if isinstance(self.model, HSNet):
            lines = resampling.nearest
            grid = self.size
        else:
            lines, grid = resampling.areas, features.grid
        rows = lines(grid[0], mask.shape[1], sizes[:, 0])
        columns = lines(grid[1], mask.shape[2], sizes[:, 1])
        own = resampling.resize(flags, rows, columns).clamp(0, 1)
        shot = PooledShot.of(features, self.model.level_masks(own, features))
        found = [shot.foreground, shot.background, *shot.correlation, *shot.masks]
        if places is not None:
            assert isinstance(self.model, FSDINO) and self.model.score is not None
            fit = fitting.fit(self.model.score, shot.correlation[0], shot.masks[0], places)
            found += [tensor[0] for tensor in (*fit.tensors(), fit.tokens, fit.sides)]
        return tuple(found)


class QueryGraph(nn.Module):
    """An image and supports of N classes to probabilities.

    Args:
        model: what answers.
        size: (h, w) of the model's input in pixels.
        whole: whether probabilities have the image's size, and not that of the model's own maps.
    """

    def __init__(self, model: FewShotModel, size: tuple[int, int], *, whole: bool = True) -> None:
        super().__init__()
        self.model, self.size, self.whole = model, size, whole
        self.inputs = [Slot("image", "uint8", (HEIGHT, WIDTH, 3)), *asked_slots(model, size)]
        sides: tuple[str | int, ...] = (HEIGHT, WIDTH)
        if not whole:
            sides = ("map height", "map width")
        self.outputs = [
            Slot("probability", "float32", (CLASSES, *sides)),
            Slot("score", "float32", (CLASSES,)),
        ]

    def forward(self, image: Tensor, *supports: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities [N, H, W] of the classes, and how likely it is that each is there, [N].

        Args:
            image: uint8 [H, W, 3] RGB.
            supports: the tensors of `asked_slots`.
        """
        height, width = image.shape[:2]
        size = torch.stack([torch.full((1,), height), torch.full((1,), width)], 1)
        features = self.model.encode(resampling.image(image[None], self.size, size))
        given = {slot.name: t for slot, t in zip(self.inputs[1:], supports, strict=True)}
        classes = supports[0].shape[0]
        queries = Features.of([t.expand(classes, *t.shape[1:]) for t in features.tensors()])
        coarse, scored = self.model.decode(queries, _stacked(given))
        maps = coarse[:, 0]
        if self.whole:
            maps = self._to_image(maps, height, width)
        return maps.sigmoid(), Answer(coarse[:, 0, None], coarse, scored).presence.flatten()

    def _to_image(self, maps: Tensor, height: int, width: int) -> Tensor:
        """Logits [N, h, w] at the image's size, by the model's own rule."""
        if isinstance(self.model, HSNet):
            rows = resampling.aligned(height, maps.shape[1])
            columns = resampling.aligned(width, maps.shape[2])
            return resampling.resize(maps, rows, columns)
        return resampling.logits(maps, height, width)


def _stacked(given: Mapping[str, Tensor]) -> StackedSupport:
    """Supports as `FewShotModel.decode` takes them."""
    correlation, masks = (
        tuple(tensor for name, tensor in given.items() if name.startswith(part))
        for part in ("correlation", "masks")
    )
    fit = None
    if "fit_mean" in given:
        mean, scale, weight, bias, levels, tokens, sides = (given[name] for name in _FIT)
        fit = StackedFit(mean, scale, weight, bias, levels, tokens=tokens, sides=sides)
    foreground, background = (
        given[name].mean(1) if name in given else _nothing(given)
        for name in ("foreground", "background")
    )
    return StackedSupport(foreground, background, (), fit, stacked=Shot(correlation, masks))


def _nothing(given: Mapping[str, Tensor]) -> Tensor:
    """In place of a tensor that is not read."""
    return next(iter(given.values())).new_empty(0)
