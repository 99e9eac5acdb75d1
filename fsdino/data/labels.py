"""Your own label maps: one file that marks several classes, each with a value."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fsdino.data.disk import decode_data, file_key, label_values, prepared
from fsdino.data.episodes import Image
from fsdino.data.lists import read_lines
from fsdino.errors import DataError, FsdinoError, UsageError
from fsdino.files import make_folder, read_object, write_json
from fsdino.masks import read_mask, warn_of_orientation

logger = logging.getLogger("fsdino.data")

IGNORED = 255
_NONE = "none"
_VALUES_FILE = "labels.json"
_VALUES_FORMAT = "fsdino-values-1"  # part of the cache's key: another rule is another number
_MOST_VALUES = 64  # of one file; what has more are gray levels
_LOSSY = ("JPEG", "MPO", "WEBP")


@dataclass(frozen=True)
class Labelling:
    """The meaning of the values of label maps.

    Attributes:
        ignore: value of undecided pixels, left out of a query's score; None if there is none.
        background: value that is not a class: 0, or None if 0 is a class like the others.

    Raises:
        UsageError: a value outside 0..255, or one value for both.
    """

    ignore: int | None = IGNORED
    background: int | None = 0

    def __post_init__(self) -> None:
        if self.background not in (0, None):
            raise UsageError(f"background {self.background}: choose 0 or none")
        if self.ignore is not None and not 0 <= self.ignore <= 255:
            raise UsageError(f"ignore {self.ignore}: choose a value from 0 to 255, or none")
        if self.ignore is not None and self.ignore == self.background:
            raise UsageError(f"ignore {self.ignore}: this is the background; pass background none")

    @classmethod
    def of(cls, ignore: int | str | None, background: int | str | None) -> Labelling:
        """Parse an option: a number, "none", or None for the default.

        Raises:
            UsageError: another word, or an invalid value, see above.
        """
        return cls(_value("ignore", ignore, IGNORED), _value("background", background, 0))

    def classes(self, values: Iterable[int]) -> list[int]:
        """Those values that are classes, in ascending order."""
        return sorted(set(values) - {self.ignore, self.background})

    @property
    def is_default(self) -> bool:
        """Whether 255 is ignored and 0 is background."""
        return self == Labelling()

    def __str__(self) -> str:
        """Return the values in the words of the options."""
        shown = [_NONE if v is None else str(v) for v in (self.ignore, self.background)]
        return f"ignore {shown[0]}, background {shown[1]}"


def _value(title: str, given: int | str | None, default: int) -> int | None:
    if given is None:
        return default
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    if given == _NONE:
        return None
    if not isinstance(given, str) or not re.fullmatch(r"[0-9]{1,9}", given):
        raise UsageError(f"{title} {given!r}: choose a value from 0 to 255, or none")
    return int(given)


def read_label_map(path: Path, size: tuple[int, int], photograph: Path) -> Image:
    """Read a label map, uint8 [H, W], upright like the photograph that it belongs to.

    Args:
        path: the file.
        size: (H, W) of the photograph as it is displayed.
        photograph: its file; if its EXIF data do not determine the map's orientation, that is
            logged.

    Raises:
        DataError: it cannot be read, is in colours, or of another size.
    """
    values = label_values(decode_data(path, "label map", upright=True), path, size)
    warn_of_orientation(path, photograph, values)
    return values


def read_values(masks: Iterable[Path]) -> tuple[dict[Path, tuple[int, ...]], dict[Path, str]]:
    """Read which values label maps have; cached, since all files have to be read.

    Returns:
        The values by file, and reasons by file that cannot be read.
    """
    files = list(masks)
    if not files:
        return {}, {}
    folder = prepared(_VALUES_FORMAT, file_key(files))
    kept = _kept_values(folder / _VALUES_FILE, files)
    if kept is not None:
        return kept, {}
    logger.info("reading which classes %d label maps hold", len(files))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = dict(zip(files, pool.map(_values, files), strict=True))
    damaged = {path: reason for path, reason in found.items() if isinstance(reason, str)}
    values = {path: own for path, own in found.items() if not isinstance(own, str)}
    if not damaged:
        try:
            make_folder(folder, "set FSDINO_CACHE to a folder that can be written")
            write_json(folder / _VALUES_FILE, {"values": [list(values[path]) for path in files]})
        except FsdinoError as error:  # it only costs time
            logger.warning("the classes of label maps are not kept: %s", error)
    return values, damaged


def _kept_values(file: Path, files: Sequence[Path]) -> dict[Path, tuple[int, ...]] | None:
    """The cached values; None if they are missing or damaged."""
    if not file.is_file():
        return None
    try:
        rows = read_object(file, "it is written again").get("values")
    except DataError as error:
        logger.warning("%s", error)
        return None
    if not isinstance(rows, list) or len(rows) != len(files):
        return None
    for row in rows:
        if not isinstance(row, list) or any(type(v) is not int or not 0 <= v < 256 for v in row):
            return None
    return {path: tuple(row) for path, row in zip(files, rows, strict=True)}


def _values(path: Path) -> tuple[int, ...] | str:
    try:
        image = decode_data(path, "label map")
        if image.format in _LOSSY:
            return f"{path}: {image.format} changes the values of a label map; export it as PNG"
        counts = np.bincount(label_values(image, path).ravel(), minlength=256)
    except DataError as error:
        return str(error)
    return tuple(np.flatnonzero(counts).tolist())


def is_label_maps(root: Path, masks: Iterable[Path], labelling: Labelling) -> bool:
    """Whether masks mark several classes, by all of their values, and not one.

    Raises:
        DataError: they can be read either way.
    """
    values, _ = read_values(masks)
    several = [p for p in values if not _is_binary(p, values[p])]
    if several:
        return all(len(values[path]) <= _MOST_VALUES for path in several)
    examples = {own[-1]: path for path, own in values.items() if len(own) <= 2 and own[-1]}
    classes = labelling.classes(examples)
    if len(examples) > 1 and len(classes) < 2:
        found = " and ".join(f"{value} ({examples[value]})" for value in sorted(examples))
        raise DataError(
            f"--root {root}: masks of the values {found} are one class or two; pass --layout pairs "
            "or --layout labels"
        )
    return len(classes) > 1


def _is_binary(path: Path, values: tuple[int, ...]) -> bool:
    """Whether a file is a mask of one object."""
    if len(values) == 1 or (len(values) == 2 and values[0] == 0):
        return True
    try:
        read_mask(path, allow_empty=True)
    except FsdinoError:
        return False
    return True


def several_classes(path: Path) -> bool:
    """Whether a file can be a label map of several classes."""
    values = _values(path)
    return not isinstance(values, str) and 2 < len(values) <= _MOST_VALUES


def read_classes(file: Path, background: int | None) -> dict[int, str]:
    """Read names of classes by their values; none if the file does not exist.

    A line is `ID NAME`, or a name alone: then the first line is the first class, 1 (0 if 0 is
    not the background, or if the line is "background").

    Raises:
        DataError: lines of both kinds, or a repeated value or name.
    """
    if not file.is_file():
        return {}
    lines = [line for line in read_lines(file) if not line.startswith("#")]
    split = [re.fullmatch(r"([0-9]{1,9})[\s:,;]+(.*\S)", line) for line in lines]
    numbered = [match for match in split if match is not None]
    if numbered and len(numbered) < len(lines):
        other = lines[split.index(None)]
        raise DataError(f"{file}: {other!r} is not ID NAME like {numbered[0][0]!r}; use one kind")
    if numbered:
        pairs = [(int(match[1]), match[2]) for match in numbered]
    else:
        named = bool(lines) and lines[0].strip("_").casefold() == "background"
        first = 1 if background == 0 and not named else 0
        pairs = list(enumerate(lines, first))
    found: dict[int, str] = {}
    for value, name in pairs:
        if not 0 <= value <= 255:
            raise DataError(f"{file}: {value} is not a value from 0 to 255; fix the line")
        if value in found or name in found.values():
            raise DataError(f"{file}: {value} {name} is repeated; remove one of the lines")
        found[value] = name
    return {value: name for value, name in found.items() if value != background}


def check_known(mask: Path, present: Sequence[int], named: Mapping[int, str], file: Path) -> None:
    """Refuse a value without a name if other values have one.

    Raises:
        DataError: the message names the label map and the value.
    """
    for value in present if named else ():
        if value not in named:
            raise DataError(
                f"{mask}: the value {value} is not in {file}; add a line for it, or pass "
                f"--ignore {value}"
            )
