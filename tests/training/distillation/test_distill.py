"""Distillation: what learns, that it comes nearer, and that nothing is lost on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import distill_work
import gloo
import tiny_sam
from fsdino.errors import CheckpointError, DataError, FsdinoError, UsageError
from fsdino.models import zoo
from fsdino.processes import Processes
from fsdino.training.distillation import distill
from fsdino.training.distillation.config import DistillConfig
from fsdino.training.distillation.distill import ADAPTER_FILE, Distillation
from fsdino.training.loop import Report
from fsdino.training.meta.config import TrainConfig
from tiny_models import tiny_config, tiny_model


@pytest.fixture(autouse=True)
def plain_memory(one_thread: None) -> None:
    """Bits are compared: no filling of fresh memory, one thread."""
    torch.set_deterministic_debug_mode("default")


IMAGES = 12


def photograph(seed: int, height: int, width: int) -> bytes:
    """A smooth picture as JPEG: some blobs of colour."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, images as files and in a shard, and a model whose encoder is the student's."""
    folder = tmp_path_factory.mktemp("distill")
    tiny_sam.write(folder)
    tiny_model().save_pretrained(folder / "model")
    (folder / "images").mkdir()
    with tarfile.open(folder / "images" / "sa_000000.tar", "w") as shard:
        for seed in range(IMAGES):
            content = photograph(seed, 30 + 5 * (seed % 3), 40 - 4 * (seed % 4))
            if seed % 2:
                (folder / "images" / f"{seed}.jpg").write_bytes(content)
                continue
            info = tarfile.TarInfo(f"./sa_{seed}.jpg")
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return folder


def own_images(folder: Path, count: int = 8) -> list[Path]:
    """Loose images of one test alone, of three sizes."""
    folder.mkdir()
    paths = [folder / f"{seed}.jpg" for seed in range(count)]
    for seed, path in enumerate(paths):
        path.write_bytes(photograph(seed, 30 + 5 * (seed % 3), 40 - 4 * (seed % 4)))
    return paths


def config_of(place: Path, **changes) -> DistillConfig:
    settings = {
        "model": tiny_config(),
        "images": (str(place / "images"),),
        "teacher_checkpoint": str(place / "sam_vit_b_01ec64.pth"),
        "encoder_from": str(place / "model"),
        "held_out": 0.25,
        "image_sizes": (28, 42, 70),
        "epochs": (1, 1, 2),
        "batch_size": 4,
        "learning_rate": 3e-3,
        "warmup": 2,
        "device": "cpu",
        "threads": 1,
        "workers": 0,
        "validate_every": 2,
        "checkpoint_every": 2,
    }
    return DistillConfig(**{**settings, **changes})


