"""95 % intervals of scores, over episodes and over seeds.

mIoU is a mean of ratios of sums, so its spread over episodes is taken from each episode's
influence, the first-order change of the score when the weight of that episode grows: for class c
with IoU R_c = I_c / U_c it is (I_i - R_c U_i) / U_c, and the variance of R_c is the sum of the
squares over its n_c episodes times n_c / (n_c - 1). For equal unions this is the textbook standard
error of a mean. Two models on the same episodes are compared by the differences of influences,
which removes the difficulty of an episode that both share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fsdino.evaluation.journal import Row

Floats = npt.NDArray[np.float64]

_NORMAL = 1.959964  # 97.5 % quantile
# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def class_influences(rows: Sequence[Row], class_id: int) -> Floats:
    """Each row's influence on the IoU of a class, in percent: float64 [N], 0 for other classes.

    The squares sum to the variance; NaN if the class has fewer than two episodes.
    """
    member = np.array([row.class_id == class_id and row.error is None for row in rows])
    if not member.any():
        return np.full(len(rows), math.nan)
    return np.where(member, _influences(rows, member, 1), 0.0)


def miou_influences(rows: Sequence[Row], classes: Sequence[int]) -> Floats:
    """Each row's influence on the mIoU, in percent: float64 [N]."""
    drawn = {row.class_id for row in rows if row.error is None}
    return sum(
        (class_influences(rows, c) for c in classes if c in drawn), start=np.zeros(len(rows))
    ) / len(classes)


def fb_influences(rows: Sequence[Row]) -> Floats:
    """Each row's influence on the FB-IoU, in percent: float64 [N]."""
    member = np.array([row.error is None for row in rows])
    both = _influences(rows, member, 0) + _influences(rows, member, 1)
    return np.where(member, both / 2, 0.0)


def half_width(influences: Sequence[Floats]) -> float | None:
    """Half of the 95 % interval of a mean over seeds, from each seed's influences.

    None if a class has fewer than two episodes, whose spread is unknown.
    """
    variance = sum(float((part**2).sum()) for part in influences) / len(influences) ** 2
    return _NORMAL * math.sqrt(variance) if math.isfinite(variance) else None


def seeds_half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval (Student's t) of the mean of one value per seed; None for one."""
    degrees = len(values) - 1
    if degrees < 1:
        return None
    beyond = _NORMAL + (_NORMAL**3 + _NORMAL) / (4 * degrees)  # Abramowitz and Stegun, 26.7.5
    quantile = _STUDENT[degrees - 1] if degrees <= len(_STUDENT) else beyond
    return quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _influences(rows: Sequence[Row], member: npt.NDArray[np.bool_], region: int) -> Floats:
    intersection = np.array([row.intersection[region] for row in rows], np.float64)
    union = np.array([row.union[region] for row in rows], np.float64)
    whole = max(float(union[member].sum()), 1.0)
    ratio, count = float(intersection[member].sum()) / whole, int(member.sum())
    correction = math.sqrt(count / (count - 1)) if count > 1 else math.nan
    return 100 * correction * (intersection - ratio * union) / whole
