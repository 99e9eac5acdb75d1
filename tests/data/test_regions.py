"""Regions of photographs: what stands out is found, whole and alone."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from data_sets import disc_photograph
from fsdino.data.regions import LARGEST, SIDE, SMALLEST, Region, find_regions


def best_overlap(regions: list[Region], mask: np.ndarray) -> tuple[float, Region]:
    """Intersection over union of the region that fits a mask best, and the region."""

    def overlap(region: Region) -> float:
        picture = PIL.Image.fromarray(region.soft)
        found = np.asarray(picture.resize(mask.shape[::-1], PIL.Image.Resampling.BILINEAR)) > 127
        return float((found & mask).sum() / (found | mask).sum())

    return max(((overlap(region), region) for region in regions), key=lambda pair: pair[0])


def test_a_disc_is_found() -> None:
    """Its outline, its share, its box, and that nothing of it is cut off."""
    image, mask = disc_photograph((210, 30, 30), 0)
    overlap, region = best_overlap(find_regions(image), mask)
    assert overlap > 0.95 and region.whole
    assert region.share == pytest.approx(np.pi * 20**2 / (96 * 128), rel=0.05)
    assert region.box == pytest.approx((50 / 128, 24 / 96, 90 / 128, 64 / 96), abs=0.02)


def test_large_photographs_are_shrunk_first() -> None:
    """The same disc in an image six times as large."""
    image, mask = disc_photograph((210, 30, 30), 0)
    large = np.asarray(PIL.Image.fromarray(image).resize((768, 576), PIL.Image.Resampling.BICUBIC))
    overlap, region = best_overlap(find_regions(large), mask)
    assert overlap > 0.93 and max(region.soft.shape) == SIDE


def test_lookalikes_share_a_region() -> None:
    """Where two discs are alike, a mask of one alone would not say what is meant."""
    image, mask = disc_photograph((210, 30, 30), 0)
    other = np.roll(mask, -45, 1)
    image[other] = (210, 30, 30)
    regions = find_regions(image)
    assert best_overlap(regions, mask | other)[0] > 0.93
    assert best_overlap(regions, mask)[0] < 0.7 and best_overlap(regions, other)[0] < 0.7


def test_what_the_border_cuts_off_is_not_whole() -> None:
    image, mask = disc_photograph((210, 30, 30), 0)
    overlap, region = best_overlap(find_regions(np.ascontiguousarray(image[44:])), mask[44:])
    assert overlap > 0.93 and not region.whole


def test_regions_are_a_function_of_the_photograph() -> None:
    """Training resumes with other processes, which find them again."""
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    image = np.asarray(PIL.Image.fromarray(noise).resize((160, 120), PIL.Image.Resampling.NEAREST))
    first, again = find_regions(image), find_regions(image.copy())
    assert len(first) == len(again) > 0
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.soft, other.soft) and one.stage == other.stage
        assert SMALLEST <= one.share <= LARGEST
        assert one.share == pytest.approx((one.soft > 127).mean())


@pytest.mark.parametrize("shape", [(64, 64), (32, 700), (1, 1), (3, 5)])
def test_plain_photographs_have_none(shape: tuple[int, int]) -> None:
    assert find_regions(np.full((*shape, 3), 128, np.uint8)) == []
