"""Intersection over union, accumulated over episodes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class IoU:
    """mIoU and FB-IoU of few-shot segmentation, as HSNet computes them.

    Intersections and unions are summed per class over all episodes; IoU_c = I_c / max(U_c, 1);
    mIoU is the mean over classes. FB-IoU pools over classes and averages background and
    foreground.

    Args:
        classes: ids; a class that never comes counts as 0.
    """

    def __init__(self, classes: tuple[int, ...]) -> None:
        self._row = {class_id: row for row, class_id in enumerate(classes)}
        # [classes, (background, foreground)]
        self.intersection = torch.zeros(len(classes), 2, dtype=torch.int64)
        self.union = torch.zeros(len(classes), 2, dtype=torch.int64)

    def update(
        self, prediction: Tensor, truth: Tensor, class_ids: Tensor, ignore: Tensor | None = None
    ) -> Tensor:
        """Add episodes; returns each one's foreground IoU, float64 [B] (0 for an empty union).

        Args:
            prediction: bool [B, H, W].
            truth: bool [B, H, W].
            class_ids: int [B].
            ignore: bool [B, H, W], pixels that count neither as prediction nor as truth.
        """
        valid = torch.ones_like(truth) if ignore is None else ~ignore
        pairs = ((~prediction & valid, ~truth & valid), (prediction & valid, truth & valid))
        inter = torch.stack([(p & t).sum((1, 2)) for p, t in pairs], dim=1).cpu()  # [B, 2]
        union = torch.stack([(p | t).sum((1, 2)) for p, t in pairs], dim=1).cpu()
        rows = torch.tensor([self._row[int(class_id)] for class_id in class_ids])
        self.intersection.index_add_(0, rows, inter)
        self.union.index_add_(0, rows, union)
        return inter[:, 1].double() / union[:, 1].clamp_min(1)

    def per_class(self) -> Mapping[int, float]:
        """Foreground IoU of each class, in percent."""
        iou = 100 * self.intersection[:, 1].double() / self.union[:, 1].clamp_min(1)
        return {class_id: float(iou[row]) for class_id, row in self._row.items()}

    def miou(self) -> float:
        """Mean of `per_class`, in percent."""
        values = self.per_class().values()
        return sum(values) / len(values)

    def fb_iou(self) -> float:
        """Mean of the pooled background and foreground IoU, in percent."""
        pooled = self.intersection.sum(0).double() / self.union.sum(0).clamp_min(1)
        return 100 * float(pooled.mean())
