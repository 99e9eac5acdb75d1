"""Small folders of photographs and masks, as people have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from data_sets import VOC_COLOURS, picture, save_labels
from fsdino.data.folder import Folder
from fsdino.data.layouts import Reading

HALF = np.zeros((30, 40), np.uint8)
HALF[:, :20] = 255


def photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, 30, 40)).save(path)


def mask(path: Path, values: np.ndarray = HALF) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def label_map(*values: int) -> np.ndarray:
    """uint8 [30, 40] in equal columns."""
    return np.repeat(np.array(values, np.uint8)[None], 30, 0).repeat(40 // len(values), 1)


def reading(root: Path, **settings: str) -> Reading:
    return Folder(root, **settings).reading  # type: ignore[arg-type]


def read(source: Folder, name: str, class_id: int) -> np.ndarray:
    return source.read(name, class_id, query=True).mask


def labelled(root: Path, *maps: np.ndarray, palette: bool = False) -> Path:
    for i, values in enumerate(maps):
        photo(root / "images" / f"{i}.jpg", i)
        save_labels(root / "labels" / f"{i}.png", values, VOC_COLOURS if palette else None)
    return root
