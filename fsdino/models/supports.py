"""Supports: annotated images as a model has encoded them, and their files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fsdino.errors import CheckpointError, UsageError, counted, first_line
from fsdino.images import Flags, Pixels, encode_image
from fsdino.models.checkpoints import check_hash, write_hashed
from fsdino.models.shots import PooledShot, SupportFeatures, TokenFit
from fsdino.overlay import overlay, shrunk

_FORMAT = "fsdino-support-5"
# Earlier formats with one level, whose number is not in the tensors' names; the first two are still
# read for models without a fit, whose files had not changed.
_ONE_LEVEL = ("fsdino-support-2", "fsdino-support-3", "fsdino-support-4")
_UNHASHED = "fsdino-support-1"  # as versions before 0.2 wrote it, with one level
_OF_LEVEL = re.compile(r"(?:correlation|masks)\.0\.(0|[1-9][0-9]?)", re.ASCII)
_FIT = ("mean", "scale", "weight", "bias", "levels")
_SIZE = re.compile(r"([1-9][0-9]{0,9})x([1-9][0-9]{0,9})", re.ASCII)
_MOST_VALUES = 2**30  # of one shot; a ViT-g at 1,022 pixels makes 2**27
_PICTURE = 256  # pixels of a side
_SHOWN_PICTURES, _PICTURES_A_ROW = 12, 4
_SLACK = 1e-3  # what rounding may add to a share of 1


@dataclass(frozen=True, eq=False, repr=False)
class Support:
    """K annotated images of one class, encoded once by one model.

    Made by `Segmenter.encode_support`; only the model that made it accepts it. `==` compares
    identity: see `same_as`.

    Attributes:
        foreground: [K, C] masked means of the last tokens.
        background: [K, C] the same for the rest of each image.
        correlation: of each of the K images the levels of `Features.correlation`, tensors
            [L_i, C_i, h_i, w_i]; FS-DINO has one level.
        masks: of each image and level [h_i, w_i], as the model makes them: FS-DINO's is the share
            of foreground per token.
        image_sizes: (height, width) of the K images, in pixels.
        model_fingerprint: of the model that made it.
        fit: for models with a training-free score, with B = 1; else None.
        quality: how well the support finds itself, a mean IoU in [0, 1]; None where it was not
            computed.
        pictures: small copies of the images with their masks drawn, which a notebook shows; none
            in a support that was read from a file.

    Example:
        >>> import fsdino
        >>> coins = fsdino.samples()["coins"]
        >>> support = fsdino.load().encode_support(coins.image, coins.mask)
        >>> support.save("coins.safetensors")
        >>> fsdino.Support.load("coins.safetensors").same_as(support)
        True
    """

    foreground: Tensor
    background: Tensor
    correlation: tuple[tuple[Tensor, ...], ...]
    masks: tuple[tuple[Tensor, ...], ...]
    image_sizes: tuple[tuple[int, int], ...]
    model_fingerprint: str
    fit: TokenFit | None = None
    quality: float | None = None
    pictures: tuple[Image.Image, ...] = ()

    def __repr__(self) -> str:
        """One line: shots, token grids, quality where it is known, and the model."""
        grids = list(dict.fromkeys(_grids(levels) for levels in self.masks))
        shown = ", ".join(grids[:3]) + (", …" if len(grids) > 3 else "")
        parts = [
            counted(self.shots, "shot"),
            f"grid{'s' if len(grids) > 1 else ''} {shown}",
            *([] if self.quality is None else [f"quality {self.quality:.2f}"]),
            f"model {self.model_fingerprint}",
        ]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_png_(self) -> bytes | None:
        """The first twelve pictures side by side; None, so that a notebook shows text, without."""
        pictures = self.pictures[:_SHOWN_PICTURES]
        if not pictures:
            return None
        columns = min(len(pictures), _PICTURES_A_ROW)
        rows = -(-len(pictures) // columns)
        width, height = (max(picture.size[i] for picture in pictures) for i in (0, 1))
        sheet = Image.new("RGB", (columns * width, rows * height), (255, 255, 255))
        for place, picture in enumerate(pictures):
            sheet.paste(picture, (place % columns * width, place // columns * height))
        return encode_image(sheet, "PNG")

    def same_as(self, other: object) -> bool:
        """Whether it was made by the same model of the same images: all tensors are equal.

        The device does not count, nor whether the quality was measured.
        """
        if not isinstance(other, Support):
            return False
        own, others = self.tensors(), other.tensors()
        return (
            self.model_fingerprint == other.model_fingerprint
            and self.image_sizes == other.image_sizes
            and self.shots == other.shots
            and (self.fit is None) == (other.fit is None)
            and len(own) == len(others)
            and all(
                a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())
                for a, b in zip(own, others, strict=True)
            )
        )

    @property
    def shots(self) -> int:
        """K, the number of annotated images."""
        return len(self.masks)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Support:
        """The same support on another device, for a model whose weights have another dtype."""
        return replace(
            self,
            foreground=self.foreground.to(device),
            background=self.background.to(device),
            correlation=tuple(tuple(t.to(device, dtype) for t in k) for k in self.correlation),
            masks=tuple(tuple(t.to(device) for t in k) for k in self.masks),
            fit=None if self.fit is None else self.fit.map(lambda t: t.to(device)),
        )

    @classmethod
    def of(
        cls,
        shots: Sequence[PooledShot],
        image_sizes: Sequence[tuple[int, int]],
        model_fingerprint: str,
        fit: TokenFit | None,
    ) -> Support:
        """Put together from the K shots of one episode, B = 1; see `Attributes` for the rest."""
        return cls(
            torch.cat([shot.foreground for shot in shots]),
            torch.cat([shot.background for shot in shots]),
            tuple(tuple(level[0] for level in shot.correlation) for shot in shots),
            tuple(tuple(mask[0] for mask in shot.masks) for shot in shots),
            tuple(image_sizes),
            model_fingerprint,
            fit,
        )

    def pooled(self, batch: int = 1) -> list[PooledShot]:
        """The K shots of `batch` equal episodes; expanded, not copied."""
        parts = zip(self.correlation, self.masks, self.foreground, self.background, strict=True)
        return [PooledShot(*shot).map(lambda t: t.expand(batch, *t.shape)) for shot in parts]

    def features(self, batch: int) -> SupportFeatures:
        """What a forward pass over `batch` queries takes."""
        fit = None if self.fit is None else self.fit.map(lambda t: t.expand(batch, *t.shape[1:]))
        return SupportFeatures.of(self.pooled(batch), fit)

    def tensors(self) -> list[Tensor]:
        """All tensors: prototypes, tokens, masks and what was fitted to them."""
        fit = [] if self.fit is None else self.fit.tensors()
        levels = [t for shot in (*self.correlation, *self.masks) for t in shot]
        return [self.foreground, self.background, *levels, *fit]

    def problem(self) -> str | None:
        """Why no model can use the support: parts that do not fit together, or invalid values.

        Returns:
            The reason, in a few words; None if there is none.
        """
        return _shape_problem(self) or _value_problem(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all, with a hash of its content.

        Raises:
            FsdinoError: the folder is missing, not writable or full.
        """
        tensors = {"foreground": self.foreground, "background": self.background}
        for k in range(self.shots):
            for i, (tokens, mask) in enumerate(
                zip(self.correlation[k], self.masks[k], strict=True)
            ):
                tensors[f"correlation.{k}.{i}"] = tokens
                tensors[f"masks.{k}.{i}"] = mask
        if self.fit is not None:
            names = _fit_names(len(self.fit.shots))
            tensors |= dict(zip(names, self.fit.tensors(), strict=True))
        metadata = {
            "format": _FORMAT,
            "model_fingerprint": self.model_fingerprint,
            "image_sizes": " ".join(f"{height}x{width}" for height, width in self.image_sizes),
            **({} if self.quality is None else {"quality": repr(float(self.quality))}),
        }
        write_hashed(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Support:
        """Read what `save` wrote, and check it.

        Files of earlier versions have no hash; of these, only shapes and ranges are checked.

        Raises:
            UsageError: there is no such file.
            CheckpointError: the file is damaged, or not a support.
        """
        if not Path(path).is_file():
            raise UsageError(f"support {path}: no such file")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") not in (_FORMAT, *_ONE_LEVEL, _UNHASHED):
                    raise CheckpointError(
                        f"support {path} was not written by Support.save, or by a newer version: "
                        "encode the support again"
                    )
                described = {name: _described(file, name) for name in file.keys()}  # noqa: SIM118
                _raise(_shape_problem(_from_parts(described, metadata)))
                tensors = {name: file.get_tensor(name) for name in described}
            return _from_content(tensors, metadata)
        # Errors of safetensors for a file that it cannot read, and of parts that do not fit.
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"support {path} is damaged ({first_line(error)}): encode the support again"
            ) from error


