"""Mask PNGs of COCO-20i, rasterised from COCO's own annotations, once, into a folder.

A pixel is the contiguous class id + 1 and 0 elsewhere. Later annotations lie over earlier ones,
crowds included. Needs pycocotools, the extra `train`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fsdino.data.files import Report
from fsdino.data.lists import make_folder
from fsdino.errors import DataError, UsageError
from fsdino.files import atomic_write
from fsdino.images import write_png

logger = logging.getLogger("fsdino.data")

# In a folder of masks: they were rasterised here, and are not the published ones.
RASTERISED_FILE = "rasterised.json"
_CLASSES = 80
_LEAST_COORDINATES = 6


class Annotations:
    """One `instances_*.json`, parsed: some seconds, and some GB for the training set.

    Raises:
        UsageError: there is no such file.
        DataError: it is damaged, or not COCO's 80 classes.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            data = json.loads(file.read_bytes())
            numbers = sorted(int(category["id"]) for category in data["categories"])
            self.images: dict[str, dict[str, Any]] = {
                Path(image["file_name"]).stem: image
                for image in sorted(data["images"], key=lambda image: int(image["id"]))
            }
            self.by_image: dict[int, list[dict[str, Any]]] = {}
            for annotation in data["annotations"]:
                self.by_image.setdefault(annotation["image_id"], []).append(annotation)
        except FileNotFoundError as error:
            raise UsageError(f"{file}: no such file; get annotations_trainval2014.zip") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file}: damaged, or no COCO annotations ({error!r}); get "
                "annotations_trainval2014.zip again"
            ) from error
        if len(numbers) != _CLASSES:
            raise DataError(
                f"{file}: {len(numbers)} classes, COCO has {_CLASSES}; get the original"
            )
        self.contiguous: Mapping[int, int] = {number: i for i, number in enumerate(numbers)}

    def labels(self, stem: str) -> npt.NDArray[np.uint8]:
        """Rasterise an image's annotations, uint8 [H, W].

        Raises:
            DataError: the file does not know the image, or an annotation is damaged.
            UsageError: pycocotools is not installed.
        """
        image = self.images.get(stem)
        if image is None:
            raise DataError(f"{self.file}: knows no image {stem}; lists and annotations differ")
        labels = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in self.by_image.get(image["id"], ()):
            try:
                mask = _rasterise(annotation["segmentation"], *labels.shape)
                labels[mask] = self.contiguous[annotation["category_id"]] + 1
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise self._damaged(annotation, error) from error
        return labels

    def _damaged(self, annotation: Mapping[str, Any], error: Exception) -> DataError:
        return DataError(
            f"{self.file}: annotation {annotation.get('id')} is damaged ({error!r}); get "
            "annotations_trainval2014.zip again"
        )


def rasterise(file: Path, stems: Sequence[str], folder: Path, report: Report | None = None) -> int:
    """Write the masks that a folder does not hold yet; returns how many were written.

    Each file is written whole or not at all, so that an interrupted call goes on where it was.

    Args:
        file: `instances_*.json`.
        stems: names of the images, without folder and suffix.
        folder: of the masks; created if missing.
        report: called after each mask.

    Raises:
        UsageError: pycocotools or `file` is missing.
        DataError: an image without entry, a damaged file.
        FsdinoError: a mask cannot be written.
    """
    missing = [stem for stem in dict.fromkeys(stems) if not (folder / f"{stem}.png").exists()]
    if not missing:
        return 0
    _mask_api()
    make_folder(folder)
    with atomic_write(folder / RASTERISED_FILE) as temporary:
        temporary.write_text(json.dumps({"from": file.name}) + "\n")
    logger.info("rasterising %d masks of %s into %s", len(missing), file.name, folder)
    annotations = Annotations(file)
    for done, stem in enumerate(missing, 1):
        write_png(folder / f"{stem}.png", annotations.labels(stem))
        if report is not None:
            report(done, len(missing))
    return len(missing)


def _rasterise(segmentation: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    """One annotation, polygons or run lengths, as bool [H, W]."""
    api = _mask_api()
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= _LEAST_COORDINATES]
        if not polygons:
            return np.zeros((height, width), np.bool_)
        encoded = api.merge(api.frPyObjects(polygons, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = api.frPyObjects(segmentation, height, width)
    else:
        encoded = segmentation
    mask: npt.NDArray[np.bool_] = api.decode(encoded).astype(np.bool_)
    return mask


def _mask_api() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UsageError(
            "COCO's masks are missing and rasterising them needs pycocotools: "
            'pip install "fsdino[train]"'
        ) from error
    return mask
