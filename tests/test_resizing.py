"""From images to a model's tensors and back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from fsdino import resizing
from fsdino.errors import UsageError
from pictures import (
    disc,
    one_line,
    picture,
)


@pytest.mark.parametrize("size", [(14, 28), (56, 56), (97, 131), (200, 150), (60, 80)])
def test_to_tensor_resamples_like_pillow(size: tuple[int, int]) -> None:
    """Bilinear with antialiasing as Pillow defines it, without its rounding to 8 bits."""
    pixels = picture(60, 80)
    result = resizing.to_tensor(pixels, size)
    assert result.dtype == torch.float32
    assert result.shape == (3, *size)
    for channel in range(3):
        plane = Image.fromarray(pixels[:, :, channel].astype(np.float32))
        expected = np.array(plane.resize(size[::-1], Image.Resampling.BILINEAR)) / 255
        np.testing.assert_allclose(result[channel].numpy(), expected, atol=2e-6)


def test_to_tensor_takes_read_only_arrays() -> None:
    """A read-only array causes no warning of PyTorch's, and is not changed."""
    pixels = picture(6, 8)
    pixels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = resizing.to_tensor(pixels, (6, 8))
    assert np.array_equal(np.rint(result.permute(1, 2, 0).numpy() * 255), pixels)


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (13, 3), (25, 31), (12, 16), (1, 1)])
def test_area_share_is_the_covered_share(size: tuple[int, int]) -> None:
    """Exact for any ratio: both grids are refined to a common one, and counted there."""
    mask = disc(12, 16)
    rows, columns = math.lcm(12, size[0]), math.lcm(16, size[1])
    fine = np.kron(mask, np.ones((rows // 12, columns // 16)))
    expected = fine.reshape(size[0], rows // size[0], size[1], columns // size[1]).mean((1, 3))
    result = resizing.area_share(mask, size)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)
    assert result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (3, 4), (31, 50)])
def test_nearest_mask_takes_the_pixel_at_the_cells_corner(size: tuple[int, int]) -> None:
    """Row i of h is row floor(i * H / h): HSNet's rule, by hand."""
    mask = disc(12, 16)
    rows, columns = (
        [math.floor(i * whole / cells) for i in range(cells)]
        for cells, whole in zip(size, mask.shape, strict=True)
    )
    result = resizing.nearest_mask(mask, size)
    assert result.dtype == torch.float32
    assert np.array_equal(result.numpy(), mask[np.ix_(rows, columns)])


def test_area_shares_of_a_batch_are_those_of_its_masks() -> None:
    """Where the sides are multiples."""
    masks = [disc(12, 16), ~disc(12, 16)]
    for size in ((6, 8), (3, 16), (1, 4), (12, 16)):
        expected = torch.stack([resizing.area_share(mask, size) for mask in masks])
        found = resizing.area_shares(torch.from_numpy(np.stack(masks)), size)
        torch.testing.assert_close(found, expected)


def test_resize_logits_keeps_a_slope() -> None:
    """Pixel centres are at half integers: a linear map stays that line at every size."""
    centers = (torch.arange(20) + 0.5) / 20
    slope = centers[None, None, :, None].expand(1, 2, 20, 10).contiguous()
    for height in (20, 33, 400):
        [result] = resizing.resize_logits(slope, (height, 50))
        assert result.shape == (2, height, 50)
        expected = (torch.arange(height) + 0.5) / height
        inner = (expected > 0.2) & (expected < 0.8)
        torch.testing.assert_close(result[:, inner], expected[inner, None].expand(2, -1, 50))


def test_resize_logits_to_a_smaller_image_averages() -> None:
    """Every input pixel counts in an image smaller than the map: a fine grid becomes gray."""
    grid = (torch.arange(64) % 4 == 0).float().expand(1, 1, 64, 64)
    inner = resizing.resize_logits(grid, (8, 8))[
        0, :, :, 1:-1
    ]  # at the border the filter is cut off
    torch.testing.assert_close(inner, torch.full((1, 8, 6), 0.25))


def test_resize_logits_types_and_gradients() -> None:
    """Half precision comes back as float32, double stays, and training can go through."""
    assert resizing.resize_logits(torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16), (9, 9)).dtype == (
        torch.float32
    )
    logits = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resizing.resize_logits(x, (7, 3)), logits)


@pytest.mark.parametrize("size", [(37, 53), (480, 640), (3000, 4000)])
def test_there_and_back(size: tuple[int, int]) -> None:
    """A mask that goes to the model's grid and back lies where it was."""
    mask = disc(*size)
    there = resizing.area_share(mask, (56, 56))
    back = resizing.resize_logits(there[None, None], size)[0, 0].numpy() >= 0.5
    assert (mask & back).sum() / (mask | back).sum() > 0.95


def test_resizing_refuses_what_it_cannot_mean() -> None:
    """Wrong types, layouts and sizes are usage errors with the argument's own words."""
    pixels, mask = picture(6, 8), disc(6, 8)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: resizing.to_tensor(pixels.transpose(2, 0, 1), (4, 4)), "[3, 6, 8]"),
        (lambda: resizing.to_tensor(pixels / 255, (4, 4)), "float64"),
        (lambda: resizing.to_tensor(pixels, (0, 4)), "at least 1"),
        (lambda: resizing.area_share(pixels[:, :, 0], (4, 4)), "uint8"),
        (lambda: resizing.area_share(mask, (4, -1)), "at least 1"),
        (lambda: resizing.nearest_mask(pixels[:, :, 0], (4, 4)), "uint8"),
        (lambda: resizing.nearest_mask(mask, (0, 4)), "at least 1"),
        (lambda: resizing.resize_logits(torch.zeros(4, 4), (8, 8)), "[4, 4]"),
        (lambda: resizing.resize_logits(torch.zeros(1, 1, 4, 4).long(), (8, 8)), "int64"),
    ]
    for call, part in calls:
        with pytest.raises(UsageError) as error:
            call()
        one_line(error, part)
