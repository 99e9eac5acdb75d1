"""Metrics against counts made by hand, and against formulations in SciPy and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from fsdino.errors import UsageError
from fsdino.evaluation.metrics import (
    Scores,
    VideoScores,
    contour,
    contour_accuracy,
    inner_boundary,
    overlaps,
    region_similarity,
)


def rows(*lines: str) -> torch.Tensor:
    return torch.tensor([[character == "#" for character in line] for line in lines])[None]


def blobs(height: int, width: int, seed: int, share: float = 0.35) -> np.ndarray:
    """bool [H, W] of round shapes, some of them at the border."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    smooth = ndimage.gaussian_filter(noise, 5, mode="wrap")
    return smooth > np.quantile(smooth, 1 - share)


def test_sums_over_episodes_before_dividing() -> None:
    """IoU_c is the ratio of sums, not the mean of ratios: (1 + 4) / (3 + 4), not (1/3 + 1) / 2."""
    scores = Scores((7, 9))
    scores.update(rows("##..", "...."), rows(".##.", "...."), torch.tensor([7]))
    scores.update(rows("####", "...."), rows("####", "...."), torch.tensor([7]))
    assert scores.per_class() == {7: pytest.approx(100 * 5 / 7), 9: 0.0}
    assert scores.miou() == pytest.approx(100 * 5 / 7 / 2)  # a class never drawn counts 0
    assert scores.undrawn == (9,)
    # background: intersections 5 + 4, unions 7 + 4
    assert scores.fb_iou() == pytest.approx(100 * (5 / 7 + 9 / 11) / 2)
    # twice the 5 right pixels over the 2 + 4 predicted and the 2 + 4 true ones
    assert scores.dice() == {7: pytest.approx(100 * 10 / 12), 9: 0.0}


def test_ignored_pixels_count_nowhere() -> None:
    """255 in PASCAL's masks is dropped from prediction and truth alike."""
    scores = Scores((1,))
    ignore = rows("#...", "...#")
    scores.update(rows("##..", "...."), rows(".##.", "...#"), torch.tensor([1]), ignore)
    assert scores.per_class()[1] == pytest.approx(100 * 1 / 2)
    assert scores.fb_iou() == pytest.approx(100 * (1 / 2 + 4 / 5) / 2)


def test_a_batch_is_its_episodes() -> None:
    """Episodes of several classes in one batch land in their own rows."""
    scores = Scores((0, 1))
    prediction = torch.cat([rows("##"), rows("#."), rows("..")])
    truth = torch.cat([rows("##"), rows("##"), rows("##")])
    scores.update(prediction, truth, torch.tensor([0, 1, 1]))
    assert scores.per_class() == {0: 100.0, 1: 25.0}


def test_merged_scores_are_those_of_all_episodes() -> None:
    """Two processes' sums add up to one process's, number for number."""
    masks = torch.from_numpy(np.stack([blobs(40, 50, i) for i in range(12)]))
    truth, classes = masks.roll(1, 0), torch.tensor([0, 1, 2] * 4)
    whole, first, second = (Scores((0, 1, 2)) for _ in range(3))
    whole.update(masks, truth, classes)
    first.update(masks[:5], truth[:5], classes[:5])
    second.update(masks[5:], truth[5:], classes[5:])
    first.merge(second)
    for metric in ("miou", "fb_iou", "dice", "boundary_iou"):
        assert getattr(first, metric)() == getattr(whole, metric)()
    with pytest.raises(UsageError, match="different classes"):
        first.merge(Scores((0, 1)))


def boundary_by_erosion(mask: np.ndarray) -> np.ndarray:
    """Boundary IoU's band as its authors make it: erosions by 3 x 3, zeros around the picture."""
    steps = max(round(0.02 * math.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2)), 1)
    eroded = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=steps, border_value=0)
    return mask & ~eroded


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (30, 40), (112, 112), (90, 301)])
def test_boundary_band_is_repeated_erosion(shape: tuple[int, int]) -> None:
    """One box of the whole reach equals SciPy's erosions one pixel at a time, at the border too."""
    for seed in range(3):
        mask = blobs(*shape, seed)
        expected = boundary_by_erosion(mask)
        assert np.array_equal(inner_boundary(torch.from_numpy(mask)[None])[0].numpy(), expected)


def test_boundary_iou_by_hand() -> None:
    """5 x 5 pixels: a band of one pixel. A 4 x 4 square's band has 12 pixels, a 3 x 3 one's 8."""
    truth = rows("####.", "####.", "####.", "####.", ".....")
    small = rows("###..", "###..", "###..", ".....", ".....")
    scores = Scores((0,))
    scores.update(small, truth, torch.tensor([0]))
    # Both bands hold the corner's 5 pixels; the union has 12 + 8 - 5 ones.
    assert scores.boundary_iou() == {0: pytest.approx(100 * 5 / 15)}


def test_a_prediction_inside_the_ignored_rim_is_perfect() -> None:
    """PASCAL's rim around an object is dropped before the bands are made, not after."""
    truth, ignore = torch.zeros(1, 60, 60, dtype=torch.bool), torch.zeros(1, 60, 60).bool()
    truth[0, 20:40, 20:40] = True
    ignore[0, 15:45, 15:45] = True
    ignore &= ~truth
    counted = overlaps(truth | ignore, truth, ignore)
    assert counted[0, 0].tolist() == counted[0, 1].tolist()
    assert counted[0, 0].tolist() == [60 * 60 - 30 * 30, 20 * 20, 20 * 20 - 16 * 16]


