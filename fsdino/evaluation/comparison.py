"""Two results on the same episodes, and the intervals of their differences.

What makes them incomparable is said before PyTorch is imported.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsdino.errors import DataError, UsageError, shown
from fsdino.evaluation.results import read

if TYPE_CHECKING:
    from fsdino.evaluation.journal import Row


@dataclass(frozen=True)
class Difference:
    """One line of a comparison, in percent.

    Attributes:
        name: name of the metric or the class.
        first, second: the two values.
        half_width: half of the 95 % interval of second - first over episodes; None where a class
            has one episode only, or none.
    """

    name: str
    first: float
    second: float
    half_width: float | None

    @property
    def difference(self) -> float:
        """How much higher the second is."""
        return self.second - self.first

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "difference": self.difference}


def compare(first: Path, second: Path) -> list[Difference]:
    """Two results on the same episodes, pairwise: mIoU, FB-IoU, then every class.

    Raises:
        UsageError: a file is missing, or the results are of different episodes or sizes.
        DataError: a file is damaged.
    """
    a, b = _comparable(first), _comparable(second)
    for key, remedy in (
        ("episode_hash", "evaluate both with the same data, fold, shots, seeds and episodes"),
        ("scored_at", "evaluate both with the same protocol"),
        ("image_size", "evaluate both with the same --image-size"),
        ("skipped", "evaluate both on the same files"),
    ):
        if key == "image_size" and a["scored_at"] != "image_size":
            continue
        if a[key] != b[key]:
            raise UsageError(
                f"{first} and {second} cannot be compared: {key} is "
                f"{shown(a[key])} and {shown(b[key])}; {remedy}"
            )
    from fsdino.evaluation import intervals

    rows_a, rows_b = _by_seed(first, a), _by_seed(second, b)
    classes = [int(c) for c in a["per_class"]]

    def line(name: str, values: Sequence[float], influences: Any) -> Difference:
        parts = [influences(x) - influences(y) for x, y in zip(rows_a, rows_b, strict=True)]
        return Difference(name, values[0], values[1], intervals.half_width(parts))

    lines = [
        line("mIoU", [a["miou"], b["miou"]], lambda r: intervals.miou_influences(r, classes)),
        line("FB-IoU", [a["fb_iou"], b["fb_iou"]], intervals.fb_influences),
    ]
    for c in classes:
        values = [record["per_class"][str(c)] for record in (a, b)]
        influences = lambda r, c=c: intervals.class_influences(r, c)  # noqa: E731
        lines.append(line(a["class_names"][str(c)], values, influences))
    return lines


def _comparable(path: Path) -> dict[str, Any]:
    """A result over episodes, with all that a comparison reads.

    Raises:
        UsageError: it is a result on videos, or does not exist.
        DataError: it is damaged.
    """
    record = read(path)
    if "per_sequence" in record:
        raise UsageError(f"{path} is a result on videos: only results on episodes can be compared")
    try:
        numbers = [record["miou"], record["fb_iou"], *record["per_class"].values()]
        whole = (
            all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
            and all(str(int(key)) == key for key in (*record["per_class"], *record["miou_by_seed"]))
            and all(type(record["class_names"][key]) is str for key in record["per_class"])
            and type(record["episodes"]) is int
            and bool(record["per_class"] and record["miou_by_seed"])
            and {"episode_hash", "scored_at", "image_size", "skipped"} <= set(record)
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise DataError(f"{path} is damaged (numbers are missing or invalid): evaluate again")
    return record


def _by_seed(path: Path, record: Mapping[str, Any]) -> list[list[Row]]:
    """The rows of each seed, in the order of the record's seeds and of episodes."""
    from fsdino.evaluation.evaluate import tally
    from fsdino.evaluation.journal import read_rows

    rows = sorted(read_rows(path), key=lambda row: row.episode)
    seeds = [int(seed) for seed in record["miou_by_seed"]]
    classes = [int(class_id) for class_id in record["per_class"]]
    groups = [[row for row in rows if row.seed == seed] for seed in seeds]
    numbered = all(row.episode == index for group in groups for index, row in enumerate(group))
    if not numbered or any(len(group) != record["episodes"] for group in groups):
        raise DataError(f"{path}: its file of episodes is incomplete; evaluate again")
    known = all(row.class_id in classes for group in groups for row in group)
    mious = [tally(classes, group).miou() for group in groups if known]
    if not known or not math.isclose(statistics.fmean(mious), record["miou"], abs_tol=1e-6):
        raise DataError(f"{path}: its file of episodes gives another mIoU; evaluate again")
    return groups
