"""Pixels in and out: reading images of any kind, writing them."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fsdino import files, tiff
from fsdino.errors import DataError, FsdinoError, UsageError, first_line, one_line, shown_path
from fsdino.image_files import (
    MOST_BYTES,
    check_pixels,
    open_image,
)

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("fsdino.images")

Pixels: TypeAlias = npt.NDArray[np.uint8]
Flags: TypeAlias = npt.NDArray[np.bool_]
AnyArray: TypeAlias = npt.NDArray[Any]
# A quoted Union, since torch is imported only where it is needed.
ImageLike: TypeAlias = Union[
    str, "os.PathLike[str]", bytes, BinaryIO, Image.Image, AnyArray, "torch.Tensor"
]

# What Pillow writes again where it turns an image, and cannot where they are damaged.
_METADATA = frozenset({"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"})
# What helps with files that cannot be converted, by what `open_image` says of them.
_REMEDIES = {
    "empty": "copy or export it again",
    "an archive": "extract the images in it",
    "a video": "export a frame of it, or see `fsdino video`",
}
BAND = 2**22  # pixels that are converted or blended at a time
# Float images may leave [0, 1] by what resampling and rounding add.
_FLOAT_SLACK = 1e-3


def read_image(image: ImageLike, name: str = "image") -> Pixels:
    """Read any image as RGB with 8 bits per channel, upright.

    Files may be of any raster format that Pillow reads (JPEG, PNG, WebP, TIFF, BMP, GIF, PNM, AVIF,
    JPEG 2000 ...), and HEIC if pillow-heif is installed; the content decides, not the name.
    Of several frames the first is read. TIFF samples of other types are read like the same array.
    The EXIF orientation is applied to files and PIL images; colour profiles are not.
    Grayscale is repeated, transparency lies over white, 16-bit values are divided by 257 (so
    65535 is white, even if no pixel is that bright), CMYK is converted without a profile.

    Args:
        image: a path, a file's content as bytes, a binary file that is open (read from where it
            stands), a PIL image, or an array or tensor: uint8, uint16 or another integer type
            (0..255, or 0..65535 if a value exceeds 255), bool, or floats in [0, 1]; [H, W] or
            [H, W, C] or [C, H, W] with 1 to 4 channels (gray, gray and alpha, RGB, RGBA). If
            both orders match, arrays are read as [H, W, C] and tensors as [C, H, W].
        name: its name in errors; a file's path is added.

    Returns:
        uint8 [H, W, 3], contiguous and writable, a copy. Reading a file takes up to
        8 bytes a pixel (32-bit samples: 24), these 3 included, and a mask's up to 16.

    Raises:
        UsageError: a missing path, a folder, an unsupported type or shape.
        DataError: a corrupt or truncated file, too many pixels or none, values out of range.
    """
    label = label_of(image, name)
    source = load(image, label)
    if isinstance(source, Image.Image):
        return _rgb(source, label)
    return _rgb_of_array(source, label)


def read_image_bytes(content: bytes, name: str = "image") -> Pixels:
    """`read_image` for the content of an image file, such as a member of an archive.

    Raises:
        DataError: corrupt or truncated content, too many pixels or none.
    """
    return _rgb(_decode(io.BytesIO(content), name), name)


def decode_file(
    path: str | os.PathLike[str], name: str = "image", *, upright: bool = False
) -> Image.Image:
    """Read an image file as it is stored: its own mode and values, turned by EXIF data on request.

    Benchmarks' annotations follow the stored rows and columns, not the EXIF orientation. For
    pictures that people look at, `read_image`.

    Raises:
        UsageError: a missing path or a folder.
        DataError: a corrupt or truncated file, too many pixels or none.
    """
    label = label_of(path, name)
    with _open_file(os.fsdecode(path), label) as file:
        return _decode(file, label, upright=upright)


def label_of(source: object, name: str) -> str:
    """The name of a source in errors, with its path unless the name has it."""
    if not isinstance(source, str | os.PathLike):
        return name
    path = shown_path(source)
    return name if path in name else f"{name} ({path})"


def load(source: object, label: str) -> Image.Image | AnyArray:
    """An upright, decoded PIL image, or an array [H, W] or [H, W, 2 to 4]."""
    if isinstance(source, str | os.PathLike):
        with _open_file(os.fsdecode(source), label) as file:
            return _decode(file, label)
    if isinstance(source, bytes | bytearray):
        return _decode(io.BytesIO(source), label)
    if hasattr(source, "read"):
        return _decode(io.BytesIO(_content(source, label)), label)
    if isinstance(source, Image.Image):
        return _decode(source, label)
    if isinstance(source, np.ndarray):
        return _channels_last(source, label, channels_first=False)
    # Without torch imported, nothing can be a tensor.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.Tensor):
        return _channels_last(_values_of_tensor(source, label), label, channels_first=True)
    raise UsageError(
        f"{label}: {type(source).__name__} is not an image; pass a path, bytes, an open file, a "
        "PIL image, a NumPy array or a tensor"
    )


def _content(file: Any, label: str) -> bytes:
    """The rest of an open file.

    Raises:
        UsageError: it is open as text, or cannot be read.
        DataError: more bytes than an image file may have.
    """
    try:
        content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{label}: cannot be read ({first_line(error)}); open it again") from error
    if not isinstance(content, bytes | bytearray):
        raise UsageError(f"{label}: a file open as text; open it in binary mode, 'rb'")
    if len(content) > MOST_BYTES:
        raise DataError(f"{label}: has more than {MOST_BYTES:,} bytes; make it smaller")
    return bytes(content)


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
        raise UsageError(
            f"{label}: cannot be opened ({first_line(error)}); check the path"
        ) from error
    size = os.fstat(file.fileno()).st_size
    if size > MOST_BYTES:
        file.close()
        raise DataError(
            f"{label}: has {size:,} bytes, an image file at most {MOST_BYTES:,}; make it smaller"
        )
    return file


def _decode(source: BinaryIO | Image.Image, label: str, *, upright: bool = True) -> Image.Image:
    """Read all pixels and turn them upright; any error of a decoder becomes one of ours."""
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
        remedy = _REMEDIES.get(str(error), "convert it to JPEG or PNG")
        raise DataError(
            f"{label}: no image in a format that can be read: {error}; {remedy}"
        ) from error
    except tiff.TiffError as error:
        raise DataError(f"{label}: {error}") from error
    except MemoryError as error:
        raise DataError(f"{label}: does not fit into memory; make it smaller") from error
    except Exception as error:  # decoders meet damaged files with nearly every type
        detail = one_line(error) or type(error).__name__
        raise DataError(
            f"{label}: corrupt or truncated ({detail}); copy or export it again"
        ) from error


def _open_image(file: BinaryIO, label: str) -> Image.Image:
    """Open a file; TIFF samples that Pillow would misread are read at once."""
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
        image.getexif()[ExifTags.Base.Orientation] = orientation
    return image


def _upright(image: Image.Image, label: str) -> Image.Image:
    """Apply the EXIF orientation; damaged EXIF data are ignored."""
    try:
        orientation = _orientation(image)
    except Exception as error:
        logger.warning("%s: the EXIF data cannot be read and are ignored (%s)", label, error)
        return image
    return image if orientation in (None, 1) else turned(image, orientation)


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """A decoded image, turned by an EXIF orientation from 2 to 8."""
    info = image.info
    image.info = {key: value for key, value in info.items() if key not in _METADATA}
    try:
        image.getexif()[ExifTags.Base.Orientation] = orientation
        return ImageOps.exif_transpose(image)
    finally:
        image.info = info


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, 1 to 8; None if there is none.

    Raises:
        Exception: nearly any; the EXIF data are damaged.
    """
    # The class's own: that of PNG images reads all pixels first, in case EXIF data follow them.
    value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def stated_orientation(source: ImageLike) -> int | None:
    """The EXIF orientation that a file or PIL image states; None if it states none."""
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
    except Exception:  # damaged files raise nearly anything; reading the pixels reports it
        return None
    return None


