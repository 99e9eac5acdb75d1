"""The small teacher is a SAM as others read it, and the comparison of arms says what it finds."""

from __future__ import annotations

import json
from pathlib import Path

import ablation
import distillation
import numpy as np
import pytest
import small_sam
import tiny_recipe
import torch
import yaml
from torch import nn

from fsdino.data.procedural import ProceduralEpisodes
from fsdino.errors import UsageError
from fsdino.models import zoo
from fsdino.models.config import ModelConfig
from fsdino.training.distillation.teacher import load_teacher
from fsdino.training.meta.config import TrainConfig

TINY = small_sam.Recipe(
    width=16, decoder_heads=2, decoder_mlp=16, encoder_width=16, depth=2, heads=2, side=32,
    window=2, steps=4, images_per_step=2, warmup=1,
)  # fmt: skip
MODEL = ModelConfig(
    encoder="vit_tiny_patch16_224",
    encoder_args={"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    image_size=32,
    adapter_layer=1,
    correlation_layers=(2,),
    correlation_channels=(4, 4),
    width=16,
    adapter_width=16,
    adapter_heads=2,
    decoder_heads=2,
    decoder_mlp=16,
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_sam.train(TINY, tmp_path_factory.mktemp("teacher"))


def test_official_code_gives_the_masks_that_were_trained(teacher: Path) -> None:
    """Otherwise what is distilled is not what learned."""
    sam = small_sam.load(TINY, teacher)
    batched = small_sam.build(TINY, batched=True)
    batched.load_state_dict(sam.state_dict(), strict=False)
    images, masks, points, boxes = small_sam.Prompted(TINY)[0]
    assert images.shape == (2, 3, 32, 32) and masks.shape == (2, 32, 32)
    trained = small_sam.predict(batched, images, points, boxes).unflatten(0, (-1, len(images)))
    for number, image in enumerate(images):
        prompts = [
            {"point_coords": points[turn, number][None, None], "point_labels": torch.ones(1, 1)}
            for turn in range(small_sam.POINTS)
        ]
        for turn, prompt in enumerate([*prompts, {"boxes": boxes[number][None]}]):
            asked = {"image": image, "original_size": (32, 32), **prompt}
            answer = sam([asked], multimask_output=False)[0]["low_res_logits"]
            expected = nn.functional.interpolate(answer, (32, 32), mode="bilinear")
            torch.testing.assert_close(trained[turn, number][None], expected)


def test_teacher_is_read_by_both_stages(teacher: Path) -> None:
    architecture = load_teacher(teacher).architecture
    assert (architecture.channels, architecture.grid_side, architecture.window) == (16, 4, 2)
    assert architecture.global_blocks == (1,)
    model = zoo.assemble(MODEL)
    zoo.load_sam_decoder(model, teacher)
    sam = small_sam.load(TINY, teacher)
    torch.testing.assert_close(
        model.decoder.output_upscaling[0].weight, sam.mask_decoder.output_upscaling[0].weight
    )
    assert not torch.equal(
        sam.image_encoder.patch_embed.proj.weight,
        small_sam.build(TINY).image_encoder.patch_embed.proj.weight,
    )


def test_killed_teacher_goes_on_to_the_same_weights(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_sam, "_SAVE_EVERY", 2)
    step, taken = small_sam._step, []

    def dies(sam, optimizer, recipe, number, *batch):
        taken.append(number)
        if len(taken) == 4:
            raise MemoryError
        return step(sam, optimizer, recipe, number, *batch)

    monkeypatch.setattr(small_sam, "_step", dies)
    with pytest.raises(MemoryError):
        small_sam.train(TINY, tmp_path)
    path = small_sam.train(TINY, tmp_path)
    assert taken == [0, 1, 2, 3, 2, 3]
    unbroken = torch.load(teacher, weights_only=True)
    for name, value in torch.load(path, weights_only=True).items():
        assert torch.equal(value, unbroken[name]), name


def test_point_iou_counts_pixels() -> None:
    """A model that says "everything" gets each object's share of its image."""

    class Everything(nn.Module):
        def forward(self, asked, multimask_output):
            (column, row), image = asked[0]["point_coords"][0, 0].int().tolist(), asked[0]["image"]
            hits.append(bool(masks[len(hits)][row, column]))
            return [{"masks": torch.ones(1, 1, *image.shape[1:], dtype=torch.bool)}]

    episodes = ProceduralEpisodes(3, "base_val", episodes=3, image_size=32)
    masks, hits = [episodes[index].query.mask for index in range(3)], []
    expected = 100 * np.mean([mask.mean() for mask in masks])
    assert small_sam.point_iou(Everything(), episodes) == pytest.approx(expected)
    assert hits == [True] * 3


def test_held_out_fold_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "TEACHER", TINY)
    drawn = []
    monkeypatch.setattr(
        distillation,
        "ProceduralEpisodes",
        lambda *args, **options: drawn.append(ProceduralEpisodes(*args, **options)) or drawn[-1],
    )
    distillation.write_images(tmp_path, 1)
    steps = small_sam.Prompted(TINY)
    novel = set(ProceduralEpisodes(3, "val").classes)
    assert not novel & {*steps.base.classes, *drawn[0].classes}
    assert steps.invented.held_out == 3


def rows(*mious: float) -> list[dict[str, float]]:
    return [{"miou": miou} for miou in mious]


def test_findings_name_the_direction() -> None:
    found = distillation.compare(
        {
            "distilled, frozen": rows(40, 42, 44),
            "random, frozen": rows(39, 40, 41),
            "distilled, trained": rows(40, 41, 42),
            "random, trained": rows(41, 43, 43),
        }
    )
    assert found["frozen"]["added_by_seed"] == [1, 2, 3]
    assert (found["frozen"]["mean"], found["frozen"]["deviation"]) == (2, 1)
    assert "+2.00 mIoU" in found["frozen"]["finding"]
    assert ": the published direction" in found["frozen"]["finding"]
    assert "AGAINST the published direction" in found["trained"]["finding"]
    assert "the seeds disagree" in distillation.finding("frozen", [0.5, -0.1])
    assert distillation.spread([3.0])["deviation"] is None
    assert "it knows" in distillation.knowledge(50, 15)
    assert "nothing is shown" in distillation.knowledge(20, 15)


def test_one_command_does_all_and_remembers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    config = TrainConfig(
        MODEL, fold=3, image_sizes=(32,), validation_episodes=2, warmup=1, workers=0
    )
    recipe.write_text(yaml.safe_dump(config.to_dict()))
    zoo.assemble(MODEL).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(tiny_recipe, "RECIPE", recipe)
    monkeypatch.setattr(distillation, "EPISODES", 2)
    monkeypatch.setattr(distillation, "TEACHER", TINY)
    monkeypatch.setattr(distillation, "KNOWLEDGE_EPISODES", 2)
    record = tmp_path / "record.json"
    steps = ["--teacher-steps", "1", "--images", "6", "--epochs", "1", "--images-per-step", "2"]
    steps += ["--loss-grid", "student"]
    folders = ["--out", str(tmp_path / "out"), "--record", str(record)]
    command = ["--encoder", str(tmp_path / "model"), *folders, *steps, "--seeds", "1"]
    distillation.main([*command, "--steps", "2"])
    first = json.loads(record.read_text())
    assert set(first["arms"]) == set(distillation.ARMS)
    assert {row["steps"] for found in first["arms"].values() for row in found} == {2}
    assert str(tmp_path) not in record.read_text()
    assert first["settings"]["loss_grid"] == "student" and "--loss-grid student" in first["command"]
    kept = yaml.safe_load((tmp_path / "out/0/distil/config.yaml").read_text())
    assert kept["loss_grid"] == "student"
    stages = first["stage_1"][0]["stages"]
    assert [stage["image_size"] for stage in stages] == [16, 32]
    assert "adapter trained: distillation adds" in capsys.readouterr().out
    monkeypatch.setattr(distillation, "Distillation", None)  # nothing is done twice
    monkeypatch.setattr(ablation, "Trainer", None)
    distillation.main([*command, "--steps", "2"])
    assert json.loads(record.read_text()) == first
    with pytest.raises(UsageError, match="steps"):
        distillation.main([*command, "--steps", "3"])
