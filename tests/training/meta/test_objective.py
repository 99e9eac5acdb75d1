"""The loss: which image asks, which answer, and that processes can share it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from fsdino.models import zoo
from fsdino.training.meta import objective
from fsdino.training.meta.losses import TokenClassifier
from fsdino.training.meta.objective import Objective, supports_of
from fsdino.training.meta.steps import Steps
from training_work import CONFIG, MODEL


def test_every_image_of_an_episode_is_the_query_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """K + 1 images give K + 1 predictions, each with the other K as supports and its own truth."""
    batch = Steps(dataclasses.replace(CONFIG, shots=(2,), images_per_step=6))[0].batch
    masks = torch.cat([batch.query_masks[:, None], batch.support_masks], 1)  # [2, 3, H, W]
    images = torch.cat([batch.query_images[:, None], batch.support_images], 1).flatten(0, 1)
    seen: dict[str, torch.Tensor] = {}
    pool = objective.Segmenter.pool

    def spy(model, features, masks, shots):
        seen["support_masks"] = masks
        return pool(model, features, masks, shots)

    monkeypatch.setattr(objective.Segmenter, "pool", spy)
    monkeypatch.setattr(
        objective, "mask_loss", lambda logits, masks, dice: seen.update(truth=masks) or logits.sum()
    )
    model = zoo.assemble(MODEL).eval()
    Objective(model, None, 1.0, 0.0, 0.0, 0.0, torch.float32)(
        images, masks.flatten(0, 1), 2, batch.class_ids
    )
    assert torch.equal(seen["truth"], masks.flatten(0, 1))
    expected = [masks[e, k] for e in range(2) for k in (1, 2, 2, 0, 0, 1)]
    assert torch.equal(seen["support_masks"], torch.stack(expected))


def test_supports_of_each_image() -> None:
    """Two episodes of three images, by hand."""
    assert supports_of(6, 2).tolist() == [1, 2, 2, 0, 0, 1, 4, 5, 5, 3, 3, 4]


def test_the_classifier_always_has_a_gradient(tmp_path: Path) -> None:
    """Zero where no episode is of a base class: DDP waits for every parameter's gradient."""
    classifier = TokenClassifier(4, [5, 6])
    tokens = torch.randn(2, 4, 3, 3, requires_grad=True)
    classifier(tokens, torch.ones(2, 6, 6), torch.tensor([-1, 9])).backward()
    assert classifier.prototypes.grad.abs().max() == 0 and tokens.grad.abs().max() == 0
