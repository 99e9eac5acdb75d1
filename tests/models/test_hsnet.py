"""HSNet: the answers of its own code, its checkpoints, and that it is a model like the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fsdino
from fsdino import ops
from fsdino.errors import CheckpointError, UsageError
from fsdino.evaluation import protocols
from fsdino.models import hsnet_files, zoo
from fsdino.models.config import BACKBONES, ModelConfig
from fsdino.models.encoders import BackboneEncoder, create
from fsdino.models.hsnet import HSNet
from published_hsnet import SIDE, answers, asked, drawn, hsnet, keys, published
from tiny_models import box_mask, episode, picture, tiny_config


@pytest.mark.parametrize(
    ("backbone", "backend"),
    [
        *((backbone, backend) for backbone in BACKBONES for backend in ("reference", "cpp")),
        ("resnet50", "triton"),
    ],
)
def test_it_answers_what_its_own_code_answers(backbone: str, backend: str) -> None:
    """Logits of both channels at the input's size, and the vote of two shots to the pixel.

    Triton answers once: its interpreter needs half a minute for the two votes.
    """
    model = published(backbone)
    logits, vote = answers(f"{backbone}_logits", f"{backbone}_vote2")
    with torch.no_grad(), ops.use_backend(backend):
        query, shots, _ = asked(model)
        found = model.resize(model.channels(query, shots[0].shots[0]), (SIDE, SIDE))
        assert (found - logits).norm() / logits.norm() < 3e-6
        if backend == "triton":
            return
        answer = model.answer(query, shots, (SIDE, SIDE)).logits
    torch.testing.assert_close(answer[:, 0], logits[:, 1] - logits[:, 0], rtol=0, atol=1e-5)
    votes = protocols.find("hsnet").decide(answer, 0.5).sum(1)
    assert torch.equal(votes / votes.amax().clamp_min(1) >= 0.5, vote)


@pytest.mark.parametrize("backbone", ["resnet50", "vgg16"])
@pytest.mark.parametrize("size", [(32, 32), (96, 50), (100, 77)])
def test_levels_have_the_sizes_that_are_promised(backbone: str, size: tuple[int, int]) -> None:
    """Of any image: the resident caches of training rely on it."""
    encoder = hsnet(backbone).encoder
    with torch.no_grad():
        features = encoder(torch.rand(2, 3, *size))
    expected = [
        (2, *level, *grid)
        for level, grid in zip(encoder.levels, encoder.level_grids(*size), strict=True)
    ]
    assert [tuple(level.shape) for level in features.correlation] == expected
    assert features.grid == encoder.grid(*size)
    assert features.last.shape == (2, encoder.channels, *encoder.grid(*size))
    assert features.guide.shape[2:] == tuple(4 * side for side in features.grid)


def test_the_published_size_has_the_published_grids() -> None:
    """At 400 pixels 50, 25 and 13 tokens, and 4, 6 and 3 layers."""
    encoder = hsnet().encoder
    assert encoder.level_grids(400, 400) == ((50, 50), (25, 25), (13, 13))
    assert encoder.levels == ((4, 512), (6, 1024), (3, 2048))


def checkpoint(folder: Path, change: Callable[[dict[str, Tensor]], Any] | None = None) -> Path:
    """A file as HSNet's code saves it, of the small parts; the backbone's are all 0."""
    model = hsnet()
    state = {
        f"module.{name}": drawn(name, tuple(model.state_dict()[own].shape))
        if name.startswith("hpn_learner.")
        else torch.zeros_like(model.state_dict()[own])
        for name in keys("resnet50")
        for own in [hsnet_files.own_name(name)]
    }
    if change is not None:
        change(state)
    torch.save(state, folder / "best_model.pt")
    return folder / "best_model.pt"


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_a_published_checkpoint_loads_by_its_path(
    prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the prefix or without, ImageNet's normalisation, 400 pixels; written back as it was."""
    path = checkpoint(tmp_path)
    state = torch.load(path, weights_only=True)
    if not prefix:
        torch.save({name.removeprefix("module."): t for name, t in state.items()}, path)
    model = fsdino.load(path)
    assert isinstance(model, HSNet) and not model.training
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    assert (model.config.encoder, model.config.image_size) == ("resnet50", 400)
    assert model.encoder.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert model.encoder.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    model.save_hsnet(tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert [*again] == [*state]  # names and their order
    assert all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("module.hpn_learner.decoder2.2.bias"), "missing: after.2.bias"),
        (lambda s: s.update({"module.hpn_learner.more": torch.ones(1)}), "unexpected: hpn_learn"),
        (lambda s: s["module.hpn_learner.decoder2.2.bias"].fill_(torch.nan), "NaN or infinite"),
        (
            lambda s: [s.pop(k) for k in [*s] if ".backbone.layer3" in k],
            "backbone is ResNet-50, ResNet-101 or VGG-16",
        ),
        (
            lambda s: [s.pop(k) for k in [*s] if "hpn_learner" in k],
            "not a checkpoint of HSNet's code",
        ),
    ],
)
def test_other_checkpoints_are_refused(change: Any, words: str, tmp_path: Path) -> None:
    """The error names the file, and what is wrong with it."""
    path = checkpoint(tmp_path, change)
    with pytest.raises(CheckpointError, match=rf"best_model\.pt.*{words}"):
        fsdino.load(path)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    """Weights only."""

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "best_model.pt"
    torch.save({"module.hpn_learner.decoder1.0.weight": Hostile()}, path)
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        fsdino.load(path)
    assert not (tmp_path / "ran").exists()


