"""Run a model over episodes and score it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fsdino.data.episodes import Episodes
from fsdino.errors import DataError, UsageError
from fsdino.evaluation import protocols
from fsdino.evaluation.journal import Journal, Row
from fsdino.evaluation.metrics import Scores, overlaps
from fsdino.evaluation.predictors import Predictor
from fsdino.evaluation.protocols import Protocol
from fsdino.evaluation.questions import Questions, load
from fsdino.processes import Processes

logger = logging.getLogger("fsdino.evaluation")

_NAMED = 5  # classes that a warning names

# Called with what this process has done, what it has to do, and the mIoU so far; first with 0.
Report = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Settings:
    """How episodes are predicted and scored.

    Attributes:
        size: side in pixels of the squares that images are stretched to.
        protocol: see `fsdino.evaluation.protocols`.
        threshold: probability from which a pixel is foreground, in (0, 1).
        batch_size: episodes per forward pass.
        device: the model's device.
        dtype: of the forward pass, which runs under autocast unless it is float32.
        workers: processes that read ahead; the numbers do not depend on it.
        skip_bad: leave out episodes that cannot be read, and name them.
    """

    size: int
    protocol: Protocol = field(default_factory=Protocol)
    threshold: float = 0.5
    batch_size: int = 8
    device: str | torch.device = "cpu"
    dtype: torch.dtype = torch.float32
    workers: int = 0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.workers < 0:
            raise UsageError(f"workers must be at least 0, got {self.workers}")
        if not 0 < self.threshold < 1:
            raise UsageError(f"threshold must lie between 0 and 1, got {self.threshold}")


@dataclass(frozen=True)
class Result:
    """Scores of one run over episodes, in percent.

    Attributes:
        scores: sums over all episodes that could be read.
        rows: one per episode, in order.
    """

    scores: Scores
    rows: Sequence[Row]

    @property
    def miou(self) -> float:
        """Mean IoU over classes."""
        return self.scores.miou()

    @property
    def episode_iou(self) -> float:
        """Mean over episodes of the foreground's IoU; 0 where no episode could be read."""
        found = [row.iou for row in self.rows if row.error is None]
        return 100 * sum(found) / max(len(found), 1)

    @property
    def fb_iou(self) -> float:
        """Mean of background and foreground IoU."""
        return self.scores.fb_iou()

    @property
    def per_class(self) -> dict[int, float]:
        """IoU by class id."""
        return self.scores.per_class()

    @property
    def skipped(self) -> dict[int, str]:
        """Episodes that could not be read, with the reasons."""
        return {row.episode: row.error for row in self.rows if row.error is not None}


def evaluate(
    predict: Predictor,
    episodes: Episodes,
    settings: Settings,
    *,
    journal: Journal | None = None,
    processes: Processes | None = None,
    report: Report | None = None,
) -> Result:
    """Predict and score every episode; every process returns the scores of all episodes.

    Whole batches are distributed: a model sees the same batches with any number of processes.

    Args:
        predict: for a model, `ModelPredictor(model)`; the model must be in eval mode.
        episodes: those of any data set.
        settings: see `Settings`.
        journal: store of finished episodes; those that it has are not evaluated again.
        processes: the processes that share the work.
        report: called with the progress.

    Raises:
        DataError: an episode cannot be read, unless `skip_bad`; the model's output is not finite.
        FsdinoError: rows cannot be written.
    """
    processes = processes or Processes()
    rows = _fitting(journal, episodes, settings) if journal is not None else {}
    groups = _groups(len(episodes), settings.batch_size)
    waiting = [group for group in groups if any(index not in rows for index in group)]
    mine = processes.share(waiting)
    total, done = sum(map(len, mine)), 0
    running = tally(episodes.classes, list(rows.values()))
    if report is not None:
        report(done, total, running.miou())
    batches = load(
        episodes,
        mine,
        size=settings.size,
        protocol=settings.protocol,
        workers=settings.workers if mine else 0,
    )
    for group, questions in zip(mine, batches, strict=True):
        _check_readable(questions, settings.skip_bad)
        found = _answer(predict, questions, episodes, group, settings)
        if journal is not None:
            journal.append(found)
        rows |= {row.episode: row for row in found}
        running.merge(tally(episodes.classes, found))
        done += len(group)
        if report is not None:
            report(done, total, running.miou())
    for others in processes.gather(rows):
        rows |= others
    ordered = [rows[index] for index in range(len(episodes))]
    scores = tally(episodes.classes, ordered)
    _warn_of(scores, episodes.class_names)
    return Result(scores, ordered)


