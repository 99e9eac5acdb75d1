"""A resumed run is the unbroken one where learning itself draws random numbers: dropout."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import tiny_sam
from fsdino.models.adapter import Adapter
from fsdino.training.distillation import distill
from fsdino.training.distillation.config import DistillConfig
from fsdino.training.distillation.distill import ADAPTER_FILE, Distillation
from fsdino.training.meta.train import Trainer
from tiny_models import tiny_config, tiny_model
from training_work import CONFIG, MODEL, StopError, stop_at

DROPPING = dataclasses.replace(
    CONFIG,
    model=dataclasses.replace(
        MODEL, encoder_args={**MODEL.encoder_args, "proj_drop_rate": 0.3, "drop_path_rate": 0.3}
    ),
    steps=5,
    image_sizes=(32,),
    validate_every=2,
    checkpoint_every=1,
)


@pytest.fixture(autouse=True)
def plain_memory(one_thread: None) -> None:
    """Bits are compared: no filling of fresh memory, one thread."""
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> bytes:
    """The weights of an unbroken run."""
    return trained(tmp_path_factory.mktemp("whole"))


def trained(folder: Path, workers: int = 0, *, resume: bool = False) -> bytes:
    config = dataclasses.replace(DROPPING, workers=workers)
    Trainer(config, folder, resume=resume).fit()
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("stop", "workers"), [(1, 0), (2, 1), (4, 0)])
def test_a_resumed_run_is_the_unbroken_one(
    tmp_path: Path, whole: bytes, stop: int, workers: int
) -> None:
    """To the bit, wherever it stopped, and whoever prepares the episodes."""
    config = dataclasses.replace(DROPPING, workers=workers)
    with pytest.raises(StopError):
        Trainer(config, tmp_path).fit(stop_at(stop))
    torch.manual_seed(99)  # whatever happened in between
    resumed = Trainer(config, tmp_path, resume=True)
    assert resumed.start == stop
    torch.rand(3)  # and between start and learning
    resumed.fit()
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == whole


def test_validation_changes_nothing(tmp_path: Path, whole: bytes) -> None:
    """How often the model is scored, and how often it is kept, is not part of what it learns."""
    config = dataclasses.replace(DROPPING, validate_every=5, checkpoint_every=5)
    Trainer(config, tmp_path).fit()
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == whole


def test_dropout_drops(tmp_path: Path, whole: bytes) -> None:
    """The other tests would hold without: here torch's generator matters."""
    trainer = Trainer(DROPPING, tmp_path)
    trainer._random["random.cpu"] = torch.Generator().manual_seed(5).get_state()
    trainer.fit()
    assert (tmp_path / "model" / "model.safetensors").read_bytes() != whole


class Dropping(Adapter):
    """An adapter with dropout."""

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.nn.functional.dropout(super().forward(tokens), 0.3, self.training)


def distillation(folder: Path, out: str, workers: int, *, resume: bool = False) -> Distillation:
    config = DistillConfig(
        tiny_config(),
        images=(str(folder / "images"),),
        teacher_checkpoint=str(folder / "sam_vit_b_01ec64.pth"),
        encoder_from=str(folder / "model"),
        held_out=0.2,
        image_sizes=(28,),
        epochs=(4,),
        batch_size=4,
        learning_rate=1e-2,
        warmup=1,
        device="cpu",
        workers=workers,
        validate_every=3,
        checkpoint_every=1,
    )
    return Distillation(config, folder / out, resume=resume)


@pytest.mark.parametrize("workers", [0, 1])
def test_stage_1_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Filling the cache, and measuring on held-out images, draws nothing either."""
    monkeypatch.setattr(distill, "Adapter", Dropping)
    tiny_sam.write(tmp_path)
    tiny_model().save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for seed in range(6):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        (tmp_path / "images" / f"{seed}.png").write_bytes(buffer.getvalue())
    found = []
    for out, stop in (("whole", 0), ("early", 1), ("late", 3)):
        started = distillation(tmp_path, out, workers)
        started.prepare()
        if stop:
            with pytest.raises(StopError):
                started.fit(stop_at(stop))
            (tmp_path / out / "images.json").unlink()  # so that the images are gone through again
            torch.manual_seed(99)
            started = distillation(tmp_path, out, workers, resume=True)
            assert started.start == stop
            started.prepare()
        started.fit()
        found.append(load_file(tmp_path / out / ADAPTER_FILE))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]) and torch.equal(value, found[2][name]), name