def run(config: DistillConfig, folder: Path, **options) -> dict:
    distillation = Distillation(config, folder, **options)
    distillation.prepare()
    return distillation.fit()


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def numbers(folder: Path) -> list[dict]:
    """Metrics without the time that they took."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(folder)]


def same_adapter(first: Path, second: Path) -> bool:
    """To the bit."""
    one, other = (load_file(folder / ADAPTER_FILE) for folder in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def finished(place: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(config_of(place), folder)
    return folder


def test_the_student_knows_more_than_the_average(place: Path, tmp_path: Path) -> None:
    """On held-out images it is nearer to the teacher than the best constant answer is."""
    images = own_images(tmp_path / "images", 32)[0].parent
    settings = {"image_sizes": (70,), "epochs": (12,), "batch_size": 8, "learning_rate": 1e-2}
    rare = {"validate_every": 1000, "checkpoint_every": 1000}
    config = config_of(place, images=(str(images),), **settings, **rare)
    distillation = Distillation(config, tmp_path / "run")
    distillation.prepare()
    training, held_out = (
        [
            distillation.targets.cache.get(hashlib.sha256(file.read()).hexdigest()).float()
            for file in files
        ]
        for files in (distillation.corpus.training, distillation.corpus.held_out)
    )
    constant = torch.stack([target.mean((1, 2)) for target in training]).mean(0)[:, None, None]
    trivial = np.mean([(target - constant).square().mean().item() for target in held_out])
    (stage,) = distillation.fit()["stages"]
    first, last = stage["curve"]
    assert last["held_out_mse"] < 0.95 * trivial < first["held_out_mse"]
    assert abs(first["held_out_cosine"]) < 0.1 and last["held_out_cosine"] > 0.3


def test_both_numbers_are_recorded_for_every_stage(finished: Path, place: Path) -> None:
    """The curve in result.json is that of metrics.jsonl; sizes grow in the order asked for."""
    result = json.loads((finished / "result.json").read_text())
    training = result["images"]
    assert training + result["held_out"] == IMAGES
    steps = [-(-training * epochs // 4) for epochs in (1, 1, 2)]
    assert [s["steps"] for s in result["stages"]] == steps
    assert [s["image_size"] for s in result["stages"]] == [28, 42, 70]
    curve = [row for stage in result["stages"] for row in stage["curve"]]
    measured = [row for row in rows(finished) if "held_out_mse" in row]
    ends = {0, steps[0], steps[0] + steps[1], sum(steps)}
    assert {row["step"] for row in measured} == ends | set(range(2, sum(steps) + 1, 2))
    for name in ("step", "held_out_mse", "held_out_cosine"):
        assert [row[name] for row in curve] == [row[name] for row in measured]


def test_training_takes_the_result(finished: Path, place: Path, tmp_path: Path) -> None:
    """Every weight of the adapter comes from the file, and another encoder is refused."""
    model = zoo.load(place / "model")
    zoo.load_adapter(model, finished / ADAPTER_FILE)
    written = load_file(finished / ADAPTER_FILE)
    assert written.keys() == model.adapter.state_dict().keys()
    assert all(torch.equal(v, written[k]) for k, v in model.adapter.state_dict().items())
    assert TrainConfig(tiny_config(), adapter_weights=str(finished / ADAPTER_FILE))
    with pytest.raises(CheckpointError, match="distilled on another encoder "):
        zoo.load_adapter(tiny_model(seed=3), finished / ADAPTER_FILE)
    deeper = tiny_model(adapter_layer=3)
    with pytest.raises(CheckpointError, match="distilled on another adapter_layer "):
        zoo.load_adapter(deeper, finished / ADAPTER_FILE)


def test_only_the_adapter_learns(place: Path, tmp_path: Path) -> None:
    """Encoder and teacher are as before, bit for bit, and take no gradient."""
    distillation = Distillation(config_of(place, epochs=(1,)), tmp_path)
    frozen = {
        **distillation.encoder.state_dict(prefix="encoder."),
        **distillation.teacher.state_dict(prefix="teacher."),
    }
    before = {name: value.clone() for name, value in frozen.items()}
    adapter = {name: value.clone() for name, value in distillation.adapter.state_dict().items()}
    distillation.prepare()
    distillation.fit()
    assert all(torch.equal(frozen[name], value) for name, value in before.items())
    for name, value in distillation.adapter.state_dict().items():
        assert not torch.equal(value, adapter[name]), name


class KillError(Exception):
    pass


def stop_at(last: int) -> Report:
    def report(step: int, loss: float, cosine: float | None) -> None:
        if step == last:
            raise KillError

    return report


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_killed_run_continues_to_the_same_bits(place, finished, tmp_path, at) -> None:
    """Killed in any stage and resumed: the weights and the curve of an unbroken run."""
    config, folder = config_of(place), tmp_path / "broken"
    broken = Distillation(config, folder)
    broken.prepare()
    with pytest.raises(KillError):
        broken.fit(stop_at(at))
    torch.manual_seed(99)  # whatever happened in between
    resumed = Distillation(config, folder, resume=True)
    assert 0 <= at - resumed.start < 2
    resumed.prepare()
    resumed.fit()
    assert same_adapter(folder, finished)
    assert numbers(folder) == numbers(finished)


@pytest.mark.parametrize(
    "changes",
    [{"workers": 2}, {"use_cache": False}, {"teacher_batch": 1}, {"images_per_pass": 1}],
    ids=str,
)
def test_how_it_is_computed_changes_nothing(place, finished, tmp_path, changes) -> None:
    """Workers, no cache, smaller passes: the same curve, up to the order of sums."""
    run(config_of(place, **changes), tmp_path)
    for row, expected in zip(numbers(tmp_path), numbers(finished), strict=True):
        assert row == pytest.approx(expected, rel=2e-3, abs=1e-6)
    assert (tmp_path / "embeddings").exists() == changes.get("use_cache", True)


def test_the_loss_may_be_taken_on_the_students_grid(place, finished, tmp_path) -> None:
    """Another loss and another adapter, measured in the same way: alike before the first step."""
    run(config_of(place, loss_grid="student"), tmp_path)
    first, expected = (next(r for r in rows(f) if r["step"] == 0) for f in (tmp_path, finished))
    for name in ("held_out_mse", "held_out_cosine"):
        assert first[name] == expected[name]
    losses = [next(r["loss"] for r in rows(f) if "loss" in r) for f in (tmp_path, finished)]
    assert losses[0] != losses[1] and not same_adapter(tmp_path, finished)
    curve = [row["held_out_mse"] for row in rows(tmp_path) if "held_out_mse" in row]
    assert curve[-1] < curve[0]


def test_runs_share_a_cache(place: Path, tmp_path: Path, monkeypatch) -> None:
    """A second run with the same cache never asks the teacher."""
    config = config_of(place, cache=str(tmp_path / "cache"), epochs=(1,))
    run(config, tmp_path / "a")

    def asked(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(distill.load_teacher(config.teacher_checkpoint).__class__, "forward", asked)
    run(dataclasses.replace(config, seed=1), tmp_path / "b")


def test_names_in_a_checkpoint(finished: Path) -> None:
    """They are a format: a run of an earlier version goes on."""
    last = sorted((finished / "checkpoints").iterdir())[-1]
    with safe_open(last, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        titles = {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118
    assert set(state) == {"hashes", "cosine", "skipped", "lost", "due"}
    assert titles == {"adapter", "optimizer", "random"}


def test_a_damaged_shard_is_named_and_computed_again(place, finished, tmp_path, caplog) -> None:
    """One flipped bit in an embedding, found while learning: the run's numbers do not change."""
    distillation = Distillation(config_of(place), tmp_path)
    distillation.prepare()
    (shard,) = (tmp_path / "embeddings").rglob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    shard.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        distillation.fit()
    assert f"{shard} is damaged (its content is not what was written)" in caplog.text
    assert "computing 12 embeddings again" in caplog.text
    assert same_adapter(tmp_path, finished)


