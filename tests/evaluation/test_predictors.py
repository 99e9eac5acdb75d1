"""How a model answers a batch of episodes: each image once, and as its forward pass does."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from evaluated import Shared, few
from fsdino.errors import DataError
from fsdino.evaluation import protocols
from fsdino.evaluation.evaluate import Settings, evaluate
from fsdino.evaluation.predictors import ModelPredictor
from fsdino.evaluation.questions import Questions
from tiny_models import tiny_model


@pytest.mark.parametrize("fusion", ["joint", "vote"])
@pytest.mark.parametrize("role", ["query", "support"])
def test_one_image_without_finite_features_is_named(
    monkeypatch: pytest.MonkeyPatch, role: str, fusion: str
) -> None:
    """Out of a batch of four; what was done before it is kept."""
    model, episodes = tiny_model(), few(8, image_size=70, shots=2)
    key = episodes.key(5)
    name = key.query if role == "query" else key.supports[1]
    encode, wanted = type(model).encode, episodes[5]
    image = wanted.query.image if role == "query" else wanted.supports[1].image
    bad = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255

    def spoiled(self, images: torch.Tensor):
        features = encode(self, images)
        if torch.equal(images[0], bad):
            features.last[0, 0, 0, 0] = torch.nan
        return features

    monkeypatch.setattr(type(model), "encode", spoiled)
    done: list[int] = []
    settings = Settings(70, protocols.find("joint", fusion=fusion), batch_size=4)
    with pytest.raises(DataError, match=f"^{re.escape(name)}: .*(not finite|NaN or infinity)"):
        evaluate(
            ModelPredictor(model), episodes, settings,
            report=lambda count, total, miou: done.append(count),
        )  # fmt: skip
    assert done == [0, 4]


def test_every_distinct_image_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four images serve six episodes of two images each; nothing is kept beyond its last use."""
    model, encoded = tiny_model(), []
    encode = type(model).encode
    monkeypatch.setattr(
        type(model), "encode", lambda self, x: encoded.append(len(x)) or encode(self, x)
    )
    cached = ModelPredictor(model)
    result = evaluate(cached, Shared(), Settings(70, batch_size=2))
    assert encoded == [1] * 4
    assert len(cached.cache) == cached.cache.size == 0
    # A cache too small for one image costs time and changes nothing.
    encoded.clear()
    small = ModelPredictor(model, cache_bytes=1)
    assert evaluate(small, Shared(), Settings(70, batch_size=2)).rows == result.rows
    assert len(encoded) == 3 + 3 + 3  # of each batch's distinct images


def test_a_models_answer_is_its_forward_pass() -> None:
    """Cached features and joined batches give the logits of a forward pass over the episode."""
    model, episodes = tiny_model(), few(3, image_size=70, shots=2)
    answers = []

    def spy(questions: Questions) -> torch.Tensor:
        answers.append((questions.batch, ModelPredictor(model)(questions)))
        return answers[-1][1]

    evaluate(spy, episodes, Settings(70))
    [(batch, logits)] = answers
    with torch.inference_mode():
        expected = model(batch.support_images, batch.support_masks, batch.query_images)
    logits = F.interpolate(logits, (70, 70), mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_vote_runs_every_shot_alone() -> None:
    """K one-shot passes, then HSNet's vote: by two of two shots, a pixel needs at least one."""
    model, episodes = tiny_model(), few(3, image_size=70, shots=2)
    settings = Settings(70, protocol=protocols.find("hsnet"))
    votes = []

    def spy(questions: Questions) -> torch.Tensor:
        votes.append((questions.batch, ModelPredictor(model)(questions)))
        return votes[-1][1]

    result = evaluate(spy, episodes, settings)
    [(batch, logits)] = votes
    with torch.inference_mode():
        for k in range(2):
            one = slice(k, k + 1)
            query, support = model.encode_episodes(
                batch.support_images[:, one], batch.support_masks[:, one], batch.query_images
            )
            expected = model.answer(query, [support]).logits
            torch.testing.assert_close(logits[:, one], expected, rtol=1e-4, atol=1e-4)
    resized = F.interpolate(logits, (70, 70), mode="bilinear", align_corners=True)
    for row, maps, truth in zip(result.rows, resized, batch.query_masks > 0, strict=True):
        masks = [(one > 0).numpy() for one in maps]
        total = sum(mask.astype(int) for mask in masks)
        voted = torch.from_numpy(total / max(total.max(), 1) >= 0.5)
        assert row.intersection[1] == int((voted & truth).sum())
