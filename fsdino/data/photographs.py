"""Episodes made from photographs without labels: regions in several views.

A class is a region of a photograph (`fsdino.data.regions`). It is shown either in place, in
warped views of the photograph, or cut out and pasted into views of other photographs, once or
several times, among regions of others.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch

from fsdino import image_files
from fsdino.data.episodes import NO_CLASS, Episode, Image, Mask, Sample
from fsdino.data.regions import Region, find_regions
from fsdino.data.sampling import check_image_size, check_numbers, random_stream
from fsdino.data.warps import Warp, draw_warp, expose, photograph, sample, view
from fsdino.errors import DataError, UsageError
from fsdino.images import read_image

LONGEST = 768  # longest side of a photograph as it is kept, in pixels
SMALLEST, LARGEST = 0.003, 0.6  # share of a view that the target covers
_VERSION = 1

Kind = Literal["in place", "pasted"]

_SHORTEST = 32  # pixels of a photograph's shorter side
_IN_PLACE = 0.4  # share of the episodes; whole regions are pasted in the others
_MIXED = 0.2  # share of these where one view or more is in place nevertheless
_LARGE = 0.35  # regions that cover more of their photograph are shown in place
_ENLARGED = 3.0  # pixels of a view for one of the photograph, at most
_BEYOND = 1.3  # side of a view relative to the photograph's shorter side, at most
_APART = 0.2  # logarithm of the scales' ratio that two views of an episode differ by, if they can
_RANGE = 2.0  # of the scales that are drawn from, at least
_CHOICES, _TRIES, _PROBE = 8, 12, 64
_COUNTS = (1, 1, 1, 1, 1, 2, 2, 3, 4, 5)  # pasted objects
_DISTRACTORS = (0, 1, 1, 2, 2, 3)
_DISTRACTOR = (math.log(0.01), math.log(0.15))  # logarithms of the share of the view
_ALONE = 0.6  # longer side of an object's box, so that it fits into a view however it is turned
_EDGE = 2.0  # width of a soft edge in pixels of the view


class Photographs:
    """The photographs of a folder, read once; regions are computed when they are first needed.

    Args:
        folder: folder with the image files, in subfolders too; other files are ignored.

    Attributes:
        names: paths below the folder, sorted.
        images: uint8 [H, W, 3] each, with a longest side of at most `LONGEST`.
        digest: SHA-256 over names and pixels, hexadecimal.

    Raises:
        UsageError: the folder does not exist, or has fewer than two photographs.
        DataError: a file that cannot be read, or is too narrow.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.fspath(folder)
        files = image_files.scan_folder(folder, recursive=True).images
        if len(files) < 2:
            raise UsageError(
                f"photographs: {len(files)} image files in {self.folder}; give a folder with at "
                "least 2, as objects of one are pasted into others"
            )
        self.names = [os.path.relpath(file, folder).replace(os.sep, "/") for file in files]
        self.images = [_read(os.fspath(file)) for file in files]
        digest = hashlib.sha256()
        for name, image in zip(self.names, self.images, strict=True):
            digest.update(f"{name}\0{image.shape}\0".encode("utf-8", "surrogateescape"))
            digest.update(image.tobytes())
        self.digest = digest.hexdigest()
        self._regions: dict[int, list[Region]] = {}

    def __len__(self) -> int:
        """Return the number of photographs."""
        return len(self.images)

    def regions(self, index: int) -> list[Region]:
        """The regions of photograph `index`; see `find_regions`."""
        if index not in self._regions:
            self._regions[index] = find_regions(self.images[index])
        return self._regions[index]

    def draw(
        self, rng: np.random.Generator, *, whole: bool = False, without: int | None = None
    ) -> Cutout:
        """Draw a region.

        Args:
            rng: source of all random numbers.
            whole: prefer regions that the photograph's border does not cut off.
            without: index of a photograph that is left out.

        Raises:
            DataError: no photograph has a region.
        """
        start = int(rng.integers(len(self)))
        for index in (*range(start, len(self)), *range(start)):
            regions = self.regions(index) if index != without else []
            if whole:
                regions = [region for region in regions if region.whole] or regions
            if regions:
                stages = sorted({region.stage for region in regions})
                stage = stages[int(rng.integers(len(stages)))]
                drawn = [region for region in regions if region.stage == stage]
                return Cutout(index, self.images[index], drawn[int(rng.integers(len(drawn)))])
        raise DataError(
            f"photographs: no region stands out in the {len(self)} images of {self.folder}; give "
            "photographs that show objects or surfaces that differ from each other"
        )


