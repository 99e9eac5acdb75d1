"""`fsdino train`: options, recipes, interruptions and what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import fsdino
from command_line import command, environment, error_line, nothing, offline
from fsdino import cli
from fsdino.commands.train import Train
from fsdino.training.meta.config import TrainConfig
from tiny_models import tiny_config

pytestmark = pytest.mark.usefixtures("one_thread", "workplace")


BAD_INPUT = {
    "an encoder to train on that is not here": (
        offline, ["train", "dinov2-b-coco20i", "--out", "out", "--encoder-from", "dinov2-b"], 2,
        ["'dinov2-b'", "dinov2_vitb14_pretrain.pth"],
    ),
    "a recipe of the other stage": (
        nothing, ["train", "distill-dinov2-s", "--out", "out"], 2,
        ["'distill-dinov2-s'", "fsdino distill", "fsdino-tiny"],
    ),
    "unknown recipe": (nothing, ["train", "nope", "--out", "out"], 2, ["'nope'", "YAML"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(case, assert_refused):
    """Each mistake names the thing and the remedy, exits with its code, and leaves no files."""
    assert_refused(BAD_INPUT[case])


@pytest.fixture
def recipe(workplace: Path) -> str:
    """A run of four short steps."""
    model = {
        **tiny_config().to_dict(),
        "encoder": "vit_tiny_patch16_224",
        "encoder_args": {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4,
                         "num_heads": 2},
        "image_size": 32,
    }  # fmt: skip
    settings = {
        "model": {k: list(v) if isinstance(v, tuple) else v for k, v in model.items()},
        "images_per_step": 4,
        "steps": 100,
        "fold": 3,
        "workers": 0,
        "train_encoder": True,
        "validation_episodes": 2,
    }
    (workplace / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return "recipe.yaml"


def test_train_runs_resumes_and_gives_a_model(recipe, capsys, workplace):
    """Options override the recipe; the parts are listed; the result can be loaded."""
    arguments = ["train", recipe, "--out", "run", "--steps", "3", "--checkpoint-every", "2"]
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    assert "3/3 steps" in captured.err
    assert "loss" in captured.err
    for part in ("encoder", "adapter", "decoder"):
        assert part in captured.out
    assert yaml.safe_load(Path("run/config.yaml").read_text())["steps"] == 3
    assert fsdino.load("run/model").config.image_size == 32
    assert cli.main(arguments) == 2
    assert "--resume" in error_line(capsys)
    assert cli.main([*arguments, "--resume"]) == 0


def test_interrupted_training_says_how_to_go_on(recipe, capsys, monkeypatch):
    """Ctrl-C names the step that is kept and the option that continues."""
    from fsdino.training.meta import train as meta

    original = meta.Trainer.step

    def interrupted(self: Any, step: int, batch: Any) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return original(self, step, batch)

    monkeypatch.setattr(meta.Trainer, "step", interrupted)
    arguments = ["train", recipe, "--out", "run", "--steps", "4", "--checkpoint-every", "2"]
    assert cli.main(arguments) == 130
    assert error_line(capsys) == (
        "fsdino: interrupted: step 2 is kept in run; the same command with --resume continues it"
    )
    monkeypatch.setattr(meta.Trainer, "step", original)
    assert cli.main([*arguments, "--resume"]) == 0
    assert "resuming run at step 2" in capsys.readouterr().err


def configured(*arguments: str) -> TrainConfig:
    """The settings of a run with some options."""
    command = cli.parse(["train", *arguments, "--out", "run"])
    assert isinstance(command, Train)
    return command.config


def test_train_options_switch_parts_and_override(recipe):
    """Zero is a value, too; what a recipe switches on can be switched off."""
    config = configured(
        recipe, "--fold", "0", "--seed", "0", "--model.no-visual-prompt", "--model.variant", "comp",
        "--train-adapter", "--no-train-decoder", "--no-train-encoder", "--shots", "1", "5",
        "--images-per-step", "12", "--episodes-per-batch", "3", "--root", "data", "--skip-bad",
        "--model.correlation-prompt", "False", "--ignore", "none", "--background", "7",
    )  # fmt: skip
    assert (config.fold, config.shots, config.episodes_per_batch) == (0, (1, 5), 3)
    assert (config.root, config.skip_bad, config.steps) == ("data", True, 100)
    assert (config.ignore, config.background) == ("none", 7)
    assert config.train_adapter and not config.train_decoder and not config.train_encoder
    model = config.model
    assert (model.variant, model.visual_prompt, model.correlation_prompt) == ("comp", False, False)
    assert model.cosine_prompt and model.contrastive
    assert configured(recipe) == TrainConfig.from_yaml(Path(recipe))


def test_training_on_random_features_is_refused(recipe, capsys, caplog):
    """A run of days on a recipe without the weights that it needs would find nothing."""
    assert cli.main(["train", "dinov2-b-coco20i", "--root", "data", "--out", "run"]) == 2
    assert "random weights: pass --encoder-weights" in error_line(capsys)
    assert not Path("run").exists()
    command = cli.parse(["train", "dinov2-b-coco20i", "--out", "run", "--encoder-weights", "b.pth"])
    assert isinstance(command, Train) and command.config.encoder_weights == "b.pth"
    command.check()
    assert "the adapter is frozen and has random weights" in caplog.text
    caplog.clear()
    command = cli.parse(["train", "dinov2-b-coco20i", "--out", "run", "--start-from", "model"])
    assert isinstance(command, Train) and command.config.start_from == "model"
    command.check()
    assert not caplog.text


def test_ctrl_c_writes_a_checkpoint_and_says_so(recipe, capsys, monkeypatch):
    """The signal itself: the step that was going on is kept, though no checkpoint was due."""
    from fsdino.training.meta import train as meta

    original = meta.Trainer.step

    def interrupted(self: Any, number: int, step: Any) -> float:
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, number, step)

    monkeypatch.setattr(meta.Trainer, "step", interrupted)
    arguments = ["train", recipe, "--out", "run", "--steps", "4"]
    assert cli.main(arguments) == 130
    lines = capsys.readouterr().err.splitlines()
    assert "fsdino: stopping after this step; Ctrl-C again stops at once" in lines
    assert lines[-1] == (
        "fsdino: interrupted: step 2 is kept in run; the same command with --resume continues it"
    )


TERMINATED = """
import os, signal, time
from fsdino.training.meta import train as meta

signalled = [signal.NAME]
original = meta.Trainer.step

def terminated(self, number, step):
    if number == 1 and signalled:
        os.killpg(0, signalled.pop())
        time.sleep(0.5)
    return original(self, number, step)

meta.Trainer.step = terminated
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_all_processes_writes_a_checkpoint(recipe, workplace, name):
    """torchrun, clusters and terminals send it to a whole group; the step needs the workers."""
    code = TERMINATED.replace("NAME", name)
    done = subprocess.run(
        command("train", recipe, "--out", "run", "--workers", "2", code=code),
        env=environment(),
        cwd=workplace,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        timeout=300,
    )
    assert done.stderr.splitlines()[-1] == (
        "fsdino: interrupted: step 2 is kept in run; the same command with --resume continues it"
    )
    assert done.returncode == 130
