"""Streams of queries: order, memory, errors in their place, and what a batch is."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fsdino.errors import DataError, UsageError
from fsdino.models import queries
from fsdino.models.fsdino import FSDINO
from fsdino.models.queries import Query, batches, bytes_per_pixel, read_ahead
from fsdino.models.segmentation import Segmentation
from fsdino.models.supports import Support
from tiny_models import box_mask, picture, tiny_model


@pytest.fixture(scope="module")
def model() -> FSDINO:
    return tiny_model(variant="training_free")


@pytest.fixture(scope="module")
def support(model: FSDINO) -> Support:
    return model.encode_support(picture(40, 50), box_mask(40, 50))


def png(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return content.getvalue()


def test_any_kinds_of_images_in_their_order(
    model: FSDINO, support: Support, tmp_path: Path
) -> None:
    """Files, bytes, open files, PIL images, arrays and tensors: what `segment` gives for each."""
    arrays = [picture(30 + k, 40, seed=k) for k in range(7)]
    (tmp_path / "a.png").write_bytes(png(arrays[0]))
    with (tmp_path / "a.png").open("rb") as file:
        mixed = [
            tmp_path / "a.png",
            png(arrays[1]),
            io.BytesIO(png(arrays[2])),
            Image.fromarray(arrays[3]),
            arrays[4],
            torch.from_numpy(arrays[5]).permute(2, 0, 1),
            file,
        ]
        found = list(model.segment_iter((x for x in mixed), support, threshold=0.4))
    assert all(isinstance(result, Segmentation) for result in found)
    for result, array in zip(found, [*arrays[:6], arrays[0]], strict=True):
        assert np.array_equal(result.image, array)
        expected = model.segment(array, support, threshold=0.4)
        np.testing.assert_allclose(result.probability, expected.probability, atol=1e-5)
    several = list(model.segment_iter(arrays, {"a": support, "b": support}))
    assert [result.names for result in several] == [("a", "b")] * 7


def test_few_images_are_in_memory(model: FSDINO, support: Support) -> None:
    """However many there are: a batch, and those that are read ahead."""
    drawn = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal drawn
        for k in range(60):
            drawn += 1
            yield picture(20, 20, seed=k)

    most = 0
    for done, _ in enumerate(model.segment_iter(frames(), support)):
        most = max(most, drawn - done)
    assert drawn == 60
    assert 2 <= most <= queries.BATCH_IMAGES + queries.AHEAD + 1


def test_an_endless_stream_can_be_left(model: FSDINO, support: Support) -> None:
    """And its thread ends."""

    def endless() -> Iterator[np.ndarray]:
        while True:
            yield picture(20, 20)

    stream = model.segment_iter(endless(), support)
    assert isinstance(next(stream), Segmentation)
    stream.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("fsdino-read")]


def test_reading_goes_on_while_the_model_is_busy() -> None:
    """The second image is read before the first one is given back."""
    second = threading.Event()

    def read(source: int, name: str) -> Any:
        if source == 1:
            second.set()
        return picture(2, 2)

    stream = read_ahead(range(3), lambda place, source: f"{place}", read)
    assert next(stream).source == 0
    assert second.wait(10)
    assert [query.source for query in stream] == [1, 2]


def test_an_unreadable_image_ends_the_stream_or_is_one_of_its_items(
    model: FSDINO, support: Support, tmp_path: Path
) -> None:
    """The error names the image; what stands before it was given."""
    array = picture(20, 30)
    (tmp_path / "a.png").write_bytes(png(array)[:300])
    items = [array, tmp_path / "a.png", b"text", array]
    found = []
    with pytest.raises(DataError, match=r"query 2 \(.*a\.png\): corrupt or truncated"):
        for result in model.segment_iter(items, support):
            found.append(result)
    assert len(found) == 1
    one, two, three, four = model.segment_iter(items, support, errors="yield")
    assert isinstance(one, Segmentation) and isinstance(four, Segmentation)
    assert isinstance(two, DataError) and "a.png" in str(two)
    assert isinstance(three, DataError) and str(three).startswith("query 3: ")


def test_an_image_that_cannot_be_segmented_fails_alone(model: FSDINO) -> None:
    """Others in its batch do not."""
    small = model.encode_support(picture(20, 20, 9), box_mask(20, 20))
    items = [picture(30, 30), picture(540, 540)]
    one, two = model.segment_iter(items, small, tiles=True, errors="yield")
    assert isinstance(one, Segmentation)
    assert isinstance(two, UsageError) and str(two).startswith("query 2: ")


def test_an_error_of_the_generator_comes_after_its_images(model: FSDINO, support: Support) -> None:
    """A camera that goes away takes no frame with it."""

    def broken() -> Iterator[np.ndarray]:
        yield from (picture(20, 20), picture(20, 21), picture(20, 22))
        raise ConnectionError("gone")

    found = []
    with pytest.raises(ConnectionError, match="gone"):
        for result in model.segment_iter(broken(), support, errors="yield"):
            found.append(result)
    assert len(found) == 3


@pytest.mark.parametrize(
    "one", ["a.png", Path("a.png"), b"x", io.BytesIO(), picture(4, 4), Image.new("L", (1, 1)), 7]
)
def test_one_image_is_not_many(one: Any, model: FSDINO, support: Support) -> None:
    """Python would iterate over letters, bytes, lines or rows; told at the call."""
    with pytest.raises(UsageError, match="pass a list"):
        model.segment_iter(one, support)


def test_arguments_are_checked_at_the_call(model: FSDINO, support: Support) -> None:
    """And not with the first image."""
    with pytest.raises(UsageError, match="errors must be 'raise' or 'yield', got 'skip'"):
        model.segment_iter([], support, errors="skip")  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="threshold"):
        model.segment_iter([], support, threshold=2)
    assert list(model.segment_iter([], support)) == []


def test_batches_are_bounded_by_pixels() -> None:
    """Large images are not collected until there are eight of them."""

    def sizes(heights: list[int], pixel_bytes: int, most: int = 7 * 5000) -> list[list[int]]:
        items = [
            Query(h, "", np.zeros((h, 70 if h < 100 else 50, 3), np.uint8), None, 0.0)
            for h in heights
        ]
        return [[q.source for q in batch] for batch in batches(items, pixel_bytes, most=most)]

    assert sizes([40, 41, 42, 43, 44], 7) == [[40, 41], [42, 43], [44]]
    # what fills a batch alone is alone
    assert sizes([40, 100, 42, 43, 44], 7) == [[40], [100], [42, 43], [44]]
    # nine classes take more
    assert sizes([40, 100, 42, 43, 44], bytes_per_pixel(9)) == [[40], [100], [42], [43], [44]]
    assert sizes([40] * 9, 7, most=10**9) == [[40] * 8, [40]]


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("floats", [True, False])
def test_a_batch_is_a_list(
    kind: str, channels_first: bool, floats: bool, model: FSDINO, support: Support
) -> None:
    """[B, C, H, W] and [B, H, W, C], as NumPy and PyTorch have them."""
    images = [picture(20, 30, seed=k) for k in range(3)]
    batch: Any = np.stack(images)
    batch = batch.transpose(0, 3, 1, 2) if channels_first else batch
    batch = batch.astype(np.float32) / 255 if floats else batch
    batch = torch.from_numpy(np.ascontiguousarray(batch)) if kind == "tensor" else batch
    found = model.segment(batch, support)
    assert isinstance(found, list) and len(found) == 3
    assert all(np.array_equal(r.image, image) for r, image in zip(found, images, strict=True))
    assert model.encode_support(batch, [box_mask(20, 30)] * 3).shots == 3


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (np.zeros((2, 3, 8, 3), np.uint8), r"shape \[2, 3, 8, 3\] could be"),
        (torch.zeros(2, 3, 8, 4), "could be"),
        (np.zeros((2, 8, 8, 8), np.uint8), "is not a batch of images"),
        (np.zeros((2, 8, 8, 3), np.int64), "a batch of int64: pass uint8, or floats"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int16), "a batch of int16"),
        (torch.full((2, 3, 8, 8), 255.0), r"query 1: float values from 255 to 255"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), "is not one image"),
    ],
)
def test_a_batch_that_is_ambiguous_is_refused(
    batch: Any, words: str, model: FSDINO, support: Support
) -> None:
    """Rather than read in a way that was not meant."""
    with pytest.raises((UsageError, DataError), match=words):
        model.segment(batch, support)
