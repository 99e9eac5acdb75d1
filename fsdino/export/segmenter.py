"""Segmentation with an exported model: as with one of PyTorch, its graphs run elsewhere."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fsdino.errors import DataError, UsageError
from fsdino.export.folder import Exported
from fsdino.export.runtimes import Arrays, Graphs
from fsdino.images import Flags, ImageLike, Pixels
from fsdino.masks import MaskRule, read_mask
from fsdino.models import companions
from fsdino.models.mark_arguments import Given
from fsdino.models.segmenting import Segmenting
from fsdino.models.shots import FittedShot, Shot, TokenFit
from fsdino.models.supports import Support
from fsdino.models.training_free import TrainingFree
from fsdino.models.views import View

_FIT = ("fit_mean", "fit_scale", "fit_weight", "fit_bias", "fit_levels")


class GraphRunner(Protocol):
    """Runs the two graphs of an export, as `fsdino.export.runtimes.Graphs` does."""

    @property
    def exported(self) -> Exported:
        """What their folder says of itself."""

    def support(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """The outputs of the graph `support` by name, on inputs by name."""

    def query(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """The outputs of the graph `query` by name, on inputs by name."""


class ExportedSegmenter(Segmenting[Pixels]):
    """An exported model, run by onnxruntime or OpenVINO on the CPU.

    It takes what `fsdino.Segmenter` takes, and gives the same; only marks need the encoder's
    tokens, which no graph gives. Supports of the PyTorch model are supports of this one, and the
    other way round, where their token grid is the export's. Every image is resized to the export's
    size, also for models that keep the aspect ratio in PyTorch.

    Args:
        folder: of `fsdino export --format onnx`.
        runtime: "onnx" (onnxruntime) or "openvino".

    Raises:
        UsageError, CheckpointError: see `fsdino.export.runtimes.Graphs`; the export's maps have the
            model's size.
    """

    def __init__(self, folder: str | os.PathLike[str], runtime: str = "onnx") -> None:
        self._use(Graphs(folder, runtime), os.fspath(folder))

    @classmethod
    def of(cls, graphs: GraphRunner) -> ExportedSegmenter:
        """A segmenter on graphs that run elsewhere, such as those of `--format pt2` in PyTorch.

        Args:
            graphs: runs an export of any format.

        Raises:
            UsageError: the export's maps have the model's size.
        """
        made = cls.__new__(cls)
        made._use(graphs, "the export")
        return made

    def _use(self, graphs: GraphRunner, name: str) -> None:
        """Take graphs; `name` is what an error calls them."""
        self._graphs = graphs
        self.exported = graphs.exported
        if self.exported.output != "image":
            raise UsageError(
                f"{name} gives maps of the model's own size, without the resizing to "
                "an image: export the model with --output image"
            )
        self._dims = {slot.name: slot.dims for slot in self.exported.graphs["support"].outputs}
        self._asked = [slot.name for slot in self.exported.graphs["query"].inputs[1:]]
        self._ends = [
            name.removeprefix("correlation") for name in self._dims if name.startswith("corr")
        ]

    @property
    def default_threshold(self) -> float:
        """The model's."""
        return self.exported.threshold

    @property
    def fits(self) -> bool:
        """Whether the model fits something to its supports."""
        return self.exported.fits

    def fingerprint(self) -> str:
        """Of the model that was exported."""
        return self.exported.fingerprint

    def fit_beside(self, fit: TokenFit, others: Sequence[Sequence[Shot]]) -> TokenFit:
        """The training-free score's classifier, with the other classes' objects as background.

        Computed by PyTorch, once for the supports that are asked for together.
        """
        layers, channels = self._levels[0]
        return TrainingFree((channels,) * layers).fit_beside(fit, others)

    @functools.cached_property
    def _levels(self) -> Sequence[tuple[int, int]]:
        found = [self._dims[f"correlation{end}"] for end in self._ends]
        return [(int(layers), int(channels)) for _, layers, channels, _, _ in found]

    @property
    def _pooled_channels(self) -> int:
        return int(self._dims["foreground"][1])

    @property
    def _batch(self) -> int:
        return 1

    def _mask_of(self, array: Pixels, entry: Given, image: ImageLike, rule: MaskRule) -> Flags:
        name = entry.name.replace("image", "mask")
        if entry.argument != "masks":
            raise UsageError(
                f"{entry.name} has {entry.argument}, which exported models cannot read: pass a "
                "mask; `fsdino segment` without --runtime and `Segmenter.mark` make one of them"
            )
        size = (array.shape[0], array.shape[1])
        return read_mask(entry.value, size, name, image=image, rule=rule)

    def _encode_arrays(self, arrays: Sequence[Pixels]) -> Sequence[Pixels]:
        """The images themselves: each graph has the encoder in it."""
        return arrays

    def _support(
        self,
        encoded: Sequence[Pixels],
        flags: Sequence[Flags],
        views: Sequence[tuple[Pixels, View]] = (),
    ) -> Support:
        images = [*encoded, *(image for image, _ in views)]
        masks = [*flags, *(view.mask for _, view in views)]
        sizes = [(mask.shape[0], mask.shape[1]) for mask in masks]
        places = [(float(k), 0.0, 1.0) for k in range(len(encoded))]
        places += [(0.0, view.right, view.left) for _, view in views]  # mirrored
        canvas = (len(images), max(h for h, _ in sizes), max(w for _, w in sizes))
        image, mask = np.zeros((*canvas, 3), np.uint8), np.zeros(canvas, np.uint8)
        for k, (height, width) in enumerate(sizes):
            image[k, :height, :width] = images[k]
            mask[k, :height, :width] = masks[k]
        given: dict[str, npt.NDArray[Any]] = {
            "image": image,
            "mask": mask,
            "sizes": np.array(sizes, np.int64),
            "places": np.array(places, np.float32),
        }
        found = {name: torch.from_numpy(a) for name, a in self._graphs.support(given).items()}
        for k in range(len(encoded)):
            if not all(found[f"correlation{end}"][k].isfinite().all() for end in self._ends):
                raise DataError(
                    f"support image {k + 1}: the encoder's output is not finite: export a model "
                    "with other weights"
                )
        own = range(len(encoded))
        correlation, level_masks = (
            tuple(tuple(found[f"{part}{end}"][k] for end in self._ends) for k in own)
            for part in ("correlation", "masks")
        )
        fit = None
        if self.fits:
            shots = map(FittedShot, found["fit_tokens"].split(1), found["fit_sides"].split(1))
            mean, scale, weight, bias, levels = (found[name][None] for name in _FIT)
            fit = TokenFit(mean, scale, weight, bias, levels, tuple(shots))
        count = len(encoded)
        return Support(
            found["foreground"][:count],
            found["background"][:count],
            correlation,
            level_masks,
            tuple(sizes[:count]),
            self.fingerprint(),
            fit,
        )

    def _placed(self, named: Mapping[str, Support]) -> dict[str, Support]:
        return {name: support.to("cpu", torch.float32) for name, support in named.items()}

    def _beside(
        self, named: Mapping[str, Support], placed: Mapping[str, Support]
    ) -> dict[str, Support]:
        return companions.beside(self, named, placed)

    def _misfit(self, support: Support) -> str | None:
        """Also where its token grids are not those of the graphs."""
        problem = super()._misfit(support)
        if problem is not None:
            return problem
        own = [tuple(self._dims[f"masks{end}"][1:]) for end in self._ends]
        grids = {tuple(tuple(mask.shape) for mask in levels) for levels in support.masks}
        if support.fit is not None:
            grids |= {(tuple(shot.sides.shape[1:]),) for shot in support.fit.shots}
        for found in grids:
            if [*found] != own:
                size = "x".join(map(str, self.exported.size))
                return (
                    f"it has grids of {_grids(found)} tokens, this export of {size} pixels has "
                    f"{_grids(own)}"
                )
        return None

    def _maps(
        self,
        encoded: Sequence[Pixels],
        sizes: Sequence[tuple[int, int]],
        supports: Mapping[str, Support],
    ) -> list[tuple[Tensor, Tensor]]:
        groups = self._groups(supports)
        return [self._map(image, groups, supports) for image in encoded]

    def _groups(
        self, supports: Mapping[str, Support]
    ) -> list[tuple[list[int], dict[str, npt.NDArray[Any]]]]:
        """Places of the classes that share a call, and their tensors.

        Those share one that have equal numbers of shots and of fitted images.
        """
        tensors = [self._tensors(support) for support in supports.values()]
        alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for place, parts in enumerate(tensors):
            alike.setdefault(tuple(part.shape for part in parts.values()), []).append(place)
        return [
            (places, {name: np.stack([tensors[k][name] for k in places]) for name in self._asked})
            for places in alike.values()
        ]

    def _tensors(self, support: Support) -> dict[str, npt.NDArray[Any]]:
        """What the graph `query` reads of a support, by name."""
        found: dict[str, Tensor] = {}
        for name in self._asked:
            if name in ("foreground", "background"):
                found[name] = getattr(support, name)
            elif name.startswith("fit_"):
                assert support.fit is not None
                part = name.removeprefix("fit_")
                if part in ("tokens", "sides"):
                    found[name] = torch.cat([getattr(shot, part) for shot in support.fit.shots])
                else:
                    found[name] = getattr(support.fit, part)[0]
            else:
                part = name.rstrip("_0123456789")
                level = self._ends.index(name.removeprefix(part))
                found[name] = torch.stack([shot[level] for shot in getattr(support, part)])
        return {name: tensor.numpy() for name, tensor in found.items()}

    def _map(
        self,
        image: Pixels,
        groups: Sequence[tuple[list[int], Mapping[str, npt.NDArray[Any]]]],
        supports: Mapping[str, Support],
    ) -> tuple[Tensor, Tensor]:
        """The maps [N, H, W] of an image, and the scores [N]."""
        maps = torch.empty(len(supports), *image.shape[:2])
        scores = torch.empty(len(supports))
        for places, tensors in groups:
            found = self._graphs.query({"image": image, **tensors})
            maps[places] = torch.from_numpy(found["probability"])
            scores[places] = torch.from_numpy(found["score"])
        for name, probabilities in zip(supports, maps, strict=True):
            if not probabilities.isfinite().all():
                raise DataError(
                    f"the model's output for support {name!r} is not finite: encode the support "
                    "again, or export a model with other weights"
                )
        return maps, scores


def _grids(levels: Sequence[Sequence[object]]) -> str:
    """The token grids of levels, for people."""
    return "+".join("x".join(map(str, grid)) for grid in levels)
