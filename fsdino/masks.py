"""Masks: reading them, and the judgement what is a mask of two values."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from PIL import Image

from fsdino import images
from fsdino.errors import DataError, UsageError
from fsdino.images import AnyArray, Flags, ImageLike, Pixels

logger = logging.getLogger("fsdino.masks")

MaskLike: TypeAlias = ImageLike

# Of a mask with gray edges, this share must lie this near to black or white (of 255).
_CLEAR_SHARE, _CLEAR_RANGE = 0.98, 32
# Otherwise its gray edges are at most this many pixels wide, and those of one gray, as a trimap's,
# much less. This many stray pixels do not count as labels, and this share of the gray may be flat,
# as it is where a small mask was enlarged.
_EDGE_WIDTH, _ONE_GRAY_WIDTH, _STRAY, _FLAT_SHARE = 8, 1.6, 16, 0.3
# Where and of which orientation a warning was given, once a process.
_warned: set[tuple[str, int]] = set()


@dataclass(frozen=True)
class MaskRule:
    """Which pixels of a mask are foreground, where that is not to be found out.

    Attributes:
        threshold: the brightness that a pixel needs, as a share of white (255, or 65535 or 1), in
            (0, 1); alpha counts as in `read_mask`.
        value: the pixels that have it: a whole number, which in a palette with colours is the
            index, or a colour such as "#ff0000".
        invert: whether the rest of the image is foreground instead.

    Raises:
        UsageError: a threshold outside of (0, 1), a value that is neither a number nor a colour, or
            both at a time.
    """

    threshold: float | None = None
    value: int | str | None = None
    invert: bool = False

    def __post_init__(self) -> None:
        if self.threshold is not None and self.value is not None:
            raise UsageError("mask_threshold and mask_value exclude each other: pass one of them")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise UsageError(
                f"mask_threshold must lie between 0 and 1, as a share of white, got "
                f"{self.threshold}"
            )
        if isinstance(self.value, str) and not re.fullmatch("#[0-9a-fA-F]{6}|-?[0-9]+", self.value):
            raise UsageError(
                f"mask_value must be a whole number or a colour such as #ff0000, got {self.value}"
            )

    @property
    def color(self) -> tuple[int, ...] | None:
        """Red, green and blue, if the value is a colour."""
        if not isinstance(self.value, str) or not self.value.startswith("#"):
            return None
        return tuple(bytes.fromhex(self.value[1:]))


def read_mask(
    mask: MaskLike,
    size: tuple[int, int] | None = None,
    name: str = "mask",
    *,
    image: ImageLike | None = None,
    allow_empty: bool = False,
    rule: MaskRule | None = None,
) -> Flags:
    """A mask of two values as bool, upright like its image.

    What counts as two values:

    * bool, or 0 and one other value of any numeric type: 0/1, 0/255, 0/7, 0./1.
    * gray edges (a soft brush, JPEG, a mask that was enlarged up to 8 times) and a few stray
      pixels, cut at one half, as FSS-1000's reader does. Gray (further than 32 from black and
      white, of 255; 16-bit and float values likewise) is at most 2 % of the pixels, or lies in
      bands of 8 pixels along the outline. Wide bands of one gray are a trimap; gray areas, or a
      few low values beside 255, are class labels: those are refused.
    * RGB: gray as above, or one colour on black, cut at half its brightness.
    * RGBA and other alpha: the alpha channel, unless it is constant; then the colours.
    * palette files: a gray palette counts as gray. Of two colours, black is the background;
      otherwise the palette's indices are the values.

    Args:
        mask: as in `read_image`; colour arrays and tensors must be uint8.
        size: (H, W) of the image, as `read_image` returns it, that the mask belongs to.
        name: what an error calls it; a file's path is added.
        image: what `read_image` was given for the image. Where its EXIF orientation turns it and
            keeps its size, and the mask has no EXIF orientation of its own, nothing says which way
            up the mask is: it is taken as upright, and the log has a warning, once a folder.
        allow_empty: whether no foreground at all is an answer (of a frame that the object has
            left, say) rather than an error.
        rule: which pixels are foreground instead of all this; what is refused otherwise can be
            read by it.

    Returns:
        bool [H, W], True in the foreground.

    Raises:
        UsageError: as in `read_image`, and a mask of another size than its image.
        DataError: as in `read_image`, and an empty mask or unexpected values.
    """
    label = images.label_of(mask, name)
    turned = _turned(mask, image)
    source = images.load(mask, label)
    if isinstance(source, Image.Image):
        _check_size((source.height, source.width), size, label)
    else:
        _check_size((source.shape[0], source.shape[1]), size, label)
    rule = rule or MaskRule()
    foreground = _by_rule(source, label, rule)
    if turned is not None:
        _warn_of_orientation(mask, foreground, turned, label)
    if not allow_empty and not foreground.any():
        why = ", since it is inverted" if rule.invert else ""
        raise DataError(
            f"{label} has no foreground{why}: paint the object in white (255) on black (0)"
        )
    return foreground


def _by_rule(source: Image.Image | AnyArray, label: str, rule: MaskRule) -> Flags:
    """The foreground of a mask, bool [H, W]."""
    if rule.color is not None:
        colors = images.read_image(source, label)
        foreground = cast(Flags, (colors == np.array(rule.color, np.uint8)).all(2))
        if not foreground.any():
            raise DataError(f"{label} has no pixel of the colour {rule.value}; choose one it has")
        return ~foreground if rule.invert else foreground
    if isinstance(source, Image.Image):
        values = _values_of_image(source, label, rule)
    else:
        values = _values_of_array(source, label, rule)
    if rule.threshold is not None:
        foreground = _bright(values, rule.threshold, label)
    elif rule.value is not None:
        foreground = values == int(rule.value)
        if not foreground.any():
            raise DataError(f"{label} has no pixel of the value {rule.value}; {_present(values)}")
    else:
        foreground = _foreground(values, label)
    return ~foreground if rule.invert else foreground


def _bright(values: AnyArray, threshold: float, label: str) -> Flags:
    if values.dtype == np.bool_:
        return values.copy()
    high = values.max()
    if not np.isfinite([values.min(), high]).all():
        raise DataError(f"{label}: holds NaN or infinity; write 0 and 1")
    foreground: Flags = values >= threshold * _white(values, high)
    return foreground


def _white(values: AnyArray, high: float) -> int:
    """What stands for white in a mask with this highest value: 1, 255 or 65535."""
    if values.dtype.kind != "f" and high > 255:
        return 65535
    return 255 if high > 1 else 1


def _present(values: AnyArray) -> str:
    present: list[int | float] = np.unique(values).tolist()
    shown = ", ".join(map(str, present[:8])) + (", …" if len(present) > 8 else "")
    return f"it has the values {shown}"


def warn_of_orientation(
    mask: MaskLike, image: ImageLike, values: Pixels, name: str = "label map"
) -> None:
    """Warn, once per folder, if the orientation of a label map is unknown; see `read_mask`.

    Args:
        mask, image: what was read.
        values: uint8 [H, W], the labels.
        name: what the warning calls the label map.
    """
    turned = _turned(mask, image)
    if turned is not None:
        _warn_of_orientation(mask, values, turned, images.label_of(mask, name))


def _turned(mask: MaskLike, image: ImageLike | None) -> int | None:
    """The EXIF orientation of an image whose mask has none of its own; None if nothing is in doubt.

    Asked before the mask is decoded: what Pillow turns by itself loses its orientation.
    """
    turned = None if image is None else images.stated_orientation(image)
    if turned not in range(2, 9) or images.stated_orientation(mask) is not None:
        return None
    return turned


def _warn_of_orientation(
    mask: MaskLike, flags: Flags | Pixels, orientation: int, label: str
) -> None:
    """Say that nothing decides which way up a mask is, where that changes it; once a folder."""
    plain = images.turned(Image.fromarray(flags), orientation)
    if flags.shape != (plain.height, plain.width) or np.array_equal(flags, np.asarray(plain)):
        return
    place = ""
    if isinstance(mask, str | os.PathLike):
        place = os.path.dirname(os.path.abspath(os.fsdecode(mask)))
    if (place, orientation) in _warned:
        return
    _warned.add((place, orientation))
    logger.warning(
        "%s: the EXIF orientation of its photograph is %d, which keeps the size, and the mask has "
        "none: it is taken as painted on the photograph as displayed. If it was painted on the "
        "stored pixels, write orientation %d into the mask's file (or save the photograph upright, "
        "or pass both as arrays); orientation 1 there says that it is upright",
        label, orientation, orientation,
    )  # fmt: skip


def _check_size(found: tuple[int, int], wanted: tuple[int, int] | None, label: str) -> None:
    if wanted is None or found == tuple(wanted):
        return
    hint = "paint it on the image itself, at full size"
    if found == tuple(wanted)[::-1]:
        hint = (
            "one of them is turned: paint it on the image as it is displayed, or write the image's "
            "EXIF orientation into the mask's file"
        )
    raise UsageError(
        f"{label}: {found[1]} × {found[0]} pixels, but its image has {wanted[1]} × {wanted[0]}; "
        f"{hint}"
    )


def _values_of_image(image: Image.Image, label: str, rule: MaskRule) -> AnyArray:
    """The values [H, W] that a PIL mask's pixels stand for."""
    indexed = image.mode == "P" and rule.threshold is None
    if indexed and (rule.value is not None or "transparency" not in image.info):
        return _values_of_palette(image, two_colors=rule.value is None)
    if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
        return np.asarray(image)
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa"):
        return _values_of_colors(np.asarray(image.convert("RGBA")), label, rule)
    return _values_of_colors(np.asarray(image.convert("RGB")), label, rule)


