"""Answers to photographs as results: means, differences and intervals, and what scores tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import camvid
import numpy as np
from photo_methods import ABLATIONS, FREE, OLD, Answer
from photo_pairs import Pair
from photo_statistics import (
    Floats,
    auroc,
    bootstrap,
    interval,
    mean_of_groups,
    spearman,
    warnings_by_threshold,
)

SAME, OTHER = "same drive", "other drives"

Row = dict[str, Any]


@dataclass
class Asked:
    """The trials of one protocol and every method's answers, in the same order."""

    supports: list[int]
    groups: list[str]
    columns: list[tuple[str, ...]]
    answers: dict[str, list[Answer]]

    @property
    def names(self) -> list[str]:
        return list(self.answers)


def by_support(asked: Asked, column: str, groups: Sequence[str]) -> tuple[list[Floats], ...]:
    """Sums [S, M] of a column's IoUs and their counts [S], of each group that has supports."""
    sums, counts = [], []
    for group in groups:
        places = [place for place, name in enumerate(asked.groups) if name == group]
        kept = [np.array([c == column for c in asked.columns[place]]) for place in places]
        if not places:
            continue
        counts.append(np.array([float(k.sum()) for k in kept]))
        sums.append(
            np.array(
                [
                    [np.dot(asked.answers[name][place].ious, k) for name in asked.names]
                    for place, k in zip(places, kept, strict=True)
                ]
            )
        )
    return sums, counts


def by_label(asked: Asked, labels: Sequence[str]) -> tuple[list[Floats], ...]:
    """Labels in the place of supports: one group of their means over trials of one query."""
    values = np.array([[answer.ious[0] for answer in row] for row in asked.answers.values()]).T
    names = np.array(labels)
    means = [values[names == label].mean(0) for label in dict.fromkeys(labels)]
    return [np.stack(means)], [np.ones(len(means))]


def column_of(
    names: Sequence[str], sums: Sequence[Floats], counts: Sequence[Floats], model: str
) -> Row:
    """Means and differences of one column, with their intervals; empty without a value."""
    if not sum(count.sum() for count in counts):
        return {}
    means, samples = mean_of_groups(sums, counts), bootstrap(sums, counts)
    place = {name: index for index, name in enumerate(names)}
    found = {
        name: {"iou": round(float(means[m]), 2), "interval": interval(samples[:, m])}
        for name, m in place.items()
    }
    differences = {
        f"{first} minus {second}": {
            "iou": round(float(means[place[first]] - means[place[second]]), 2),
            "interval": interval(samples[:, place[first]] - samples[:, place[second]]),
        }
        for first, second in compared(names, model)
    }
    return {"methods": found, "differences": differences}


def compared(names: Sequence[str], model: str) -> list[tuple[str, str]]:
    """Training-free beside its older form, the model beside training-free, shortened scores."""
    wanted = [(FREE, OLD), (model, FREE)]
    for full in (OLD, FREE):
        wanted += [(name, full) for name in names if name in ABLATIONS and name.startswith(full)]
    return [(a, b) for a, b in wanted if a in names and b in names and a != b]


def presence(answers: Sequence[Answer]) -> Row | None:
    """Whether scores tell queries with the object from those without."""
    scores = [score for answer in answers for score in answer.scores]
    without = [score for answer in answers for score in answer.scores_without]
    if not scores:
        return None
    found = [f for answer in answers for f in answer.found]
    false = [f for answer in answers for f in answer.found_without]
    return {
        "auroc": _rounded(auroc(scores, without)),
        "not_found_percent": round(100 * (1 - float(np.mean(found))), 1),
        "found_without_percent": round(100 * float(np.mean(false)), 1) if false else None,
        "queries": len(scores),
        "queries_without": len(without),
    }


def explained(supports: Sequence[int], answers: Sequence[Answer]) -> Row | None:
    """How a support's quality follows its mean IoU on other pictures."""
    known: dict[int, tuple[float, list[float]]] = {}
    for support, answer in zip(supports, answers, strict=True):
        if answer.quality is not None:
            known.setdefault(support, (answer.quality, []))[1].extend(answer.ious)
    if not known:
        return None
    quality = [value for value, _ in known.values()]
    ious = [float(np.mean(found)) for _, found in known.values()]
    return {
        "spearman": _rounded(spearman(quality, ious)),
        "supports": len(known),
        "warning": warnings_by_threshold(quality, ious),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def explanations(asked: Asked) -> Row:
    """Presence and quality of the methods that tell them."""
    found = {name: (presence(a), explained(asked.supports, a)) for name, a in asked.answers.items()}
    return {
        "presence": {name: p for name, (p, _) in found.items() if p is not None},
        "quality": {name: q for name, (_, q) in found.items() if q is not None},
    }


def camvid_result(asked: Asked, shots: int, model: str) -> Row:
    """Both columns over the main and the small classes, and each class by itself."""
    columns = {
        f"{kind}, {column}": column_of(
            asked.names, *by_support(asked, column, classes), model=model
        )
        for kind, classes in (("main", camvid.MAIN), ("small", camvid.SMALL))
        for column in (SAME, OTHER)
    }
    classes = {
        name: {
            column: column_of(asked.names, *by_support(asked, column, [name]), model=model)
            for column in (SAME, OTHER)
        }
        for name in dict.fromkeys(asked.groups)
    }
    return {
        "shots": shots,
        "supports": {name: asked.groups.count(name) for name in dict.fromkeys(asked.groups)},
        "queries": {c: sum(cs.count(c) for cs in asked.columns) for c in (SAME, OTHER)},
        "columns": columns,
        "classes": classes,
        **explanations(asked),
    }


def pairs_result(asked: Asked, pairs: Sequence[Pair], model: str) -> Row:
    """The mean over pictures, and over classes where they are named; each of them, each pair."""
    labels = {"pictures": [pair.picture for pair in pairs]}
    if any(pair.kind for pair in pairs):
        labels["classes"] = [pair.kind for pair in pairs]
    labels["pairs"] = [pair.name for pair in pairs]
    means = {kind: by_label(asked, values) for kind, values in labels.items()}
    return {
        "columns": {
            kind: column_of(asked.names, *mean, model=model)
            for kind, mean in means.items()
            if kind != "pairs"
        },
        "parts": {
            kind: {
                label: dict(zip(asked.names, map(float, row.round(1)), strict=True))
                for label, row in zip(dict.fromkeys(labels[kind]), sums[0], strict=True)
            }
            for kind, (sums, _) in means.items()
        },
        **explanations(asked),
    }
