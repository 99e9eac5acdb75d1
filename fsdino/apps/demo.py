"""The demo: held-out episodes segmented by a model and by its encoder alone, scored and timed."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fsdino import images as pixels
from fsdino.apps import benchmark
from fsdino.apps.benchmark import Comparison
from fsdino.apps.progress import Progress
from fsdino.data import procedural
from fsdino.data.episodes import Episode
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.environment import environment
from fsdino.errors import FsdinoError, UsageError
from fsdino.evaluation.metrics import Scores
from fsdino.files import write_json
from fsdino.models import zoo
from fsdino.models.segmenter import Segmenter

Mask = npt.NDArray[np.bool_]

FOLD, SEED = 3, 0  # the fold that the bundled model has never seen, and its episodes' key
SHOTS = (1, 5)
WAYS = 3
MODEL, BASELINE = "FS-DINO", "training-free"
SCALE = 2  # to look at, the same scenes are drawn at twice the size that the model sees
WORKLOAD = "W6"

Key = tuple[str, int]  # method and shots


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        model: name, folder or hub id (hf:owner/name) of a model that was trained without fold 3.
        episodes: the first so many are segmented and scored; whole rounds of the 24 classes
            weigh every class equally.
        pictures: the first so many are shown, for 1 shot and for 5 shots.
        workload: of the kernel table.
        repeats: of each kernel timing.
        command: how the report says it was made.
    """

    model: str = "fsdino-tiny"
    episodes: int = 48
    pictures: int = 5
    workload: str = WORKLOAD
    repeats: int = 3
    command: str = "fsdino demo"


@dataclass(frozen=True)
class Answer:
    """One episode with its predicted masks and their IoU with the truth, by method and shots.

    `shown` is the same episode, drawn larger to look at.
    """

    episode: Episode
    shown: Episode
    masks: Mapping[Key, Mask]
    iou: Mapping[Key, float]


@dataclass(frozen=True)
class WayAnswer:
    """One query of the N-way part: labels [H, W] over all the classes, IoU of its own class."""

    episode: Episode
    shown: Episode
    labels: npt.NDArray[np.int64]
    own: int
    iou: float


@dataclass(frozen=True)
class Score:
    """Mean IoU over classes and FB-IoU, in percent."""

    miou: float
    fb_iou: float


@dataclass(frozen=True)
class Results:
    """All that the report shows."""

    settings: Settings
    model: Segmenter
    answers: Sequence[Answer]
    scores: Mapping[Key, Score]
    ways: Sequence[WayAnswer]
    seconds_per_query: float
    kernels: Comparison
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as plain data for JSON."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "fingerprint": self.model.fingerprint(),
            "data": f"procedural-v{procedural.VERSION}/fold{FOLD}/val/{SEED}",
            "data_fingerprint": procedural.fingerprint(),
            "scores": [
                {"method": method, "shots": shots, **dataclasses.asdict(score)}
                for (method, shots), score in self.scores.items()
            ],
            "episodes": [
                {
                    "index": answer.episode.index,
                    "class": answer.episode.class_name,
                    "iou": [
                        {"method": method, "shots": shots, "iou": iou}
                        for (method, shots), iou in answer.iou.items()
                    ],
                }
                for answer in self.answers
            ],
            "ways": [
                {"index": way.episode.index, "class": way.episode.class_name, "iou": way.iou}
                for way in self.ways
            ],
            "seconds_per_query": self.seconds_per_query,
            "kernels": self.kernels.to_dict(),
            "environment": environment(),
            "seconds": self.seconds,
        }


