"""result.json: the scores of an evaluation, with everything needed to compare them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fsdino.data.episodes import Episodes, episode_hash
from fsdino.errors import DataError, FsdinoError, UsageError, shown
from fsdino.evaluation import intervals
from fsdino.evaluation.evaluate import Result, Settings, tally
from fsdino.evaluation.journal import Row, read_rows
from fsdino.files import read_json, write_json
from fsdino.models.segmenter import Segmenter
from fsdino.ops import backends
from fsdino.version import __version__

FORMAT = "fsdino-result-1"


def describe_model(model: Segmenter, name: str) -> dict[str, Any]:
    """The description of a model in results."""
    encoder = model.encoder
    return {
        "model": name,
        "model_hash": model.fingerprint(),
        "variant": model.config.variant,
        "training": None if model.provenance is None else dict(model.provenance),
        "encoder": model.config.encoder,
        "normalisation": {
            "mean": encoder.mean.flatten().tolist(),
            "std": encoder.std.flatten().tolist(),
        },
    }


def describe_call(
    model: Mapping[str, Any], episodes: Episodes, settings: Settings
) -> dict[str, Any]:
    """Everything that determines the scores of an evaluation, except the seed."""
    protocol = settings.protocol
    return {
        **asdict(episodes.provenance),
        "shots": episodes.shots,
        "protocol": protocol.name,
        "fusion": protocol.fusion,
        "scored_at": "original size" if protocol.original_size else "image_size",
        "pixels": protocol.pixels,
        **model,
        **describe_settings(settings),
        "batch_size": settings.batch_size,
        "skip_bad": settings.skip_bad,
    }


def describe_settings(settings: Settings) -> dict[str, Any]:
    """The settings that determine a forward pass, besides the model."""
    device = torch.device(settings.device)
    like = torch.empty(0, device=device, dtype=settings.dtype)
    return {
        "image_size": settings.size,
        "threshold": settings.threshold,
        "device": device.type,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "backend": backends.select("correlation4d", like),
    }


def summarise(
    call: Mapping[str, Any], runs: Sequence[tuple[Episodes, Result]], **facts: Any
) -> dict[str, Any]:
    """The content of result.json: means over the runs, which differ in their seeds.

    Args:
        call: result of `describe_call`.
        runs: episodes with their results.
        facts: further entries.
    """
    results = [result for _, result in runs]
    episodes = runs[0][0]
    seeds = [e.seed for e, _ in runs]
    influences = [intervals.miou_influences(r.rows, episodes.classes) for r in results]
    per_class = _mean_by_class([r.per_class for r in results])
    skipped = [
        {"seed": e.seed, "episode": index, "error": error}
        for e, r in runs
        for index, error in r.skipped.items()
    ]
    return {
        "format": FORMAT,
        **call,
        "version": __version__,
        "seed": seeds[0] if len(seeds) == 1 else seeds,
        "episodes": len(episodes),
        "episode_hash": _join_hashes([episode_hash(e) for e, _ in runs]),
        "miou": _mean([r.miou for r in results]),
        "miou_interval": intervals.half_width(influences),
        "miou_interval_over_seeds": intervals.seeds_half_width([r.miou for r in results]),
        "miou_by_seed": {e.seed: r.miou for e, r in runs},
        "fb_iou": _mean([r.fb_iou for r in results]),
        "dice": _mean([_mean(list(r.scores.dice().values())) for r in results]),
        "boundary_iou": _mean([_mean(list(r.scores.boundary_iou().values())) for r in results]),
        "per_class": per_class,
        "class_names": dict(episodes.class_names),
        "undrawn_classes": sorted({c for r in results for c in r.scores.undrawn}),
        "skipped": skipped,
        **facts,
    }


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a result atomically.

    Raises:
        FsdinoError: it cannot be written.
    """
    write_json(path, dict(record))


def read(path: Path) -> dict[str, Any]:
    """Read what `write` wrote.

    Raises:
        UsageError: the file does not exist.
        DataError: it is damaged or something else.
    """
    if not path.is_file():
        raise UsageError(f"result {path}: no such file; pass what fsdino evaluate --out wrote")
    try:
        record = read_json(path)
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{path} is not a result of fsdino evaluate, or it is damaged ({reason}): evaluate "
            "again"
        ) from error
    return record


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
    rows = sorted(read_rows(path), key=lambda row: row.episode)
    seeds = [int(seed) for seed in record["miou_by_seed"]]
    classes = [int(class_id) for class_id in record["per_class"]]
    groups = [[row for row in rows if row.seed == seed] for seed in seeds]
    numbered = all(row.episode == index for group in groups for index, row in enumerate(group))
    if not numbered or any(len(group) != record["episodes"] for group in groups):
        raise DataError(f"{path}: its file of episodes is incomplete; evaluate again")
    known = all(row.class_id in classes for group in groups for row in group)
    if not known or not math.isclose(
        _mean([tally(classes, group).miou() for group in groups]), record["miou"], abs_tol=1e-6
    ):
        raise DataError(f"{path}: its file of episodes gives another mIoU; evaluate again")
    return groups


def _mean_by_class(tables: Sequence[Mapping[int, float]]) -> dict[int, float]:
    return {c: _mean([table[c] for table in tables]) for c in tables[0]}


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise FsdinoError("no scores: nothing was evaluated")
    return sum(values) / len(values)


def _join_hashes(hashes: Sequence[str]) -> Any:
    return hashes[0] if len(hashes) == 1 else list(hashes)
