"""The examples of one visitor: the photograph being marked, and the classes that are kept."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fsdino import overlay
from fsdino.commands.serve.engine import Engine
from fsdino.commands.serve.marks import Marks
from fsdino.commands.serve.names import harmless
from fsdino.commands.serve.pictures import Pictures
from fsdino.errors import UsageError, shown
from fsdino.images import Flags, ImageLike, Pixels, read_image
from fsdino.masks import MaskLike, read_mask
from fsdino.models.segmenter import Segmenter
from fsdino.models.segmenting import doubt
from fsdino.models.supports import Support

MOST_CLASSES, MOST_SHOTS = 20, 20
MOST_NAME = 40  # characters
_THUMBNAIL = 160  # pixels of a side
_MOST_SUPPORT = 2**28  # bytes of a saved support


@dataclass(frozen=True)
class Photograph:
    """The photograph that is being marked.

    Attributes:
        pixels: uint8 [H, W, 3].
        key: of its picture on the page.
    """

    pixels: Pixels
    key: str

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True)
class Marked:
    """A mask on the photograph, and what a model thinks of it.

    Attributes:
        mask: bool [H, W].
        support: of this one example, with its quality.
        key: of the picture with the mask drawn.
    """

    mask: Flags
    support: Support
    key: str

    @property
    def quality(self) -> float | None:
        """How well the example finds itself, an IoU in [0, 1]."""
        return self.support.quality

    @property
    def warning(self) -> str | None:
        """What is to be said of an example that hardly finds itself."""
        words = doubt(self.support)
        return None if words is None else f"This example {words}."


@dataclass
class Class:
    """Something to look for: examples, or a support that was saved before.

    Attributes:
        shots: files of images and of masks.
        support: as it was encoded last.
        keys: of the examples' small pictures.
    """

    support: Support
    shots: list[tuple[Path, Path]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


class Examples:
    """What a visitor shows.

    Args:
        folder: for files, which exists.
        pictures: where pictures for the page go.
    """

    def __init__(self, folder: Path, pictures: Pictures) -> None:
        self._folder, self._pictures = folder, pictures
        self.photograph: Photograph | None = None
        self.marked: Marked | None = None
        self.classes: dict[str, Class] = {}

    def open(self, image: ImageLike, name: str = "photograph") -> Photograph:
        """Take another photograph to mark.

        Raises:
            DataError: it is not an image that can be read.
        """
        pixels = read_image(image, name)
        key = self._pictures.add(Image.fromarray(pixels))
        self.photograph, self.marked = Photograph(pixels, key), None
        return self.photograph

    def mark(self, engine: Engine, model: str, data: Any) -> Marked | str:
        """Turn marks of the page into a mask.

        Returns:
            The mask; or, where marks are missing, what to do.

        Raises:
            UsageError: no photograph, or damaged marks.
            DataError: nothing is found at these marks.
        """
        photograph = self._opened()
        marks = Marks.read(data, photograph.size)
        problem = marks.problem()
        if problem is not None:
            self.marked = None
            return problem
        with engine.use(model) as loaded:
            return self._mark(loaded, photograph, marks.mask(photograph.pixels, loaded))

    def mark_file(self, engine: Engine, model: str, mask: MaskLike) -> Marked:
        """Take a mask that the visitor has already.

        Raises:
            UsageError: no photograph, or a mask of another size.
            DataError: it is not a mask that can be read, or has no foreground.
        """
        photograph = self._opened()
        flags = read_mask(mask, photograph.size, "mask")
        with engine.use(model) as loaded:
            return self._mark(loaded, photograph, flags)

    def keep(self, engine: Engine, model: str, name: str) -> str:
        """Add the marked photograph to the class of this name.

        Returns:
            The class's name.

        Raises:
            UsageError: nothing is marked; an invalid name; too many classes or examples.
        """
        photograph, marked = self._opened(), self.marked
        if marked is None:
            raise UsageError("nothing is marked yet: mark the object in the photograph first")
        name = self._checked(name)
        known = self.classes.get(name)
        if known is not None and not known.shots:
            raise UsageError(
                f"{shown(name)} is a saved support, which takes no further examples: choose "
                "another name, or remove it first"
            )
        shots = [] if known is None else known.shots
        if len(shots) >= MOST_SHOTS:
            raise UsageError(f"{shown(name)} has {MOST_SHOTS} examples already, which is the most")
        stem = self._folder / secrets.token_hex(8)
        files = Path(f"{stem}-image.npy"), Path(f"{stem}-mask.npy")
        np.save(files[0], photograph.pixels)
        np.save(files[1], marked.mask)
        if shots:
            with engine.use(model) as loaded:
                support = _encode(loaded, [*shots, files])
        else:
            support = marked.support
        picture = overlay.overlay(photograph.pixels, marked.mask)
        known = self.classes.setdefault(name, Class(support))
        known.support = support
        known.shots.append(files)
        known.keys.append(self._pictures.add(picture, _THUMBNAIL))
        self.marked = None
        return name

    def remove(self, name: str) -> None:
        """Forget a class; one that is not there is forgotten already."""
        known = self.classes.pop(name, None)
        for files in known.shots if known is not None else ():
            for file in files:
                file.unlink(missing_ok=True)

    def load(self, file: Path, name: str) -> str:
        """Take a support that was saved before, as a class.

        Returns:
            The class's name.

        Raises:
            UsageError: the name is taken or invalid; the file is too large.
            CheckpointError: it is not a support.
        """
        name = self._checked(name)
        if name in self.classes:
            raise UsageError(f"there is a {shown(name)} already: remove it, or rename the file")
        if file.stat().st_size > _MOST_SUPPORT:
            raise UsageError(f"{name}: has more than {_MOST_SUPPORT >> 20} MB; no support has")
        self.classes[name] = Class(Support.load(file))
        return name

    def supports(self, model: Segmenter) -> dict[str, Support]:
        """All classes as this model sees them; those of another model are encoded again.

        Raises:
            UsageError: there are none; a saved support was made by another model.
        """
        if not self.classes:
            raise UsageError("no example yet: mark an object in step 1, and add it")
        own = model.fingerprint()
        for name, known in self.classes.items():
            if known.support.model_fingerprint == own:
                continue
            if not known.shots:
                raise UsageError(
                    f"{shown(name)} was saved with another model: choose that model, or remove it"
                )
            known.support = _encode(model, known.shots)
        return {name: known.support for name, known in self.classes.items()}

    def save(self, name: str) -> Path:
        """Write the support of a class; returns the file."""
        file = self._folder / f"{secrets.token_hex(8)}.safetensors"
        self.classes[name].support.save(file)
        return file

    def _mark(self, model: Segmenter, photograph: Photograph, mask: Flags) -> Marked:
        support = _encoded(model, [photograph.pixels], [mask])
        picture = overlay.overlay(photograph.pixels, mask)
        self.marked = Marked(mask, support, self._pictures.add(picture))
        return self.marked

    def _opened(self) -> Photograph:
        if self.photograph is None:
            raise UsageError("no photograph yet: drop one into step 1")
        return self.photograph

    def _checked(self, name: str) -> str:
        """A name of a class as it is written into files.

        Raises:
            UsageError: it cannot be; or it is new, and there are too many.
        """
        name = " ".join(harmless(name, "").split())
        if not name:
            raise UsageError('no name given: write what the object is, such as "cup"')
        if len(name) > MOST_NAME:
            raise UsageError(f"the name has {len(name)} characters: at most {MOST_NAME} fit")
        if name not in self.classes and len(self.classes) >= MOST_CLASSES:
            raise UsageError(f"there are {MOST_CLASSES} classes already: remove one first")
        return name


def _encode(model: Segmenter, shots: list[tuple[Path, Path]]) -> Support:
    return _encoded(
        model, [np.load(image) for image, _ in shots], [np.load(mask) for _, mask in shots]
    )


def _encoded(model: Segmenter, images: list[Any], masks: list[Any]) -> Support:
    # The page tells a low quality beside the example.
    return model.encode_support(images, masks, quality=True, warn=False)


def words(quality: float | None) -> str:
    """A quality in a word."""
    if quality is None:
        return "not measured"
    steps: Mapping[str, float] = {"very good": 0.9, "good": 0.8, "fair": 0.7}
    return next((word for word, least in steps.items() if quality >= least), "poor")