def test_a_cache_that_was_removed_is_filled_again(place, finished, tmp_path) -> None:
    """On resume, in whole shards, before learning goes on."""
    config = config_of(place)
    stopped = Distillation(config, tmp_path)
    assert stopped.images_to_embed() == IMAGES
    stopped.prepare()
    with pytest.raises(KillError):
        stopped.fit(stop_at(5))
    assert Distillation(config, tmp_path, resume=True).images_to_embed() == 0
    shutil.rmtree(tmp_path / "embeddings")
    resumed = Distillation(config, tmp_path, resume=True)
    assert resumed.images_to_embed() == IMAGES
    resumed.prepare()
    (shard,) = (tmp_path / "embeddings").rglob("*.safetensors")
    assert len(load_file(shard)) == IMAGES
    resumed.fit()
    assert same_adapter(tmp_path, finished)


def exchanged(content: bytes) -> bytes:
    """An inventory that takes two images for each other."""
    data = json.loads(content)
    one, other, *_ = data["images"]
    data["images"][one], data["images"][other] = data["images"][other], data["images"][one]
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    "damage",
    [lambda c: b"[" * 5000, lambda c: b"\xff", lambda c: b"[]", lambda c: c[:-20], exchanged],
    ids=["deep", "bytes", "list", "cut", "exchanged"],
)
def test_a_damaged_inventory_is_made_again(place, finished, tmp_path, damage, caplog) -> None:
    """The images are gone through once more, from the cache, and the run is the same."""
    config = config_of(place)
    stopped = Distillation(config, tmp_path)
    stopped.prepare()
    with pytest.raises(KillError):
        stopped.fit(stop_at(4))
    inventory = tmp_path / "images.json"
    inventory.write_bytes(damage(inventory.read_bytes()))
    resumed = Distillation(config, tmp_path, resume=True)
    resumed.prepare()
    assert f"{inventory} is damaged" in caplog.text
    resumed.fit()
    assert same_adapter(tmp_path, finished) and resumed.targets.lost == {}


