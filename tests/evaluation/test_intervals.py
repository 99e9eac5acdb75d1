"""Intervals against textbook standard errors and against resampling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fsdino.evaluation import intervals
from fsdino.evaluation.journal import Row


def rows_of(classes, intersections, unions, background=((1, 1),)) -> list[Row]:
    back = np.broadcast_to(background, (len(classes), 2))
    return [
        Row(0, i, int(c), f"{i}", (int(b[0]), int(a), 0), (int(b[1]), int(u), 0))
        for i, (c, a, u, b) in enumerate(zip(classes, intersections, unions, back, strict=True))
    ]


def test_equal_unions_give_the_standard_error_of_the_mean() -> None:
    """With unions of 100 pixels, IoU is the mean of the episodes' IoUs: SciPy's sem."""
    rng = np.random.default_rng(0)
    inter = rng.integers(0, 101, 50)
    rows = rows_of([3] * 50, inter, [100] * 50)
    expected = stats.norm.ppf(0.975) * stats.sem(inter)
    assert intervals.half_width([intervals.miou_influences(rows, [3])]) == pytest.approx(expected)
    # A second class that never comes halves the mean and so the interval.
    halved = intervals.half_width([intervals.miou_influences(rows, [3, 4])])
    assert halved == pytest.approx(expected / 2)


def test_unequal_unions_agree_with_the_bootstrap() -> None:
    """Two classes of 400 episodes, resampled within their class 2,000 times."""
    rng = np.random.default_rng(1)
    classes = np.repeat([0, 1], 400)
    unions = rng.integers(20, 2000, 800)
    inter = (unions * rng.beta(2, 1 + classes, 800)).astype(int)
    rows = rows_of(classes, inter, unions)
    samples = np.zeros(2000)
    for c in (0, 1):
        member = np.flatnonzero(classes == c)
        drawn = rng.choice(member, (2000, 400))
        samples += 100 * inter[drawn].sum(1) / unions[drawn].sum(1) / 2
    half = intervals.half_width([intervals.miou_influences(rows, [0, 1])])
    assert half == pytest.approx(1.96 * samples.std(), rel=0.06)


def test_fb_influences_agree_with_the_bootstrap() -> None:
    """Background and foreground are pooled, and counted in the same episodes."""
    rng = np.random.default_rng(2)
    unions = rng.integers(20, 500, 600)
    inter = (unions * rng.beta(2, 1, 600)).astype(int)
    back = np.stack([1000 - unions, 1000 - inter], axis=1)
    rows = rows_of([0] * 600, inter, unions, back)
    drawn = rng.integers(0, 600, (2000, 600))
    fore = inter[drawn].sum(1) / unions[drawn].sum(1)
    rear = back[drawn, 0].sum(1) / back[drawn, 1].sum(1)
    half = intervals.half_width([intervals.fb_influences(rows)])
    assert half == pytest.approx(1.96 * 100 * ((fore + rear) / 2).std(), rel=0.06)


def test_pairing_removes_what_both_share() -> None:
    """A model that is 5 points better in every episode is better beyond doubt."""
    rng = np.random.default_rng(3)
    inter = rng.integers(0, 90, 60)
    first, second = (rows_of([0] * 60, inter + plus, [100] * 60) for plus in (0, 5))
    influences = [intervals.miou_influences(rows, [0]) for rows in (first, second)]
    assert intervals.half_width([influences[0]]) > 5
    assert intervals.half_width([influences[1] - influences[0]]) == pytest.approx(0, abs=1e-9)


def test_what_cannot_be_known_is_none() -> None:
    """One episode has no spread; an episode that was not read has no influence."""
    rows = [*rows_of([0, 0, 1], [1, 2, 3], [4, 4, 4]), Row(0, 3, 0, "bad", error="damaged")]
    assert intervals.half_width([intervals.miou_influences(rows, [0, 1])]) is None
    assert intervals.half_width([intervals.class_influences(rows, 5)]) is None
    known = intervals.class_influences(rows, 0)
    assert intervals.half_width([known]) == pytest.approx(
        stats.norm.ppf(0.975) * stats.sem([25, 50])
    )
    assert known[3] == known[2] == 0


def test_seeds() -> None:
    """Three values against SciPy's Student interval; also beyond the table; one says nothing."""
    for values in ([50.0, 51.0, 53.5], list(np.linspace(40, 60, 33))):
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        half = intervals.seeds_half_width(values)
        assert half == pytest.approx((high - low) / 2, rel=2e-3)
    assert intervals.seeds_half_width([50.0]) is None