def run(settings: Settings, out: Path) -> Results:
    """Segment, score and time; write overlays/ and demo.json into `out`.

    Raises:
        UsageError: there is no such model, or a number is out of its range.
        FsdinoError: `out` cannot be written.
    """
    began = time.monotonic()
    for name in ("episodes", "pictures", "repeats"):
        if getattr(settings, name) < 1:
            raise UsageError(f"{name} must be at least 1, got {getattr(settings, name)}")
    [workload] = benchmark.find_workloads([settings.workload])
    model = zoo.load(settings.model)
    methods: dict[str, Segmenter] = {MODEL: model, BASELINE: zoo.training_free(model)}
    count, side = max(settings.episodes, WAYS), model.config.image_size
    episodes, larger = (
        ProceduralEpisodes(FOLD, "val", shots=max(SHOTS), seed=SEED, episodes=count, image_size=n)
        for n in (side, SCALE * side)
    )
    _make_folder(out / "overlays")
    answers = []
    with _one_thread():
        with Progress("segment", settings.episodes, unit="episodes") as progress:
            for index in range(settings.episodes):
                answers.append(_answer(methods, episodes[index], larger[index]))
                _write_overlays(answers[-1], out / "overlays")
                progress.advance()
        ways = _answer_ways(model, [(episodes[i], larger[i]) for i in range(WAYS)])
        per_query = _time_query(model, answers[0].episode)
    kernels = benchmark.compare(workload, device=torch.device("cpu"), repeats=settings.repeats)
    results = Results(
        settings,
        model,
        answers,
        _scores(answers, episodes.classes),
        ways,
        per_query,
        kernels,
        time.monotonic() - began,
    )
    write_json(out / "demo.json", results.to_dict())
    return results


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Images this small gain nothing from threads, which on a busy machine wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _answer(methods: Mapping[str, Segmenter], episode: Episode, shown: Episode) -> Answer:
    """Both methods on one episode; all numbers of shots share the query's encoder pass."""
    images = [sample.image for sample in episode.supports]
    masks = [sample.mask for sample in episode.supports]
    found: dict[Key, Mask] = {}
    for method, model in methods.items():
        supports = {str(k): model.encode_support(images[:k], masks[:k]) for k in SHOTS}
        result = model.segment(episode.query.image, supports)
        for shots, probability in zip(SHOTS, result.probabilities, strict=True):
            found[method, shots] = probability >= result.threshold
    iou = {key: _iou(mask, episode.query.mask) for key, mask in found.items()}
    return Answer(episode, shown, found, iou)


def _answer_ways(model: Segmenter, pairs: Sequence[tuple[Episode, Episode]]) -> list[WayAnswer]:
    """Every query asked for all the episodes' classes at once, one support image each.

    Pairs are an episode and the same, drawn larger.
    """
    supports = {
        episode.class_name: model.encode_support(
            episode.supports[0].image, episode.supports[0].mask
        )
        for episode, _ in pairs
    }
    answers = []
    for own, (episode, shown) in enumerate(pairs, start=1):
        labels = model.segment(episode.query.image, supports).labels
        iou = _iou(labels == own, episode.query.mask)
        answers.append(WayAnswer(episode, shown, labels, own, iou))
    return answers


def _iou(prediction: Mask, truth: Mask) -> float:
    return float((prediction & truth).sum() / max((prediction | truth).sum(), 1))


def _scores(answers: Sequence[Answer], classes: tuple[int, ...]) -> dict[Key, Score]:
    """Per method and shots, over the classes that came (all of them from 24 episodes on)."""
    seen = {answer.episode.class_id for answer in answers}
    scores = {}
    for key in answers[0].masks:
        metric = Scores(tuple(c for c in classes if c in seen))
        for answer in answers:
            metric.update(
                torch.from_numpy(answer.masks[key])[None],
                torch.from_numpy(answer.episode.query.mask)[None],
                torch.tensor([answer.episode.class_id]),
            )
        scores[key] = Score(metric.miou(), metric.fb_iou())
    return scores


def _time_query(model: Segmenter, episode: Episode, repeats: int = 9) -> float:
    """Median seconds that segmenting one query takes once its support is encoded, on one thread."""
    support = model.encode_support(episode.supports[0].image, episode.supports[0].mask)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        model.segment(episode.query.image, support)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FsdinoError(
            f"cannot create {folder}: {error.strerror}; pass an --out that can be written"
        ) from error


def _write_overlays(answer: Answer, folder: Path) -> None:
    for shots in SHOTS:
        mask = answer.masks[MODEL, shots].repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        picture = pixels.overlay(answer.shown.query.image, mask)
        pixels.write_png(folder / f"{answer.episode.index:03d}-{shots}shot.png", picture)
