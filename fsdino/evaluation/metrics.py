"""Metrics of few-shot and video segmentation, as sums that can be merged.

Each metric is a sum over episodes (or frames). The sums of several processes, or of a run that was
interrupted, add up to those of one uninterrupted run: all counts are integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.errors import UsageError

# What `overlaps` counts, and the last dimension of `Scores`' sums.
REGIONS = ("background", "foreground", "boundary")
_BACKGROUND, _FOREGROUND, _BOUNDARY = range(3)

BOUNDARY_SHARE = 0.02  # of the diagonal: how wide boundary IoU's band is
CONTOUR_TOLERANCE = 0.008  # of the diagonal: how far apart matching contours may be, for F


def overlaps(prediction: Tensor, truth: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Intersection and union of each mask: int64 [B, 2, 3] on the CPU, with the `REGIONS` last.

    Ignored pixels are dropped from prediction and truth before anything is counted.

    Args:
        prediction: bool [B, H, W].
        truth: bool [B, H, W].
        ignore: bool [B, H, W].
    """
    valid = torch.ones_like(truth) if ignore is None else ~ignore
    prediction, truth = prediction & valid, truth & valid
    pairs = (
        (~prediction & valid, ~truth & valid),
        (prediction, truth),
        (inner_boundary(prediction), inner_boundary(truth)),
    )
    intersections = torch.stack([(p & t).sum((1, 2)) for p, t in pairs], dim=1)
    unions = torch.stack([(p | t).sum((1, 2)) for p, t in pairs], dim=1)
    return torch.stack([intersections, unions], dim=1).cpu()


def inner_boundary(masks: Tensor) -> Tensor:
    """Pixels of masks [B, H, W] within 2 % of the diagonal of anything else: bool [B, H, W].

    Boundary IoU's band (Cheng et al., CVPR 2021): the mask without its erosion by a square, whose
    reach is the rounded share of the diagonal, at least one pixel. Beyond the picture there is
    background.
    """
    height, width = masks.shape[-2:]
    reach = max(round(BOUNDARY_SHARE * math.hypot(height, width)), 1)
    outside = F.pad((~masks).float(), (reach,) * 4, value=1.0)
    near = F.max_pool2d(outside, (1, 2 * reach + 1), stride=1)
    near = F.max_pool2d(near, (2 * reach + 1, 1), stride=1)
    return masks & (near > 0)


class Scores:
    """mIoU, FB-IoU, Dice and boundary IoU of few-shot segmentation.

    Intersections and unions are summed per class over all episodes, as HSNet does: IoU_c =
    I_c / max(U_c, 1), and mIoU is the mean over classes. FB-IoU pools over classes and averages
    background and foreground. Dice_c = 2 I_c / (I_c + U_c). All are in percent.

    Args:
        classes: ids; a class without an episode counts as 0, see `undrawn`.
    """

    def __init__(self, classes: Sequence[int]) -> None:
        self._row = {class_id: row for row, class_id in enumerate(classes)}
        self.sums = torch.zeros(len(classes), 2, len(REGIONS), dtype=torch.int64)
        self.episodes = torch.zeros(len(classes), dtype=torch.int64)

    def update(
        self, prediction: Tensor, truth: Tensor, class_ids: Tensor, ignore: Tensor | None = None
    ) -> None:
        """Add episodes of classes [B]; the other arguments are those of `overlaps`."""
        self.add(class_ids, overlaps(prediction, truth, ignore))

    def add(self, class_ids: Tensor | Sequence[int], counted: Tensor) -> None:
        """Add episodes of classes [B] by their `overlaps` [B, 2, 3]."""
        rows = torch.tensor([self._row[int(class_id)] for class_id in class_ids])
        self.sums.index_add_(0, rows, counted)
        self.episodes.index_add_(0, rows, torch.ones_like(rows))

    def merge(self, other: Scores) -> None:
        """Add the counts of another process.

        Raises:
            UsageError: it has other classes.
        """
        if self._row != other._row:
            raise UsageError("scores of different classes cannot be merged")
        self.sums += other.sums
        self.episodes += other.episodes

    @property
    def undrawn(self) -> tuple[int, ...]:
        """Classes without an episode: they count 0 in every mean."""
        return tuple(c for c, row in self._row.items() if not self.episodes[row])

    def per_class(self) -> dict[int, float]:
        """Foreground IoU of each class, in percent."""
        return self._ratios(*self._foreground())

    def miou(self) -> float:
        """Mean of `per_class`, in percent."""
        return _mean(self.per_class())

    def fb_iou(self) -> float:
        """Mean of the pooled background and foreground IoU, in percent."""
        intersection, union = self.sums.sum(0)[:, : _FOREGROUND + 1].double()
        return 100 * float((intersection / union.clamp_min(1)).mean())

    def dice(self) -> dict[int, float]:
        """Dice coefficient, or F1, of each class, in percent."""
        intersection, union = self._foreground()
        return self._ratios(2 * intersection, intersection + union)

    def boundary_iou(self) -> dict[int, float]:
        """Boundary IoU of each class, in percent (Cheng et al., CVPR 2021)."""
        return self._ratios(self.sums[:, 0, _BOUNDARY], self.sums[:, 1, _BOUNDARY])

    def _foreground(self) -> tuple[Tensor, Tensor]:
        return self.sums[:, 0, _FOREGROUND], self.sums[:, 1, _FOREGROUND]

    def _ratios(self, part: Tensor, whole: Tensor) -> dict[int, float]:
        percent = 100 * part.double() / whole.clamp_min(1)
        return {class_id: float(percent[row]) for class_id, row in self._row.items()}