def _channels_last(array: AnyArray, label: str, *, channels_first: bool) -> AnyArray:
    """Bring [H, W], [H, W, C] or [C, H, W] to [H, W], or [H, W, C] with C = 2 to 4."""
    if array.dtype.kind not in "buif":
        raise UsageError(
            f"{label}: values of type {array.dtype} cannot be read; pass uint8 or floats in [0, 1]"
        )
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
    # Before version 13, Pillow warns also of parts that are larger than its limit.
    rows = max(min(BAND, Image.MAX_IMAGE_PIXELS or BAND) // image.width, 1)
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
            f"{label}: values from {low} to {high} do not fit 16 bits; scale them to 0..65535"
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
            raise DataError(f"{label}: contains NaN or infinity; replace them by values in [0, 1]")
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


def write_png(path: str | os.PathLike[str], array: AnyArray | Image.Image) -> None:
    """Write a PNG file atomically.

    Args:
        path: the file; its folder exists.
        array: bool [H, W] (written as 0 and 255), uint8 [H, W], [H, W, 3] or [H, W, 4], uint16
            [H, W], or a PIL image.

    Raises:
        UsageError: another type or shape, a missing folder, or a path that is not a file.
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
                f"{os.fspath(path)}: {array.dtype} {list(array.shape)} cannot be a PNG image; "
                "pass bool, uint8 or uint16 [H, W], or uint8 [H, W, 3 or 4]"
            )
        image = Image.fromarray(np.ascontiguousarray(array))
    write_image(path, image, "PNG")


def write_image(
    path: str | os.PathLike[str], image: Image.Image, format: str, **options: Any
) -> None:
    """Write an image file atomically.

    It is encoded in memory first: Pillow does not notice a write that the system cut short.

    Args:
        path: the file; its folder exists.
        image: image in a mode of the format.
        format: Pillow's name of the format, such as "JPEG".
        options: options of Pillow's encoder, such as `quality`.

    Raises:
        UsageError: the folder does not exist, or the path is not a file.
        FsdinoError: no write permission, disk full.
    """
    files.write_bytes(path, encode_image(image, format, **options))


def encode_image(image: Image.Image, format: str, **options: Any) -> bytes:
    """The content of an image file.

    Args:
        image: image in a mode of the format.
        format: Pillow's name of the format, such as "JPEG".
        options: options of Pillow's encoder, such as `quality`.
    """
    content = io.BytesIO()
    image.save(content, format=format, **options)
    return content.getvalue()
