"""Videos: objects followed from frame to frame, with one encoder pass a frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fsdino.errors import UsageError
from fsdino.images import ImageLike, read_image
from fsdino.models import companions
from fsdino.models.encoders import Features
from fsdino.models.segmentation import Segmentation
from fsdino.models.segmenter import Segmenter
from fsdino.models.shots import PooledShot, SupportFeatures
from fsdino.models.supports import Support


def track(
    model: Segmenter,
    frames: Iterable[ImageLike],
    supports: Mapping[str, Support],
    *,
    memory: int = 0,
    threshold: float | None = None,
) -> Iterator[Segmentation]:
    """Segment the frames of a video, one after another, all objects together; see `Tracker`.

    Args:
        model: in eval mode.
        frames: images as in `Segmenter.segment`, drawn one by one.
        supports: what each object looks like, by name; from other photographs, or from frames.
        memory, threshold: as in `Tracker`.

    Raises:
        UsageError: as in `Tracker`, at the call.
        DataError: a frame that cannot be used, when its turn comes.

    Example:
        >>> import fsdino
        >>> cup, model = fsdino.samples()["teacup"], fsdino.load()
        >>> supports = {"cup": model.encode_support(cup.image, cup.mask)}
        >>> frames = (cup.image.rotate(angle) for angle in (0, 4, 8))  # as open_clip gives them
        >>> [result.found for result in fsdino.track(model, frames, supports, memory=1)]
        [True, True, True]
    """
    tracker = Tracker(model, supports, memory=memory, threshold=threshold)
    return map(tracker.segment, frames)


class Tracker:
    """Follows objects through a video.

    Each frame is asked for all objects after one encoder pass, and a pixel goes to the object of
    the highest probability. Objects that were marked in different photographs are background to
    each other, as in `Segmenter.segment`.

    With a memory, the last frames join an object's support with the masks that were found in them,
    as in DAVIS evaluation; frames without a pixel of an object do not join it. The memory takes the
    tokens that the frame was segmented with. It starts empty: the first frame is answered by the
    supports alone, wherever these come from.

    Args:
        model: in eval mode.
        supports: of `model`, by the objects' names. A close-up that `encode_support` added to a
            small object's single image counts until frames join it.
        memory: number of last frames that join the supports; 0 uses the supports alone.
        threshold: probability from which a pixel belongs to an object, in (0, 1); None takes the
            model's.

    Raises:
        UsageError: no support, a support of another model, a threshold outside of (0, 1), a
            negative memory.
        DataError: a damaged support.
    """

    def __init__(
        self,
        model: Segmenter,
        supports: Mapping[str, Support],
        *,
        memory: int = 0,
        threshold: float | None = None,
    ) -> None:
        check_memory(memory)
        model.segment([], supports, threshold=threshold)  # checks the arguments
        dtype = next(model.parameters()).dtype
        self._model = model
        self._threshold = model.config.threshold if threshold is None else threshold
        moved = {name: s.to(model.device, dtype) for name, s in supports.items()}
        self._supports = companions.beside(model, supports, moved)
        self._others = companions.others(moved) if memory else {}
        self._memory: deque[Mapping[str, PooledShot]] = deque(maxlen=memory)

    @property
    def memory(self) -> int:
        """Number of last frames that join the supports."""
        return self._memory.maxlen or 0

    @torch.inference_mode()
    def segment(self, frame: ImageLike) -> Segmentation:
        """The answer for the next frame.

        Raises:
            UsageError, DataError: the frame cannot be used; the memory stays as it was.
        """
        array = read_image(frame, "frame")
        features = self._model.encode_image(array)
        asked = {name: self._asked(name) for name in self._supports}
        found = self._model.segment_encoded(array, features, asked, self._threshold)
        if self.memory:
            self._join(features, found.compact_labels())
        return found

    @torch.inference_mode()
    def remember(self, frame: ImageLike, labels: npt.NDArray[Any]) -> None:
        """Put a frame into the memory that has been segmented before, to go on after it.

        Args:
            frame: as `segment` was given it.
            labels: what it found, `Segmentation.labels`: [H, W].

        Raises:
            UsageError: labels of another size than the frame.
            DataError: the frame cannot be used.
        """
        if not self.memory:
            return
        array = read_image(frame, "frame")
        if labels.shape != array.shape[:2]:
            raise UsageError(
                f"labels {list(labels.shape)} of a frame {list(array.shape[:2])}: pass those that "
                "were found in it"
            )
        self._join(self._model.encode_image(array), labels)

    def _join(self, features: Features, labels: npt.NDArray[Any]) -> None:
        """Keep the frame as a shot of each object that its labels show."""
        shown = np.bincount(labels.ravel(), minlength=len(self._supports) + 1)
        shots = {
            name: self._model.shot(features, labels == place)
            for place, name in enumerate(self._supports, 1)
            if shown[place]
        }
        self._memory.append(shots)

    def _asked(self, name: str) -> SupportFeatures:
        """An object's support and the frames that joined it, with the model's fit to all."""
        support = self._supports[name]
        recent = [shots[name] for shots in self._memory if name in shots]
        if not recent:
            return support.features(1)
        shots = [*support.pooled(), *recent]
        fit = self._model.fit(shots)
        if fit is not None:
            fit = self._model.fit_beside(fit, self._others[name])
        return SupportFeatures.of(shots, fit)


def check_memory(memory: int) -> None:
    """Refuse a negative number of frames.

    Raises:
        UsageError: it is negative.
    """
    if memory < 0:
        raise UsageError(f"memory must be at least 0, got {memory}")
