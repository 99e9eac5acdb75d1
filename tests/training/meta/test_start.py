"""What a run starts from: other models, official weights, and which parts then learn."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import torchvision

import fsdino
from fsdino.commands.runs import RECIPES
from fsdino.errors import CheckpointError, UsageError
from fsdino.models import zoo
from fsdino.models.config import ModelConfig
from fsdino.training.meta.config import TrainConfig
from fsdino.training.meta.train import Trainer
from training_work import (
    FROZEN,
    MODEL,
    weights,
)

pytestmark = pytest.mark.usefixtures("plain_memory")


def test_a_run_goes_on_from_a_model(tmp_path: Path, whole: Path) -> None:
    """All weights are the model's, whatever learns; another architecture is refused."""
    config = dataclasses.replace(FROZEN, start_from=str(whole / "model"), seed=5)
    found = Trainer(config, tmp_path / "run").model.state_dict()
    given = weights(whole)
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) for name in given)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, variant="comp"))
    with pytest.raises(UsageError, match=r"start_from: .* another variant, 'full' and not 'comp'"):
        Trainer(other, tmp_path / "other")
    missing = dataclasses.replace(config, start_from="runs/missing/model")
    with pytest.raises(UsageError, match="unknown model 'runs/missing/model'"):
        Trainer(missing, tmp_path / "other")
    nowhere = dataclasses.replace(FROZEN, data="fss1000", root=str(tmp_path / "nowhere"), fold=0)
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        Trainer(nowhere, tmp_path / "other")
    assert not (tmp_path / "other").exists()  # the same command works once that is mended


def test_only_what_is_asked_for_learns(tmp_path: Path) -> None:
    """Encoder and adapter are frozen by default; so can the decoder be, and `comp_frozen`'s is."""
    full = {"prior", "visual_prompt", "dense_prompt"}
    cases = {
        "default": ({}, {}, full | {"decoder"}),
        "adapter": ({"train_adapter": True}, {}, full | {"decoder", "adapter"}),
        "no decoder": ({"train_decoder": False}, {}, full),
        "comp_frozen": ({}, {"variant": "comp_frozen"}, {"visual_prompt", "dense_prompt"}),
        "pcs": ({}, {"variant": "comp", "visual_prompt": False}, {"dense_prompt", "decoder"}),
    }
    for name, (changes, model, expected) in cases.items():
        config = dataclasses.replace(
            FROZEN, steps=2, model=dataclasses.replace(MODEL, **model), **changes
        )
        trainer = Trainer(config, tmp_path / name)
        before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        trainer.fit()
        after = trainer.model.state_dict()
        changed = {n.split(".")[0] for n, v in after.items() if not torch.equal(v, before[n])}
        assert changed == expected, name


def test_an_hsnet_head_learns_on_a_frozen_encoder(tmp_path: Path, whole: Path) -> None:
    """The baseline is trained by the same loop, from the encoder of another model."""
    config = dataclasses.replace(
        FROZEN,
        model=dataclasses.replace(MODEL, variant="hsnet_head"),
        encoder_from=str(whole / "model"),
    )
    trainer = Trainer(config, tmp_path)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.fit()
    after = fsdino.load(tmp_path / "model")
    assert after.config.variant == "hsnet_head"
    encoder = weights(whole)
    for name, value in after.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(value, encoder[name])
        elif re.fullmatch(r"squeeze\.\d+\.[01]\.conv\.conv\d\.bias", name) and len(value) == 4:
            continue  # the four groups of the norm that follows have a channel each: no gradient
        else:
            assert not torch.equal(value, before[name]), name


def test_hsnet_learns_by_its_recipe(tmp_path: Path) -> None:
    """From torchvision's file, which may lack counts of batches; only the head moves."""
    recipe = TrainConfig.from_yaml(RECIPES / "hsnet-resnet50-pascal5i.yaml")
    assert (recipe.dice_weight, recipe.decay, recipe.weight_decay) == (0.0, False, 0.0)
    torch.manual_seed(0)
    backbone = torchvision.models.resnet50(weights=None).state_dict()
    torch.save({k: t for k, t in backbone.items() if "num_batches" not in k}, tmp_path / "r50.pth")
    config = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, image_size=64),
        data="procedural",
        steps=1,
        images_per_step=2,
        workers=0,
        validation=False,
        select_on="base",
        encoder_weights=str(tmp_path / "r50.pth"),
    )
    trainer = Trainer(config, tmp_path / "run")
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.fit()
    after = fsdino.load(tmp_path / "run" / "model").state_dict()
    moved = {
        name.partition(".")[0] for name, t in after.items() if not torch.equal(t, before[name])
    }
    assert moved == {"squeeze", "mix", "before", "after"}
    assert all(torch.equal(after[f"encoder.net.{name}"], t) for name, t in backbone.items())


def test_hsnet_starts_from_another_ones_backbone(tmp_path: Path) -> None:
    """Of a published checkpoint; weights of another network are refused."""
    model = zoo.assemble(ModelConfig("resnet50", variant="hsnet", image_size=64))
    model.save_hsnet(tmp_path / "best_model.pt")
    config = ModelConfig("resnet50", variant="hsnet", image_size=64)
    found = zoo.find_encoder(config, weights=tmp_path / "best_model.pt").state_dict()
    expected = model.encoder.state_dict()
    assert all(torch.equal(found[name], t) for name, t in expected.items())
    other = dataclasses.replace(config, encoder="resnet101")
    with pytest.raises(CheckpointError, match=r"best_model\.pt do not fit this model: missing"):
        zoo.find_encoder(other, weights=tmp_path / "best_model.pt")


def test_weights_to_start_from(tmp_path: Path, whole: Path) -> None:
    """A distilled adapter is taken, and refused where there is no place for it."""
    prefix = "adapter."
    adapter = {
        name.removeprefix(prefix): value + 1
        for name, value in weights(whole).items()
        if name.startswith(prefix)
    }
    file = tmp_path / "adapter.safetensors"
    fsdino.models.checkpoints.write_tensors(file, adapter, {})
    config = dataclasses.replace(FROZEN, adapter_weights=str(file))
    trainer = Trainer(config, tmp_path / "run")
    assert all(torch.equal(v, adapter[n]) for n, v in trainer.model.adapter.state_dict().items())
    other = dataclasses.replace(config, model=dataclasses.replace(MODEL, variant="hsnet_head"))
    with pytest.raises(UsageError, match=r"'hsnet_head' has no adapter: choose full"):
        Trainer(other, tmp_path / "other")
