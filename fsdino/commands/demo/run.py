"""The demo: photographs and drawings segmented and scored, kernels timed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fsdino import images as pixels
from fsdino import overlay
from fsdino.bench import compare, workloads
from fsdino.bench.compare import Comparison
from fsdino.commands.demo import drawings
from fsdino.commands.demo.drawings import FOLD, MODEL, SCALE, SEED, SHOTS, Answer, Score, WayAnswer
from fsdino.data import procedural
from fsdino.environment import environment
from fsdino.errors import UsageError
from fsdino.evaluation.photographs import PhotographAnswer
from fsdino.evaluation.photographs import answers as photograph_answers
from fsdino.files import make_folder, write_json
from fsdino.models import zoo
from fsdino.models.names import DEFAULT, DRAWN
from fsdino.models.segmenter import Segmenter
from fsdino.progress import Progress
from fsdino.sample_photographs import samples

WORKLOAD = "W6"
_REMEDY = "pass an --out that can be written"


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        model: name, folder or hub id (hf:owner/name) of the model that segments the photographs.
        drawn_model: name of the model for the drawings, trained without fold 3.
        episodes: number of drawn episodes that are segmented and scored; whole rounds of the
            24 classes weigh every class equally.
        pictures: number of these that are shown, for 1 shot and for 5 shots.
        workload: of the kernel table.
        rounds: of each kernel timing.
        command: how the report says it was made.
    """

    model: str = DEFAULT
    drawn_model: str = DRAWN
    episodes: int = 24
    pictures: int = 3
    workload: str = WORKLOAD
    rounds: int = 3
    command: str = "fsdino demo"


@dataclass(frozen=True)
class Results:
    """All that the report shows.

    Attributes:
        settings: what was asked for.
        model: that segmented the photographs.
        photographs: its answers.
        drawn_model: that segmented the drawings.
        answers: its answers, one an episode.
        scores: means over them, by method and shots.
        ways: answers to queries for several classes.
        kernels: their times.
        first_seconds: until the first photograph was segmented, with the model's loading.
        seconds: for everything.
    """

    settings: Settings
    model: Segmenter
    photographs: Sequence[PhotographAnswer]
    drawn_model: Segmenter
    answers: Sequence[Answer]
    scores: dict[drawings.Key, Score]
    ways: Sequence[WayAnswer]
    kernels: Comparison
    first_seconds: float
    seconds: float

    def mean_iou(self) -> dict[str, float]:
        """Over the photographs, by method."""
        methods = self.photographs[0].iou
        return {m: float(np.mean([answer.iou[m] for answer in self.photographs])) for m in methods}

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as plain data for JSON."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "fingerprint": self.model.fingerprint(),
            "photographs": [answer.to_dict() for answer in self.photographs],
            "mean_iou": [{"method": m, "iou": value} for m, value in self.mean_iou().items()],
            "drawn_fingerprint": self.drawn_model.fingerprint(),
            "data": f"procedural-v{procedural.VERSION}/fold{FOLD}/val/{SEED}",
            "data_fingerprint": procedural.fingerprint(),
            "scores": [
                {"method": method, "shots": shots, **dataclasses.asdict(score)}
                for (method, shots), score in self.scores.items()
            ],
            "episodes": [answer.to_dict() for answer in self.answers],
            "ways": [way.to_dict() for way in self.ways],
            "kernels": self.kernels.to_dict(),
            "environment": environment(),
            "first_seconds": self.first_seconds,
            "seconds": self.seconds,
        }


def run(settings: Settings, out: Path) -> Results:
    """Segment, score and time; write photographs/, overlays/ and demo.json into `out`.

    Raises:
        UsageError: the model is unknown, or a number is out of range.
        DataError: the photographs of the installation are damaged.
        FsdinoError: `out` cannot be written.
    """
    began = time.monotonic()
    for name in ("episodes", "pictures", "rounds"):
        if getattr(settings, name) < 1:
            raise UsageError(f"{name} must be at least 1, got {getattr(settings, name)}")
    [workload] = workloads.find_workloads([settings.workload])
    model, drawn_model = zoo.load(settings.model), zoo.load(settings.drawn_model)
    for folder in ("photographs", "overlays"):
        make_folder(out / folder, _REMEDY)
    shipped = samples()
    photographs: list[PhotographAnswer] = []
    first = 0.0
    with Progress("photographs", len(shipped), unit="photographs") as progress:
        for found in photograph_answers(settings.model, model, shipped):
            _write_photograph(found, settings.model, out / "photographs")
            first = first or time.monotonic() - began
            photographs.append(found)
            progress.advance()
    answers: list[Answer] = []
    with Progress("drawings", settings.episodes, unit="episodes") as progress:
        for answer in drawings.answers(drawn_model, settings.episodes):
            _write_overlays(answer, out / "overlays")
            answers.append(answer)
            progress.advance()
    ways = drawings.answer_ways(drawn_model)
    kernels = compare.compare(workload, device=torch.device("cpu"), rounds=settings.rounds)
    results = Results(
        settings, model, photographs, drawn_model, answers, drawings.scores(answers), ways,
        kernels, first, time.monotonic() - began,
    )  # fmt: skip
    write_json(out / "demo.json", results.to_dict())
    return results


def _write_photograph(answer: PhotographAnswer, method: str, folder: Path) -> None:
    name = f"{answer.support.name}-in-{answer.query.name}"
    picture = overlay.overlay(np.asarray(answer.query.image), answer.masks[method])
    pixels.write_image(folder / f"{name}.jpg", picture, "JPEG", quality=90)
    pixels.write_png(folder / f"{name}_mask.png", answer.masks[method])


def _write_overlays(answer: Answer, folder: Path) -> None:
    for shots in SHOTS:
        mask = answer.masks[MODEL, shots].repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        picture = overlay.overlay(answer.shown.query.image, mask)
        pixels.write_png(folder / f"{answer.episode.index:03d}-{shots}shot.png", picture)
