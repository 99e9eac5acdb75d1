"""Pixels in and out: reading images and masks, resizing there and back."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from fsdino import files, tiff
from fsdino.errors import DataError, FsdinoError, UsageError
from fsdino.image_files import (
    MOST_BYTES,
    check_pixels,
    open_image,
    printable,
)

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("fsdino.images")

Pixels: TypeAlias = npt.NDArray[np.uint8]
Flags: TypeAlias = npt.NDArray[np.bool_]
AnyArray: TypeAlias = npt.NDArray[Any]
# A quoted Union, since torch is imported only where it is needed.
ImageLike: TypeAlias = Union[str, "os.PathLike[str]", Image.Image, AnyArray, "torch.Tensor"]
MaskLike: TypeAlias = ImageLike

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Where and of which orientation a warning was given, once a process.
_warned: set[tuple[str, int]] = set()

# Of a mask with gray edges, this share must lie this near to black or white (of 255).
_CLEAR_SHARE, _CLEAR_RANGE = 0.98, 32
# Otherwise its gray edges are at most this many pixels wide, and those of one gray, as a trimap's,
# much less. So many stray pixels are no labels, and this share of the gray may be flat, as it is
# where a small mask was enlarged.
_EDGE_WIDTH, _ONE_GRAY_WIDTH, _STRAY, _FLAT_SHARE = 8, 1.6, 16, 0.3
BAND = 2**22  # pixels that are converted or blended at a time
# Float images may leave [0, 1] by what resampling and rounding add.
_FLOAT_SLACK = 1e-3


def read_image(image: ImageLike, name: str = "image") -> Pixels:
    """Any image as RGB with 8 bits per channel, upright.

    Files may be of any raster format that Pillow reads (JPEG, PNG, WebP, TIFF, BMP, GIF, PNM, AVIF,
    JPEG 2000 ...), and HEIC where pillow-heif is installed; the content decides, and not the name.
    Of several frames the first is read. TIFF samples of other types are read like the same array.
    The EXIF orientation is applied to files and PIL images; colour profiles are not.
    Grayscale is repeated, transparency lies over white, 16-bit values are divided by 257 (so
    65535 is white, whatever the brightest pixel is), CMYK is converted without a profile.

    Args:
        image: a path, a PIL image, or an array or tensor: uint8, uint16 or another integer type
            (0..255, or 0..65535 where a value passes 255), bool, or floats in [0, 1]; [H, W] or
            [H, W, C] or [C, H, W] with 1 to 4 channels (gray, gray and alpha, RGB, RGBA). Where
            both orders fit, arrays count as [H, W, C] and tensors as [C, H, W].
        name: what an error calls it; a file's path is added.

    Returns:
        uint8 [H, W, 3], contiguous and writable, in memory of its own. Reading a file takes up to
        8 bytes a pixel (32-bit samples: 24), these 3 included, and a mask's up to 16.

    Raises:
        UsageError: a missing path, a folder, an unsupported type or shape.
        DataError: a corrupt or truncated file, too many pixels or none, values out of range.
    """
    label = _label(image, name)
    source = _source(image, label)
    if isinstance(source, Image.Image):
        return _rgb(source, label)
    return _rgb_of_array(source, label)


def read_image_bytes(content: bytes, name: str = "image") -> Pixels:
    """The same for the content of an image file, of an archive's member, say.

    Raises:
        DataError: corrupt or truncated content, too many pixels or none.
    """
    return _rgb(_decode(io.BytesIO(content), name), name)


def decode_file(
    path: str | os.PathLike[str], name: str = "image", *, upright: bool = False
) -> Image.Image:
    """An image file as it is stored: its own mode and values, turned by EXIF data on request only.

    Benchmarks' annotations follow the stored rows and columns, whatever a camera noted. For
    pictures that people look at, `read_image`.

    Raises:
        UsageError: a missing path or a folder.
        DataError: a corrupt or truncated file, too many pixels or none.
    """
    label = _label(path, name)
    with _open_file(os.fsdecode(path), label) as file:
        return _decode(file, label, upright=upright)


def _label(source: object, name: str) -> str:
    """What errors call a source: its name, and its path where the name does not hold it yet."""
    if not isinstance(source, str | os.PathLike):
        return name
    path = printable(os.fsdecode(source))
    return name if path in name else f"{name} ({path})"


def _source(source: object, label: str) -> Image.Image | AnyArray:
    """An upright, decoded PIL image, or an array [H, W] or [H, W, 2 to 4]."""
    if isinstance(source, str | os.PathLike):
        with _open_file(os.fsdecode(source), label) as file:
            return _decode(file, label)
    if isinstance(source, Image.Image):
        return _decode(source, label)
    if isinstance(source, np.ndarray):
        return _channels_last(source, label, channels_first=False)
    # What is no tensor of an imported torch is no tensor.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.Tensor):
        return _channels_last(_values_of_tensor(source, label), label, channels_first=True)
    raise UsageError(
        f"{label}: {type(source).__name__} is no image; pass a path, a PIL image, a NumPy array "
        "or a tensor"
    )


def _values_of_tensor(tensor: torch.Tensor, label: str) -> AnyArray:
    """A tensor's values as an array; bfloat16 and floats of 8 bits, which NumPy lacks, as float32.

    Raises:
        UsageError: it has no values, or they are not numbers side by side.
    """
    import torch

    kind = "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
    if tensor.is_meta or kind != "strided" or tensor.is_complex():
        raise UsageError(
            f"{label}: a tensor of {tensor.dtype} ({kind}) on {tensor.device} is not an image; "
            "pass a dense one with values, uint8 or floats in [0, 1]"
        )
    tensor = tensor.detach().cpu().resolve_neg()
    if tensor.is_floating_point() and (tensor.itemsize == 1 or tensor.dtype == torch.bfloat16):
        tensor = tensor.float()
    values: AnyArray = tensor.numpy()
    return values


def _open_file(path: str, label: str) -> BinaryIO:
    try:
        file = files.open_regular(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{label}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise UsageError(f"{label}: this is a folder; pass an image file in it") from error
    except PermissionError as error:
        raise UsageError(f"{label}: no permission to read it; change its permissions") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{label}: cannot be opened ({reason}); check the path") from error
    size = os.fstat(file.fileno()).st_size
    if size > MOST_BYTES:
        file.close()
        raise DataError(
            f"{label}: has {size:,} bytes, an image file at most {MOST_BYTES:,}; make it smaller"
        )
    return file


def _decode(source: BinaryIO | Image.Image, label: str, *, upright: bool = True) -> Image.Image:
    """Read all pixels and turn them upright; whatever a decoder raises is worded."""
    try:
        image = source if isinstance(source, Image.Image) else _open_image(source, label)
        if 0 in image.size:
            raise DataError(f"{label}: has no pixels ({image.width} × {image.height})")
        image.load()
        if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits in some releases
            image = Image.fromarray(_sixteen_bit(np.asarray(image), label))
        image = _upright(image, label) if upright else image
        # Gray with premultiplied alpha is the one mode that Pillow turns into few others.
        return image.convert("LA") if image.mode == "La" else image
    except FsdinoError:
        raise
    except Image.DecompressionBombError as error:
        counts = str(error).partition(",")[0].lower()
        raise DataError(
            f"{label}: {counts}; make it smaller, or raise the limit if you trust it (fsdino "
            "segment --max-megapixels; in Python half of it is PIL.Image.MAX_IMAGE_PIXELS)"
        ) from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{label}: no image in a format that can be read: {error}; convert it to JPEG or PNG"
        ) from error
    except tiff.TiffError as error:
        raise DataError(f"{label}: {error}") from error
    except MemoryError as error:
        raise DataError(f"{label}: does not fit into memory; make it smaller") from error
    except Exception as error:  # decoders meet damaged files with nearly every type
        detail = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{label}: corrupt or truncated ({detail}); copy or export it again"
        ) from error


def _open_image(file: BinaryIO, label: str) -> Image.Image:
    """Open a file; TIFF samples that Pillow does not read right are read at once."""
    page = tiff.first_page(file)
    if page is None:
        return open_image(file)
    check_pixels(tiff.allocated(page))
    array = tiff.read(page)
    if array.ndim == 3:
        array = _eight_bit(array, label)
    elif array.dtype.kind == "f":
        array = array.astype(np.float32)
    elif array.dtype != np.uint16:
        low, high = int(array.min()), int(array.max())
        if max(-low, high) >= 2**31:
            raise DataError(f"{label}: values from {low} to {high}; scale them to 0..65535")
        array = array.astype(np.int32)
    image = Image.fromarray(array)
    if (orientation := tiff.orientation(page)) is not None:
        image.getexif()[_EXIF_ORIENTATION] = orientation
    return image


def _upright(image: Image.Image, label: str) -> Image.Image:
    """Apply the EXIF orientation; damaged EXIF data does not cost the picture."""
    try:
        orientation = _orientation(image)
    except Exception as error:
        logger.warning("%s: the EXIF data cannot be read and are ignored (%s)", label, error)
        return image
    method = None if orientation is None else _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; None where there is none.

    Raises:
        Exception: nearly any, where the EXIF data are damaged.
    """
    # The class's own: that of PNG images reads all pixels first, in case EXIF data follow them.
    value = Image.Image.getexif(image).get(_EXIF_ORIENTATION)
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def _channels_last(array: AnyArray, label: str, *, channels_first: bool) -> AnyArray:
    """Bring [H, W], [H, W, C] or [C, H, W] to [H, W], or [H, W, C] with C = 2 to 4."""
    if array.dtype.kind not in "buif":
        raise UsageError(f"{label}: values of type {array.dtype}; pass uint8 or floats in [0, 1]")
    if array.ndim == 3:
        axes = (0, 2) if channels_first else (2, 0)
        axis = next((axis for axis in axes if 1 <= array.shape[axis] <= 4), None)
        if axis is not None:
            array = np.moveaxis(array, axis, 2)
    if array.ndim not in (2, 3) or (array.ndim == 3 and not 0 < array.shape[2] <= 4):
        raise UsageError(
            f"{label}: shape {list(array.shape)} is not one image; pass [H, W], [H, W, C] or "
            "[C, H, W] with 1 to 4 channels"
        )
    if array.size == 0:
        raise DataError(f"{label}: has no pixels (shape {list(array.shape)})")
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _rgb(image: Image.Image, label: str) -> Pixels:
    """A decoded PIL image of any mode as uint8 [H, W, 3]."""
    if image.mode in ("F", "I"):  # the range of all values decides
        return _rgb_of_array(np.asarray(image), label)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(BAND // image.width, 1)
    for top in range(0, image.height, rows):  # as a whole, copies would take twice the memory
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        if part.mode.startswith("I"):  # I;16 has several byte orders
            pixels[top : top + rows] = _rgb_of_array(np.asarray(part), label)
            continue
        if part.mode != "RGB" or part.has_transparency_data:
            part = _over_white(part) if part.has_transparency_data else part.convert("RGB")
        pixels[top : top + rows] = np.asarray(part)
    return pixels


def _over_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, (255, 255, 255))
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def _sixteen_bit(values: AnyArray, label: str) -> npt.NDArray[np.uint16]:
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise DataError(
            f"{label}: values from {low} to {high} are no 16-bit image; scale them to 0..65535"
        )
    return values.astype(np.uint16)