def contour_accuracy_by_morphology(found: np.ndarray, wanted: np.ndarray) -> float:
    """F of DAVIS with SciPy: explicit contours, dilated by a disk."""

    def edge(mask: np.ndarray) -> np.ndarray:
        result = np.zeros_like(mask)
        height, width = mask.shape
        for y in range(height):
            for x in range(width):
                nexts = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
                clipped = [(min(a, height - 1), min(b, width - 1)) for a, b in nexts]
                result[y, x] = any(mask[y, x] != mask[place] for place in clipped)
        return result

    a, b = edge(found), edge(wanted)
    radius = math.ceil(0.008 * math.hypot(*found.shape))
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = x**2 + y**2 <= radius**2
    if not a.any() or not b.any():
        return float(not a.any() and not b.any())
    precision = (a & ndimage.binary_dilation(b, disk)).sum() / a.sum()
    recall = (b & ndimage.binary_dilation(a, disk)).sum() / b.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("shape", [(40, 60), (130, 240)])
def test_contour_accuracy_against_scipy(shape: tuple[int, int]) -> None:
    """Radius 1 and 3, masks near each other and far apart."""
    for seed in range(3):
        wanted = blobs(*shape, seed)
        near = ndimage.shift(wanted.astype(int), (1, 2), order=0) > 0
        for found in (wanted, near, blobs(*shape, seed + 50)):
            expected = contour_accuracy_by_morphology(found, wanted)
            scored = contour_accuracy(torch.from_numpy(found), torch.from_numpy(wanted))
            assert scored == pytest.approx(expected, abs=1e-12)


def test_contours_by_hand() -> None:
    """A pixel is on the contour where the next one to the right, below or across differs."""
    mask = rows("....", ".##.", ".##.", "....")[0]
    expected = rows("###.", "#.#.", "###.", "....")[0]
    assert torch.equal(contour(mask), expected)


def test_empty_masks_of_davis() -> None:
    """Nothing there and nothing found is right; one of the two alone is wrong."""
    empty, full = rows("....", "....")[0], rows(".##.", "....")[0]
    assert region_similarity(empty, empty) == contour_accuracy(empty, empty) == 1
    assert region_similarity(full, empty) == contour_accuracy(full, empty) == 0
    assert contour_accuracy(empty, full) == 0


def test_video_scores_leave_out_first_and_last_frame_and_average_objects() -> None:
    """J of object 1 is 1 then 1/2, of object 2 is 0 then 0; frames 0 and 3 count nowhere."""
    truth = torch.tensor([[1, 1, 0, 2]]).repeat(4, 1)
    half, none = truth.clone(), torch.zeros_like(truth)
    half[:2, 1] = 0
    half[:2, 0] = 0
    half[half == 2] = 0
    whole = torch.where(truth == 1, 1, 0)
    scores, other = VideoScores(), VideoScores()
    scores.update("bear", 0, none, truth, (1, 2))
    scores.update("bear", 1, whole, truth, (1, 2))
    other.update("bear", 2, half, truth, (1, 2))
    other.update("bear", 3, none, truth, (1, 2))
    scores.merge(other)
    objects = scores.per_object()
    assert [j for j, _ in objects.values()] == [pytest.approx(75), 0]
    assert scores.per_sequence()["bear"]["j"] == pytest.approx(37.5)
    # A sequence of one perfect object counts as one of three objects, not as half of the mean.
    for frame in range(3):
        scores.update("camel", frame, whole, whole, (1,))
    assert scores.total()["j"] == pytest.approx((75 + 0 + 100) / 3)
    total = scores.total()
    assert total["j_and_f"] == pytest.approx((total["j"] + total["f"]) / 2)
    with pytest.raises(UsageError, match="no object has more than two frames"):
        VideoScores().total()


def test_contours_at_the_borders_of_an_image():
    """What is near a contour there, by SciPy's dilation of the whole image."""
    generator = np.random.default_rng(0)
    height, width = 90, 120
    radius = math.ceil(0.008 * math.hypot(height, width))
    steps = np.arange(-radius, radius + 1)
    disk = steps[:, None] ** 2 + steps**2 <= radius**2
    for corner in ((0, 0), (0, 100), (70, 0), (70, 100), (30, 40)):
        masks = np.zeros((2, height, width), bool)
        for mask in masks:
            top, left = corner + generator.integers(0, 4, 2)
            mask[top : top + 20, left : left + 20] = True
        found, wanted = (contour(torch.from_numpy(mask)).numpy() for mask in masks)
        near = [ndimage.binary_dilation(part, disk) for part in (found, wanted)]
        precision, recall = (found & near[1]).sum() / found.sum(), (wanted & near[0]).sum()
        recall = recall / wanted.sum()
        expected = 2 * precision * recall / (precision + recall)
        prediction, truth = map(torch.from_numpy, masks)
        assert contour_accuracy(prediction, truth) == pytest.approx(expected)
