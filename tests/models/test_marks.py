"""Marks become masks: of drawn pictures whose object is known, by models of any encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fsdino
from fsdino.errors import DataError, UsageError
from fsdino.models.mark_pixels import _walked
from fsdino.models.mark_tokens import components, self_trained
from fsdino.models.segmenter import Segmenter
from tiny_models import tiny_model


@pytest.fixture(scope="module")
def photo() -> Segmenter:
    return fsdino.load()


def disc() -> tuple[np.ndarray, np.ndarray]:
    """A red disc on a green ground with a little noise, and where it is."""
    rows, columns = np.mgrid[:160, :200]
    inside = (rows - 70) ** 2 + (columns - 90) ** 2 < 45**2
    image = np.where(inside[..., None], (190, 50, 40), (60, 130, 70))
    noise = np.random.default_rng(0).integers(-15, 16, image.shape)
    return (image + noise).astype(np.uint8), inside


def iou(found: np.ndarray, true: np.ndarray) -> float:
    return float((found & true).sum() / (found | true).sum())


MARKS: dict[str, dict[str, Any]] = {
    "box": {"boxes": (45, 25, 136, 116)},
    "points": {"points": [(90, 70)]},
    "scribble": {"scribbles": np.zeros((160, 200), np.uint8)},
}
MARKS["scribble"]["scribbles"][70, 70:110] = 1
MARKS["scribble"]["scribbles"][150, 20:180] = 2


@pytest.mark.parametrize("kind", MARKS)
def test_a_mark_becomes_the_mask_of_the_object(photo: Segmenter, kind: str) -> None:
    image, inside = disc()
    found = photo.mark(image, **MARKS[kind])
    assert found.dtype == np.bool_ and found.shape == inside.shape
    assert iou(found, inside) > 0.9
    support = photo.encode_support(image, **MARKS[kind])
    assert support.same_as(photo.encode_support(image, found))


@pytest.mark.parametrize("kind", MARKS)
def test_models_with_a_vit_take_marks_too(kind: str) -> None:
    image, inside = disc()
    found = tiny_model().mark(image, **MARKS[kind])
    assert found.shape == inside.shape and found.any()


def test_boxes_of_one_image_are_joined(photo: Segmenter) -> None:
    image, inside = disc()
    two = np.concatenate([image, image], 1)
    box = MARKS["box"]["boxes"]
    found = photo.mark(two, boxes=[box, (box[0] + 200, box[1], box[2] + 200, box[3])])
    assert iou(found, np.concatenate([inside, inside], 1)) > 0.9


def test_marks_are_of_the_upright_image(photo: Segmenter, tmp_path: Path) -> None:
    """A photograph that is stored on its side, marked as it is displayed."""
    image, inside = disc()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rows are the displayed columns, from the right
    Image.fromarray(np.rot90(image)).save(tmp_path / "turned.png", exif=exif)
    found = photo.mark(tmp_path / "turned.png", **MARKS["box"])
    assert np.array_equal(found, photo.mark(image, **MARKS["box"]))
    assert iou(found, inside) > 0.9


def test_a_negative_point_takes_away(photo: Segmenter) -> None:
    """Two discs that touch: the second point says that one of them is not meant."""
    rows, columns = np.mgrid[:120, :200]
    left, right = ((rows - 60) ** 2 + (columns - x) ** 2 < 35**2 for x in (65, 135))
    image = np.where((left | right)[..., None], (200, 60, 50), (50, 120, 60)).astype(np.uint8)
    found = photo.mark(image, points=[(65, 60), (135, 60)], labels=[1, 0])
    assert found[60, 65] and not found[60, 135]
    assert iou(found, left) > 0.7


def test_the_shown_support_has_the_made_mask(photo: Segmenter) -> None:
    """What can be corrected is what was made: the picture of a mark is that of its mask."""
    image, _ = disc()
    shown = photo.encode_support(image, **MARKS["box"]).pictures[0]
    painted = photo.encode_support(image, photo.mark(image, **MARKS["box"])).pictures[0]
    assert shown.tobytes() == painted.tobytes()
    assert shown.tobytes() != Image.fromarray(image).tobytes()


def test_marks_on_an_empty_ground_are_refused(photo: Segmenter) -> None:
    """A click on nothing, and a box around nothing."""
    blank = np.full((100, 120, 3), 128, np.uint8)
    with pytest.raises(DataError, match="points of image 1: nothing is found there"):
        photo.mark(blank, points=[(60, 50)])
    image, _ = disc()
    with pytest.raises(DataError, match="boxes of image 2: nothing is found there"):
        photo.encode_support([image, blank], boxes=[MARKS["box"]["boxes"], (20, 20, 90, 80)])


@pytest.mark.parametrize("box", [(0, 0, 200, 160), (0, 0, 1, 1), (199, 0, 200, 160)])
def test_boxes_of_any_size_have_a_mask_or_an_error(
    photo: Segmenter, box: tuple[int, int, int, int]
) -> None:
    image, _ = disc()
    try:
        found = photo.mark(image, boxes=box)
    except DataError as error:
        assert "nothing is found" in str(error)
    else:
        assert found.any() and found[box[1] : box[3], box[0] : box[2]].sum() == found.sum()


def test_masks_and_marks_of_one_support(photo: Segmenter) -> None:
    """Each image has its own kind, as if all had come with the masks that these become."""
    image, inside = disc()
    mixed = photo.encode_support(
        [image, image, image],
        [inside, None, None],
        boxes=[None, MARKS["box"]["boxes"], None],
        points=[None, None, [(90, 70)]],
    )
    masks = [inside, photo.mark(image, **MARKS["box"]), photo.mark(image, **MARKS["points"])]
    assert mixed.same_as(photo.encode_support([image] * 3, masks))
    with pytest.raises(UsageError, match="image 2 has no mask and no mark"):
        photo.encode_support([image, image], [inside, None])


@pytest.mark.slow
def test_a_large_photograph_takes_bounded_time_and_memory(photo: Segmenter) -> None:
    """16 megapixels: the mask follows the edge to a few of its pixels."""
    import tracemalloc

    image, inside = (np.kron(part, np.ones((20, 25, *[1] * (part.ndim - 2)), part.dtype))
                     for part in disc())  # fmt: skip
    tracemalloc.start()
    found = photo.mark(image, boxes=(45 * 25, 25 * 20, 136 * 25, 116 * 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert iou(found, inside) > 0.9
    # Bytes: the image and its crop take 3 each, the resized scores 4, flags the rest.
    assert peak < 16 * inside.size


# ---------------------------------------------------------------------------------------- its parts


def test_the_walker_solves_its_equations() -> None:
    """Against a dense solution of sum link (x_i - x_j)^2 + pull sum (x - prior)^2."""
    generator = np.random.default_rng(0)
    height, width, pull = 5, 7, 0.1
    across, down = generator.random((height, width - 1)), generator.random((height - 1, width))
    prior = generator.random((height, width))
    places = np.arange(height * width).reshape(height, width)
    system = pull * np.eye(height * width)
    for links, first, second in (
        (across, places[:, :-1], places[:, 1:]),
        (down, places[:-1], places[1:]),
    ):
        for link, i, j in zip(links.ravel(), first.ravel(), second.ravel(), strict=True):
            system[i, i] += link
            system[j, j] += link
            system[i, j] -= link
            system[j, i] -= link
    expected = np.linalg.solve(system, pull * prior.ravel()).reshape(height, width)
    np.testing.assert_allclose(_walked((across, down), prior, pull), expected, atol=2e-3)


def test_components_are_those_of_a_singular_value_decomposition(photo: Segmenter) -> None:
    """Products of tokens are kept as far as 64 directions can."""
    image, _ = disc()
    [features] = photo._encode_arrays([image])
    raw = features.correlation[0][0, ::2].double().flatten(2).numpy()
    spread = raw.std(2, keepdims=True)
    rows = (raw - raw.mean(2, keepdims=True)) / np.where(spread > 1e-6, spread, np.inf)
    length = np.sqrt((spread > 1e-6).sum(1, keepdims=True))
    rows = rows * length / np.linalg.norm(rows, axis=1, keepdims=True) / 3**0.5
    rows = rows.reshape(-1, rows.shape[2])
    rows = rows - rows.mean(1, keepdims=True)
    _, values, right = np.linalg.svd(rows, full_matrices=False)
    expected = (right[:64].T * values[:64] ** 2) @ right[:64]
    found = components(features).double().numpy()
    assert found.shape == (64, rows.shape[1])
    np.testing.assert_allclose(found.T @ found, expected, atol=1e-2 * np.abs(expected).max())


def test_tokens_like_the_background_leave_the_object() -> None:
    """In a box, the prior takes all four; two of them look like what is outside."""
    kinds = torch.tensor([1.0, 1, -1, -1, -1, -1, -1, -1])
    tokens = torch.stack([3 * kinds, torch.zeros(8)])
    sides = torch.tensor([0.0, 0, 0, 0, -1, -1, -1, -1])
    odds = self_trained(tokens, torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]), sides)
    assert (odds > 0).tolist() == [True, True] + 6 * [False]
