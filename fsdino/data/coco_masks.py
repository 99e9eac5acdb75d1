"""Mask PNGs of COCO-20i, rasterised from COCO's own annotations, once, into a folder.

A pixel is the contiguous class id + 1, and 0 elsewhere. Later annotations lie over earlier ones,
crowds included. Annotations are untrusted input, and pycocotools trusts every number: they
are checked before anything is drawn. Polygons need pycocotools, the extra `train`.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from fsdino.data.lists import make_folder
from fsdino.errors import DataError, UsageError, shown
from fsdino.files import read_json, write_json
from fsdino.images import write_png
from fsdino.progress import Report

logger = logging.getLogger("fsdino.data")

# In a folder of masks: they were rasterised here, and are not the published ones.
RASTERISED_FILE = "rasterised.json"
_REMEDY = "get annotations_trainval2014.zip again"
_CLASSES = 80
_LEAST_COORDINATES = 6
_MOST_BYTES = 2**31  # of instances_*.json; that of train2014 has 3.3e8
_MOST_PIXELS = 2**28  # of an image
# Units of a fifth of a pixel along a polygon's edges, which pycocotools keeps 16 bytes for each.
_MOST_STEPS = 2**24


class Annotations:
    """One `instances_*.json`, parsed: some seconds, and some GB for the training set.

    Attributes:
        file: where it is.
        images: entries of images by file name without suffix.

    Raises:
        UsageError: the file does not exist.
        DataError: it is damaged, or not COCO's 80 classes.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            data = _expect(dict, read_json(file, most=_MOST_BYTES), "the file")
            self.images = self._read_images(data)
            self.contiguous = self._read_categories(data)
            self._by_image = self._read_annotations(data)
        except FileNotFoundError as error:
            raise UsageError(f"{file}: no such file; get annotations_trainval2014.zip") from error
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}); {_REMEDY}") from error
        except ValueError as error:
            reason = f"damaged, or no COCO annotations ({error}); {_REMEDY}"
            raise DataError(f"{file}: {reason}") from error

    def _read_images(self, data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for entry in _list(data, "images"):
            name = f"image {entry.get('id')!r}"
            _integer(entry, "id", name)
            height, width = (_integer(entry, key, name, 1) for key in ("height", "width"))
            if height * width > _MOST_PIXELS:
                raise ValueError(f"{name} is {width} × {height} pixels, too large for an image")
            stem = PurePosixPath(_expect(str, entry.get("file_name"), f"file_name of {name}")).stem
            if stem in found:
                raise ValueError(f"{name} has the file name of image {found[stem]['id']}")
            found[stem] = entry
        return found

    def _read_categories(self, data: Mapping[str, Any]) -> Mapping[int, int]:
        numbers = [_integer(entry, "id", "a category") for entry in _list(data, "categories")]
        if len(numbers) != _CLASSES or len(set(numbers)) != _CLASSES:
            raise DataError(
                f"{self.file}: {len(set(numbers))} classes, COCO has {_CLASSES}; get the original"
            )
        return {number: i for i, number in enumerate(sorted(numbers))}

    def _read_annotations(self, data: Mapping[str, Any]) -> dict[int, list[dict[str, Any]]]:
        found: dict[int, list[dict[str, Any]]] = {entry["id"]: [] for entry in self.images.values()}
        if len(found) < len(self.images):
            raise ValueError("two images have one id")
        for annotation in _list(data, "annotations"):
            image, category = annotation.get("image_id"), annotation.get("category_id")
            if type(image) is not int or image not in found:
                raise self._damaged(annotation, f"image_id {shown(image)} is not that of an image")
            if type(category) is not int or category not in self.contiguous:
                raise self._damaged(annotation, f"category_id {shown(category)} is not a category")
            if annotation.get("iscrowd", 0) not in (0, 1):
                raise self._damaged(annotation, f"iscrowd {shown(annotation['iscrowd'])}")
            found[image].append(annotation)
        return found

    def classes(self, stem: str) -> set[int]:
        """Contiguous ids of the classes that are annotated in an image."""
        return {self.contiguous[a["category_id"]] for a in self._annotations(stem)}

    def check(self, stem: str, size: tuple[int, int]) -> None:
        """Check an image's annotations without drawing them.

        Args:
            stem: the image's name.
            size: its (H, W).

        Raises:
            DataError: the file does not list the image, or lists it with another size, or an
                annotation is damaged.
        """
        annotations = self._annotations(stem)
        if self._size(stem) != size:
            height, width = self._size(stem)
            raise DataError(
                f"{self.file}: {stem} is {width} × {height} there, and the image is {size[1]} × "
                f"{size[0]}; get both from one source"
            )
        for annotation in annotations:
            self._outline(annotation, size)

    def labels(self, stem: str) -> npt.NDArray[np.uint8]:
        """Rasterise an image's annotations, uint8 [H, W].

        Raises:
            DataError: the file does not list the image, or an annotation is damaged.
            UsageError: pycocotools is not installed.
        """
        annotations = self._annotations(stem)
        labels = np.zeros(self._size(stem), np.uint8)
        for annotation in annotations:
            mask = self._outline(annotation, labels.shape)()
            labels[mask] = self.contiguous[annotation["category_id"]] + 1
        return labels

    def _annotations(self, stem: str) -> Sequence[dict[str, Any]]:
        image = self.images.get(stem)
        if image is None:
            raise DataError(f"{self.file}: has no image {stem}; lists and annotations differ")
        return self._by_image[image["id"]]

    def _size(self, stem: str) -> tuple[int, int]:
        return self.images[stem]["height"], self.images[stem]["width"]

    def _outline(
        self, annotation: Mapping[str, Any], size: tuple[int, int]
    ) -> Callable[[], npt.NDArray[np.bool_]]:
        """Check an annotation; returns a function that draws it, bool [H, W]."""
        try:
            return outline(annotation.get("segmentation"), size)
        except ValueError as error:
            raise self._damaged(annotation, str(error)) from error

    def _damaged(self, annotation: Mapping[str, Any], reason: str) -> DataError:
        number = shown(annotation.get("id"))
        return DataError(f"{self.file}: annotation {number} is damaged ({reason}); {_REMEDY}")


def outline(segmentation: Any, size: tuple[int, int]) -> Callable[[], npt.NDArray[np.bool_]]:
    """Check a segmentation; returns a function that draws it, bool [H, W].

    Drawing polygons raises UsageError where pycocotools is not installed.

    Args:
        segmentation: polygons or run lengths, as COCO writes them.
        size: (H, W) of the image.

    Raises:
        ValueError: damaged; a reason of one line.
    """
    if isinstance(segmentation, list):
        polygons = check_polygons(segmentation, size)
        return lambda: _draw(polygons, size)
    counts = run_lengths(segmentation, size)
    return lambda: _fill(counts, size)


def plain(segmentation: Any) -> Any:
    """A pickled segmentation as JSON would hold it: lists for arrays, text for bytes."""
    if type(segmentation) is list:
        return [one.tolist() if type(one) is array else one for one in segmentation]
    if type(segmentation) is not dict:
        return segmentation
    found = dict(segmentation)
    if type(found.get("counts")) is bytes:
        found["counts"] = found["counts"].decode("latin-1")  # of which only ASCII passes the check
    if type(found.get("size")) is tuple:
        found["size"] = list(found["size"])
    return found


def check_polygons(polygons: Sequence[Any], size: tuple[int, int]) -> list[list[float]]:
    """The polygons that are drawn: x and y in turn, in pixels.

    Those of fewer than three points cover nothing. Points may lie outside of an image of (H, W), by
    its own height and width: COCO's lie at most some pixels outside.

    Raises:
        ValueError: something else than numbers, an odd count of them, points far outside, or edges
            that are too long altogether; a reason of one line.
    """
    height, width = size
    drawn = []
    for polygon in polygons:
        _expect(list, polygon, "a polygon")
        if len(polygon) % 2:
            raise ValueError(f"a polygon has {len(polygon)} coordinates, x and y are an even count")
        for place, value in enumerate(polygon):
            limit = height if place % 2 else width
            if type(value) not in (int, float) or not -limit <= value <= 2 * limit:
                axis = "y" if place % 2 else "x"
                raise ValueError(
                    f"{axis} {shown(value)} of a polygon is far outside an image of {width} × "
                    f"{height}"
                )
        if len(polygon) >= _LEAST_COORDINATES:
            points = np.array(polygon, np.float64).reshape(-1, 2)
            edges = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1)
            if 5 * edges.sum() > _MOST_STEPS:
                raise ValueError(f"the edges of a polygon have {edges.sum():.0f} pixels altogether")
            drawn.append([float(value) for value in polygon])
    return drawn


