"""Shots: masks on the token grid, prototypes."""

from __future__ import annotations

import pytest
import torch

from fsdino.models.shots import masked_mean, token_mask


def test_token_mask_is_the_area_mean_of_each_token() -> None:
    """4 x 6 pixels to 2 x 2 tokens of 2 x 3: shares of 6, scaled by the best covered token's."""
    mask = torch.zeros(1, 4, 6)
    mask[0, 0, 0] = 1  # 1 of 6
    mask[0, 0:2, 3:5] = 1  # 4 of 6
    mask[0, 2:4, 3:4] = 1  # 2 of 6
    expected = torch.tensor([[[1 / 4, 4 / 4], [0, 2 / 4]]])
    torch.testing.assert_close(token_mask(mask, (2, 2)), expected)


def test_token_mask_of_a_well_covered_token_is_its_share() -> None:
    """Where one token is covered entirely nothing is scaled; batches do not mix."""
    mask = torch.zeros(2, 4, 4)
    mask[0, :2, :2], mask[0, 2, 2] = 1, 1
    mask[1, 3, 3] = 1
    found = token_mask(mask, (2, 2))
    torch.testing.assert_close(found[0], torch.tensor([[1.0, 0.0], [0.0, 0.25]]))
    torch.testing.assert_close(found[1], torch.tensor([[0.0, 0.0], [0.0, 1.0]]))


def test_an_object_smaller_than_a_token_stays_foreground() -> None:
    """One pixel of 518 x 518: its token is foreground, so that 2m - 1 is +1 there and not -0.99."""
    mask = torch.zeros(1, 518, 518)
    mask[0, 200, 300] = 1
    found = token_mask(mask, (37, 37))
    assert found[0, 200 // 14, 300 // 14] == 1
    assert found.sum() == 1


def test_token_mask_of_an_empty_or_full_mask() -> None:
    """Neither divides by zero nor leaves [0, 1]; a mask smaller than the grid is spread."""
    assert token_mask(torch.zeros(1, 9, 7), (3, 3)).abs().max() == 0
    assert token_mask(torch.ones(1, 9, 7), (3, 3)).min() == 1
    assert token_mask(torch.ones(1, 2, 2, dtype=torch.bool), (5, 5)).min() == 1


def test_token_mask_keeps_the_area_when_sizes_do_not_divide() -> None:
    """100 x 75 pixels to 7 x 5 tokens: no pixel counts twice, so a half mask covers about half."""
    mask = torch.zeros(1, 100, 75)
    mask[:, :50] = 1
    found = token_mask(mask, (7, 5))[0]
    torch.testing.assert_close(found[:3], torch.ones(3, 5))
    torch.testing.assert_close(found[3], torch.full((5,), 0.5), atol=0.02, rtol=0)
    torch.testing.assert_close(found[4:], torch.zeros(3, 5))


def test_masked_mean_by_hand() -> None:
    """Weights are shares of foreground; without any the mean is 0 and not NaN."""
    tokens = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[10.0, 20.0], [30.0, 40.0]]]])
    weight = torch.tensor([[[1.0, 0.0], [0.0, 0.5]]])
    torch.testing.assert_close(masked_mean(tokens, weight), torch.tensor([[2.0, 20.0]]))
    torch.testing.assert_close(masked_mean(tokens, weight / 10), torch.tensor([[2.0, 20.0]]))
    assert masked_mean(tokens, torch.zeros(1, 2, 2)).tolist() == [[0, 0]]


def test_masked_mean_accumulates_in_float32() -> None:
    """1369 tokens of a bfloat16 model: the mean is exact where bfloat16 sums would stall."""
    tokens = torch.ones(1, 1, 37, 37, dtype=torch.bfloat16)
    assert masked_mean(tokens, torch.ones(1, 37, 37)).item() == pytest.approx(1)