def _read(path: str) -> Image:
    """A photograph, shrunk where it is larger than `LONGEST`."""
    image = read_image(path, "photograph")
    if min(image.shape[:2]) < _SHORTEST:
        raise DataError(
            f"photograph {path}: {image.shape[1]} x {image.shape[0]} pixels; both sides must have "
            f"at least {_SHORTEST}: remove it from the folder"
        )
    picture = PIL.Image.fromarray(image)
    picture.thumbnail((LONGEST, LONGEST), PIL.Image.Resampling.LANCZOS)
    return np.array(picture)


@dataclass(frozen=True, eq=False)
class Cutout:
    """A region of photograph `index`, uint8 [H, W, 3]."""

    index: int
    image: Image
    region: Region

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the photograph."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def area(self) -> float:
        """Pixels of the photograph that the region covers."""
        return self.region.share * self.size[0] * self.size[1]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels of the photograph."""
        (height, width), (left, top, right, bottom) = self.size, self.region.box
        return left * width, top * height, right * width, bottom * height

    @property
    def middle(self) -> tuple[float, float]:
        """(x, y) of the box's middle in pixels of the photograph."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    def soft(self, warp: Warp, window: tuple[int, int, int, int]) -> torch.Tensor:
        """How far inside of the region the pixels [h, w] of a view are: 0.5 at its edge."""
        plane = torch.from_numpy(self.region.soft)[None].float()
        return sample(plane, self.size, warp.places(window))[0] / 255


@dataclass(frozen=True, eq=False)
class _Shown:
    """A view: float32 [3, S, S] in 0..255, the target's mask, and the scale that it is seen at."""

    pixels: torch.Tensor
    mask: Mask
    scale: float


