"""Warps: pixels come from where the matrix says, and borders are mirrored."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fsdino.data.warps import Warp, draw_warp, photograph, view

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def moved(x: float, y: float, scale: float = 1.0) -> Warp:
    """The photograph from (x, y) on, upright."""
    return Warp(np.array([[1 / scale, 0, x], [0, 1 / scale, y], [0, 0, 1.0]]), scale)


def test_a_shift_copies_pixels() -> None:
    """At whole pixels nothing is interpolated, whatever part of the photograph is converted."""
    for window in ((0, 0, 10, 10), (3, 2, 9, 8)):
        left, top, right, bottom = window
        found = view(IMAGE, moved(12, 5), window).permute(1, 2, 0).numpy()
        expected = IMAGE[5 + top : 5 + bottom, 12 + left : 12 + right]
        assert np.abs(found - expected).max() < 0.01


def test_borders_are_mirrored() -> None:
    """No black corners."""
    found = view(IMAGE, moved(-6, -4), (0, 0, 40, 26)).permute(1, 2, 0).numpy()
    expected = np.pad(IMAGE, ((4, 2), (6, 4), (0, 0)), mode="symmetric")
    assert np.abs(found - expected).max() < 0.02


def test_shrinking_averages() -> None:
    """Fine texture must not turn into noise: at a third, each pixel is the mean of nine."""
    found = view(IMAGE[:18], moved(0, 0, 1 / 3), (0, 0, 10, 6)).permute(1, 2, 0).numpy()
    means = IMAGE[:18].reshape(6, 3, 10, 3, 3).mean((1, 3))
    assert np.abs(found - means).max() < 1  # kept in 8 bits


@pytest.mark.parametrize("seed", range(5))
def test_a_drawn_view_keeps_its_anchor_and_scale(seed: int) -> None:
    """The anchor lies where it was put, and areas there are scaled as was asked for."""
    warp = draw_warp(np.random.default_rng(seed), 1.7, (120, 80), (30, 50), 64)

    def at(x: float, y: float) -> np.ndarray:
        found = warp.matrix @ np.array([x, y, 1])
        return found[:2] / found[2]

    assert at(30, 50) == pytest.approx([120, 80])
    step = 1e-4
    jacobian = np.stack([at(30 + step, 50) - at(30, 50), at(30, 50 + step) - at(30, 50)]) / step
    assert math.sqrt(1 / abs(np.linalg.det(jacobian))) == pytest.approx(1.7, rel=1e-3)
    # Turned by at most 30 degrees and stretched by at most 1.35.
    ratio = np.linalg.svd(jacobian, compute_uv=False)
    assert ratio[0] / ratio[1] < math.exp(0.3) * 1.001
    angle = math.atan2(jacobian[1][0], jacobian[1][1])
    assert abs(angle) < math.radians(36)


def test_the_window_of_a_box() -> None:
    """Every pixel of the view that lies in the box is in its window, and hardly any other."""
    for seed in range(20):
        warp = draw_warp(np.random.default_rng(seed), 2.0, (30, 20), (25, 40), 64)
        places = warp.places((0, 0, 64, 64))
        inside = ((places >= (22, 14)) & (places < (38, 26))).all(2)
        left, top, right, bottom = warp.seen((22, 14, 38, 26), 64)
        rest = inside.copy()
        rest[top:bottom, left:right] = False
        assert inside.any() and not rest.any()
        assert (right - left) * (bottom - top) < 4 * inside.sum() + 400


def test_a_camera_changes_colours_and_no_places() -> None:
    """The picture stays where it is: half dark, half bright, in any exposure."""
    plane = torch.full((3, 40, 60), 60.0)
    plane[:, :, 30:] = 190
    seen = set()
    for seed in range(20):
        image = photograph(np.random.default_rng(seed), plane)
        assert image.shape == (40, 60, 3) and image.dtype == np.uint8
        assert image[:, :26].mean() + 60 < image[:, 34:].mean()
        seen.add(image.tobytes())
    assert len(seen) == 20
    again = photograph(np.random.default_rng(19), plane)
    assert again.tobytes() == image.tobytes()
