"""`fsdino evaluate`: bad input, tables, interruptions and comparisons."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import data_sets
from command_line import error_line, evaluate, nothing, offline
from fsdino import cli
from fsdino.evaluation import journal, protocols
from fsdino.models.fsdino import FSDINO
from tiny_models import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "workplace")


BAD_INPUT = {
    "weights to evaluate beside a model": (
        nothing, ["evaluate", "model", "--weights", "y.pth"], 2, ["--weights y.pth", "dinov2-b"]
    ),
    "DINOv2 to evaluate without weights": (
        offline, ["evaluate", "dinov2-b-reg"], 2, ["'dinov2-b-reg'", "_reg4_pretrain.pth"]
    ),
    "a floating type to evaluate": (
        nothing, ["evaluate", "model", "--dtype", "float64"], 2, ["'float64'", "bfloat16"]
    ),
    "unknown system": (nothing, ["evaluate", "model", "--as", "best"], 2, ["'best'", "gf-sam"]),
    "protocol of a system": (
        nothing,
        ["evaluate", "model", "--as", "matcher", "--protocol", "hsnet", "--image-size", "70"],
        2,
        ["--as matcher brings --protocol, --image-size: leave it out"],
    ),
    "system for videos": (
        nothing,
        ["evaluate", "model", "--as", "matcher", "--data", "davis17", "--out", "r.json"],
        2,
        ["davis17 does not take --as"],
    ),
    "unknown protocol": (nothing, ["evaluate", "model", "--protocol", "best"], 2, ["'best'"]),
    "unknown data": (nothing, ["evaluate", "model", "--data", "ade20k"], 2, ["'ade20k'"]),
    "no root": (nothing, ["evaluate", "model", "--data", "coco20i"], 2, ["--root"]),
    "fold out of range": (nothing, ["evaluate", "model", "--fold", "9"], 2, ["fold 9"]),
    "no shots": (nothing, ["evaluate", "model", "--shots", "0"], 2, ["shots 0"]),
    "no size": (nothing, ["evaluate", "model", "--image-size", "0"], 2, ["size 0", "at least"]),
    "an unfit size": (nothing, ["evaluate", "model", "--image-size", "71"], 2, ["71", "14"]),
    "nothing to compare": (nothing, ["evaluate", "--compare", "a.json", "b.json"], 2, ["a.json"]),
    "a foreign result": (nothing, ["evaluate", "--compare", "a.png", "a.png"], 1, ["a.png"]),
    "shots of a video": (
        nothing, ["evaluate", "--data", "davis17", "--shots", "5"], 2, ["davis17", "--shots"]
    ),
    "memory of episodes": (nothing, ["evaluate", "--memory", "2"], 2, ["--memory"]),
    "videos without out": (nothing, ["evaluate", "model", "--data", "davis17"], 2, ["--out"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(case, assert_refused):
    """Each mistake names the thing and the remedy, exits with its code, and leaves no files."""
    assert_refused(BAD_INPUT[case])


def test_evaluate_prints_a_table_and_goes_on(capsys):
    """Metrics and classes; the same command again does no episode twice and prints the same."""
    arguments = evaluate("--episodes", "24", "--shots", "2", "--fusion", "vote", "--out", "r.json")
    assert cli.main(arguments) == 0
    first = capsys.readouterr()
    assert "protocol hsnet-seeded, 24 episodes, generated lists" in first.out
    for word in ("mIoU", "FB-IoU", "Dice", "boundary IoU", "class"):
        assert word in first.out
    assert "24/24 episodes" in first.err and "mIoU" in first.err
    assert cli.main(arguments) == 0
    again = capsys.readouterr()
    assert again.out == first.out and "episodes/s" not in again.err


def test_a_second_evaluation_into_one_result_is_refused(capsys):
    """Exit code 2, and who holds it; afterwards the same command works."""
    arguments = evaluate("--episodes", "2", "--out", "r.json")
    with journal.lock(Path("r.json")):
        assert cli.main(arguments) == cli.main([*arguments, "--overwrite"]) == 2
        for line in capsys.readouterr().err.splitlines():
            assert f"result r.json is in use by process {os.getpid()} on " in line
            assert line.endswith("wait for its end or stop it, or pass another --out")
    assert not Path("r.json").exists()
    assert cli.main(arguments) == 0 and Path("r.json").exists()


def test_an_interrupted_evaluation_exits_130_and_goes_on(capsys, monkeypatch):
    """What is done is kept, and no lock is left."""
    arguments = evaluate("--episodes", "4", "--batch-size", "1", "--out", "r.json")
    append, done = journal.Journal.append, []

    def interrupted(self: Any, rows: Any) -> None:
        append(self, rows)
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "append", interrupted)
        assert cli.main(arguments) == 130
    assert error_line(capsys) == (
        "fsdino: interrupted: 2 episodes are done and kept beside r.json; the same command does "
        "the rest"
    )
    assert sorted(path.name for path in Path().glob("r.*")) == ["r.part0.jsonl"]
    assert cli.main(arguments) == 0


def test_evaluate_says_what_the_model_was_selected_on(capsys):
    """A model that was chosen by the held-out classes is not shown as if it had not been."""
    model = tiny_model()
    for chosen in ("base classes", "novel classes of the fold"):
        model.provenance = {"data": "procedural", "fold": 0, "selected_on": chosen}
        model.save_pretrained("model")
        assert cli.main(evaluate("--episodes", "1", "--out", f"{chosen[:4]}.json")) == 0
        said = "was selected on the novel classes of the fold" in capsys.readouterr().out
        assert said == (chosen != "base classes")
        result = json.loads(Path(f"{chosen[:4]}.json").read_text())
        assert result["training"]["selected_on"] == chosen


def test_evaluate_answers_in_json_alone(capsys):
    """Several seeds in one result; progress and notes go to stderr."""
    assert cli.main(evaluate("--episodes", "3", "--seeds", "4", "5", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["seed"], found["episodes"]) == ([4, 5], 3)
    assert found["protocol"] == "joint-seeded" and found["dataset"] == "procedural"


def test_evaluate_baselines(capsys):
    """The model's encoder alone, by prototypes and by 4D matching: results of other models."""
    hashes = set()
    for more in ([], ["--matcher", "prototype"], ["--matcher", "correspondence"]):
        assert cli.main(evaluate("--episodes", "2", "--json", *more)) == 0
        found = json.loads(capsys.readouterr().out)
        hashes.add(found["model_hash"])
        assert found["variant"] == ("training_free" if more else "full")
    assert len(hashes) == 3