class PhotographEpisodes:
    """Episodes of regions of photographs, each with its own class.

    Args:
        photographs: the photographs that they are made from.
        shots: supports per episode, at least 1.
        seed: at least 0.
        image_size: side of the square images in pixels, at least 32.

    Raises:
        UsageError: an argument outside its range.
    """

    def __init__(self, photographs: Photographs, shots: int, seed: int, image_size: int) -> None:
        check_numbers("train", shots, seed, None)
        check_image_size(image_size)
        self.photographs, self.shots, self.seed = photographs, shots, seed
        self.image_size = image_size

    def __getitem__(self, index: int) -> Episode:
        """Make episode `index`, any number of at least 0; its class is `NO_CLASS`.

        The target covers 0.3 to 60 % of each image.

        Raises:
            DataError: no photograph has a region.
        """
        rng = _stream(self.seed, index, 0)
        in_place = float(rng.random()) < _IN_PLACE
        target = self.photographs.draw(rng, whole=not in_place)
        kinds = _kinds(rng, target, 1 + self.shots, in_place)
        samples: list[Sample] = []
        scales: list[float] = []
        for role, kind in enumerate(kinds):
            rng = _stream(self.seed, index, 1 + role)
            shown = self._show(rng, target, kind, scales)
            scales.append(shown.scale)
            image = photograph(rng, shown.pixels)
            name = f"photographs-v{_VERSION}/{self.seed}/{index}/{role}@{self.image_size}"
            samples.append(Sample(image, shown.mask, name, NO_CLASS))
        return Episode(samples[0], tuple(samples[1:]), NO_CLASS, "region", index)

    def _show(
        self, rng: np.random.Generator, target: Cutout, kind: Kind, scales: Sequence[float]
    ) -> _Shown:
        """A view of the target, at a scale apart from those of the other views."""
        if kind == "in place":
            shown = self._in_place(rng, target, scales)
            if shown is not None:
                return shown
        for _ in range(_TRIES):
            shown = self._pasted(rng, target, scales)
            if SMALLEST <= shown.mask.mean() <= LARGEST:
                return shown
        return self._pasted(rng, target, scales, alone=True)

    def _in_place(
        self, rng: np.random.Generator, target: Cutout, scales: Sequence[float]
    ) -> _Shown | None:
        """A view of the photograph that the target is in; None if none shows enough of it."""
        side, window = self.image_size, (0, 0, self.image_size, self.image_size)
        low, high = side / (_BEYOND * min(target.size)), max(_ENLARGED, side / min(target.size))
        for _ in range(_TRIES):
            scale = _draw_scale(rng, _limits(target.area, side, low, high), scales)
            place = rng.uniform(0.15 * side, 0.85 * side, 2)
            anchor = _inner(_point(rng, target), place, scale, target.size, side)
            warp = draw_warp(rng, scale, anchor, (float(place[0]), float(place[1])), side)
            if not SMALLEST <= _probe(target, warp, side) <= LARGEST:
                continue
            mask = (target.soft(warp, window) > 1 / 2).numpy()
            if SMALLEST <= mask.mean() <= LARGEST:
                return _Shown(view(target.image, warp, window), mask, scale)
        return None

    def _pasted(
        self,
        rng: np.random.Generator,
        target: Cutout,
        scales: Sequence[float],
        *,
        alone: bool = False,
    ) -> _Shown:
        """Another photograph with the target in it, once or several times, among other regions.

        Args:
            rng: source of all random numbers.
            target: the marked region.
            scales: scales of the other views.
            alone: paste the target once, in the middle, and nothing else; this meets the limits.
        """
        side = self.image_size
        pixels = self._background(rng, target.index)
        mask = torch.zeros(side, side, dtype=torch.bool)
        count = 1 if alone else int(rng.choice(_COUNTS))
        others = 0 if alone else int(rng.choice(_DISTRACTORS))
        left, top, right, bottom = target.box
        scale = _ALONE * side / max(right - left, bottom - top)
        if not alone:
            limits = _limits(target.area * count, side, 0.0, _ENLARGED)
            scale = _draw_scale(rng, limits, scales)
        order = rng.permutation(count + others)
        for number in order.tolist():
            cutout = target if number < count else self._other(rng, target)
            if cutout is None:
                continue
            own = scale * math.exp(rng.uniform(-0.25, 0.25)) if count > 1 else scale
            if number >= count:
                share = math.exp(rng.uniform(*_DISTRACTOR))
                own = min(side * math.sqrt(share / cutout.area), _ENLARGED)
            reach = 0.0 if alone else 0.4
            x, y = (side * (0.5 + reach * rng.uniform(-1, 1, 2))).tolist()
            inside = _paste(rng, pixels, cutout, draw_warp(rng, own, cutout.middle, (x, y), side))
            mask = mask | inside if number < count else mask & ~inside
        return _Shown(pixels, mask.numpy(), scale)

    def _other(self, rng: np.random.Generator, target: Cutout) -> Cutout | None:
        """A region of another photograph, if there is one."""
        try:
            return self.photographs.draw(rng, whole=True, without=target.index)
        except DataError:
            return None

    def _background(self, rng: np.random.Generator, without: int) -> torch.Tensor:
        """A view of any photograph but one, float32 [3, S, S]."""
        side = self.image_size
        index = int(rng.integers(len(self.photographs) - 1))
        image = self.photographs.images[index + (index >= without)]
        height, width = image.shape[:2]
        scale = side / min(height, width) * math.exp(rng.uniform(0.0, 0.7))
        anchor = _inner(
            (rng.uniform(0, width), rng.uniform(0, height)),
            np.array([side / 2, side / 2]),
            scale,
            (height, width),
            side,
        )
        return view(
            image, draw_warp(rng, scale, anchor, (side / 2, side / 2), side), (0, 0, side, side)
        )