def test_damaged_metrics_cost_only_themselves(place, finished, tmp_path) -> None:
    """The result lacks what they held; the adapter is the same."""
    config = config_of(place)
    stopped = Distillation(config, tmp_path)
    stopped.prepare()
    with pytest.raises(KillError):
        stopped.fit(stop_at(6))
    (tmp_path / "metrics.jsonl").write_bytes(b"\x00" * 99 + b'\n{"step": 2, "held_out_mse": 1}\n')
    resumed = Distillation(config, tmp_path, resume=True)
    resumed.prepare()
    stages = resumed.fit()["stages"]
    assert stages[0]["held_out_mse"] is None and stages[0]["curve"] == []
    assert stages[-1] == json.loads((finished / "result.json").read_text())["stages"][-1]
    assert same_adapter(tmp_path, finished)


def test_a_measurement_that_is_no_number(place, finished, tmp_path, monkeypatch) -> None:
    """It ends the run with a checkpoint, which a resumed one measures first."""
    original = distill.agreement

    def measured(student, target, inside):
        mse, cosine = original(student, target, inside)
        return (mse if student.requires_grad or not spoilt else mse * torch.nan), cosine

    monkeypatch.setattr(distill, "agreement", measured)
    config, spoilt = config_of(place, checkpoint_every=100), []
    distillation = Distillation(config, tmp_path)
    distillation.prepare()
    with pytest.raises(FsdinoError, match="step 2: the held-out images give no finite numbers"):
        distillation.fit(lambda step, loss, cosine: spoilt.append(step))
    assert [path.stem for path in (tmp_path / "checkpoints").iterdir()] == ["00000002"]
    spoilt.clear()
    run(config, tmp_path, resume=True)
    assert same_adapter(tmp_path, finished) and numbers(tmp_path) == numbers(finished)


def test_a_distillation_cannot_be_extended(place, finished, tmp_path) -> None:
    """More epochs are another schedule; the error says so."""
    shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(UsageError, match=r"in epochs: stage 1 has one schedule .* cannot be ext"):
        Distillation(config_of(place, epochs=(1, 1, 3)), tmp_path / "run", resume=True)


def test_a_failed_start_is_not_in_the_way(place: Path, tmp_path: Path) -> None:
    """No image could be read: with others, the same folder is used."""
    paths = own_images(tmp_path / "images")
    contents = [path.read_bytes() for path in paths]
    for path in paths:
        path.write_bytes(b"no image")
    config = config_of(place, images=(str(tmp_path / "images"),), epochs=(1,))
    with pytest.raises(DataError, match="no image to learn from"):
        Distillation(config, tmp_path / "run").prepare()
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    run(dataclasses.replace(config, learning_rate=1e-4), tmp_path / "run")


def test_unreadable_images_are_counted_and_named(place: Path, tmp_path: Path) -> None:
    """Before learning: left out. While learning: missing or replaced, the rest goes on."""
    paths = own_images(tmp_path / "images")
    paths[0].write_bytes(paths[0].read_bytes()[:200])
    config = config_of(place, images=(str(tmp_path / "images"),), epochs=(2,))
    distillation = Distillation(config, tmp_path / "run")
    distillation.prepare()
    training = [file.path for file in distillation.corpus.training]
    assert paths[0] not in training and len(training) + len(distillation.corpus.held_out) == 7
    training[0].unlink()
    training[1].write_bytes(photograph(77, 30, 40))
    result = distillation.fit()
    reasons = result["unreadable"]
    assert set(reasons) == {str(paths[0]), str(training[0]), str(training[1])}
    assert "truncated" in reasons[str(paths[0])]
    assert "No such file" in reasons[str(training[0])]
    assert "has changed since" in reasons[str(training[1])]
    assert rows(tmp_path / "run")[-1]["unreadable_images"] == 3


def test_nothing_left_to_learn_from(place: Path, tmp_path: Path) -> None:
    """All images damaged: one error that says where they are named."""
    for path in own_images(tmp_path / "images"):
        path.write_bytes(b"no image")
    distillation = Distillation(
        config_of(place, images=(str(tmp_path / "images"),)), tmp_path / "run"
    )
    with pytest.raises(DataError, match=r"no image to learn from .*8 of 8.*images\.json"):
        distillation.prepare()


