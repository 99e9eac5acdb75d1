"""mIoU and FB-IoU against counts made by hand."""

from __future__ import annotations

import pytest
import torch

from fsdino.evaluation.metrics import IoU


def rows(*lines: str) -> torch.Tensor:
    return torch.tensor([[character == "#" for character in line] for line in lines])[None]


def test_sums_over_episodes_before_dividing() -> None:
    """IoU_c is the ratio of sums, not the mean of ratios: (1 + 4) / (3 + 4), not (1/3 + 1) / 2."""
    metric = IoU((7, 9))
    first = metric.update(rows("##..", "...."), rows(".##.", "...."), torch.tensor([7]))
    second = metric.update(rows("####", "...."), rows("####", "...."), torch.tensor([7]))
    assert first.tolist() == [pytest.approx(1 / 3)] and second.tolist() == [1.0]
    assert metric.per_class() == {7: pytest.approx(100 * 5 / 7), 9: 0.0}
    assert metric.miou() == pytest.approx(100 * 5 / 7 / 2)  # a class never drawn counts 0
    # background: intersections 5 + 4, unions 7 + 4
    assert metric.fb_iou() == pytest.approx(100 * (5 / 7 + 9 / 11) / 2)


def test_ignored_pixels_count_nowhere() -> None:
    """255 in PASCAL's masks is dropped from prediction and truth alike."""
    metric = IoU((1,))
    ignore = rows("#...", "...#")
    metric.update(rows("##..", "...."), rows(".##.", "...#"), torch.tensor([1]), ignore)
    assert metric.per_class()[1] == pytest.approx(100 * 1 / 2)
    assert metric.fb_iou() == pytest.approx(100 * (1 / 2 + 4 / 5) / 2)


def test_a_batch_is_its_episodes() -> None:
    """Episodes of several classes in one batch land in their own rows."""
    metric = IoU((0, 1))
    prediction = torch.cat([rows("##"), rows("#."), rows("..")])
    truth = torch.cat([rows("##"), rows("##"), rows("##")])
    scores = metric.update(prediction, truth, torch.tensor([0, 1, 1]))
    assert scores.tolist() == [1.0, 0.5, 0.0]
    assert metric.per_class() == {0: 100.0, 1: 25.0}
