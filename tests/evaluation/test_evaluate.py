"""The evaluation loop: what it scores, and that batching changes nothing."""

from __future__ import annotations

import pytest
import torch

from fsdino.data.episodes import Batch
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.evaluation.evaluate import evaluate


def oracle(batch: Batch) -> torch.Tensor:
    return (batch.query_masks[:, None] - 0.5) * 10


def test_the_truth_scores_100_and_its_opposite_0() -> None:
    """A prediction equal to the mask has IoU 100 for every class; the complement 0."""
    episodes = ProceduralEpisodes(0, "val", episodes=24, image_size=32)
    perfect = evaluate(oracle, episodes, size=32)
    assert perfect.miou == perfect.fb_iou == 100
    assert set(perfect.per_class) == set(episodes.classes) and perfect.per_episode == [1.0] * 24
    assert evaluate(lambda batch: -oracle(batch), episodes, size=32).miou == 0


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batches_change_nothing(batch_size: int) -> None:
    """All-foreground scores the masks' mean share per class, whatever the batch size."""
    episodes = ProceduralEpisodes(0, "val", episodes=24, image_size=32)
    seen = []
    result = evaluate(
        lambda batch: torch.ones_like(batch.query_masks)[:, None],
        episodes,
        size=32,
        batch_size=batch_size,
        progress=lambda done, miou: seen.append(done),
    )
    shares = [float(episodes[i].query.mask.mean()) for i in range(24)]
    assert result.per_episode == pytest.approx(shares)
    assert result.miou == pytest.approx(100 * sum(shares) / 24)  # one episode per class
    assert seen[-1] == 24


def test_threshold_is_a_probability() -> None:
    """A pixel of probability 0.6 is foreground at 0.5 and background at 0.7."""
    episodes = ProceduralEpisodes(0, "val", episodes=2, image_size=32)
    logit = torch.logit(torch.tensor(0.6)).item()

    def constant(batch: Batch) -> torch.Tensor:
        return torch.full_like(batch.query_masks, logit)[:, None]

    assert evaluate(constant, episodes, size=32, threshold=0.5).miou > 0
    assert evaluate(constant, episodes, size=32, threshold=0.7).miou == 0
