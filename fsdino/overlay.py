"""Drawing over pixels: the colours of labels, and masks over images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from fsdino import images
from fsdino.errors import UsageError, printable
from fsdino.images import Flags, Pixels

Color: TypeAlias = tuple[int, int, int]

_MOST_JPEG = 65_500  # pixels of a side
# Labels 1 to 10 in overlays; further ones get hues that a golden angle spreads.
COLORS: tuple[Color, ...] = (
    (0, 158, 255),
    (230, 0, 126),
    (255, 183, 3),
    (38, 190, 92),
    (138, 79, 255),
    (255, 110, 48),
    (0, 201, 190),
    (226, 34, 40),
    (168, 208, 30),
    (150, 98, 60),
)


def overlay(
    image: Pixels,
    mask: Flags | npt.NDArray[np.integer[Any]],
    colors: Sequence[Color] | None = None,
    alpha: float = 0.45,
) -> Image.Image:
    """Draw a mask or labels over an image: a translucent colour, and its outline in full.

    The outline lies inside the region, about 1/400 of the image's longer side wide, and leaves
    out the image's border.

    Args:
        image: uint8 [H, W, 3].
        mask: bool [H, W], or labels, integers [H, W]: 0 is background, i gets `colors[i - 1]`.
        colors: RGB, 0..255, repeated where there are more labels; by default `label_color`.
        alpha: how much of the colour is in the region, 0 to 1.

    Returns:
        PIL image, RGB, of the image's size.

    Raises:
        UsageError: shapes that do not fit, negative labels, alpha outside 0..1, no colours.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UsageError(f"overlay: {image.dtype} {list(image.shape)} is not uint8 [H, W, 3]")
    if mask.shape != image.shape[:2] or mask.dtype.kind not in "bui":
        raise UsageError(
            f"overlay: {mask.dtype} {list(mask.shape)} is neither mask nor labels for an image "
            f"{list(image.shape)}"
        )
    if not 0 <= alpha <= 1:
        raise UsageError(f"overlay: alpha must lie between 0 and 1, got {alpha}")
    whole = mask.astype(np.uint8) if mask.dtype == np.bool_ else mask
    labels = cast("npt.NDArray[np.integer[Any]]", whole)
    if labels.size and labels.min() < 0:
        raise UsageError(f"overlay: label {labels.min()} is negative; 0 is background")
    table = _color_table(int(labels.max(initial=0)), colors)
    drawn = image.copy()
    inside = labels > 0
    step = max(images.BAND // max(labels.shape[1], 1), 1)
    for top in range(0, len(labels), step):  # as floats a large photograph takes gigabytes
        part, within = drawn[top : top + step], inside[top : top + step]
        fill = table[labels[top : top + step][within]].astype(np.float32)
        part[within] = np.rint(part[within].astype(np.float32) * (1 - alpha) + fill * alpha)
    outline = _outline(labels, width=max(1, round(max(labels.shape) / 400))) & inside
    drawn[outline] = table[labels[outline]]
    return Image.fromarray(drawn)


def named_overlay(image: Pixels, labels: npt.NDArray[Any], names: Sequence[str]) -> Image.Image:
    """`overlay`, and of several classes the names, as `with_legend` writes them."""
    drawn = overlay(image, labels)
    return with_legend(drawn, labels, names) if len(names) > 1 else drawn


def mask_image(labels: npt.NDArray[np.integer[Any]], classes: int) -> Image.Image:
    """Labels as an image: 0 and 255 for one class. For several an 8-bit palette image in the
    overlays' colours: 0 is background (black), i the i-th class.

    Args:
        labels: [H, W], 0 to 255.
        classes: how many there are, found or not.
    """
    if classes == 1:
        return Image.fromarray((labels > 0).astype(np.uint8) * np.uint8(255))
    image = Image.fromarray(labels.astype(np.uint8))
    colors = [label_color(label) for label in range(1, int(labels.max(initial=0)) + 1)]
    image.putpalette([0, 0, 0, *(part for color in colors for part in color)])
    return image


def encode_overlay(drawn: Image.Image) -> tuple[str, bytes]:
    """An overlay's suffix and content: jpg, or png where the image is too long for JPEG."""
    if max(drawn.size) > _MOST_JPEG:
        return "png", images.encode_image(drawn, "PNG")
    return "jpg", images.encode_image(drawn, "JPEG", quality=92)


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """A picture of at most this many pixels a side, of the same shape; small ones as they are."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def with_legend(
    picture: Image.Image, labels: npt.NDArray[Any], names: Sequence[str]
) -> Image.Image:
    """A picture with the names of the labels in it, beside their colours, in the top left corner.

    Args:
        picture: RGB, H x W, changed in place.
        labels: integers [H, W]: 0 is background, i the class `names[i - 1]`.
        names: of all classes; those without a pixel are left out, as are those for which the
            picture has no room.

    Returns:
        The same picture.
    """
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=len(names) + 1)[1:])
    side = max(round(max(picture.size) / 50), 10)
    font = ImageFont.load_default(side)
    draw = ImageDraw.Draw(picture)
    rows = present[: max(picture.height // (2 * side), 0)].tolist()
    for row, place in enumerate(rows):
        name, top = printable(names[place], 40), side // 2 + row * 3 * side // 2
        right = 2 * side + int(draw.textlength(name, font)) + side // 2
        draw.rectangle((side // 2, top, right, top + 3 * side // 2), (255, 255, 255))
        box = (side // 2 + side // 4, top + side // 4, side // 2 + side, top + side)
        draw.rectangle(box, label_color(place + 1))
        draw.text((2 * side, top + side // 8), name, (0, 0, 0), font)
    return picture


def marked(image: Pixels, labels: npt.NDArray[Any]) -> Image.Image:
    """The image as it is, with two lines around the region of its label: a colour, and white.

    Args:
        image: uint8 [H, W, 3].
        labels: [H, W], bool, or 0 and one label, whose colour it is.

    Returns:
        PIL image, RGB, of the image's size.
    """
    label = int(labels.max())
    region = Image.fromarray((labels > 0).astype(np.uint8))
    size = 2 * max(round(max(image.shape) / 160), 2) + 1
    inner = np.asarray(region.filter(ImageFilter.MinFilter(size))) > 0
    outer = np.asarray(region.filter(ImageFilter.MaxFilter(size))) > 0
    drawn = image.copy()
    drawn[outer] = 255
    drawn[labels > 0] = label_color(label)
    drawn[inner] = image[inner]
    return Image.fromarray(drawn)


def label_color(label: int) -> Color:
    """The colour that overlays give a label: `COLORS` for the first ones, then spread hues.

    Raises:
        UsageError: a label below 1.
    """
    if label < 1:
        raise UsageError(f"label {label} has no colour: labels start at 1, 0 is background")
    if label <= len(COLORS):
        return COLORS[label - 1]
    hue = (0.36 + label * 0.618034) % 1  # from where the hues keep clear of COLORS longest
    red, green, blue = colorsys.hsv_to_rgb(hue, 1, (1.0, 0.7)[label % 2])
    return round(red * 255), round(green * 255), round(blue * 255)


def palette() -> list[int]:
    """256 colours for `Image.putpalette`: black for 0, `label_color` for 1 to 255."""
    return _color_table(255, None).ravel().tolist()


def _color_table(labels: int, colors: Sequence[Color] | None) -> Pixels:
    """uint8 [labels + 1, 3], black for 0."""
    if colors is not None and not colors:
        raise UsageError("overlay: no colours given; pass at least one, or None")
    table = np.zeros((labels + 1, 3), np.uint8)
    for label in range(1, labels + 1):
        table[label] = label_color(label) if colors is None else colors[(label - 1) % len(colors)]
    return table


def _outline(labels: npt.NDArray[np.integer[Any]], width: int) -> Flags:
    """bool [H, W]: where the label changes up to `width` pixels off along a row or a column."""
    outline = np.zeros(labels.shape, np.bool_)
    for axis in (0, 1):
        line, near = labels.swapaxes(0, axis), outline.swapaxes(0, axis)
        changes = line[1:] != line[:-1]  # between pixel i and i + 1
        for step in range(min(width, len(changes))):
            near[: len(changes) - step] |= changes[step:]
            near[1 + step :] |= changes[: len(changes) - step]
    return outline
