"""Formats of results beside masks and overlays: a file for each query, and what is put together."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fsdino.errors import UsageError, listed, shown

if TYPE_CHECKING:
    from fsdino.models.instances import Instance, Split
    from fsdino.models.segmentation import Segmentation

PNG = "png"
# Folder and ending of each format's files.
PLACES = {
    "coco": ("coco", ".json"),
    "yolo": ("yolo", ".txt"),
    "labelme": ("labelme", ".json"),
    "probability": ("probabilities", ".npz"),
}
COCO_FILE, CLASSES_FILE = "annotations.json", "classes.txt"
# Files that hold something of all queries, by format.
COLLECTED = {"coco": COCO_FILE, "yolo": CLASSES_FILE}


@dataclass(frozen=True)
class Formats:
    """Which files are written for a query beside its mask and its overlay.

    Attributes:
        names: keys of `PLACES`.
        split, min_area: what counts as an object; see `Segmentation.instances`.
    """

    names: tuple[str, ...] = ()
    split: Split = "connected"
    min_area: int = 1

    @classmethod
    def parse(cls, text: str, split: str = "connected", min_area: int = 1) -> Formats:
        """Read --format, --split and --min-area.

        Raises:
            UsageError: an unknown format, none at all, an unknown split, or an area below 1.
        """
        given = chosen(text, (PNG, *PLACES))
        return cls(
            tuple(name for name in PLACES if name in given), checked(split, min_area), min_area
        )

    def call(self) -> dict[str, Any]:
        """What decides the files, for the record of the call: nothing where there are none."""
        if not self.names:
            return {}
        return {"formats": [*self.names], "split": self.split, "min_area": self.min_area}

    @property
    def results(self) -> list[str]:
        """What people open of the files: "annotations.json", "yolo/ with classes.txt" ..."""
        shown = {"coco": COCO_FILE, "yolo": f"{PLACES['yolo'][0]}/ with {CLASSES_FILE}"}
        return [shown.get(name, f"{PLACES[name][0]}/") for name in self.names]

    @property
    def folders(self) -> list[str]:
        """Folders of the files."""
        return [PLACES[name][0] for name in self.names]

    def files(self, stem: str) -> dict[str, str]:
        """A query's files by format, relative to the output folder."""
        return {name: place(name, stem) for name in self.names}

    def contents(
        self, stem: str, query: Path, folder: Path, result: Segmentation
    ) -> dict[str, bytes]:
        """A query's files with their contents.

        Args:
            stem: of the files' names.
            query: path of the image.
            folder: the output folder.
            result: the answer.
        """
        from fsdino.models import exports

        if not self.names:
            return {}
        size = (result.image.shape[0], result.image.shape[1])
        objects = result.instances(split=self.split, min_area=self.min_area)
        found = {}
        for name, file in self.files(stem).items():
            if name == "coco":
                content = _json(_coco_part(objects, size, result.names, query.name))
            elif name == "yolo":
                content = exports.yolo_lines(objects, result.names).encode("utf-8")
            elif name == "labelme":
                image = _path_from((folder / file).parent, query)
                content = _json(exports.labelme_file(objects, size, image))
            else:
                content = _probabilities(result)
            found[file] = content
        return found


def chosen(text: str, formats: Sequence[str]) -> list[str]:
    """The names in a --format, each one of `formats`.

    Raises:
        UsageError: an unknown format, or none at all.
    """
    given = [part.strip() for part in text.split(",") if part.strip()]
    if not given:
        raise UsageError(f"--format is empty: choose from {listed(formats)}")
    for name in given:
        if name not in formats:
            raise UsageError(
                f"--format {shown(name)} is unknown: choose from {listed(formats)}, "
                "separated by commas"
            )
    return given


def checked(split: str, min_area: int) -> Split:
    """--split, after a check of it and of --min-area.

    Raises:
        UsageError: an unknown split, or an area below 1.
    """
    if split not in ("connected", "watershed"):
        raise UsageError(f"--split {shown(split)} is unknown: choose connected or watershed")
    if min_area < 1:
        raise UsageError(f"--min-area must be at least 1 pixel, got {min_area}")
    return cast("Split", split)


def place(name: str, stem: str) -> str:
    """The file of a format for the query whose files have this name."""
    folder, ending = PLACES[name]
    return f"{folder}/{stem}{ending}"


def relative_names(queries: Sequence[str]) -> list[str]:
    """Names of images, given by their absolute paths: from the folder on that all share."""
    root = os.path.commonpath([os.path.dirname(query) for query in queries])
    return [Path(os.path.relpath(query, root)).as_posix() for query in queries]


def yolo_apart(queries: Sequence[str], names: Sequence[str]) -> str | None:
    """A warning where YOLO's files do not pair with the images by name and subfolder.

    Programs that read YOLO take an image without such a file for one that shows nothing.

    Args:
        queries: absolute paths of the images.
        names: of their files, without the ending.
    """
    apart = [
        (query, name)
        for query, relative, name in zip(queries, relative_names(queries), names, strict=True)
        if os.path.splitext(relative)[0] != name
    ]
    if not apart:
        return None
    query, name = apart[-1]
    return (
        f"YOLO files of {len(apart):,} of {len(queries):,} photographs differ from them in name or "
        f"subfolder (the one of {query} is {name}.txt): copy the photographs to the files' names"
    )


def coco_of_all(
    parts: Sequence[Mapping[str, Any]], queries: Sequence[str], names: Sequence[str]
) -> bytes:
    """The content of `annotations.json`: the COCO files of all queries as one.

    Args:
        parts: content of the queries' own files.
        queries: absolute paths of the images. Their names are the `relative_names`.
        names: of the classes.

    Raises:
        LookupError, TypeError: a part is not one that `Formats.contents` has made.
    """
    from fsdino.models.coco_export import coco_file
    from fsdino.models.exports import numbered

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    file_names = relative_names(queries)
    for number, (part, file_name) in enumerate(zip(parts, file_names, strict=True), 1):
        images.append({**part["images"][0], "id": number, "file_name": file_name})
        for annotation in part["annotations"]:
            ids = {"id": len(annotations) + 1, "image_id": number}
            annotations.append({**annotation, **ids})
    return _json(coco_file(images, numbered(names), annotations))


def _coco_part(
    objects: Sequence[Instance], size: tuple[int, int], names: Sequence[str], file_name: str
) -> dict[str, Any]:
    """The COCO file of one image."""
    from fsdino.models import exports
    from fsdino.models.coco_export import coco_file

    ids = exports.numbered(names)
    image = {"id": 1, "file_name": file_name, "width": size[1], "height": size[0]}
    return coco_file([image], ids, exports.coco_annotations(objects, 1, ids))


def _path_from(folder: Path, query: Path) -> str:
    """The image's path from a folder, with `/`. Links are followed, as the system does at `..`."""
    image = os.path.join(os.path.realpath(query.parent), query.name)
    return Path(os.path.relpath(image, os.path.realpath(folder))).as_posix()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("ascii") + b"\n"


def _probabilities(result: Segmentation) -> bytes:
    """An .npz file: `probabilities`, float16 [N, H, W], and `names` [N]."""
    import io

    import numpy as np

    file = io.BytesIO()
    halves = result.probabilities.astype(np.float16)
    np.savez_compressed(file, probabilities=halves, names=np.array(result.names, np.str_))
    return file.getvalue()
