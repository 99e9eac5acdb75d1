"""`fsdino distill`: options, recipes, interruptions and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

import fsdino
from command_line import distill, error_line, nothing
from fsdino import cli
from fsdino.commands.distill import Distill
from fsdino.training.distillation.config import DistillConfig
from tiny_models import tiny_config

pytestmark = pytest.mark.usefixtures("one_thread", "workplace")


BAD_INPUT = {
    "distill without images": (nothing, distill("--images"), 2, ["--images"]),
    "distill without a model": (
        nothing, ["distill", "--out", "out"], 2, ["--model", "--encoder-weights"]
    ),
    "distill from missing images": (nothing, distill("--images", "gone"), 2, ["gone", "no such"]),
    "distill without a teacher": (
        nothing, ["distill", "--model", "model", "--images", "queries", "--out", "out"], 2,
        ["--teacher-checkpoint"],
    ),
    "a picture as a teacher": (
        nothing, distill("--teacher-checkpoint", "a.png"), 1, ["a.png", "an image, not weights"]
    ),
    "a size of no patch": (nothing, distill("--image-sizes", "30"), 2, ["14 pixels", "30"]),
    "no share held out": (nothing, distill("--held-out", "0"), 2, ["held_out", "0"]),
    "distill on random features": (
        nothing,
        ["distill", "distill-dinov2-s", "--images", "queries", "--teacher-checkpoint", "sam.pth",
         "--out", "out"], 2, ["random weights", "--encoder-weights"],
    ),
    "a recipe of the first stage": (
        nothing, ["distill", "dinov2-s-coco20i", "--out", "out"], 2,
        ["'dinov2-s-coco20i'", "fsdino train", "distill-dinov2-s"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(case, assert_refused):
    """Each mistake names the thing and the remedy, exits with its code, and leaves no files."""
    assert_refused(BAD_INPUT[case])


def test_distill_gives_what_train_takes(capsys):
    """stdout is one JSON object; both stages, one after the other, by commands alone."""
    assert cli.main(distill("--json", "--percent", "100")) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert [stage["image_size"] for stage in result["stages"]] == [28, 70]
    assert result["images"] + result["held_out"] == 10
    for words in ("teacher's embeddings of 10 images: at most", "10/10 images", "held-out cosine"):
        assert words in captured.err
    recipe = {"model": tiny_config().to_dict(), "encoder_from": "model", "fold": 3, "workers": 0,
              "images_per_step": 4, "validation_episodes": 2}  # fmt: skip
    Path("stage2.yaml").write_text(yaml.safe_dump(recipe))
    arguments = ["train", "stage2.yaml", "--out", "run", "--steps", "1", "--device", "cpu"]
    assert cli.main([*arguments, "--adapter-weights", result["adapter"]]) == 0
    adapter = safetensors.torch.load_file(result["adapter"])
    trained = fsdino.load("run/model").state_dict()
    assert all(torch.equal(trained[f"adapter.{name}"], value) for name, value in adapter.items())


def test_interrupted_distillation_says_how_to_go_on(capsys, monkeypatch):
    """Ctrl-C names the step that is kept; --resume ends with the table."""
    from fsdino.training.distillation import distill as module

    original = module.Distillation.step

    def interrupted(self: Any, step: int, pairs: Any) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return original(self, step, pairs)

    arguments = distill("--checkpoint-every", "1", "--no-use-cache")
    with monkeypatch.context() as patch:
        patch.setattr(module.Distillation, "step", interrupted)
        assert cli.main(arguments) == 130
    assert error_line(capsys) == (
        "fsdino: interrupted: step 3 is kept in out; the same command with --resume continues it"
    )
    assert cli.main(arguments) == 2
    assert "--resume" in error_line(capsys)
    assert cli.main([*arguments, "--resume"]) == 0
    captured = capsys.readouterr()
    assert "resuming out at step 3" in captured.err
    for word in ("held-out MSE", "held-out cosine", "out/adapter.safetensors"):
        assert word in captured.out


def test_distill_from_a_recipe(capsys):
    """Options change what the recipe says, except for its model."""
    recipe = {"model": tiny_config().to_dict(), "images": ["queries"], "percent": 50.0,
              "teacher_checkpoint": "sam.pth", "encoder_from": "model"}  # fmt: skip
    Path("stage1.yaml").write_text(yaml.safe_dump(recipe))
    command = cli.parse(
        ["distill", "stage1.yaml", "--out", "out", "--percent", "25", "--no-use-cache"]
    )
    expected = DistillConfig(
        tiny_config(),
        images=("queries",),
        teacher_checkpoint="sam.pth",
        encoder_from="model",
        percent=25.0,
        use_cache=False,
    )
    assert isinstance(command, Distill) and command.config == expected
    assert cli.main(["distill", "stage1.yaml", "--model", "model", "--out", "out"]) == 2
    assert "leave out --model" in error_line(capsys)