def test_a_loss_that_is_no_number_is_skipped_and_counted(place, tmp_path, monkeypatch) -> None:
    """Two bad steps are skipped; the limit of consecutive ones stops the run with a checkpoint."""
    original, seen = distill.agreement, []

    def sometimes(student, target, inside):
        seen.append(student.requires_grad)
        mse, cosine = original(student, target, inside)
        return (mse * float("nan") if sum(seen) in bad and seen[-1] else mse), cosine

    monkeypatch.setattr(distill, "agreement", sometimes)
    bad = {2, 3}
    result = run(config_of(place, nan_limit=3), tmp_path / "a")
    assert result["skipped_steps"] == 2
    seen.clear()
    bad = {2, 3, 4}
    with pytest.raises(FsdinoError, match="3 consecutive steps had no finite loss"):
        run(config_of(place, nan_limit=3), tmp_path / "b")
    assert (tmp_path / "b" / "checkpoints" / "00000003.safetensors").exists()


def test_resuming_with_something_else_is_refused(place: Path, tmp_path: Path) -> None:
    """Another setting, another encoder or other images in the same place are named."""
    paths = own_images(tmp_path / "images")
    tiny_model().save_pretrained(tmp_path / "model")
    config = config_of(
        place, images=(str(tmp_path / "images"),), encoder_from=str(tmp_path / "model")
    )
    run(config, tmp_path / "run")
    other = dataclasses.replace(config, learning_rate=1e-4)
    with pytest.raises(UsageError, match="differs from this configuration in learning_rate"):
        Distillation(other, tmp_path / "run", resume=True)
    tiny_model(seed=1).save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"began with other files \(encoder\): pass"):
        Distillation(config, tmp_path / "run", resume=True)
    tiny_model().save_pretrained(tmp_path / "model")
    paths[0].rename(tmp_path / "images" / "new.jpg")
    with pytest.raises(CheckpointError, match=r"began with other files \(images\)"):
        Distillation(config, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_sizes": (28, 40), "epochs": (1,)}, "must be multiples .* 14 pixels, got 40"),
        ({"image_sizes": ()}, "image_sizes must be sides in pixels"),
        ({"epochs": (1, 2)}, "epochs must be one number .* or one for each of the 3 image_sizes"),
        ({"epochs": (0,)}, "epochs must be one number of at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be greater than 0"),
        ({"teacher": "vit_x"}, "unknown teacher 'vit_x': choose auto, vit_b"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"model": tiny_config(width=32)}, "has 16 channels, the model's width is 32"),
        ({"encoder_weights": "dinov2.pth"}, "encoder_from and encoder_weights exclude"),
        ({"percent": 0.0}, "percent must be greater than 0"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_meant(place, tmp_path, changes, message) -> None:
    """Refused before a folder is made."""
    with pytest.raises(UsageError, match=message):
        Distillation(config_of(place, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_survive_a_recipe(place: Path, tmp_path: Path, finished: Path) -> None:
    """The configuration that a run keeps is a recipe that gives the same run."""
    assert DistillConfig.from_yaml(finished / "config.yaml") == config_of(place)
    (tmp_path / "recipe.yaml").write_text("model: {}\nepoch: 3")
    with pytest.raises(UsageError, match="unknown settings epoch"):
        DistillConfig.from_yaml(tmp_path / "recipe.yaml")


def test_two_processes_do_what_one_does(place: Path, finished: Path, tmp_path: Path) -> None:
    """The curve of one process; and a run of one process goes on with two."""
    config = config_of(place)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    stopped = Distillation(config, tmp_path / "one")
    stopped.prepare()
    with pytest.raises(KillError):
        stopped.fit(stop_at(5))
    gloo.run(distill_work.together, tmp_path, 2)
    for name in ("one", "two"):
        for row, expected in zip(numbers(tmp_path / name), numbers(finished), strict=True):
            assert row == pytest.approx(expected, rel=2e-3, abs=1e-6)
    shards = (tmp_path / "two" / "embeddings").rglob("*.safetensors")
    assert sorted(len(load_file(shard)) for shard in shards) == [IMAGES // 2, IMAGES // 2]


def test_processes_need_equal_shares(place: Path, tmp_path: Path) -> None:
    """A batch that cannot be divided is refused."""
    processes = dataclasses.replace(Processes.for_training("cpu"), count=3)
    with pytest.raises(UsageError, match="batch_size 4 cannot be shared by 3 processes"):
        Distillation(config_of(place), tmp_path, processes=processes)
