"""Queries one after another: read ahead, in small batches, each with its result or its error."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from fsdino.errors import DataError, FsdinoError, UsageError, is_out_of_memory
from fsdino.images import ImageLike, Pixels
from fsdino.models.segmentation import Segmentation

T = TypeVar("T")

BATCH_IMAGES = 8  # queries that share an encoder pass
BATCH_BYTES = 7 * 24_000_000  # of their pixels and maps: 24 megapixels of one class
AHEAD = 2  # images that are read while the model is busy


@dataclass(frozen=True)
class Query(Generic[T]):
    """An image that was read, or the reason why it was not.

    Attributes:
        source: what was asked for.
        name: what errors call it.
        array: uint8 [H, W, 3]; None after an error.
        error: None if it was read.
        seconds: that reading it took.
    """

    source: T
    name: str
    array: Pixels | None
    error: FsdinoError | None
    seconds: float


def bytes_per_pixel(supports: int) -> int:
    """Of a query in memory: RGB, and a map for each class."""
    return 3 + 4 * supports


def read_ahead(
    sources: Iterable[T],
    names: Callable[[int, T], str],
    read: Callable[[T, str], Pixels],
    ahead: int = AHEAD,
) -> Generator[Query[T]]:
    """Read queries in a thread, in their order, up to `ahead` before they are asked for.

    The sources themselves are drawn in the thread that asks. An error of their iterator is raised
    after all that it had given.
    """
    iterator, failure = enumerate(sources), None
    waiting: deque[Future[Query[T]]] = deque()
    with ThreadPoolExecutor(1, "fsdino-read") as pool:
        try:
            while True:
                try:
                    place, source = next(iterator)
                except StopIteration:
                    break
                except Exception as error:
                    failure = error
                    break
                waiting.append(pool.submit(_read, source, names(place, source), read))
                del source
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    if failure is not None:
        raise failure


def _read(source: T, name: str, read: Callable[[T, str], Pixels]) -> Query[T]:
    began = time.monotonic()
    array = error = None
    try:
        array = read(source, name)
    except (DataError, UsageError) as problem:
        error = problem
    return Query(source, name, array, error, time.monotonic() - began)


def batches(
    queries: Iterable[Query[T]],
    pixel_bytes: int,
    *,
    images: int = BATCH_IMAGES,
    most: int = BATCH_BYTES,
) -> Iterator[list[Query[T]]]:
    """Queries in their order, a few at a time; large ones in smaller batches or alone.

    Args:
        queries: those that were read, and those that were not.
        pixel_bytes: `bytes_per_pixel`.
        images: maximum number in a batch.
        most: bytes that fill a batch.
    """
    batch: list[Query[T]] = []
    filled = 0
    iterator = iter(queries)
    while True:
        try:
            query = next(iterator, None)
        except Exception:
            if batch:
                yield batch
            raise
        if query is None:
            break
        size = 0 if query.array is None else query.array.size // 3 * pixel_bytes
        if batch and size >= most:
            yield batch
            batch, filled = [], 0
        batch.append(query)
        del query
        filled += size
        if filled >= most or len(batch) >= images:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch


def answers(
    batch: Sequence[Query[T]], segment: Callable[[list[Pixels]], list[Segmentation]]
) -> list[Segmentation | FsdinoError]:
    """The result for each query of a batch, or why there is none.

    Where a batch fails because of an image, each of its images is asked alone.
    """
    found = iter(_answers([query for query in batch if query.array is not None], segment))
    return [next(found) if query.error is None else query.error for query in batch]


def _answers(
    batch: Sequence[Query[T]], segment: Callable[[list[Pixels]], list[Segmentation]]
) -> list[Segmentation | FsdinoError]:
    if not batch:
        return []
    try:
        return [*segment([query.array for query in batch if query.array is not None])]
    except Exception as error:
        if not is_about_query(error):
            raise
        if len(batch) == 1:
            kind = type(error) if isinstance(error, FsdinoError) else DataError
            return [kind(f"{batch[0].name}: {reason(error)}")]
    return [answer for query in batch for answer in _answers([query], segment)]


def is_about_query(error: Exception) -> bool:
    """Whether an error says that one image cannot be segmented, and others may."""
    return isinstance(error, DataError | UsageError) or is_out_of_memory(error)


def reason(error: Exception) -> str:
    """What a user reads of such an error."""
    if isinstance(error, FsdinoError):
        return str(error)
    return "it does not fit into memory: make it smaller, or use fewer classes or another device"


def check_iterable(queries: object) -> None:
    """Refuse one image in the place of many, which Python would take apart.

    Raises:
        UsageError: it is one image, or nothing to iterate over.
    """
    single = isinstance(queries, str | bytes | bytearray | os.PathLike | Image.Image)
    array = isinstance(queries, np.ndarray | Tensor) and queries.ndim < 4
    if single or array or hasattr(queries, "read"):
        raise UsageError(
            "segment_iter takes many images: pass a list or a generator of them, or one image to "
            "segment"
        )
    if not isinstance(queries, Iterable):
        raise UsageError(f"{type(queries).__name__} cannot be iterated over; pass a list of images")


def unstacked(images: Any) -> list[ImageLike] | None:
    """The images of a batch, an array or tensor of four dimensions; None for anything else.

    Raises:
        UsageError: the axes are neither [B, C, H, W] nor [B, H, W, C], or could be both; values
            that are neither uint8, nor bool, nor floats.
    """
    if not isinstance(images, np.ndarray | Tensor) or images.ndim != 4:
        return None
    shape, kind = list(images.shape), str(images.dtype).removeprefix("torch.")
    first, last = 1 <= shape[1] <= 4, 1 <= shape[3] <= 4
    if first == last:
        problem = "could be [B, C, H, W] or [B, H, W, C]" if first else "is not a batch of images"
        raise UsageError(
            f"shape {shape} {problem}: pass a list of images, or a batch [B, C, H, W] or "
            "[B, H, W, C] with 1 to 4 channels"
        )
    if kind not in ("uint8", "bool") and "float" not in kind:
        raise UsageError(f"a batch of {kind}: pass uint8, or floats in [0, 1]")
    if isinstance(images, Tensor):
        return [*(images if first else images.permute(0, 3, 1, 2))]
    return [*(np.moveaxis(images, 1, 3) if first else images)]


def is_several(value: object) -> bool:
    """Whether a list or batch of images was passed, rather than one image."""
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 4


def as_list(value: ImageLike | Sequence[ImageLike | None]) -> list[ImageLike]:
    """One image or mask, or several, as a list."""
    images = unstacked(value)
    if images is not None:
        return images
    return list(value) if isinstance(value, list | tuple) else [value]  # type: ignore[list-item]
