"""Annotations of photographs as tools write them: LabelMe, COCO and YOLO segments, as masks.

They are read for supports: a few images, drawn at once. Benchmarks' own files are read elsewhere
(`fsdino.data.coco_masks`).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fsdino import files
from fsdino.data.coco_masks import run_lengths
from fsdino.data.layouts import MASK_FOLDERS
from fsdino.errors import DataError, FsdinoError, listed, shown, shown_path
from fsdino.images import Flags, read_image_bytes
from fsdino.yaml_files import read_yaml

MOST_BYTES = 2**28  # of an annotation file; LabelMe's hold the image, too
_REMEDY = "export the annotations again"
_NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")


@dataclass(frozen=True)
class Shape:
    """A region of an image, with the class that it shows.

    Attributes:
        label: name of the class.
        image: the image file.
        file: the annotation file.
        size: (H, W) of the image by that file; None where it does not say.
        draw: takes the image's (H, W), returns bool [H, W].

    `draw` raises a ValueError, of one line, for a damaged shape.
    """

    label: str
    image: Path
    file: Path
    size: tuple[int, int] | None
    draw: Callable[[tuple[int, int]], Flags]


def read_shapes(file: Path, pictures: Sequence[Path], root: Path) -> tuple[str, list[Shape]] | None:
    """The shapes of a JSON file, after the name of its format; None if it is another kind of file.

    Args:
        file: the file.
        pictures: the image files that it may name.
        root: where they were searched, for errors.

    Raises:
        DataError: the file is damaged, or names an image that is not there.
    """
    data = files.read_object(file, _REMEDY, most=MOST_BYTES) if _is_object(file) else None
    if data is None:
        return None
    try:
        if isinstance(data.get("shapes"), list) and "imagePath" in data:
            return "LabelMe", _labelme(file, data, pictures, root)
        if isinstance(data.get("images"), list) and isinstance(data.get("annotations"), list):
            return "COCO", _coco(file, data, pictures, root)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, FsdinoError):
            raise
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{shown_path(file)} is damaged ({reason}): {_REMEDY}") from error
    return None


def _is_object(file: Path) -> bool:
    """Whether a JSON file begins like an object: lists and the like are other programs' files."""
    try:
        with files.open_regular(file) as opened:
            return opened.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    except OSError as error:
        raise DataError(
            f"{shown_path(file)} cannot be read ({error.strerror}): check its permissions"
        ) from error


def _labelme(
    file: Path, data: Mapping[str, Any], pictures: Sequence[Path], root: Path
) -> list[Shape]:
    image = _beside(file, str(data["imagePath"]))
    if image is None:
        image = find_image(str(data["imagePath"]), file, pictures, root)
    size = None
    if data.get("imageHeight") and data.get("imageWidth"):
        size = (int(data["imageHeight"]), int(data["imageWidth"]))
    return [
        Shape(str(entry["label"]), image, file, size, _labelme_shape(entry, place))
        for place, entry in enumerate(data["shapes"], 1)
    ]


