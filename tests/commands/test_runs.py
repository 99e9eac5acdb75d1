"""The recipes that ship, and the commands that they name."""

from __future__ import annotations

import pytest

from fsdino import cli
from fsdino.commands.demo import drawings
from fsdino.commands.distill import Distill
from fsdino.commands.runs import RECIPES, find_recipe
from fsdino.commands.train import Train
from fsdino.errors import UsageError
from fsdino.training.distillation.config import DistillConfig
from fsdino.training.distillation.distill import ADAPTER_FILE
from fsdino.training.meta.config import TrainConfig

TINY_RUNS = ("fsdino-tiny-base", "fsdino-tiny-invented", "fsdino-tiny")


def test_shipped_recipes_are_found_by_name_and_can_be_read():
    """`fsdino train NAME` needs no path; a stage-1 recipe fits those of stage 2."""
    names = {path.stem for path in RECIPES.glob("*.yaml")}
    sizes = {"s": "small", "b": "base", "l": "large"}
    benchmarks = {f"dinov2-{size}-{data}" for size in sizes for data in ("pascal5i", "coco20i")}
    distilled = (f"distill-dinov2-{size}" for size in sizes)
    hsnet = {f"hsnet-resnet50-{data}": data for data in ("pascal5i", "coco20i")}
    assert names == {*TINY_RUNS, "fsdino-photo", *benchmarks, *distilled, *hsnet}
    for name, data in hsnet.items():
        recipe = stage_two(name)
        assert (recipe.model.variant, recipe.model.encoder, recipe.data) == (
            "hsnet",
            "resnet50",
            data,
        )
    for size, long in sizes.items():
        first = stage_one(f"distill-dinov2-{size}")
        assert first.model.encoder == f"vit_{long}_patch14_dinov2.lvd142m"
        assert (first.image_sizes, first.teacher, first.percent) == ((126, 252, 518), "vit_h", 1)
        for data in ("pascal5i", "coco20i"):
            second = stage_two(f"dinov2-{size}-{data}")
            assert (second.model, second.data) == (first.model, data)  # it takes that adapter


def test_three_runs_give_the_bundled_model():
    """Each run goes on from the one before, as their heads say; none sees the fold of the demo."""
    before = None
    for name in TINY_RUNS:
        head = (RECIPES / f"{name}.yaml").read_text().split("\nmodel:")[0].splitlines()
        commands = [line.split(" train ")[1] for line in head if line.startswith("# torchrun")]
        runs = [train_command(command.split()) for command in commands]
        assert [run.recipe for run in runs] == list(TINY_RUNS)
        config = stage_two(name)
        assert config.start_from == before and config.fold == drawings.FOLD
        assert config.model == stage_two(TINY_RUNS[0]).model
        before = str(runs[TINY_RUNS.index(name)].out / "model")


def stage_one(name: str) -> DistillConfig:
    """A recipe that ships for `fsdino distill`."""
    return DistillConfig.from_yaml(find_recipe(name, "distill"))


def stage_two(name: str) -> TrainConfig:
    """A recipe that ships for `fsdino train`."""
    return TrainConfig.from_yaml(find_recipe(name, "train"))


def train_command(arguments: list[str]) -> Train:
    command = cli.parse(["train", *arguments])
    assert isinstance(command, Train)
    return command


def test_commands_in_recipes_are_those_that_run_them():
    """What the head of a recipe says can be pasted: both stages, with files that fit together."""
    for name in (path.stem for path in RECIPES.glob("*dinov2-*.yaml")):
        text = (RECIPES / f"{name}.yaml").read_text()
        head = " ".join(line[1:].strip(" \\") for line in text.splitlines() if line[:4] == "#   ")
        distill, *train = head.split("fsdino train ")
        words = distill.split()
        assert words[:2] == ["fsdino", "distill"]
        first = cli.parse(words[1:])
        assert isinstance(first, Distill) and first.recipe.startswith("distill-")
        first.check()
        assert train or first.recipe == name
        for arguments in train:
            second = train_command(arguments.split())
            assert second.recipe == name
            assert second.config.adapter_weights == str(first.out / ADAPTER_FILE)
            assert second.config.encoder_weights == first.config.encoder_weights
            second.check()


RUNS_OF_RECIPES = {
    "train": ("dinov2-s-coco20i", "--shots", "1", "2", "--no-validation", "--out", "run"),
    "distill": ("distill-dinov2-s", "--images", "a", "b", "--no-use-cache", "--out", "run"),
}


@pytest.mark.parametrize("name", RUNS_OF_RECIPES)
def test_a_recipe_may_stand_behind_the_options(name):
    """Its settings are the defaults wherever it is; options are checked together with it."""
    recipe, *options = RUNS_OF_RECIPES[name]
    first, last = cli.parse([name, recipe, *options]), cli.parse([name, *options, recipe])
    assert first == last
    assert isinstance(last, Train | Distill)
    assert (last.recipe, last.config.dtype, last.config.workers) == (recipe, "bfloat16", 4)


def test_options_before_the_recipe_are_checked_with_it():
    """Features of the default, generated data cannot be kept: those of the recipe's can."""
    options = ["--feature-cache", "kept", "--out", "run"]
    assert train_command([*options, "dinov2-s-coco20i"]).config.feature_cache == "kept"
    with pytest.raises(UsageError, match="feature_cache"):
        train_command([*options, "fsdino-photo"])
