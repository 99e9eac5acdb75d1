"""What the photographs' numbers are made of: IoU, bootstrap intervals, AUROC, rank correlation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

RESAMPLES = 2000


def iou(prediction: Mask, truth: Mask, ignored: Mask | None = None) -> float:
    """Intersection over union of masks [H, W] in percent, over the pixels that are not ignored.

    100 where neither has a pixel.
    """
    both, either = prediction & truth, prediction | truth
    if ignored is not None:
        both, either = both & ~ignored, either & ~ignored
    union = int(either.sum())
    return 100 * float(both.sum()) / union if union else 100.0


def mean_of_groups(sums: Sequence[Floats], counts: Sequence[Floats]) -> Floats:
    """Mean over each group's queries, then over groups, for M methods.

    Args:
        sums: of every group, [S, M]: the sum of the S supports' values.
        counts: of every group, [S]: how many values each support has.

    Returns:
        [M]; NaN where no group has a value.
    """
    means = [
        total.sum(0) / count.sum()
        for total, count in zip(sums, counts, strict=True)
        if count.sum() > 0
    ]
    return np.mean(means, axis=0) if means else np.full(sums[0].shape[1], np.nan)


def bootstrap(sums: Sequence[Floats], counts: Sequence[Floats]) -> Floats:
    """`mean_of_groups` of supports that are drawn again with replacement: [RESAMPLES, M].

    Each group draws as many supports as it has. All methods see the same draws, so that their
    differences are paired. A group whose draw has no value is left out of that draw's mean.
    """
    generator = np.random.RandomState(0)
    means = []
    for total, count in zip(sums, counts, strict=True):
        drawn = generator.randint(len(count), size=(RESAMPLES, len(count)))
        number = count[drawn].sum(1)[:, None]
        with np.errstate(invalid="ignore"):
            means.append(np.where(number > 0, total[drawn].sum(1) / number, np.nan))
    stacked = np.stack(means)  # [groups, RESAMPLES, M]
    present = np.isfinite(stacked)
    with np.errstate(invalid="ignore"):
        result: Floats = np.where(present, stacked, 0).sum(0) / present.sum(0)
    return result


def interval(samples: Floats) -> list[float] | None:
    """The 2.5th and the 97.5th percentile; None where there is nothing to take them of."""
    samples = samples[np.isfinite(samples)]
    if not len(samples):
        return None
    return [round(float(x), 2) for x in np.percentile(samples, (2.5, 97.5))]


def ranks(values: Sequence[float]) -> Floats:
    """Ranks from 1; equal values share the mean of their ranks."""
    array = np.asarray(values, np.float64)
    _, group, size = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    result: Floats = (last - (size - 1) / 2)[group]
    return result


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """Chance that a positive's score is above a negative's, ties counted as one half.

    By the rank sum (Mann and Whitney, 1947); None without a value on one side.
    """
    n, m = len(positive), len(negative)
    if not n or not m:
        return None
    total = ranks([*positive, *negative])[:n].sum()
    return float((total - n * (n + 1) / 2) / (n * m))


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation with ties (Pearson's of the ranks); None where one side is constant."""
    if len(first) < 2:
        return None
    x, y = ranks(first), ranks(second)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / scale if scale else None


def warnings_by_threshold(quality: Sequence[float], ious: Sequence[float]) -> list[dict[str, Any]]:
    """What a warning below each threshold of quality is worth, where IoU < 50 is what to warn of.

    Args:
        quality: in [0, 1].
        ious: in percent.

    Returns:
        One row per threshold: precision and recall; precision None where nothing is warned of,
        recall None where there is nothing to warn of.
    """
    poor = np.asarray(ious) < 50
    rows = []
    for threshold in np.arange(1, 20) / 20:
        warned = np.asarray(quality) < threshold
        right = int((warned & poor).sum())
        rows.append(
            {
                "threshold": round(float(threshold), 2),
                "precision": round(right / int(warned.sum()), 3) if warned.any() else None,
                "recall": round(right / int(poor.sum()), 3) if poor.any() else None,
            }
        )
    return rows
