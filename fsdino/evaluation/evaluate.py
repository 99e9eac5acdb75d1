"""Run a model over episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fsdino.data.episodes import Batch, Episodes, collate
from fsdino.evaluation.metrics import IoU
from fsdino.models.fsdino import FSDINO

# A batch of episodes -> mask logits [B, 1, H, W] at the queries' size.
Predictor = Callable[[Batch], torch.Tensor]


@dataclass(frozen=True)
class Result:
    """Numbers of one run over episodes, in percent.

    Attributes:
        miou: mean IoU over classes.
        fb_iou: mean of background and foreground IoU.
        per_class: IoU by class id.
        per_episode: foreground IoU of each episode in order, 0 to 1.
    """

    miou: float
    fb_iou: float
    per_class: dict[int, float]
    per_episode: list[float]


def predictor(model: FSDINO) -> Predictor:
    """How a model answers a batch of episodes, at the batch's size."""
    return lambda batch: model(batch.support_images, batch.support_masks, batch.query_images)


@torch.inference_mode()
def evaluate(
    predict: Predictor,
    episodes: Episodes,
    *,
    size: int,
    threshold: float = 0.5,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    progress: Callable[[int, float], None] | None = None,
) -> Result:
    """Predict every episode at `size` x `size` pixels and score it there.

    Args:
        predict: for a model, `predictor(model)`; the model must be in eval mode.
        episodes: any data set's.
        size: side in pixels.
        threshold: probability from which a pixel is foreground, in (0, 1).
        batch_size: episodes per forward pass.
        device: where the model is.
        progress: called with the number of episodes done and the mIoU so far.
    """
    metric, per_episode = IoU(episodes.classes), []
    cut = torch.logit(torch.tensor(threshold)).item()
    for start in range(0, len(episodes), batch_size):
        indices = range(start, min(start + batch_size, len(episodes)))
        batch = collate([episodes[i] for i in indices], size).to(device)
        prediction = predict(batch)[:, 0] >= cut
        truth = batch.query_masks > 0
        scores = metric.update(prediction, truth, batch.class_ids, batch.query_ignore)
        per_episode += scores.tolist()
        if progress is not None:
            progress(len(per_episode), metric.miou())
    return Result(metric.miou(), metric.fb_iou(), dict(metric.per_class()), per_episode)
