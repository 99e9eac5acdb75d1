"""The answer for one image: masks, labels and scores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fsdino import files
from fsdino.errors import UsageError, printable
from fsdino.images import encode_image
from fsdino.models import exports
from fsdino.models.instances import Instance, Split, find_instances
from fsdino.overlay import encode_overlay, mask_image, named_overlay, shrunk

if TYPE_CHECKING:
    import supervision

LEAST_SCORE = 0.1  # below it, a class is not found
_MOST_LABELS = 255  # classes that fit an 8-bit palette
_BAND = 2**22  # pixels whose labels are found at once
_SHOWN = 3  # classes in a line
_SHOWN_SIDE = 1024  # pixels of the picture in a notebook


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """The answer for one query image of H x W pixels.

    `numpy.asarray` of it is the mask, a notebook shows the overlay, and `==` compares identity: see
    `same_as`.

    Attributes:
        image: uint8 [H, W, 3], the query as it was read.
        probabilities: float32 [N, H, W] in [0, 1], one map per support.
        names: the N supports' names; ("foreground",) for a single unnamed one.
        threshold: probability from which a pixel belongs to a mask.
        scores: N numbers in [0, 1]: how likely it is that each support's class is in the image at
            all. A class below 0.1 is not found: no pixel of the mask or of the labels is its own,
            while its probabilities stay as they are.

    Example:
        >>> import fsdino
        >>> coins, model = fsdino.samples()["coins"], fsdino.load()
        >>> support = model.encode_support(coins.image, coins.mask)
        >>> result = model.segment(coins.image, {"coin": support})
        >>> result.mask.shape, result.names, result.found
        ((150, 384), ('coin',), True)
    """

    image: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.float32]
    names: tuple[str, ...]
    threshold: float
    scores: tuple[float, ...]

    def __repr__(self) -> str:
        """One line: size, and what was found of the first classes."""
        height, width = self.probabilities.shape[1:]
        shares = self._shares()
        parts = []
        for name, score, found, share in zip(
            self.names[:_SHOWN], self.scores, self.founds, shares, strict=False
        ):
            area = f", {100 * share:.1f} % of the image" if found else ""
            state = "found" if found else "not found"
            parts.append(f"{printable(name)}: {state}, score {score:.2f}{area}")
        more = len(self.names) - len(parts)
        parts += [f"{more} more"] if more > 0 else []
        return f"{type(self).__name__}({height}x{width}, {'; '.join(parts)})"

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        """The mask, bool [H, W], or of another type.

        Raises:
            ValueError: `copy=False`; the mask is computed at each call.
        """
        if copy is False:
            raise ValueError("a mask cannot be had without a copy: it is computed at each call")
        return self.mask if dtype is None else self.mask.astype(dtype, copy=False)

    def same_as(self, other: object) -> bool:
        """Whether image, probabilities, names, threshold and scores are the same."""
        return (
            isinstance(other, Segmentation)
            and self.names == other.names
            and self.threshold == other.threshold
            and self.scores == other.scores
            and np.array_equal(self.image, other.image)
            and np.array_equal(self.probabilities, other.probabilities)
        )

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

    def to_coco(
        self,
        image_id: int,
        categories: Mapping[str, int] | None = None,
        *,
        first_id: int = 1,
        split: Split = "connected",
        min_area: int = 1,
    ) -> list[dict[str, Any]]:
        """The objects as COCO annotations; `fsdino.export_coco` makes a whole file.

        Args:
            image_id: of the query.
            categories: ids by class name; None numbers `names` from 1 on.
            first_id: id of the first annotation; the others count on from there.
            split, min_area: see `instances`.

        Returns:
            Plain data for JSON: `segmentation` is the mask in compressed run lengths, pixel for
            pixel, and `score` the object's mean probability.

        Raises:
            UsageError: a class that was found has no id; see also `instances`.
        """
        ids = exports.numbered(self.names) if categories is None else categories
        found = self.instances(split=split, min_area=min_area)
        return exports.coco_annotations(found, image_id, ids, first_id)

    def to_yolo(
        self,
        classes: Sequence[str] | None = None,
        *,
        split: Split = "connected",
        min_area: int = 1,
    ) -> str:
        """The objects as a label file of YOLO: lines `class x y x y ...`, shares of W and H.

        Polygons run along pixel edges and have an IoU of 0.97 with the mask, so that a single
        pixel has one as well; holes are cut open.

        Args:
            classes: class names in the order of their numbers, from 0 on; None takes `names`.
            split, min_area: see `instances`.

        Raises:
            UsageError: a class that was found is not among `classes`; see also `instances`.
        """
        found = self.instances(split=split, min_area=min_area)
        return exports.yolo_lines(found, self.names if classes is None else classes)

    def to_labelme(
        self, image_path: str = "", *, split: Split = "connected", min_area: int = 1
    ) -> dict[str, Any]:
        """The objects as the content of a LabelMe file, with polygons as in `to_yolo`, in pixels.

        Args:
            image_path: of the query, from the folder of the LabelMe file, which needs it to show
                the image.
            split, min_area: see `instances`.

        Raises:
            UsageError: see `instances`.
        """
        found = self.instances(split=split, min_area=min_area)
        return exports.labelme_file(found, self._size, image_path)

    def to_label_studio(
        self,
        image: str,
        *,
        from_name: str = "label",
        to_name: str = "image",
        split: Split = "connected",
        min_area: int = 1,
    ) -> dict[str, Any]:
        """The objects as a task of Label Studio with a prediction, with polygons as in `to_yolo`.

        Args:
            image: address of the query as Label Studio finds it.
            from_name, to_name: names of the `PolygonLabels` and `Image` tags in its configuration.
            split, min_area: see `instances`.

        Raises:
            UsageError: see `instances`.
        """
        found = self.instances(split=split, min_area=min_area)
        return exports.label_studio_task(found, image, from_name=from_name, to_name=to_name)

    def to_supervision(
        self, *, split: Split = "connected", min_area: int = 1
    ) -> supervision.Detections:
        """The objects as `supervision.Detections`, whose class ids are places in `names`.

        Raises:
            UsageError: the package supervision is not installed; too many objects for a mask of
                the whole image each; see also `instances`.
        """
        found = self.instances(split=split, min_area=min_area)
        return exports.detections(found, self._size, self.names)

    @property
    def _size(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    def overlay(self) -> Image.Image:
        """The query with the classes drawn over it; of several, with their names."""
        return named_overlay(self.image, self.compact_labels(), self.names)

    def _repr_png_(self) -> bytes:
        """The overlay as a notebook shows it, at most 1,024 pixels wide and high."""
        return encode_image(shrunk(self.overlay(), _SHOWN_SIDE), "PNG")

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write mask.png, overlay.jpg and result.json, each whole or not at all.

        The mask has 0 and 255, or with several classes one label each in an 8-bit palette. The
        overlay is overlay.png where the image is too long for JPEG. result.json holds size,
        threshold, and each class with its label, score and share of the image.

        Args:
            folder: created if missing; a result that is in it is replaced.

        Returns:
            The three files.

        Raises:
            UsageError: more than 255 classes, or a file in the folder's place.
            FsdinoError: the folder cannot be written.
        """
        if len(self.names) > _MOST_LABELS:
            raise UsageError(
                f"{len(self.names)} classes: at most {_MOST_LABELS} fit one label image"
            )
        files.make_folder(folder, "save the result elsewhere")
        labels = self.compact_labels()
        kind, drawn = encode_overlay(named_overlay(self.image, labels, self.names))
        paths = [Path(folder) / name for name in ("mask.png", f"overlay.{kind}", "result.json")]
        files.write_bytes(paths[0], encode_image(mask_image(labels, len(self.names)), "PNG"))
        files.write_bytes(paths[1], drawn)
        files.write_json(paths[2], self._described(paths))
        return paths

    def _described(self, paths: list[Path]) -> dict[str, Any]:
        """The content of result.json."""
        rows = zip(self.names, self.scores, self.founds, self._shares(), strict=True)
        return {
            "height": self.probabilities.shape[1],
            "width": self.probabilities.shape[2],
            "threshold": self.threshold,
            "mask": paths[0].name,
            "overlay": paths[1].name,
            "classes": [
                {
                    "name": name,
                    "label": label,
                    "score": round(float(score), 4),
                    "found": found,
                    "foreground": round(share, 6),
                }
                for label, (name, score, found, share) in enumerate(rows, 1)
            ],
        }

    def _shares(self) -> list[float]:
        """Of the image, that each class's label has."""
        labels = self.compact_labels()
        counts = np.bincount(labels.ravel(), minlength=len(self.names) + 1)[1:]
        return [int(count) / max(labels.size, 1) for count in counts]