def region_similarity(prediction: Tensor, truth: Tensor) -> float:
    """J of DAVIS: IoU of two masks bool [H, W], in [0, 1]; 1 where both are empty."""
    union = int((prediction | truth).sum())
    return int((prediction & truth).sum()) / union if union else 1.0


def contour_accuracy(prediction: Tensor, truth: Tensor) -> float:
    """F of DAVIS: how well the contours of two masks bool [H, W] match, in [0, 1].

    The harmonic mean of the shares of each contour that lie within a disk of radius
    ceil(0.008 * diagonal) of the other one (Perazzi et al., CVPR 2016). A contour that is missing
    on one side scores 0, on both sides 1.
    """
    found, wanted = contour(prediction), contour(truth)
    if not found.any() or not wanted.any():
        return float(bool(found.any()) == bool(wanted.any()))
    radius = math.ceil(CONTOUR_TOLERANCE * math.hypot(*truth.shape))
    precision = float((found & _near(wanted, radius)).sum()) / float(found.sum())
    recall = float((wanted & _near(found, radius)).sum()) / float(wanted.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def contour(mask: Tensor) -> Tensor:
    """Pixels of bool [H, W] that differ from the next one to the right, below or across."""
    padded = F.pad(mask[None, None].float(), (0, 1, 0, 1), mode="replicate")[0, 0] > 0
    right, below, across = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ across)


def _near(points: Tensor, radius: int) -> Tensor:
    """Pixels with one of the points of bool [H, W], of which there are some, within a disk."""
    steps = torch.arange(-radius, radius + 1, device=points.device)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).float()
    window = tuple(  # beyond it nothing is near
        slice(max(int(found[0]) - radius, 0), int(found[-1]) + radius + 1)
        for found in (points.any(other).nonzero() for other in (1, 0))
    )
    near = torch.zeros_like(points)
    part = points[window][None, None].float()
    near[window] = F.conv2d(part, disk[None, None], padding=radius)[0, 0] > 0.5
    return near


class VideoScores:
    """J, F and J&F of DAVIS-17 in percent, from the frames of every object.

    Averaged over an object's frames without the first and the last, then over objects.
    """

    def __init__(self) -> None:
        # (sequence, object) -> frame -> (J, F)
        self.frames: dict[tuple[str, int], dict[int, tuple[float, float]]] = {}

    def update(
        self, sequence: str, frame: int, prediction: Tensor, truth: Tensor, objects: Sequence[int]
    ) -> None:
        """Add a frame: object indices int [H, W], 0 for background, of prediction and truth."""
        for number in objects:
            found, wanted = prediction == number, truth == number
            scores = region_similarity(found, wanted), contour_accuracy(found, wanted)
            self.frames.setdefault((sequence, number), {})[frame] = scores

    def merge(self, other: VideoScores) -> None:
        """Add the frames that another process has scored."""
        for key, frames in other.frames.items():
            self.frames.setdefault(key, {}).update(frames)

    def per_object(self) -> dict[tuple[str, int], tuple[float, float]]:
        """(J, F) of each (sequence, object), sorted; objects of one or two frames have none."""
        means = {}
        for key in sorted(self.frames):
            inner = [scores for _, scores in sorted(self.frames[key].items())][1:-1]
            if inner:
                j, f = (100 * math.fsum(part) / len(inner) for part in zip(*inner, strict=True))
                means[key] = (j, f)
        return means

    def per_sequence(self) -> dict[str, dict[str, float]]:
        """J, F and J&F of each sequence: the means over its objects."""
        objects = self.per_object()
        names = dict.fromkeys(name for name, _ in objects)
        return {n: _summary([v for (name, _), v in objects.items() if name == n]) for n in names}

    def total(self) -> dict[str, float]:
        """J, F and J&F: the means over all objects of all sequences."""
        return _summary(list(self.per_object().values()))


def _summary(scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    if not scores:
        raise UsageError(
            "no object has more than two frames, which the mean needs: use longer sequences"
        )
    j, f = (math.fsum(part) / len(scores) for part in zip(*scores, strict=True))
    return {"j": j, "f": f, "j_and_f": (j + f) / 2}


def _mean(values: Mapping[int, float]) -> float:
    return sum(values.values()) / len(values)
