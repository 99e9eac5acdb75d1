"""Training: what a step sees, that it learns, and that a killed run continues to the same bits."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import fsdino
from fsdino.errors import FsdinoError, UsageError
from fsdino.models.config import ModelConfig
from fsdino.training import meta
from fsdino.training.meta import TrainConfig, Trainer

MODEL = ModelConfig(
    encoder="vit_tiny_patch16_224",
    encoder_args={"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    conv_stem=True,
    image_size=32,
    adapter_layer=1,
    correlation_layers=(1, 2),
    correlation_channels=(4, 4, 8),
    width=16,
    adapter_width=16,
    adapter_heads=2,
    decoder_heads=2,
    decoder_mlp=16,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)
CONFIG = TrainConfig(
    model=MODEL,
    steps=6,
    images_per_step=4,
    image_sizes=(32, 40),
    augment=0.5,
    shots=(1, 3),
    warmup=2,
    train_encoder=True,
    train_adapter=True,
    prototype_weight=0.5,
    class_weight=0.5,
    workers=0,
    threads=1,
    validate_every=3,
    validation_episodes=4,
    checkpoint_every=2,
)


class KillError(Exception):
    pass


def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path) -> None:
    """Stopped between checkpoints and resumed, a run ends with the weights of an unbroken one."""
    Trainer(CONFIG, tmp_path / "whole").fit()

    def kill(step: int, loss: float, miou: float | None) -> None:
        if step == 5:
            raise KillError

    with pytest.raises(KillError):
        Trainer(CONFIG, tmp_path / "broken", report=kill).fit()
    resumed = Trainer(CONFIG, tmp_path / "broken", resume=True)
    assert resumed.start == 4
    resumed.fit()
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert isinstance(fsdino.load(tmp_path / "broken" / "model"), fsdino.FSDINO)


def test_workers_change_nothing(tmp_path: Path) -> None:
    """The episodes of a step do not depend on the processes that prepare them."""
    losses: dict[int, list[float]] = {0: [], 2: []}
    for workers, seen in losses.items():
        config = dataclasses.replace(CONFIG, steps=3, workers=workers)
        Trainer(
            config, tmp_path / str(workers), report=lambda s, x, m, seen=seen: seen.append(x)
        ).fit()
    assert losses[0] == losses[2]


def test_every_image_of_an_episode_is_the_query_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K + 1 images give K + 1 predictions, each with the other K as supports and its own truth."""
    trainer = Trainer(dataclasses.replace(CONFIG, shots=(2,)), tmp_path)
    batch = meta._Steps(dataclasses.replace(CONFIG, shots=(2,), images_per_step=6))[0]
    seen: dict[str, torch.Tensor] = {}
    pool = meta.pool_supports

    def spy(features, masks, shots):
        seen["supports"], seen["support_masks"] = features.last, masks
        return pool(features, masks, shots)

    monkeypatch.setattr(meta, "pool_supports", spy)
    monkeypatch.setattr(
        meta, "mask_loss", lambda logits, masks: seen.update(truth=masks) or logits.sum()
    )
    trainer.model.eval()
    trainer._loss(batch)
    masks = torch.cat([batch.query_masks[:, None], batch.support_masks], 1)  # [2, 3, H, W]
    assert torch.equal(seen["truth"], masks.flatten(0, 1))
    expected = [masks[e, k] for e in range(2) for k in (1, 2, 2, 0, 0, 1)]
    assert torch.equal(seen["support_masks"], torch.stack(expected))


