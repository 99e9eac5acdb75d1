"""Training on a folder of a user's own that holds few images: the normal case."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import fsdino
from data_sets import save_jpeg
from fsdino.cli import main
from fsdino.data.catalog import open_episodes
from fsdino.errors import DataError, UsageError
from fsdino.training.meta.config import TrainConfig
from fsdino.training.meta.steps import Steps
from fsdino.training.meta.train import Trainer
from training_work import FROZEN


@pytest.fixture(autouse=True)
def plain_memory(one_thread: None) -> None:
    torch.set_deterministic_debug_mode("default")


def photos(root: Path, **counts: int) -> TrainConfig:
    """A run on a folder with that number of images of each class."""
    for name, count in counts.items():
        for i in range(count):
            save_jpeg(root / name / f"{i:02d}.jpg", i, 40, 40)
            mask = np.zeros((40, 40), np.uint8)
            mask[: 20 + len(name), :15] = 255
            Image.fromarray(mask).save(root / name / f"{i:02d}.png")
    return dataclasses.replace(
        FROZEN, data="folder", root=str(root), image_sizes=(), shots=(1,), steps=2, validate_every=2
    )


def asked(config: TrainConfig, split: str) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Queries and supports by class in a hundred episodes."""
    episodes = open_episodes(
        "folder", split=split, root=Path(str(config.root)), shots=2, episodes=100
    )
    queries: dict[str, set[str]] = {}
    supports: dict[str, set[str]] = {}
    for index in range(100):
        key = episodes.key(index)
        name, _, query = key.query.partition("/")
        queries.setdefault(name, set()).add(query)
        supports.setdefault(name, set()).update(s.partition("/")[2] for s in key.supports)
    return queries, supports


def test_which_images_are_kept_out_of_training(tmp_path: Path) -> None:
    """One of three to nine; none of two; every fifth of ten and more, which serve each other."""
    config = photos(tmp_path, two=2, three=3, seven=7, ten=10)
    named = {n: {f"{i:02d}.jpg" for i in range(n)} for n in (2, 3, 7, 10)}
    trained, _ = asked(config, "train")
    queries, supports = asked(config, "base_val")
    out = {"three": {"02.jpg"}, "seven": {"04.jpg"}, "ten": {"04.jpg", "09.jpg"}}
    assert trained == {
        "two": named[2],
        "three": named[3] - out["three"],
        "seven": named[7] - out["seven"],
        "ten": named[10] - out["ten"],
    }
    assert queries == {"two": named[2], **out}
    assert supports == {
        "two": named[2],
        "three": named[3] - out["three"],
        "seven": named[7] - out["seven"],
        "ten": out["ten"],
    }


def test_a_run_says_what_it_was_selected_on(tmp_path: Path, caplog) -> None:
    """Held-out images, one each or images that are trained on, and the classes that it is about."""
    config = photos(tmp_path / "photos", cat=2, dog=5)
    Trainer(config, tmp_path / "run").fit()
    assert "validation asks dog for one image each that is not trained on" in caplog.text
    assert "validation asks cat for images that are trained on" in caplog.text
    assert fsdino.load(tmp_path / "run" / "best").provenance["selected_on"] == (
        "base classes; of 1 of 2 classes one image each that is not trained on; of 1 of 2 classes "
        "images that are trained on"
    )


def test_one_image_is_too_few(tmp_path: Path, capsys) -> None:
    """The class is named with its count and what to do, and nothing is left to be in the way."""
    config = photos(tmp_path / "photos", cat=1, dog=3)
    with pytest.raises(DataError) as caught:
        Trainer(config, tmp_path / "run")
    assert str(caught.value) == (
        "class 0 has 1 images, an episode needs two (0 is cat): add images with masks, or remove "
        "the class"
    )
    assert not (tmp_path / "run").exists()
    photos(tmp_path / "photos", cat=2)
    Trainer(config, tmp_path / "run").fit()


def test_without_validation_all_images_are_trained_on(tmp_path: Path, monkeypatch) -> None:
    """The last model is the best one, and says so."""
    config = dataclasses.replace(
        photos(tmp_path / "photos", cat=4, dog=12), validation=False, steps=40, select_on="base"
    )
    steps = Steps(config)
    episodes = steps.of(1, 32)
    seen = {name for i in range(200) for name in episodes.key(i).names}
    assert len(seen) == 16
    run = tmp_path / "run"
    trainer = Trainer(dataclasses.replace(config, steps=2), run)
    trainer._validate = None  # is not called
    trainer.fit()
    files = [run / name / "model.safetensors" for name in ("model", "best")]
    assert files[0].read_bytes() == files[1].read_bytes()
    provenance = fsdino.load(run / "best").provenance
    assert provenance["selected_on"] == "nothing: the last model of a run without validation"
    assert (provenance["step"], provenance["selection_miou"]) == (2, None)


@pytest.mark.parametrize("changes", [{"patience": 2}, {"select_on": "novel", "data": "coco20i"}])
def test_what_needs_validation(changes: dict) -> None:
    with pytest.raises(UsageError, match="validation"):
        dataclasses.replace(FROZEN, validation=False, **changes)


def test_on_the_command_line(tmp_path: Path, capsys) -> None:
    """Options for a folder, and a failed start before the one that works."""
    config = dataclasses.replace(photos(tmp_path / "photos", cat=2, dog=3), encoder_from=None)
    recipe = tmp_path / "recipe.yaml"
    data = {**config.to_dict(), "train_encoder": True, "root": None}
    recipe.write_text(yaml.safe_dump(data))
    command = ["train", str(recipe), "--out", str(tmp_path / "run"), "--no-validation"]
    assert main([*command, "--root", str(tmp_path / "nowhere")]) == 2
    code = main([*command, "--root", str(tmp_path / "photos"), "--layout", "class-folders"])
    output = capsys.readouterr()
    assert code == 0, output.err
    assert "best" in output.out and "the same, not validated" in output.out
