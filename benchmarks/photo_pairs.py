"""Supports and queries from a folder with a pairs.json, read with Pillow alone.

`pairs` is a list of {"name", "supports": [part, ...], "query": part}; a part is {"image", "mask"},
files of the folder, and perhaps "box" (left, top, right, bottom in pixels) and "mirror". A pair may
name its "class"; `shows` then lists for each file the classes that it shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fsdino.files import read_json

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "photographs"
HELD_OUT = FOLDER / "held_out"


@dataclass(frozen=True)
class Photograph:
    """A picture or a crop of one.

    Attributes:
        image: uint8 [H, W, 3].
        mask: bool [H, W], where the object is.
        ignored: bool [H, W], pixels that are not scored; None scores all.
    """

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    ignored: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Pair:
    """Supports of an object, and a picture to find it in.

    Attributes:
        name: of the pair.
        supports: one or more.
        query: with its true mask.
        picture: file that the query is from.
        pictures: files that the query and the supports are from.
        kind: class of the object; empty where the file names none.
        shown: classes that the query's file shows, with a mask or without.
    """

    name: str
    supports: tuple[Photograph, ...]
    query: Photograph
    picture: str
    pictures: frozenset[str]
    kind: str = ""
    shown: frozenset[str] = frozenset()


def load_pairs(folder: Path = FOLDER) -> list[Pair]:
    """The pairs in the order of the file."""
    content = read_json(folder / "pairs.json")
    return [_pair(folder, entry, content.get("shows", {})) for entry in content["pairs"]]


def _pair(folder: Path, entry: dict[str, Any], shows: dict[str, list[str]]) -> Pair:
    parts = [*entry["supports"], entry["query"]]
    *supports, query = (_load(folder, part) for part in parts)
    picture = entry["query"]["image"]
    return Pair(
        entry["name"],
        tuple(supports),
        query,
        picture,
        frozenset(part["image"] for part in parts),
        entry.get("class", ""),
        frozenset(shows.get(picture, ())),
    )


def _load(folder: Path, part: dict[str, Any]) -> Photograph:
    image = Image.open(folder / part["image"]).convert("RGB")
    mask = Image.open(folder / part["mask"])
    if "box" in part:
        image, mask = image.crop(part["box"]), mask.crop(part["box"])
    if part.get("mirror", False):
        image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
    return Photograph(np.array(image), np.array(mask) == 255)