def _rgb_of_array(array: AnyArray, label: str) -> Pixels:
    """An array [H, W] or [H, W, 2 to 4] of any type as uint8 [H, W, 3]."""
    pixels = _eight_bit(array, label)
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.shape[2] == 3:
        return np.array(pixels, order="C")
    if pixels.shape[2] == 2:
        pixels = pixels[:, :, [0, 0, 0, 1]]
    return np.array(_over_white(Image.fromarray(np.ascontiguousarray(pixels))))


def _eight_bit(array: AnyArray, label: str) -> Pixels:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "f":
        low, high = array.min(), array.max()
        if not np.isfinite([low, high]).all():
            raise DataError(f"{label}: holds NaN or infinity; replace them by values in [0, 1]")
        if low < -_FLOAT_SLACK or high > 1 + _FLOAT_SLACK:
            raise DataError(f"{label}: float values from {low:g} to {high:g}; scale them to [0, 1]")
        scaled: Pixels = np.rint(np.clip(array, 0, 1).astype(np.float32) * 255).astype(np.uint8)
        return scaled
    if array.dtype.newbyteorder("=") != np.uint16:
        values = _sixteen_bit(array, label)
        if values.max() <= 255:
            return values.astype(np.uint8)
        array = values
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def read_mask(
    mask: MaskLike,
    size: tuple[int, int] | None = None,
    name: str = "mask",
    *,
    image: ImageLike | None = None,
    allow_empty: bool = False,
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

    Returns:
        bool [H, W], True in the foreground.

    Raises:
        UsageError: as in `read_image`, and a mask of another size than its image.
        DataError: as in `read_image`, and an empty mask or unexpected values.
    """
    label = _label(mask, name)
    turned = _turned(mask, image)
    source = _source(mask, label)
    if isinstance(source, Image.Image):
        _check_size((source.height, source.width), size, label)
        values = _values_of_image(source, label)
    else:
        _check_size((source.shape[0], source.shape[1]), size, label)
        values = _values_of_array(source, label)
    foreground = _foreground(values, label)
    if turned is not None:
        _warn_of_orientation(mask, foreground, turned, label)
    if not allow_empty and not foreground.any():
        raise DataError(f"{label} has no foreground: paint the object in white (255) on black (0)")
    return foreground


def warn_of_orientation(
    mask: MaskLike, image: ImageLike, values: Pixels, name: str = "label map"
) -> None:
    """Warn, once a folder, where nothing says which way up a label map is; see `read_mask`.

    Args:
        mask, image: what was read.
        values: uint8 [H, W], the labels.
        name: what the warning calls the label map.
    """
    turned = _turned(mask, image)
    if turned is not None:
        _warn_of_orientation(mask, values, turned, _label(mask, name))


def _turned(mask: MaskLike, image: ImageLike | None) -> int | None:
    """The EXIF orientation that turns an image and says nothing of its mask; None if there is none.

    Asked before the mask is decoded: what Pillow turns by itself loses its orientation.
    """
    turned = None if image is None else _stated_orientation(image)
    if turned not in _UPRIGHT or _stated_orientation(mask) is not None:
        return None
    return turned


def _stated_orientation(source: ImageLike) -> int | None:
    """The EXIF orientation that a file or PIL image states; None where it states none."""
    try:
        if isinstance(source, Image.Image):
            return _orientation(source)
        if isinstance(source, str | os.PathLike):
            with files.open_regular(source) as file:
                page = tiff.first_page(file)
                if page is not None:
                    return tiff.orientation(page)
                with open_image(file) as image:
                    return _orientation(image)
    except Exception:  # whatever a damaged file meets: reading it has said, or says, so
        return None
    return None


def _warn_of_orientation(
    mask: MaskLike, flags: Flags | Pixels, orientation: int, label: str
) -> None:
    """Say that nothing decides which way up a mask is, where that changes it; once a folder."""
    plain = Image.fromarray(flags).transpose(_UPRIGHT[orientation])
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


def _values_of_image(image: Image.Image, label: str) -> AnyArray:
    """The values [H, W] that a PIL mask's pixels stand for."""
    if image.mode == "P" and "transparency" not in image.info:
        return _values_of_palette(image)
    if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
        return np.asarray(image)
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa"):
        return _values_of_colors(np.asarray(image.convert("RGBA")), label)
    return _values_of_colors(np.asarray(image.convert("RGB")), label)


def _values_of_array(array: AnyArray, label: str) -> AnyArray:
    if array.ndim == 2:
        return array
    if array.dtype != np.uint8:
        raise UsageError(f"{label}: shape {list(array.shape)} is not one mask; pass [H, W]")
    if array.shape[2] == 2:
        array = array[:, :, [0, 0, 0, 1]]
    return _values_of_colors(array, label)


def _values_of_palette(image: Image.Image) -> AnyArray:
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
    if len(used) == 2 and black.sum() == 1:
        indices = indices != used[black][0]
    return indices


def _values_of_colors(pixels: Pixels, label: str) -> AnyArray:
    """uint8 or bool [H, W] of colours [H, W, 3 or 4]: alpha, gray, or one colour's brightness."""
    if pixels.shape[2] == 4:
        alpha = pixels[:, :, 3]
        if alpha.min() != alpha.max():
            return alpha
    color = pixels[:, :, :3]
    red, green, blue = np.moveaxis(color, 2, 0)
    if (red == green).all() and (green == blue).all():
        return cast(Pixels, red)
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
            "for example `(mask == color).all(-1)`"
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
    white = 255 if high > 1 else 1
    if values.dtype.kind != "f" and high > 255:
        white = 65535
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
    rows = max(BAND // values.shape[1], 1)
    for start in range(0, len(values), rows):
        part = slice(start, start + rows)
        levels[part] = np.rint(values[part].astype(np.float32) * (255 / white))
    if values.dtype.kind in "ui":  # labels of 16 bits stay beside 0
        levels[(levels == 0) & (values != 0)] = 1
    return levels


def _has_soft_edges(levels: Pixels) -> bool:
    """Whether uint8 [H, W] is black and white but for gray edges and stray pixels.

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
        "and white but for edges a few pixels wide; make it so, for example `mask >= "
        f"{(present[0] + present[-1]) / 2:.6g}`, or `mask == value` for one label"
    )


def _selection(present: Sequence[int | float]) -> str:
    """How to select an object of a label map with these values, as the end of an error."""
    if len(present) == 3 and present[0] == 0 and present[2] == 255 and 120 <= present[1] <= 135:
        return f"{present[1]} looks like the unknown part of a trimap: write `mask == 255`"
    ignored = [value for value in present if value < 0 or value in (255, 65535)]
    objects = [value for value in present if value != 0 and value not in ignored]
    if not objects:
        return "if 0 is the background, write `mask != 0`"
    note = f"; {' and '.join(map(str, ignored[:3]))} usually marks what is ignored"
    return f"select one object, for example `mask == {objects[-1]}`{note if ignored else ''}"


def to_tensor(image: Pixels, size: tuple[int, int]) -> torch.Tensor:
    """Resize an image to a model's input, bilinear with antialiasing.

    Args:
        image: uint8 [H, W, 3].
        size: (h, w) of the result; the aspect ratio follows it.

    Returns:
        float32 [3, h, w] in [0, 1], on the CPU.

    Raises:
        UsageError: another type or shape, or a size below 1.
    """
    import torch
    from torch.nn.functional import interpolate

    _check_target(size)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise UsageError(
            f"to_tensor: {image.dtype} {list(image.shape)} is not uint8 [H, W, 3]; read it with "
            "read_image"
        )
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"]))
    # One channel at a time: as floats a large photograph takes gigabytes.
    planes = [
        interpolate(
            pixels[None, None, :, :, channel].float(),
            size,
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )
        for channel in range(3)
    ]
    return torch.cat(planes, dim=1)[0].div_(255).clamp_(0, 1)


def mask_to_tensor(mask: Flags, size: tuple[int, int]) -> torch.Tensor:
    """The share of each cell that a mask covers, exact for any ratio of sizes.

    Args:
        mask: bool [H, W].
        size: (h, w) of the result.

    Returns:
        float32 [h, w] in [0, 1], on the CPU; its mean is the mask's.

    Raises:
        UsageError: another type or shape, or a size below 1.
    """
    import torch

    _check_target(size)
    if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        raise UsageError(
            f"mask_to_tensor: {mask.dtype} {list(mask.shape)} is not bool [H, W]; read it with "
            "read_mask"
        )
    rows, columns = (_overlap(cells, n) for cells, n in zip(size, mask.shape, strict=True))
    flags = torch.from_numpy(np.require(mask, requirements=["C", "W"])).to(torch.float32)
    return (rows @ flags @ columns.T).clamp_(0, 1)


def _overlap(cells: int, pixels: int) -> torch.Tensor:
    """float32 [cells, pixels]: the share of each cell that each pixel of the same line fills."""
    import torch

    edges = torch.arange(cells + 1, dtype=torch.float64) * (pixels / cells)
    pixel = torch.arange(pixels, dtype=torch.float64)
    end = torch.minimum(edges[1:, None], pixel + 1)
    start = torch.maximum(edges[:-1, None], pixel)
    return ((end - start).clamp_(min=0) * (cells / pixels)).float()


def resize_back(map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize a model's output maps to the image that they are about.

    Bilinear, pixel centres at half integers, and antialiased where `size` is the smaller one.
    Differentiable.

    Args:
        map: floating [N, h, w] on any device.
        size: (H, W) of the image.

    Returns:
        [N, H, W] on the same device; float32, or float64 if the map is.

    Raises:
        UsageError: another type or shape, or a size below 1.
    """
    import torch
    from torch.nn.functional import interpolate

    _check_target(size)
    if not map.is_floating_point() or map.ndim != 3:
        raise UsageError(f"resize_back: {map.dtype} {list(map.shape)} is not floating [N, h, w]")
    map = map if map.dtype == torch.float64 else map.float()
    antialias = size[0] < map.shape[1] or size[1] < map.shape[2]
    return interpolate(map[None], size, mode="bilinear", antialias=antialias, align_corners=False)[
        0
    ]


def _check_target(size: tuple[int, int]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise UsageError(f"size {tuple(size)}: pass (height, width), each at least 1")


def write_png(path: str | os.PathLike[str], array: AnyArray | Image.Image) -> None:
    """Write a PNG file, whole or not at all.

    Args:
        path: the file; its folder exists.
        array: bool [H, W] (written as 0 and 255), uint8 [H, W], [H, W, 3] or [H, W, 4], uint16
            [H, W], or a PIL image.

    Raises:
        UsageError: another type or shape, no such folder, a path that is not a file.
        FsdinoError: no write permission, disk full.
    """
    if isinstance(array, Image.Image):
        image = array
    else:
        if array.dtype == np.bool_ and array.ndim == 2:
            array = array.astype(np.uint8) * np.uint8(255)
        gray = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
        color = array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8
        if array.size == 0 or not (gray or color):
            raise UsageError(
                f"{os.fspath(path)}: {array.dtype} {list(array.shape)} is no PNG image; pass bool, "
                "uint8 or uint16 [H, W], or uint8 [H, W, 3 or 4]"
            )
        image = Image.fromarray(np.ascontiguousarray(array))
    write_image(path, image, "PNG")


def write_image(
    path: str | os.PathLike[str], image: Image.Image, format: str, **options: Any
) -> None:
    """Write an image file, whole or not at all.

    It is encoded to memory first: Pillow takes a write that the system cut short for success.

    Args:
        path: the file; its folder exists.
        image: of a mode that the format has.
        format: Pillow's name for it, such as "JPEG".
        options: of Pillow's encoder, such as `quality`.

    Raises:
        UsageError: no such folder, a path that is not a file.
        FsdinoError: no write permission, disk full.
    """
    files.write_bytes(path, encode_image(image, format, **options))


def encode_image(image: Image.Image, format: str, **options: Any) -> bytes:
    """The content of an image file.

    Args:
        image: of a mode that the format has.
        format: Pillow's name for it, such as "JPEG".
        options: of Pillow's encoder, such as `quality`.
    """
    content = io.BytesIO()
    image.save(content, format=format, **options)
    return content.getvalue()
