"""The one way from features to logits, whoever asks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fsdino.data.procedural import ProceduralEpisodes
from fsdino.evaluation import protocols
from fsdino.evaluation.evaluate import Settings, evaluate
from fsdino.evaluation.predictors import ModelPredictor
from fsdino.models.few_shot import Answer, FewShotModel
from fsdino.models.fsdino import FSDINO
from fsdino.training.meta.objective import Objective
from tiny_models import SIDE, box_mask, episode, picture, tiny_model


@pytest.mark.parametrize("variant", ["full", "training_free"])
def test_an_answer_holds_what_each_support_alone_would_give(variant: str) -> None:
    """Logits and presence of V supports, in their order, at the model's resolution and another."""
    model = tiny_model(variant=variant)
    queries, supports = model.encode(episode(2, 1)[2]), []
    for seed in range(2):
        images, masks, _ = episode(2, 3, seed=seed)
        supports.append(model.pool(model.encode(images.flatten(0, 1)), masks.flatten(0, 1), 3))
    both = model.answer(queries, supports, (40, 90))
    assert both.logits.shape == (2, 2, 40, 90) and both.presence.shape == (2, 2)
    for v, support in enumerate(supports):
        alone = model.answer(queries, [support])
        assert torch.equal(alone.logits, alone.coarse)
        assert torch.equal(both.coarse[:, v : v + 1], alone.coarse)
        torch.testing.assert_close(both.logits[:, v : v + 1], model.resize(alone.coarse, (40, 90)))
        torch.testing.assert_close(both.presence[:, v : v + 1], alone.presence)


def in_forward(model: FSDINO) -> None:
    model(*episode(2, 1))


def in_segment(model: FSDINO) -> None:
    support = model.encode_support(picture(50, 60), box_mask(50, 60))
    model.segment(picture(30, 40), {"a": support, "b": support})


def in_tiles(model: FSDINO) -> None:
    support = model.encode_support(picture(50, 60), box_mask(50, 60))
    model.segment(picture(130, 140), support, tiles=True)


def in_quality(model: FSDINO) -> None:
    model.encode_support([picture(50, 60)] * 2, [box_mask(50, 60)] * 2, quality=True)


def in_evaluation(model: FSDINO) -> None:
    episodes = ProceduralEpisodes(0, "val", episodes=2, image_size=SIDE)
    evaluate(ModelPredictor(model), episodes, Settings(SIDE))


def in_training(model: FSDINO) -> None:
    supports, masks, _ = episode(2, 2)
    objective = Objective(model, None, 1.0, 0.0, 0.0, 0.0, torch.float32)
    objective(supports.flatten(0, 1), masks.flatten(0, 1), 1, torch.zeros(2, dtype=torch.int64))


@pytest.mark.filterwarnings("ignore:the support finds itself")
@pytest.mark.parametrize(
    "use", [in_forward, in_segment, in_tiles, in_quality, in_evaluation, in_training]
)
def test_every_use_resizes_by_the_models_rule(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other code composes the parts: each use gets logits of `answer` that `resize` has made."""
    sizes: list[tuple[int, int]] = []
    plain = FewShotModel.resize

    def resize(model: FewShotModel, logits: Tensor, size: tuple[int, int]) -> Tensor:
        sizes.append(size)
        return plain(model, logits, size)

    monkeypatch.setattr(FewShotModel, "resize", resize)
    use(tiny_model())
    assert sizes


def test_a_protocol_with_a_rule_of_its_own_gets_the_models_resolution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FewShotModel, "resize", lambda *_: pytest.fail("resized twice"))
    episodes = ProceduralEpisodes(0, "val", episodes=2, shots=2, image_size=SIDE)
    for name in ("hsnet", "hsnet-original", "joint-original"):
        settings = Settings(SIDE, protocol=protocols.find(name))
        evaluate(ModelPredictor(tiny_model()), episodes, settings)


def test_score_of_a_model_without_its_own_is_that_of_the_clearest_pixels() -> None:
    """The mean probability of the highest 0.5 % of the logits, at least one of them."""
    many = torch.full((1, 1, 20, 20), -9.0)
    many[0, 0, 3, 4:6] = torch.tensor([0.0, np.log(3)])  # 1/2 and 3/4
    assert float(Answer(many, many, None).presence) == pytest.approx(0.625)
    few = torch.zeros(1, 1, 2, 2)
    assert float(Answer(few, few, None).presence) == pytest.approx(0.5)


def test_repr_is_a_line() -> None:
    """And PyTorch's own is still there."""
    model = tiny_model()
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert repr(model) == (
        f"FSDINO(vit_small_patch14_dinov2, variant full, 70 pixels, {count:.1f} M parameters, cpu)"
    )
    assert len(torch.nn.Module.__repr__(model).splitlines()) > 20
    assert len(repr(model.encoder).splitlines()) > 10