def run_lengths(segmentation: Any, size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """The lengths of runs down the columns, background and foreground in turn.

    Args:
        segmentation: COCO's run-length encoding: `size` [H, W] and `counts`, a list or the text
            that pycocotools compresses it to.
        size: (H, W) of the image.

    Raises:
        ValueError: another size, or runs that are not the image's pixels exactly; a reason of one
            line.
    """
    _expect(dict, segmentation, "the segmentation")
    counts = segmentation.get("counts")
    own = segmentation.get("size")
    if type(own) is not list or any(type(n) is not int for n in own) or tuple(own) != size:
        raise ValueError(f"size {shown(own)} is not [{size[0]}, {size[1]}], that of its image")
    pixels = size[0] * size[1]
    if type(counts) is str:
        counts = _decompress(counts, pixels)
    if type(counts) is not list or len(counts) > 2 * pixels + 2:
        raise ValueError("counts is neither a list nor a text, or too long")
    for count in counts:
        if type(count) is not int or not 0 <= count <= pixels:
            raise ValueError(f"a run of {shown(count)} pixels in an image of {pixels:,}")
    if sum(counts) != pixels:
        raise ValueError(f"its runs have {sum(counts):,} pixels, its image {pixels:,}")
    return np.array(counts, np.int64)


def _decompress(text: str, most: int) -> list[int]:
    """Counts of pycocotools' text: 5 bits a letter, the lowest first, each but the first three the
    difference to the last but one (`rleFrString` in cocoapi's maskApi.c)."""
    counts: list[int] = []
    value = bits = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or bits > 35:
            raise ValueError(f"counts holds {letter!r} where run lengths do not")
        value |= (code & 31) << bits
        bits += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << bits
        if len(counts) > 2:
            value += counts[-2]
        counts.append(value)
        if not 0 <= value <= most:
            raise ValueError(f"a run of {value} pixels in an image of {most:,}")
        value = bits = 0
    if bits:
        raise ValueError("counts ends within a number")
    return counts


def _fill(counts: npt.NDArray[np.int64], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Runs as bool [H, W]."""
    foreground = np.arange(len(counts)) % 2 == 1
    return np.repeat(foreground, counts).reshape(size[1], size[0]).T


def _draw(polygons: list[list[float]], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Polygons as bool [H, W]."""
    if not polygons:
        return np.zeros(size, np.bool_)
    api = _mask_api()
    mask: npt.NDArray[np.bool_] = api.decode(api.merge(api.frPyObjects(polygons, *size))).astype(
        np.bool_
    )
    return mask


def _expect(kind: type[Any], value: Any, name: str) -> Any:
    if type(value) is not kind:
        words: dict[Any, str] = {dict: "an object", list: "a list", str: "a text"}
        raise ValueError(f"{name} is not {words[kind]}")
    return value


def _list(data: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = _expect(list, data.get(key), f'"{key}"')
    for entry in entries:
        _expect(dict, entry, f'an entry of "{key}"')
    return entries


def _integer(entry: Mapping[str, Any], key: str, name: str, least: int = 0) -> int:
    value = entry.get(key)
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{key} {shown(value)} of {name} is not a whole number from {least} on")
    return value


def rasterise(file: Path, stems: Sequence[str], folder: Path, report: Report | None = None) -> int:
    """Write the masks that are missing in a folder; returns how many were written.

    Each file is written whole or not at all: an interrupted call continues where it stopped.

    Args:
        file: `instances_*.json`.
        stems: names of the images, without folder and suffix.
        folder: folder of the masks; created if missing.
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
    annotations = Annotations(file)
    make_folder(folder)
    write_json(folder / RASTERISED_FILE, {"from": file.name})
    logger.info("rasterising %d masks of %s into %s", len(missing), file.name, folder)
    for done, stem in enumerate(missing, 1):
        write_png(folder / f"{stem}.png", annotations.labels(stem))
        if report is not None:
            report(done, len(missing))
    return len(missing)


def _mask_api() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UsageError(
            'drawing masks from polygons needs pycocotools: pip install "fsdino[train]"'
        ) from error
    return mask
