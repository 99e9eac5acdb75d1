"""Supports and queries from tests/photographs, read with Pillow alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

FOLDER = Path(__file__).with_name("photographs")


@dataclass(frozen=True)
class Photograph:
    """A crop: uint8 [H, W, 3] and its mask, bool [H, W]."""

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pair:
    name: str
    supports: tuple[Photograph, ...]
    query: Photograph


def load_pairs() -> list[Pair]:
    entries = json.loads((FOLDER / "pairs.json").read_text(encoding="utf-8"))["pairs"]
    return [
        Pair(entry["name"], tuple(map(_load, entry["supports"])), _load(entry["query"]))
        for entry in entries
    ]


def _load(part: dict[str, Any]) -> Photograph:
    image = Image.open(FOLDER / part["image"]).convert("RGB")
    mask = Image.open(FOLDER / part["mask"])
    if "box" in part:
        image, mask = image.crop(part["box"]), mask.crop(part["box"])
    if part.get("mirror", False):
        image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
    return Photograph(np.array(image), np.array(mask) == 255)
