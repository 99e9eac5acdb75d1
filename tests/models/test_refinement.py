"""Masks along the edges of the image: the filter written out, and what it is for."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.models.refinement import refine


def case(seed: int = 0, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(batch, 1, 3, 4, generator=generator)
    return score, torch.rand(batch, 3, 12, 16, generator=generator)


def by_hand(score: np.ndarray, guide: np.ndarray) -> np.ndarray:
    """Of one image, window by window: guide [n, m, 3] and score [n, m] of one size."""
    rows, columns = score.shape
    lines = np.zeros((rows, columns, 4))
    for y in range(rows):
        for x in range(columns):
            window = (
                np.clip(np.arange(y - 2, y + 3), 0, rows - 1)[:, None],
                np.clip(np.arange(x - 2, x + 3), 0, columns - 1),
            )
            colours, values = guide[window].reshape(-1, 3), score[window].ravel()
            covariance = np.cov(colours.T, bias=True) + 1e-4 * np.eye(3)
            centred = (colours - colours.mean(0)) * (values - values.mean())[:, None]
            slope = np.linalg.solve(covariance, centred.mean(0))
            lines[y, x] = [*slope, values.mean() - slope @ colours.mean(0)]
    return np.array(
        [
            [
                lines[np.clip(np.arange(y - 2, y + 3), 0, rows - 1)][
                    :, np.clip(np.arange(x - 2, x + 3), 0, columns - 1)
                ].mean((0, 1))
                for x in range(columns)
            ]
            for y in range(rows)
        ]
    )


def test_filter_written_out() -> None:
    """Linear functions of the colour, fitted at half tokens and read at quarters."""
    score, guide = case()
    found = refine(score, guide)
    assert found.shape == (2, 1, 12, 16) and found.dtype == torch.float32
    for b in range(2):
        colour = F.avg_pool2d(guide[b], 2).permute(1, 2, 0).double().numpy()
        clipped = F.interpolate(score[b : b + 1].clamp(-0.5, 0.5), (6, 8), mode="bilinear")
        lines = by_hand(clipped[0, 0].double().numpy(), colour)
        fine = F.interpolate(torch.tensor(lines).permute(2, 0, 1)[None], (12, 16), mode="bilinear")
        expected = (fine[0, :3] * guide[b]).sum(0) + fine[0, 3]
        torch.testing.assert_close(found[b, 0].double(), expected, atol=1e-4, rtol=1e-4)


def test_a_mask_ends_where_the_colour_does() -> None:
    """An edge in the middle of a token: without the image, the border would be off by two."""
    guide = torch.zeros(1, 3, 32, 32)
    guide[..., 18:] = 0.6  # half a token beyond that of the scores
    score = torch.where(torch.arange(8) < 4, -0.5, 0.5).expand(1, 1, 8, 8)
    plain = F.interpolate(score, (32, 32), mode="bilinear")
    truth = torch.arange(32).expand(32, 32) >= 18
    wrong = ((refine(score, guide)[0, 0] >= 0) != truth).sum()
    assert wrong == 0
    assert ((plain[0, 0] >= 0) != truth).sum() == 2 * 32


def test_an_even_image_moves_nothing() -> None:
    """Constant scores stay; where the colour tells nothing, the mean over windows is left."""
    guide = torch.full((1, 3, 16, 16), 0.3)
    constant = torch.full((1, 1, 4, 4), -0.2)
    torch.testing.assert_close(refine(constant, guide), torch.full((1, 1, 16, 16), -0.2))
    score = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    means = F.interpolate(score, (8, 8), mode="bilinear")
    for _ in range(2):  # of the windows, and of the windows that hold a place
        means = F.avg_pool2d(F.pad(means, (2,) * 4, mode="replicate"), 5, stride=1)
    expected = F.interpolate(means, (16, 16), mode="bilinear")
    torch.testing.assert_close(refine(score, guide), expected, atol=1e-4, rtol=0)


def test_images_of_a_batch_do_not_mix_and_halves_are_computed_in_float32() -> None:
    score, guide = case(1)
    both = refine(score, guide)
    torch.testing.assert_close(refine(score[1:], guide[1:]), both[1:], atol=1e-5, rtol=1e-5)
    half = guide.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(refine(score, half), refine(score, half.float()))