def _values_of_array(array: AnyArray, label: str, rule: MaskRule) -> AnyArray:
    if array.ndim == 2:
        return array
    if array.dtype != np.uint8:
        raise UsageError(f"{label}: shape {list(array.shape)} is not one mask; pass [H, W]")
    if array.shape[2] == 2:
        array = array[:, :, [0, 0, 0, 1]]
    return _values_of_colors(array, label, rule)


def _values_of_palette(image: Image.Image, *, two_colors: bool) -> AnyArray:
    indices: AnyArray = np.asarray(image)
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
    palette = np.zeros((256, 3), np.uint8)
    stored = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    palette[: len(stored)] = stored
    colors = palette[used]
    gray = bool((colors == colors[:, :1]).all())
    if gray and len(np.unique(colors[:, 0])) == len(used):
        return np.take(palette[:, 0], indices)
    black = (colors == 0).all(axis=1)
    if two_colors and len(used) == 2 and black.sum() == 1:
        indices = indices != used[black][0]
    return indices


def _values_of_colors(pixels: Pixels, label: str, rule: MaskRule) -> AnyArray:
    """uint8 or bool [H, W] of colours [H, W, 3 or 4]: alpha, gray, or one colour's brightness."""
    if pixels.shape[2] == 4:
        alpha = pixels[:, :, 3]
        if alpha.min() != alpha.max():
            return alpha
    color = pixels[:, :, :3]
    red, green, blue = np.moveaxis(color, 2, 0)
    if (red == green).all() and (green == blue).all():
        return cast(Pixels, red)
    if rule.threshold is not None:
        return cast(Pixels, color.max(axis=2))
    if rule.value is not None:
        raise DataError(
            f"{label} has colours, and not the value {rule.value}: name one of them, such as "
            "mask_value='#ff0000' (--mask-value '#ff0000')"
        )
    codes = red.astype(np.int32)  # in place: four bytes a pixel, and not twelve
    for channel in (green, blue):
        codes <<= 8
        codes |= channel
    if ((codes == 0) | (codes == codes.max())).all():
        return cast(Flags, codes != 0)
    value: Pixels = color.max(axis=2)
    tint = value - color.min(axis=2)
    tinted = float((tint > _CLEAR_RANGE).mean())
    if value.max() >= 128 and tinted <= 1 - _CLEAR_SHARE:
        return value
    return _brightness_of_one_color(color, value, label)


