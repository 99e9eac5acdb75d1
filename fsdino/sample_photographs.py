"""Photographs that are installed with the package, each with a mask, to try a model on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fsdino import files, images, masks, overlay
from fsdino.errors import DataError, FsdinoError

_FOLDER = Path(__file__).with_name("photographs")
_REMEDY = "install fsdino again"
_TEXTS = ("image", "mask", "shows", "covers", "query", "author", "licence", "source")


@dataclass(frozen=True)
class Sample:
    """A photograph and its mask, drawn by hand; `encode_support(sample.image, sample.mask)`.

    Attributes:
        name: of the sample.
        image: the photograph, RGB, at most 512 pixels on a side.
        mask: mode L and of the same size; 255 in the object, 0 elsewhere.
        image_file: file of the photograph, for the command line.
        mask_file: file of the mask.
        shows: what the photograph shows.
        covers: what the mask covers.
        query: name of the sample that shows the same kind of object: this one is its support.
        author: of the photograph, as its source states it.
        licence: of the photograph, as its source states it: CC0, public domain, or no known
            copyright restrictions. The masks are CC0.
        source: package and file that it comes from, and what was changed.
        address: where that source has it from; empty if it does not say.

    Example:
        >>> import fsdino
        >>> cup = fsdino.samples()["espresso-cup"]
        >>> cup.image.size, cup.query
        ((512, 341), 'teacup')
    """

    name: str
    image: Image.Image
    mask: Image.Image
    image_file: Path
    mask_file: Path
    shows: str
    covers: str
    query: str
    author: str
    licence: str
    source: str
    address: str

    def __repr__(self) -> str:
        """One line: name, what the mask covers, and size."""
        return f"Sample({self.name}: {self.covers}, {self.image.height}x{self.image.width})"

    def _repr_png_(self) -> bytes:
        """The photograph with its mask drawn over it, for notebooks."""
        drawn = overlay.overlay(np.asarray(self.image), np.asarray(self.mask) == 255)
        return images.encode_image(drawn, "PNG")


def samples() -> dict[str, Sample]:
    """The photographs that are installed with fsdino, by name, in pairs of one kind of object.

    A sample is the support for the one that its `query` names: the same kind of object in another
    photograph (coins: other coins of one photograph).

    Returns:
        the samples, read again in each call, so that changing an image changes no other call's.

    Raises:
        DataError: the installation is damaged.

    Example:
        >>> import fsdino
        >>> sorted(fsdino.samples())[:3]
        ['astronaut', 'coins', 'espresso-cup']
    """
    listing = files.read_object(_FOLDER / "samples.json", _REMEDY)
    entries = listing.get("samples")
    if not isinstance(entries, dict):
        raise DataError(f"{_FOLDER / 'samples.json'} is damaged (it names no samples): {_REMEDY}")
    return {name: _sample(name, entry) for name, entry in entries.items()}


def _sample(name: str, entry: Any) -> Sample:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in _TEXTS):
        raise DataError(
            f"{_FOLDER / 'samples.json'} is damaged (sample {name!r} is not complete): {_REMEDY}"
        )
    image_file, mask_file = _FOLDER / entry["image"], _FOLDER / entry["mask"]
    try:
        pixels = images.read_image(image_file)
        mask = masks.read_mask(mask_file, pixels.shape[:2])
    except FsdinoError as error:
        raise DataError(f"the sample {name!r} cannot be read ({error}): {_REMEDY}") from error
    return Sample(
        name,
        Image.fromarray(pixels),
        Image.fromarray(mask).convert("L"),
        image_file,
        mask_file,
        **{key: entry[key] for key in _TEXTS[2:]},
        address=entry.get("address", ""),
    )