def test_only_what_is_asked_for_learns(tmp_path: Path) -> None:
    """With the encoder and the adapter frozen, as by default, neither changes."""
    config = dataclasses.replace(
        CONFIG,
        steps=2,
        train_encoder=False,
        train_adapter=False,
        prototype_weight=0,
        class_weight=0,
    )
    trainer = Trainer(config, tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.fit()
    changed = {
        n.split(".")[0]
        for n, v in trainer.model.state_dict().items()
        if not torch.equal(v, before[n])
    }
    assert changed == {"prior", "visual_prompt", "dense_prompt", "decoder"}


def test_it_learns(tmp_path: Path) -> None:
    """Forty steps on the same few episodes lower the loss by a quarter."""
    losses: list[float] = []
    config = dataclasses.replace(
        CONFIG, steps=40, shots=(1,), image_sizes=(32,), learning_rate=3e-3
    )
    trainer = Trainer(config, tmp_path, report=lambda step, loss, miou: losses.append(loss))
    batch = meta._Steps(config)[0]
    trainer._batches = lambda: iter([batch] * 40)
    trainer.fit()
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])


def test_metrics_are_recorded(tmp_path: Path) -> None:
    """Losses and the mIoU on base classes stand in metrics.jsonl, the configuration in YAML."""
    Trainer(CONFIG, tmp_path).fit()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "base_miou" in row] == [3, 6]
    assert TrainConfig.from_yaml(tmp_path / "config.yaml") == CONFIG
    assert json.loads((tmp_path / "environment.json").read_text())["torch"] == torch.__version__


def test_training_data_has_no_novel_class() -> None:
    """No class of the held-out fold is ever trained on."""
    for fold in range(4):
        config = dataclasses.replace(CONFIG, fold=fold, steps=30, augment=0.0)
        seen = {int(c) for step in range(30) for c in meta._Steps(config)[step].class_ids}
        assert seen and not seen & set(range(24 * fold, 24 * fold + 24))


def test_nan_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    """A loss that is no number is an error; what was saved before stays."""
    trainer = Trainer(CONFIG, tmp_path)
    batches = [meta._Steps(CONFIG)[0]] * 6
    batches[3] = dataclasses.replace(batches[3], query_images=batches[3].query_images * torch.nan)
    trainer._batches = lambda: iter(batches)
    with pytest.raises(FsdinoError, match="loss became nan at step 3"):
        trainer.fit()
    assert (tmp_path / "checkpoints" / "00000002.safetensors").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("model: [", "cannot be read"),
        ("steps: 3", "expected settings with a `model` section"),
        ("model: {}\nstep: 3", "unknown settings step"),
        ("model: {}\nsteps: many", "recipe .*recipe.yaml: "),
        ("model: {variant: huge}", "recipe .*recipe.yaml: .*unknown variant 'huge'"),
    ],
)
def test_bad_recipes(tmp_path: Path, text: str, message: str) -> None:
    """A recipe that cannot be meant is refused with its path."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(UsageError, match=message):
        TrainConfig.from_yaml(recipe)
    with pytest.raises(UsageError, match="cannot be read"):
        TrainConfig.from_yaml(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"shots": ()}, "shots must be numbers of at least 1"),
        ({"augment": 1.5}, r"augment must be in \[0, 1\]"),
        ({"images_per_step": 3}, "images_per_step must be greater than the largest of shots"),
        ({"data": "imagenet"}, "unknown data 'imagenet'"),
    ],
)
def test_bad_settings(changes: dict, message: str) -> None:
    """Settings are checked before anything is created."""
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_recipe_round_trip() -> None:
    """to_dict is what YAML can hold."""
    assert yaml.safe_load(yaml.safe_dump(CONFIG.to_dict())) == CONFIG.to_dict()


def test_an_hsnet_head_learns_on_a_frozen_encoder(tmp_path: Path) -> None:
    """The baseline is trained by the same loop, from the encoder of another model."""
    Trainer(CONFIG, tmp_path / "first").fit()
    source = tmp_path / "first" / "model"
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(MODEL, variant="hsnet"),
        encoder_from=str(source),
        train_encoder=False,
        train_adapter=False,
        prototype_weight=0.0,
        class_weight=0.0,
    )
    trainer = Trainer(config, tmp_path / "head")
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.fit()
    after = fsdino.load(tmp_path / "head" / "model")
    assert after.config.variant == "hsnet"
    encoder = fsdino.load(source).state_dict()
    for name, value in after.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(value, encoder[name])
        else:
            assert not torch.equal(value, before[name]), name