def _brightness_of_one_color(color: Pixels, value: Pixels, label: str) -> Pixels:
    """uint8 [H, W]: how much of the mask's only colour is in a pixel, 255 for all of it."""
    solid = color[value >= max(1, int(value.max()) * 7 // 8)]
    solid = solid[:: max(1, len(solid) // 100_000)].astype(np.float32)  # a sample is enough
    solid *= 255 / solid.max(axis=1, keepdims=True)
    only = np.median(solid, axis=0)
    other = np.abs(solid - only).max(axis=1) > 2 * _CLEAR_RANGE
    if other.mean() > 0.005:
        raise DataError(
            f"{label} has several colours: a mask has one on black; select one object's colour, "
            "for example `(mask == color).all(-1)`; a support takes mask_value='#ff0000' "
            "(--mask-value '#ff0000')"
        )
    brightness: Pixels = np.rint(value.astype(np.float32) * (255 / value.max())).astype(np.uint8)
    return brightness


def _foreground(values: AnyArray, label: str) -> Flags:
    """The foreground of values [H, W]: all that is not 0, or the bright side of gray edges."""
    if values.dtype == np.bool_:
        return values.copy()
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{label}: holds NaN or infinity; write 0 and 1")
    if low == high or (low == 0 and ((values == low) | (values == high)).all()):
        return values.astype(np.bool_)
    white = _white(values, high)
    if low < 0 or high > white:
        raise DataError(f"{label} {_unexpected(values)}")
    levels = values if values.dtype == np.uint8 else _levels(values, white)
    if not _has_soft_edges(levels):
        raise DataError(f"{label} {_unexpected(values)}")
    foreground: Flags = levels >= 128
    return foreground


def _levels(values: AnyArray, white: int) -> Pixels:
    """Values from 0 to `white` as uint8, a part of the rows at a time: floats take memory."""
    levels = np.empty(values.shape, np.uint8)
    rows = max(images.BAND // values.shape[1], 1)
    for start in range(0, len(values), rows):
        part = slice(start, start + rows)
        levels[part] = np.rint(values[part].astype(np.float32) * (255 / white))
    if values.dtype.kind in "ui":  # labels of 16 bits stay beside 0
        levels[(levels == 0) & (values != 0)] = 1
    return levels


def _has_soft_edges(levels: Pixels) -> bool:
    """Whether uint8 [H, W] is black and white except for gray edges and stray pixels.

    Edges are judged by their length: gray lies near the line between dark and bright, in a band of
    limited width. What is gray and flat is a label or the unknown part of a trimap.
    """
    counts = np.bincount(levels.ravel(), minlength=256)
    dark, between, bright = np.split(counts, [_CLEAR_RANGE + 1, 255 - _CLEAR_RANGE])
    if not counts[128:].any() or _has_dark_labels(levels, dark, between, bright):
        return False
    number = int(between.sum())
    if not number:
        return True
    outer, middle, inner = (
        _borders(levels >= limit) for limit in (_CLEAR_RANGE + 1, 128, 255 - _CLEAR_RANGE)
    )
    gray = (levels > _CLEAR_RANGE) & (levels < 255 - _CLEAR_RANGE)
    peak = int(between.argmax())
    one_gray = int(between[max(peak - 4, 0) : peak + 5].sum())
    if one_gray > max(0.6 * number, _STRAY) and (
        one_gray > _ONE_GRAY_WIDTH * max(_length(outer), _length(inner))
        or np.count_nonzero(gray & _is_flat(levels, 1)) > _FLAT_SHARE * number
    ):
        return False
    if np.count_nonzero(gray & _is_flat(levels, 2)) > _FLAT_SHARE * number:
        return False
    if bright.any() and number <= (1 - _CLEAR_SHARE) * levels.size:
        return True
    solid = number <= levels.size / 3 and _is_two_tone(dark)
    if not solid or number > _EDGE_WIDTH * max(_length(middle), _length(inner)):
        return False
    far = int(np.count_nonzero(gray & ~_near((middle, inner), levels.shape)))
    return far <= _STRAY + 0.05 * number


def _has_dark_labels(levels: Pixels, dark: AnyArray, between: AnyArray, bright: AnyArray) -> bool:
    """Whether a few dark values and 255 are labels with an ignored border, as in PASCAL VOC.

    What softens edges leaves values between, or just below white; strays are few and scattered.
    """
    number = int(dark[1:].sum())
    if np.count_nonzero(between) > np.count_nonzero(dark[1:]) or bool(bright[:-1].any()):
        return False
    if number <= 0.02 * int(bright.sum()):
        return False
    labels = (levels > 0) & (levels <= _CLEAR_RANGE)
    for axis in (0, 1):  # to where all neighbours are labels
        labels = _reduced(labels.view(np.uint8), 1, axis, np.minimum).view(np.bool_)
    return number > _STRAY or bool(np.any(labels))


def _is_two_tone(counts: AnyArray) -> bool:
    """Whether half of the pixels that a histogram counts are of about one value."""
    peak = int(counts.argmax())
    return 2 * int(counts[max(peak - 4, 0) : peak + 5].sum()) >= int(counts.sum())


def _is_flat(levels: Pixels, radius: int) -> Flags:
    """bool [H, W]: where a square of 2 * radius + 1 pixels, inside the image, has one value."""
    low, high = levels, levels
    for axis in (0, 1):
        low, high = (
            _reduced(plane, radius, axis, reduce)
            for plane, reduce in ((low, np.minimum), (high, np.maximum))
        )
    flat: Flags = high - low <= 2
    return flat


def _reduced(plane: Pixels, radius: int, axis: int, reduce: np.ufunc) -> Pixels:
    """The minimum or maximum over the neighbours up to `radius` off along an axis."""
    result = plane.copy()
    line, out = plane.swapaxes(0, axis), result.swapaxes(0, axis)
    for step in range(1, min(radius, len(line) - 1) + 1):
        reduce(out[step:], line[:-step], out=out[step:])
        reduce(out[:-step], line[step:], out=out[:-step])
    return result


def _borders(flags: Flags) -> tuple[Flags, Flags]:
    """Where a pixel differs from the next one: bool [H - 1, W] and [H, W - 1]."""
    return flags[1:] != flags[:-1], flags[:, 1:] != flags[:, :-1]


def _length(borders: tuple[Flags, Flags]) -> int:
    """How many sides of pixels lie on borders."""
    return sum(int(np.count_nonzero(part)) for part in borders)


def _near(edges: Sequence[tuple[Flags, Flags]], shape: tuple[int, ...]) -> Flags:
    """bool [H, W]: up to `_EDGE_WIDTH` pixels off a border, in a square around it."""
    near = np.zeros(shape, np.uint8)
    for vertical, horizontal in edges:
        near[1:] |= vertical
        near[:-1] |= vertical
        near[:, 1:] |= horizontal
        near[:, :-1] |= horizontal
    for axis in (0, 1):
        near = _reduced(near, _EDGE_WIDTH - 1, axis, np.maximum)
    return near.view(np.bool_)


def _unexpected(values: AnyArray) -> str:
    present: list[int | float] = np.unique(values).tolist()
    if len(present) <= 32:
        shown = ", ".join(map(str, present[:8])) + (", …" if len(present) > 8 else "")
        return f"has the values {shown}: a mask has two, 0 and one other; {_selection(present)}"
    return (
        f"has {len(present)} values from {present[0]:.6g} to {present[-1]:.6g}: a mask is black "
        "and white except for edges a few pixels wide; make it so, for example `mask >= "
        f"{(present[0] + present[-1]) / 2:.6g}`, or `mask == value` for one label; a support takes "
        "mask_threshold=0.5 (--mask-threshold 0.5), or mask_value"
    )


def _selection(present: Sequence[int | float]) -> str:
    """How to select an object of a label map with these values, as the end of an error."""
    if len(present) == 3 and present[0] == 0 and present[2] == 255 and 120 <= present[1] <= 135:
        return (
            f"{present[1]} looks like the unknown part of a trimap: write `mask == 255`"
            f"{_option(255)}"
        )
    ignored = [value for value in present if value < 0 or value in (255, 65535)]
    objects = [value for value in present if value != 0 and value not in ignored]
    if not objects:
        return f"if 0 is the background, write `mask != 0`{_option(present[-1])}"
    note = f"; {' and '.join(map(str, ignored[:3]))} usually marks what is ignored"
    return (
        f"select one object, for example `mask == {objects[-1]}`{note if ignored else ''}"
        f"{_option(objects[-1])}"
    )


def _option(value: int | float) -> str:
    """How the same is said of a support, as the end of an error."""
    if value != int(value):
        return "; a support takes mask_threshold=0.5 (--mask-threshold 0.5)"
    return f"; a support takes mask_value={value:.0f} (--mask-value {value:.0f})"
