"""The answer for one image: masks, labels and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fsdino.models.instances import Instance, Split, find_instances
from fsdino.overlay import overlay

LEAST_SCORE = 0.1  # below it, a class is not found
_BAND = 2**22  # pixels whose labels are found at once


@dataclass(frozen=True)
class Segmentation:
    """The answer for one query image of H x W pixels.

    Attributes:
        image: uint8 [H, W, 3], the query as it was read.
        probabilities: float32 [N, H, W] in [0, 1], one map per support.
        names: the N supports' names; ("foreground",) for a single unnamed one.
        threshold: probability from which a pixel belongs to a mask.
        scores: N numbers in [0, 1]: how likely it is that each support's class is in the image at
            all. A class below 0.1 is not found: no pixel of the mask or of the labels is its own,
            while its probabilities stay as they are.
    """

    image: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.float32]
    names: tuple[str, ...]
    threshold: float
    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """In [0, 1], the highest of `scores`."""
        return max(self.scores)

    @property
    def founds(self) -> tuple[bool, ...]:
        """Whether each of the N classes is in the image."""
        return tuple(score >= LEAST_SCORE for score in self.scores)

    @property
    def found(self) -> bool:
        """Whether any of the classes is in the image: else the mask is empty."""
        return any(self.founds)

    @property
    def probability(self) -> npt.NDArray[np.float32]:
        """float32 [H, W] in [0, 1]: the highest over the supports."""
        return self.probabilities.max(0)  # type: ignore[no-any-return]

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """bool [H, W]: where any support's class is, of those that were found."""
        inside = np.zeros(self.probabilities.shape[1:], np.bool_)
        for place in self._places():
            inside |= self.probabilities[place] >= self.threshold
        return inside

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64 [H, W]: 0 is background, i the class `names[i - 1]`.

        Of the classes that were found, that of the highest probability, where that passes the
        threshold.
        """
        return self.compact_labels().astype(np.int64)

    def compact_labels(self) -> npt.NDArray[np.integer[Any]]:
        """`labels` in the smallest unsigned type, which large images need: [H, W]."""
        kind = np.min_scalar_type(len(self.names))
        labels = np.zeros(self.probabilities.shape[1:], kind)
        places = self._places()
        if not places:
            return labels
        numbers = np.array(places, kind) + kind.type(1)
        step = max(_BAND // max(labels.shape[1], 1), 1)
        for top in range(0, len(labels), step):
            band = self.probabilities[:, top : top + step]
            if len(places) < len(band):
                band = band[places]
            found = numbers[band.argmax(0)]
            np.copyto(labels[top : top + step], found, where=band.max(0) >= self.threshold)
        return labels

    def _places(self) -> list[int]:
        """Of the classes that were found."""
        return [place for place, found in enumerate(self.founds) if found]

    def instances(self, *, split: Split = "connected", min_area: int = 1) -> list[Instance]:
        """The objects of the classes that were found, class by class, each from top to bottom.

        A pixel belongs to one object at most: that of its label.

        Args:
            split: "connected" takes the regions whose pixels touch, also diagonally; "watershed"
                also cuts a region at its necks, where objects of one class touch.
            min_area: number of pixels from which an object counts; of 1, every object does.

        Raises:
            UsageError: unknown `split`, `min_area` below 1.
        """
        labels, found = self.compact_labels(), list[Instance]()
        for place, name in enumerate(self.names):
            mask, probability = labels == place + 1, self.probabilities[place]
            found += find_instances(mask, probability, name, split=split, min_area=min_area)
        return found

    def overlay(self) -> Image.Image:
        """The query with the classes drawn over it."""
        return overlay(self.image, self.compact_labels())