def _kinds(rng: np.random.Generator, target: Cutout, views: int, in_place: bool) -> list[Kind]:
    """How each view of an episode shows the target."""
    mixed = float(rng.random()) < _MIXED
    pasted = rng.permutation(views) < int(rng.integers(1, views))
    region = target.region
    if in_place or not region.whole or region.share > _LARGE:
        return ["in place"] * views
    return ["pasted" if p or not mixed else "in place" for p in pasted]


def _limits(area: float, side: int, low: float, high: float) -> tuple[float, float]:
    """Scales, at least a factor of two apart, at which an area covers enough of a view."""
    least, most = (side * math.sqrt(share / area) for share in (1.2 * SMALLEST, 0.95 * LARGEST))
    low = max(low, least)
    return low, max(min(high, most), _RANGE * low)


def _draw_scale(
    rng: np.random.Generator, limits: tuple[float, float], scales: Sequence[float]
) -> float:
    """Draw a scale, apart from others where that is possible."""
    drawn = np.exp(rng.uniform(math.log(limits[0]), math.log(limits[1]), _CHOICES))
    if not scales:
        return float(drawn[0])
    apart = np.abs(np.log(drawn[:, None] / np.array(scales)[None])).min(1)
    far = np.flatnonzero(apart >= _APART)
    return float(drawn[far[0] if len(far) else apart.argmax()])


def _point(rng: np.random.Generator, target: Cutout) -> tuple[float, float]:
    """Draw a point of the region, in pixels of the photograph."""
    inside = np.flatnonzero(target.region.soft > 127)
    height, width = target.region.soft.shape
    row, column = divmod(int(inside[int(rng.integers(len(inside)))]), width)
    return (column + 0.5) / width * target.size[1], (row + 0.5) / height * target.size[0]


def _inner(
    anchor: tuple[float, float],
    place: npt.NDArray[np.float64],
    scale: float,
    size: tuple[int, int],
    side: int,
) -> tuple[float, float]:
    """Move a point so that an upright view, with it at a place, shows little beyond the borders."""
    moved = []
    for point, at, length in zip(anchor, place.tolist(), (size[1], size[0]), strict=True):
        low, high = at / scale, length - (side - at) / scale
        moved.append(min(max(point, low), high) if low <= high else (low + high) / 2)
    return moved[0], moved[1]


def _probe(target: Cutout, warp: Warp, side: int) -> float:
    """About which share of a view the target covers."""
    coarse = np.diag([side / _PROBE, side / _PROBE, 1.0])
    soft = target.soft(Warp(warp.matrix @ coarse, warp.scale), (0, 0, _PROBE, _PROBE))
    return float((soft > 1 / 2).float().mean())


def _paste(
    rng: np.random.Generator, pixels: torch.Tensor, cutout: Cutout, warp: Warp
) -> torch.Tensor:
    """Paste a region into a view, in place; returns where it lies, bool [S, S]."""
    side = pixels.shape[-1]
    inside = torch.zeros(side, side, dtype=torch.bool)
    window = left, top, right, bottom = warp.seen(cutout.box, side)
    if right <= left or bottom <= top:
        return inside
    places = torch.from_numpy(warp.places(window))
    (height, width), soft = cutout.size, cutout.soft(warp, window)
    within = (places >= 0).all(2) & (places[..., 0] < width) & (places[..., 1] < height)
    # A step of the smoothed mask is some pixels wide; the edge is sharpened to `_EDGE` of the view.
    steps = max(1.0, 2 * warp.scale * width / cutout.region.soft.shape[1] / _EDGE)
    cover = ((soft - 1 / 2) * steps + 1 / 2).clamp(0, 1) * within
    layer = expose(rng, view(cutout.image, warp, window))
    part = pixels[:, top:bottom, left:right]
    part += cover * (layer - part)
    inside[top:bottom, left:right] = cover > 1 / 2
    return inside


def _stream(*key: int) -> np.random.Generator:
    return random_stream(_VERSION, *key)