def test_it_is_saved_loaded_and_used_like_other_models(tmp_path: Path) -> None:
    """A folder, a support on disk, images of any size, several shots, a mark."""
    model = published("resnet50")
    model.save_pretrained(tmp_path / "model")
    again = fsdino.load(tmp_path / "model")
    assert isinstance(again, HSNet) and again.fingerprint() == model.fingerprint()
    images = [picture(140, 150, seed) for seed in (0, 1)]
    support = model.encode_support(images, [box_mask(140, 150)] * 2)
    support.save(tmp_path / "box.safetensors")
    loaded = fsdino.Support.load(tmp_path / "box.safetensors")
    assert [tuple(mask.shape) for mask in loaded.masks[1]] == [(20, 20), (10, 10), (5, 5)]
    query = picture(130, 260, 2)
    found = again.segment(query, loaded)
    assert found.mask.shape == (130, 260)
    np.testing.assert_allclose(
        found.probability, model.segment(query, support).probability, atol=1e-5
    )
    assert model.mark(images[0], boxes=(20, 20, 90, 90)).shape == (140, 150)


def test_masks_of_levels_are_interpolated_with_aligned_corners() -> None:
    """From the pixels that HSNet's loader takes of the mask, at the size of the input."""
    model = published("resnet50")
    mask = box_mask(301, 299)
    taken = F.interpolate(torch.from_numpy(mask)[None, None].float(), (SIDE, SIDE))
    support = model.encode_support(picture(301, 299), mask)
    for found, grid in zip(support.masks[0], ((20, 20), (10, 10), (5, 5)), strict=True):
        expected = F.interpolate(taken, grid, mode="bilinear", align_corners=True)[0, 0]
        torch.testing.assert_close(found, expected)


def test_shots_are_averaged_in_one_answer() -> None:
    """The logits of several shots are the mean of theirs."""
    model = published("resnet50")
    with torch.no_grad():
        query, shots, masks = asked(model)
        supports = answers("supports")[0][0] * model.encoder.std + model.encoder.mean
        both = model.pool(model.encode(supports), masks[0], 2)
        joint = model.answer(query, [both]).logits
        single = [model.answer(query, [shot]).logits for shot in shots]
    torch.testing.assert_close(joint, torch.stack(single).mean(0))
    assert not torch.equal(single[0], single[1])


def test_only_the_head_learns() -> None:
    """Its backbone's statistics stay as they are, too; both biases of a convolution learn."""
    model = zoo.assemble(ModelConfig("resnet50", variant="hsnet", image_size=64)).train()
    before = {name: t.clone() for name, t in model.encoder.state_dict().items()}
    supports, masks, queries = episode(2, 1, side=64)
    model(supports, torch.ones_like(masks), queries).square().sum().backward()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert learning.keys() == {n for n, _ in model.named_parameters() if "encoder." not in n}
    assert all(p.grad is not None and p.grad.any() for p in learning.values())
    assert "squeeze.0.0.conv.conv2.bias" in learning
    assert all(torch.equal(t, before[name]) for name, t in model.encoder.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": "resnet18"}, "one of its backbones, resnet50, resnet101, vgg16"),
        ({"correlation_stride": 1}, "has no correlation_stride to choose"),
        ({"keep_aspect": True}, "has no keep_aspect to choose"),
        ({"encoder_args": {"depths": [1, 1]}}, "has no encoder_args to choose"),
        ({"pretrained": True}, "has no pretrained to choose"),
    ],
)
def test_what_is_fixed_in_hsnet_cannot_be_chosen(changes: dict[str, Any], words: str) -> None:
    """Silently ignoring it would be worse."""
    with pytest.raises(UsageError, match=words):
        ModelConfig(**{"encoder": "resnet50", "variant": "hsnet", "image_size": SIDE, **changes})


def test_another_encoder_is_refused() -> None:
    """One whose tokens are on a single grid."""
    config = ModelConfig("resnet50", variant="hsnet", image_size=SIDE)
    with pytest.raises(UsageError, match="tokens of 3 grids, and this encoder has 1"):
        HSNet(config, create(tiny_config()))


def test_sizes_whose_levels_do_not_meet_are_refused() -> None:
    """VGG-16 rounds down: the squeezed levels of some sizes have different numbers of tokens."""
    encoder = BackboneEncoder(ModelConfig("vgg16", variant="hsnet", image_size=272))
    model = HSNet(ModelConfig("vgg16", variant="hsnet", image_size=272), encoder).eval()
    with torch.no_grad(), pytest.raises(UsageError, match="multiples of 32"):
        model(*episode(1, 1, side=272))
    with torch.no_grad(), pytest.raises(UsageError, match="at least 32"):
        model.encode(torch.rand(1, 3, 31, 64))