def tally(classes: Sequence[int], rows: Sequence[Row]) -> Scores:
    """The scores of rows; those of unreadable episodes are left out."""
    scores = Scores(classes)
    read = [row for row in rows if row.error is None]
    if read:
        counted = torch.tensor([[row.intersection, row.union] for row in read])
        scores.add([row.class_id for row in read], counted)
    return scores


@torch.inference_mode()
def predict_masks(predict: Predictor, questions: Questions, settings: Settings) -> list[Tensor]:
    """The mask of each query, bool [H, W], at the size where it is scored.

    Raises:
        DataError: the model's output is not finite.
    """
    assert questions.batch is not None
    device = torch.device(settings.device)
    moved = Questions(**{**vars(questions), "batch": questions.batch.to(device)})
    with torch.autocast(device.type, settings.dtype, enabled=settings.dtype != torch.float32):
        logits = predict(moved).float()  # [B, V, h, w]
    _check_finite(logits, questions)
    masks = []
    for maps, truth in zip(logits, questions.truths, strict=True):
        resized = settings.protocol.resize(maps[None], (truth.shape[0], truth.shape[1]))
        votes = settings.protocol.decide(resized, settings.threshold)
        masks.append(protocols.fuse(votes)[0])
    return masks


def _check_finite(logits: Tensor, questions: Questions) -> None:
    """NaN compares as background: it would be a silent zero."""
    finite = logits.isfinite().flatten(1).all(1).tolist()
    bad = [key for key, right in zip(questions.keys, finite, strict=True) if not right]
    if bad:
        names = ", ".join(dict.fromkeys(name for key in bad for name in key.names))
        raise DataError(
            f"the model's output is not finite for the query {bad[0].query} (of {names}): use "
            "--dtype float32, or other weights"
        )


def _fitting(journal: Journal, episodes: Episodes, settings: Settings) -> dict[int, Row]:
    """The journal's rows of these episodes; rows of others are damaged, and evaluated again."""
    square = None if settings.protocol.original_size else settings.size**2
    fitting = {}
    rows = journal.finished(episodes.seed)
    for index, row in rows.items():
        key = episodes.key(index) if index < len(episodes) else None
        if key is None or (row.class_id, row.query) != (key.class_id, key.query):
            continue
        if square is None or max(row.union) <= square:
            fitting[index] = row
    if len(fitting) < len(rows):
        left_out = len(rows) - len(fitting)
        logger.warning("%d rows kept beside the result fit no episode: left out", left_out)
    return fitting


def _groups(count: int, batch_size: int) -> list[range]:
    return [range(s, min(s + batch_size, count)) for s in range(0, count, batch_size)]


def _check_readable(questions: Questions, skip_bad: bool) -> None:
    for index, reason in questions.bad.items():
        if not skip_bad:
            raise DataError(f"episode {index}: {reason} (or skip such episodes with --skip-bad)")
        logger.warning("skipped episode %d: %s", index, reason)


def _answer(
    predict: Predictor,
    questions: Questions,
    episodes: Episodes,
    group: Sequence[int],
    settings: Settings,
) -> list[Row]:
    """The rows of a batch, unreadable episodes included."""
    rows = []
    masks = predict_masks(predict, questions, settings) if questions.batch is not None else []
    answers = iter(zip(masks, questions.truths, questions.ignores, strict=True))
    for index in group:
        key = episodes.key(index)
        row = Row(episodes.seed, index, key.class_id, key.query, error=questions.bad.get(index))
        if row.error is None:
            mask, truth, ignore = (part[None].to(settings.device) for part in next(answers))
            intersection, union = map(tuple, overlaps(mask, truth, ignore)[0].tolist())
            row = Row(row.seed, index, row.class_id, row.query, intersection, union)
        rows.append(row)
    return rows


def _warn_of(scores: Scores, names: Mapping[int, str]) -> None:
    if scores.undrawn:
        named = ", ".join(f"{c} ({names[c]})" for c in scores.undrawn[:_NAMED])
        more = len(scores.undrawn) - _NAMED
        logger.warning(
            "no episode of the classes %s%s: each counts 0 in the means; use more episodes",
            named, f" and {more} more" if more > 0 else "",
        )  # fmt: skip
