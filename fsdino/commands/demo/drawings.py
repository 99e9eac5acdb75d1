"""The demo's drawings: held-out episodes segmented by a model and by its encoder alone, scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fsdino.data.episodes import Episode
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.evaluation.metrics import Scores
from fsdino.evaluation.photographs import iou
from fsdino.models import zoo
from fsdino.models.segmenter import Segmenter
from fsdino.models.supports import Support
from fsdino.processes import threads

Mask = npt.NDArray[np.bool_]

FOLD, SEED = 3, 0  # the fold that the bundled model has never seen, and its episodes' key
SHOTS = (1, 5)
WAYS = 3
MODEL, BASELINE = "FS-DINO", "training-free"
SCALE = 2  # to look at, the same scenes are drawn at twice the size that the model sees
BACKGROUND = "background"
_THREADS = 1  # images this small gain nothing from more, which wait for each other

Key = tuple[str, int]  # method and shots


@dataclass(frozen=True)
class Answer:
    """One episode with its predicted masks and their IoU with the truth, by method and shots.

    `shown` is the same episode, drawn larger to look at.
    """

    episode: Episode
    shown: Episode
    masks: Mapping[Key, Mask]
    iou: Mapping[Key, float]

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as plain data for JSON."""
        return {
            "index": self.episode.index,
            "class": self.episode.class_name,
            "iou": [
                {"method": method, "shots": shots, "iou": value}
                for (method, shots), value in self.iou.items()
            ],
        }


@dataclass(frozen=True)
class Fate:
    """What became of the true mask's pixels that got one label.

    Attributes:
        name: of the label; BACKGROUND for none.
        share: of the true mask's pixels, in [0, 1].
        own: mean probability of the query's own class there; 0 without pixels.
        best: mean over these pixels of the highest probability of any class; 0 without pixels.
    """

    name: str
    share: float
    own: float
    best: float


@dataclass(frozen=True)
class WayAnswer:
    """One query that was asked for all the classes at once.

    Attributes:
        episode: the query and its own class.
        shown: the same, drawn larger to look at.
        labels: [H, W], 0 is background, i the i-th class.
        own: label of the query's own class.
        iou: of the own class.
        alone: its IoU when the query is asked for that class alone.
        fates: of the true mask's pixels, for the background and each class in the labels' order.
        spill: pixels with the own label beside the true mask, as a share of the mask's.
    """

    episode: Episode
    shown: Episode
    labels: npt.NDArray[np.int64]
    own: int
    iou: float
    alone: float
    fates: Sequence[Fate]
    spill: float

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as plain data for JSON."""
        return {
            "index": self.episode.index,
            "class": self.episode.class_name,
            "iou": self.iou,
            "iou_alone": self.alone,
            "fates": [dataclasses.asdict(fate) for fate in self.fates],
            "spill": self.spill,
        }


@dataclass(frozen=True)
class Score:
    """Mean IoU over classes and FB-IoU, in percent."""

    miou: float
    fb_iou: float


def answers(model: Segmenter, count: int) -> Iterator[Answer]:
    """The first `count` episodes of the held-out fold, each segmented by both methods."""
    methods = {MODEL: model, BASELINE: zoo.training_free(model)}
    for episode, shown in _episodes(model, count):
        with threads(_THREADS):
            answer = _answer(methods, episode, shown)
        yield answer


def _episodes(model: Segmenter, count: int) -> Iterator[tuple[Episode, Episode]]:
    """Each episode at the model's size, and larger."""
    side = model.config.image_size
    episodes, larger = (
        ProceduralEpisodes(FOLD, "val", shots=max(SHOTS), seed=SEED, episodes=count, image_size=n)
        for n in (side, SCALE * side)
    )
    for index in range(count):
        yield episodes[index], larger[index]


def _answer(methods: Mapping[str, Segmenter], episode: Episode, shown: Episode) -> Answer:
    """Both methods on one episode, for each number of shots."""
    images = [sample.image for sample in episode.supports]
    masks = [sample.mask for sample in episode.supports]
    found: dict[Key, Mask] = {}
    for method, model in methods.items():
        for shots in SHOTS:  # not classes beside each other, and so not in one call
            support = model.encode_support(images[:shots], masks[:shots])
            result = model.segment(episode.query.image, support)
            found[method, shots] = result.probability >= result.threshold
    values = {key: iou(mask, episode.query.mask) for key, mask in found.items()}
    return Answer(episode, shown, found, values)


def answer_ways(model: Segmenter) -> list[WayAnswer]:
    """The first queries, each asked for all of their classes at once, one support image each."""
    pairs = list(_episodes(model, WAYS))
    with threads(_THREADS):
        supports = {
            episode.class_name: model.encode_support(
                episode.supports[0].image, episode.supports[0].mask
            )
            for episode, _ in pairs
        }
        return [
            _answer_way(model, supports, own, episode, shown)
            for own, (episode, shown) in enumerate(pairs, start=1)
        ]


def _answer_way(
    model: Segmenter, supports: Mapping[str, Support], own: int, episode: Episode, shown: Episode
) -> WayAnswer:
    result = model.segment(episode.query.image, supports)
    labels, truth = result.labels, episode.query.mask
    return WayAnswer(
        episode,
        shown,
        labels,
        own,
        iou(labels == own, truth),
        iou(result.probabilities[own - 1] >= result.threshold, truth),
        [
            Fate(
                name,
                float(np.mean(labels[truth] == label)),
                _mean(result.probabilities[own - 1][truth & (labels == label)]),
                _mean(result.probability[truth & (labels == label)]),
            )
            for label, name in enumerate((BACKGROUND, *result.names))
        ],
        float(np.count_nonzero((labels == own) & ~truth) / np.count_nonzero(truth)),
    )


def _mean(values: npt.NDArray[np.float32]) -> float:
    return float(values.mean()) if values.size else 0.0


def scores(answers: Sequence[Answer]) -> dict[Key, Score]:
    """Per method and shots, over the classes that came (all of them from 24 episodes on)."""
    classes = tuple(sorted({answer.episode.class_id for answer in answers}))
    found = {}
    for key in answers[0].masks:
        metric = Scores(classes)
        for answer in answers:
            metric.update(
                torch.from_numpy(answer.masks[key])[None],
                torch.from_numpy(answer.episode.query.mask)[None],
                torch.tensor([answer.episode.class_id]),
            )
        found[key] = Score(metric.miou(), metric.fb_iou())
    return found