def _beside(file: Path, name: str) -> Path | None:
    """The image by its relative path from the file's folder, as LabelMe finds it, if it is there.

    The path may lead out of the folder: files that are kept apart from the images have such paths.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute():
        return None
    try:
        image = file.parent / path
        if not image.is_file():
            return None
        plain = Path(os.path.normpath(image))  # leads elsewhere where a `..` follows a link
        return plain if plain.is_file() and plain.samefile(image) else image
    except (OSError, ValueError):
        return None


def _labelme_shape(entry: Mapping[str, Any], place: int) -> Callable[[tuple[int, int]], Flags]:
    kind = entry.get("shape_type") or "polygon"
    points = _points(entry["points"], f"shape {place}")
    tilted = kind == "oriented_rectangle" and len(points) == 4
    if tilted or (kind == "polygon" and len(points) >= 3):
        return lambda size: fill(points, size)
    if kind == "rectangle" and len(points) in (2, 4):
        (left, top), (right, bottom) = points.min(0), points.max(0)
        box = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        return lambda size: fill(box, size)
    if kind == "circle" and len(points) == 2:
        turns = np.linspace(0, 2 * np.pi, 360, endpoint=False)
        radius = math.dist(*points.tolist())
        circle = points[0] + radius * np.stack([np.cos(turns), np.sin(turns)], 1)
        return lambda size: fill(circle, size)
    if kind == "mask" and len(points) == 2:
        return lambda size: _labelme_mask(str(entry["mask"]), points, size)
    raise ValueError(
        f"shape {place} is a {shown(kind)} of {len(points)} points, which has no area; draw a "
        "polygon, or remove it"
    )


def _labelme_mask(text: str, points: Any, size: tuple[int, int]) -> Flags:
    """A PNG file in base64, that lies at its box."""
    try:
        part = read_image_bytes(base64.b64decode(text, validate=True), "a mask")[:, :, 0] > 0
    except (binascii.Error, DataError) as error:
        raise ValueError(f"a mask is not a PNG image ({error})") from error
    left, top = (round(float(value)) for value in points[0])
    mask = np.zeros(size, np.bool_)
    inside = mask[max(top, 0) : top + part.shape[0], max(left, 0) : left + part.shape[1]]
    inside |= part[max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]]
    return mask


def _coco(file: Path, data: Mapping[str, Any], pictures: Sequence[Path], root: Path) -> list[Shape]:
    entries = {entry["id"]: entry for entry in data["images"]}
    names = {entry["id"]: str(entry["name"]) for entry in data["categories"]}
    found: dict[Any, Path] = {}
    shapes = []
    for annotation in data["annotations"]:
        number, category = annotation["image_id"], annotation["category_id"]
        name = f"annotation {shown(annotation.get('id'))}"
        if number not in entries or category not in names:
            raise ValueError(f"{name} has an image_id or a category_id that the file lacks")
        entry = entries[number]
        if number not in found:
            found[number] = find_image(str(entry["file_name"]), file, pictures, root)
        size = int(entry["height"]), int(entry["width"])
        if not annotation.get("segmentation"):
            raise _only_box(file, name)
        draw = _coco_shape(annotation["segmentation"], name)
        shapes.append(Shape(names[category], found[number], file, size, draw))
    return shapes


def _coco_shape(segmentation: Any, name: str) -> Callable[[tuple[int, int]], Flags]:
    """Polygons, or run lengths as a list or as pycocotools' text."""
    if isinstance(segmentation, dict):

        def runs(size: tuple[int, int]) -> Flags:
            counts = run_lengths(segmentation, size)
            inside = np.arange(len(counts)) % 2 == 1
            return np.repeat(inside, counts).reshape(size[1], size[0]).T

        return runs
    if not isinstance(segmentation, list):
        raise ValueError(f"{name} has a segmentation that is neither polygons nor run lengths")
    parts = [_points(np.reshape(polygon, (-1, 2)), name) for polygon in segmentation]

    def polygons(size: tuple[int, int]) -> Flags:
        mask = np.zeros(size, np.bool_)
        for part in parts:
            mask |= fill(part, size)
        return mask

    return polygons


def read_yolo(file: Path, image: Path, names: Mapping[int, str]) -> list[Shape]:
    """The segments of a YOLO text file: a class's number and a polygon on each line.

    Args:
        file: the file.
        image: the image that it belongs to.
        names: of the classes; others are called by their number.

    Raises:
        DataError: the file is damaged, or has boxes.
    """
    shapes = []
    try:
        text = files.read_bytes(file, MOST_BYTES).decode("utf-8-sig")
        for place, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            number, *values = line.split()
            if len(values) == 4:
                raise _only_box(file, f"line {place}")
            if len(values) < 6 or len(values) % 2:
                raise ValueError(f"line {place} is not a class and a polygon")
            points = _points(np.reshape([float(v) for v in values], (-1, 2)), f"line {place}")
            if points.min() < -0.01 or points.max() > 1.01:
                raise ValueError(f"line {place} has coordinates outside of [0, 1]")
            label = names.get(int(number), str(int(number)))
            shapes.append(Shape(label, image, file, None, _scaled(points)))
    except (ValueError, OSError) as error:
        raise DataError(f"{shown_path(file)} is damaged ({error}): {_REMEDY}") from error
    return shapes


