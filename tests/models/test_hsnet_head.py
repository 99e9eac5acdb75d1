"""The HSNet-style baseline: its levels, and that it is a model like the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fsdino
from fsdino.bench import formulation
from fsdino.errors import UsageError
from fsdino.models import zoo
from fsdino.models.config import ModelConfig
from fsdino.models.encoders import create
from fsdino.models.fsdino import FSDINO
from fsdino.models.hsnet_head import HSNetHead
from tiny_models import box_mask, episode, picture, randomise, tiny_config


def tiny_hsnet(**changes: Any) -> HSNetHead:
    model = zoo.assemble(tiny_config(variant="hsnet_head", **changes))
    randomise(model, 0)
    return model.eval()


def expected_logits(model: HSNetHead, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """HSNet's head from the formulations that share no code with the package's ops."""
    query, support = model.encode_episodes(*inputs)
    priors = []
    for shot in support.shots:
        volume = formulation.correlation4d(query.correlation[0], shot.correlation[0], shot.masks[0])
        mixed = None
        for index in reversed(range(len(model.levels))):
            x = volume[:, model.levels[index]]
            for layer in model.squeeze[index]:
                x = expected_block(layer, x, stride=2)
            mixed = x if mixed is None else expected_block(model.mix[index], x + mixed, stride=1)
        priors.append(mixed.mean((4, 5)))
    head = model.double()
    maps = head.before(torch.stack(priors).mean(0))
    maps = torch.nn.functional.interpolate(
        maps, scale_factor=2, mode="bilinear", align_corners=True
    )
    return head.after(maps)


def expected_block(layer: Any, x: Tensor, stride: int) -> Tensor:
    conv = layer.conv
    return formulation.center_pivot_block4d(
        x, conv.conv1.weight, conv.conv2.weight, conv.bias, layer.norm.weight, layer.norm.bias,
        support_stride=stride, num_groups=layer.norm.num_groups,
    )  # fmt: skip


@pytest.mark.parametrize("shots", [1, 3])
def test_logits_are_those_of_the_formulation(shots: int) -> None:
    """Levels, squeezing, mixing from late to early, the mean over shots, and the decoder."""
    model, inputs = tiny_hsnet(), episode(2, shots)
    with torch.inference_mode():
        query, support = model.encode_episodes(*inputs)
        found = model.answer(query, [support]).logits
        assert found.shape == (2, 1, 10, 10)
        expected = expected_logits(model, inputs).float()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert found.std() > 1e-3


def test_levels_are_up_to_three_groups_from_early_to_late() -> None:
    """As many as there are layers, and equal parts of four."""
    assert tiny_hsnet().levels == [[0], [1]]
    assert tiny_hsnet(correlation_layers=(1, 2, 3, 4)).levels == [[0, 1], [2, 3]]
    assert tiny_hsnet(correlation_layers=(2, 3, 4)).levels == [[0], [1], [2]]


def test_the_encoder_stays_frozen() -> None:
    """Everything else learns, and takes part in the result."""
    model = zoo.assemble(tiny_config(variant="hsnet_head")).train()
    assert not model.encoder.training
    assert not any(p.requires_grad for p in model.encoder.parameters())
    model(*episode(1, 1)).sum().backward()
    learning = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    assert all(p.requires_grad and p.grad is not None for p in learning)


def test_it_is_saved_loaded_and_used_like_other_models(tmp_path: Path) -> None:
    """`fsdino.load` gives the head back, which segments images of any size."""
    model = tiny_hsnet()
    model.save_pretrained(tmp_path)
    again = fsdino.load(tmp_path)
    assert isinstance(again, HSNetHead) and again.fingerprint() == model.fingerprint()
    support = again.encode_support(picture(40, 50), box_mask(40, 50))
    assert again.segment(picture(30, 60, 1), support).mask.shape == (30, 60)


def test_variants_build_their_own_kind() -> None:
    """An FSDINO cannot be an HSNet head by mistake."""
    assert isinstance(zoo.assemble(tiny_config()), FSDINO)
    assert isinstance(zoo.assemble(tiny_config(variant="hsnet_head")), HSNetHead)
    with pytest.raises(UsageError, match="is not an FSDINO"):
        FSDINO(tiny_config(variant="hsnet_head"), create(tiny_config()))
    several = create(ModelConfig("resnet50", variant="hsnet", image_size=64))
    with pytest.raises(UsageError, match="tokens of 1 grid, and this encoder has 3"):
        FSDINO(tiny_config(variant="training_free", image_size=64), several)
    with pytest.raises(UsageError, match="tokens of 1 grid, and this encoder has 3"):
        HSNetHead(tiny_config(variant="hsnet_head", image_size=64), several)


def test_training_free_shares_the_encoder() -> None:
    """Of any model; the cut becomes the configuration's."""
    model = tiny_hsnet()
    free = zoo.training_free(model, "prototype", cut=0.25)
    assert isinstance(free, FSDINO) and free.encoder is model.encoder
    assert (free.config.matcher, free.config.match_bias) == ("prototype", 0.25)
