"""The photographs that are installed with fsdino, each the support for another one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fsdino.models import zoo
from fsdino.models.segmenter import Segmenter
from fsdino.sample_photographs import Sample

Mask = npt.NDArray[np.bool_]

TRAINING_FREE = "training-free"
EVERYTHING = "everything is foreground"


@dataclass(frozen=True)
class PhotographAnswer:
    """The masks found in one photograph, given another with the same kind of object.

    Attributes:
        support: the marked example.
        query: the photograph that is segmented, with the true mask.
        masks: bool [H, W] by method: the model first, then training-free if that differs.
        iou: with the truth, by method; EVERYTHING last.
        quality: how well the model segments the support by itself; None if it cannot tell.
        encode_seconds: time of the model for the support, with its quality.
        segment_seconds: time of the model for the query.
    """

    support: Sample
    query: Sample
    masks: Mapping[str, Mask]
    iou: Mapping[str, float]
    quality: float | None
    encode_seconds: float
    segment_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as plain data for JSON."""
        return {
            "support": self.support.name,
            "query": self.query.name,
            "iou": [{"method": method, "iou": value} for method, value in self.iou.items()],
            "quality": self.quality,
            "encode_seconds": self.encode_seconds,
            "segment_seconds": self.segment_seconds,
        }


def methods(name: str, model: Segmenter) -> dict[str, Segmenter]:
    """A model under its name, and its encoder alone.

    Not where the model is only that, nor where the encoder has several grids, as HSNet's has.
    """
    if model.config.variant == "training_free" or len(model.encoder.levels) > 1:
        return {name: model}
    return {name: model, TRAINING_FREE: zoo.training_free(model)}


def answers(
    name: str, model: Segmenter, photographs: Mapping[str, Sample]
) -> Iterator[PhotographAnswer]:
    """Look for the object of every photograph in its `query`, in their order.

    Args:
        name: name of the model.
        model: the model; its encoder alone is added if the model has other parts.
        photographs: as `samples()` returns them.
    """
    asked = methods(name, model)
    for support in photographs.values():
        yield answer(asked, support, photographs[support.query])


def answer(asked: Mapping[str, Segmenter], support: Sample, query: Sample) -> PhotographAnswer:
    """Look for the support's object in the query, by every method of `asked`."""
    truth = np.asarray(query.mask) == 255
    masks: dict[str, Mask] = {}
    qualities, times = [], []
    for method, model in asked.items():
        began = time.perf_counter()
        # A low quality is shown.
        encoded = model.encode_support(support.image, support.mask, quality=True, warn=False)
        qualities.append(encoded.quality)
        between = time.perf_counter()
        masks[method] = model.segment(query.image, encoded).mask
        times.append((between - began, time.perf_counter() - between))
    scores = {method: iou(mask, truth) for method, mask in masks.items()}
    scores[EVERYTHING] = iou(np.ones_like(truth), truth)
    return PhotographAnswer(support, query, masks, scores, qualities[0], *times[0])


def iou(prediction: Mask, truth: Mask) -> float:
    """Intersection over union of two masks [H, W]."""
    return float((prediction & truth).sum() / max((prediction | truth).sum(), 1))