def _only_box(file: Path, name: str) -> DataError:
    return DataError(
        f"{shown_path(file)}: {name} has a box and no outline: export polygons or masks, or pass "
        "the image and its box (--support IMAGE --box X0,Y0,X1,Y1)"
    )


def is_yolo(file: Path) -> bool:
    """Whether a text file begins with numbers: captions and notes lie beside images, too."""
    try:
        with files.open_regular(file) as opened:
            return re.match(rb"\s*\d+[ \t]+-?[\d.]", opened.read(256)) is not None
    except OSError:
        return False


def _scaled(points: Any) -> Callable[[tuple[int, int]], Flags]:
    return lambda size: fill(points * (size[1], size[0]), size)


def yolo_names(folders: Sequence[Path]) -> dict[int, str]:
    """The classes' names from data.yaml, classes.txt or obj.names in one of some folders.

    Raises:
        DataError: that file is damaged.
    """
    for file in (folder / name for folder in folders for name in _NAME_FILES):
        if not file.is_file():
            continue
        try:
            if file.suffix not in (".yaml", ".yml"):
                lines = files.read_bytes(file, MOST_BYTES).decode("utf-8-sig").splitlines()
                return {k: line.strip() for k, line in enumerate(lines) if line.strip()}
            names = (read_yaml(file) or {})["names"]
            pairs = names.items() if isinstance(names, dict) else enumerate(names)
            return {int(k): str(name) for k, name in pairs}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{shown_path(file)} has no names of classes ({error}): {_REMEDY}"
            ) from error
    return {}


def find_image(name: str, file: Path, pictures: Sequence[Path], root: Path) -> Path:
    """The image that an annotation file names, whatever folders it has in front of it.

    Raises:
        DataError: it is not there, or several match that are not in a folder of masks.
    """
    named = PurePosixPath(name.replace("\\", "/"))
    parts = [part for part in named.parts if part not in ("/", "..")]
    if not parts:
        raise DataError(f"{shown_path(file)} names no image: {_REMEDY}")
    with contextlib.suppress(OSError, ValueError):
        if (beside := file.parent.joinpath(*parts)).is_file():
            return beside
    found = [path for path in pictures if [*path.parts[-len(parts) :]] == parts]
    found = found or [path for path in pictures if path.name == parts[-1]]
    if len(found) > 1:  # masks may have the images' names
        found = [path for path in found if not _among_masks(path, root)] or found
    if not found:
        raise DataError(
            f"{shown_path(file)} names the image {shown(name)}, which is not in "
            f"{shown_path(root)}: put it there, or remove it from the file"
        )
    if len(found) > 1:
        raise DataError(
            f"{shown_path(file)} names the image {shown(name)}, which could be "
            f"{listed(map(str, found[:3]))}: keep one"
        )
    return found[0]


def _among_masks(path: Path, root: Path) -> bool:
    inside = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
    return any(part.casefold() in MASK_FOLDERS for part in inside)


def _points(points: Any, name: str) -> Any:
    """float64 [N, 2], x and y in pixels."""
    array = np.asarray(points, np.float64)
    if array.ndim != 2 or array.shape[1] != 2 or not np.isfinite(array).all():
        raise ValueError(f"{name} has points that are not pairs of numbers")
    if np.abs(array).max(initial=0) > 1e6:
        raise ValueError(f"{name} has a point far outside any image")
    return array


def fill(points: Any, size: tuple[int, int]) -> Flags:
    """A polygon's pixels: those whose centre is inside, by the even-odd rule.

    Args:
        points: [N, 2], x and y in pixels; pixel (0, 0) covers [0, 1] x [0, 1].
        size: (H, W) of the result.
    """
    height, width = size
    crossed = np.zeros((height, width + 1), np.uint8)  # edges to the left of a pixel's centre
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        low, high = (math.ceil(y - 0.5) for y in sorted((y0, y1)))
        rows = np.arange(max(low, 0), min(high, height))
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            crossed[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)] += 1
    inside: Flags = np.cumsum(crossed, axis=1, dtype=np.uint8)[:, :width] % 2 == 1
    return inside