def picture(image: Pixels, mask: Flags) -> Image.Image:
    """A small copy of an image uint8 [H, W, 3] with its mask bool [H, W] drawn over it."""
    small = shrunk(Image.fromarray(image), _PICTURE)
    flags = Image.fromarray(mask).resize(small.size, Image.Resampling.NEAREST)
    return overlay(np.asarray(small), np.asarray(flags))


def _from_content(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Support:
    """The support that a file holds.

    Raises:
        KeyError, ValueError: its content is not what was written.
    """
    if metadata["format"] != _UNHASHED:
        check_hash(tensors, metadata)
    support = _from_parts(tensors, metadata)
    _raise(support.problem())
    return support


def _described(file: Any, name: str) -> Tensor:
    """A tensor of a file without its values, which may not fit into memory."""
    described = file.get_slice(name)
    return torch.empty(described.get_shape(), dtype=described[:0].dtype, device="meta")


def _raise(problem: str | None) -> None:
    if problem is not None:
        raise ValueError(problem)


def _from_parts(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Support:
    """The support that a file's tensors make up; their values are not checked.

    Raises:
        KeyError, ValueError: tensors are missing or too many.
    """
    sizes = [_SIZE.fullmatch(size) for size in metadata["image_sizes"].split()]
    shots = range(len(sizes))
    levels = [""] if metadata["format"] != _FORMAT else [f".{i}" for i in range(_levels(tensors))]
    correlation, masks = (
        [[f"{part}.{k}{level}" for level in levels] for k in shots]
        for part in ("correlation", "masks")
    )
    names = {"foreground", "background"}
    names |= {name for row in (*correlation, *masks) for name in row}
    fit = None
    if any(name.startswith("fit.") for name in tensors):
        fitted = _fit_names(sum(name.startswith("fit.sides.") for name in tensors))
        names |= set(fitted)
        fit = TokenFit.of([tensors[name] for name in fitted])
    if names != tensors.keys():
        different = ", ".join(sorted(names ^ tensors.keys())[:5])
        raise ValueError(f"tensors are missing or too many: {different}")
    return Support(
        tensors["foreground"],
        tensors["background"],
        tuple(tuple(tensors[name] for name in row) for row in correlation),
        tuple(tuple(tensors[name] for name in row) for row in masks),
        tuple((int(size[1]), int(size[2])) if size else (0, 0) for size in sizes),
        metadata["model_fingerprint"],
        fit,
        float(metadata["quality"]) if "quality" in metadata else None,
    )


def _levels(names: Iterable[str]) -> int:
    """How many levels each shot of a file has, by the names of its tensors; at least one."""
    return max(1, len({match[1] for name in names if (match := _OF_LEVEL.fullmatch(name))}))


def _grids(masks: Iterable[Tensor]) -> str:
    """The token grids of one shot's levels, for people."""
    return "+".join("x".join(map(str, mask.shape)) for mask in masks)


def _fit_names(shots: int) -> list[str]:
    """Names in a file of the tensors of a fit with K shots, in their order."""
    parts = [part for k in range(shots) for part in (f"tokens.{k}", f"sides.{k}")]
    return [f"fit.{part}" for part in (*_FIT, *parts)]


def _shape_problem(support: Support) -> str | None:
    shots = len(support.masks)
    if shots == 0:
        return "it has no shots"
    if not all(isinstance(t, Tensor) and t.is_floating_point() for t in support.tensors()):
        return "its tensors are not all floating"
    counts = {len(support.correlation), len(support.image_sizes), shots}
    for name, pooled in (("foreground", support.foreground), ("background", support.background)):
        if pooled.ndim != 2 or pooled.shape != support.foreground.shape or pooled.shape[1] == 0:
            return f"{name} has the shape {list(pooled.shape)}"
        counts.add(len(pooled))
    if len(counts) > 1:
        return "its parts have different numbers of shots"
    if any(min(size) < 1 for size in support.image_sizes):
        return "a size of its images is not one"
    if support.quality is not None and not 0 <= support.quality <= 1:
        return "its quality leaves [0, 1]"
    layers = [tokens.shape[:2] for tokens in support.correlation[0]]
    if not layers:
        return "it has no levels"
    parts = zip(support.correlation, support.masks, strict=True)
    for k, (correlation, masks) in enumerate(parts, start=1):
        if len(correlation) != len(layers) or len(masks) != len(layers):
            return f"shot {k} has another number of levels"
        for expected, tokens, mask in zip(layers, correlation, masks, strict=True):
            if (
                mask.ndim != 2
                or len(expected) != 2
                or tokens.numel() == 0
                or tokens.shape != (*expected, *mask.shape)
            ):
                return (
                    f"shot {k} has tokens {list(tokens.shape)} and a mask {list(mask.shape)}, "
                    f"which do not fit {' x '.join(map(str, expected))} layers and channels"
                )
            if tokens.numel() > _MOST_VALUES:
                return f"shot {k} has tokens {list(tokens.shape)}, more than any model makes"
    if support.fit is not None:
        per_channel = (1, *support.fit.mean.shape[1:2], support.foreground.shape[1])
        shapes = [tuple(t.shape) for t in support.fit.tensors()[: len(_FIT)]]
        if shapes != [per_channel] * 3 + [(1,), (1, 6)]:
            return f"what was fitted to its tokens has the shapes {shapes}"
        if len(support.fit.shots) < shots:
            return f"{len(support.fit.shots)} of its {shots} shots were fitted"
        for k, shot in enumerate(support.fit.shots):
            fits = shot.sides.ndim == 3 and 0 < shot.tokens.numel() <= _MOST_VALUES
            if not fits or shot.tokens.shape != (*per_channel, *shot.sides.shape[1:]):
                return (
                    f"fitted shot {k + 1} has tokens {list(shot.tokens.shape)} and sides "
                    f"{list(shot.sides.shape)}"
                )
    return None


def _value_problem(support: Support) -> str | None:
    if not _all_finite(support.tensors()):
        return "it holds NaN or infinity"
    # Of each image over its levels: a coarse one may miss a small object.
    low = torch.stack([mask.amin() for levels in support.masks for mask in levels]).min()
    high = torch.stack(
        [torch.stack([mask.amax() for mask in levels]).max() for levels in support.masks]
    )
    if low < -_SLACK or high.max() > 1 + _SLACK:
        return "a mask leaves [0, 1]"
    if support.fit is not None:
        sides = torch.stack([shot.sides.abs().amax() for shot in support.fit.shots])
        if sides.max() > 1:
            return "a fitted shot has a side that leaves [-1, 1]"
    return "a mask is empty" if high.min() <= 0 else None


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all values are finite; asked once for all tensors, as a GPU waits at each answer."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())