def test_evaluate_dinov2_by_name(
    small_dinov2: FSDINO, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """A name with --weights takes the place of a model, as in `segment`."""
    offline(monkeypatch)
    arguments = ["evaluate", "dinov2-s", "--workers", "0", "--weights", "dinov2.pth",
                 "--image-size", "70", "--episodes", "2", "--device", "cpu", "--json"]  # fmt: skip
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["variant"], found["image_size"]) == (
        "dinov2-s", "training_free", 70,
    )  # fmt: skip
    assert found["model_hash"] == small_dinov2.fingerprint()


def test_evaluate_compares(capsys):
    """A table with an interval for every line; the same as JSON."""
    for name, threshold in (("a", "0.5"), ("b", "0.3")):
        out = ("--out", f"{name}.json", "--threshold", threshold)
        assert cli.main(evaluate("--episodes", "48", *out)) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "--compare", "a.json", "b.json"]) == 0
    table = capsys.readouterr().out
    assert "mIoU" in table and "95 % interval" in table and " ± " in table
    assert cli.main(["evaluate", "--compare", "a.json", "b.json", "--json"]) == 0
    [miou, *_] = json.loads(capsys.readouterr().out)
    assert miou["name"] == "mIoU" and miou["difference"] == miou["second"] - miou["first"]


def test_evaluate_davis(capsys, tmp_path):
    """J&F of each sequence, and where the masks are."""
    data_sets.write_davis(tmp_path / "DAVIS")
    assert cli.main(evaluate("--data", "davis17", "--root", "DAVIS", "--out", "d.json")) == 0
    out = capsys.readouterr().out
    assert "J&F" in out and "bear" in out and "dogs" in out
    assert sorted(path.name for path in Path("d/masks").iterdir()) == ["bear", "dogs"]


def test_the_mean_is_over_classes_or_over_episodes(capsys):
    """As asked for, or both; by hand from the rows that are kept beside the result."""
    arguments = evaluate("--episodes", "12", "--out", "r.json")
    assert cli.main([*arguments, "--average", "episodes"]) == 0
    out = capsys.readouterr().out
    rows = [json.loads(line) for line in Path("r.episodes.jsonl").read_text().splitlines()]
    ious = [row["intersection"][1] / row["union"][1] for row in rows if "union" in row]
    found = json.loads(Path("r.json").read_text())["episode_iou"]
    assert len(ious) == 12 and found == pytest.approx(100 * sum(ious) / 12)
    assert f"mean IoU of episodes {found:.2f}" in " ".join(out.split()) and "mIoU " not in out
    assert cli.main([*arguments, "--average", "classes", "episodes"]) == 0
    out = capsys.readouterr().out
    assert "mIoU " in out and "mean IoU of episodes" in out


def test_a_published_evaluation_by_name(monkeypatch):
    """Protocol, pixels and image size come together, and the result states them."""
    monkeypatch.setitem(protocols.SYSTEMS, "matcher", ("joint-rounded", 70))
    call = ["evaluate", "model", "--as", "matcher", "--episodes", "2", "--workers", "0"]
    assert cli.main([*call, "--out", "r.json"]) == 0
    result = json.loads(Path("r.json").read_text())
    assert result["protocol"] == "joint-rounded-seeded" and result["pixels"] == "rounded"
    assert (result["fusion"], result["image_size"]) == ("joint", 70)
