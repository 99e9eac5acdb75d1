"""What a person asks for becomes episodes, files and pictures, on layouts as they are found."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from data_sets import (
    write_davis,
    write_fss,
    write_lvis,
    write_paco_part,
    write_pascal_part,
    write_voc,
)
from fsdino.data.lvis import Lvis
from fsdino.errors import DataError, UsageError
from fsdino.evaluation import journal, pictures, protocols, results
from fsdino.evaluation import run as evaluation
from fsdino.evaluation.evaluate import Settings
from fsdino.evaluation.request import Request
from fsdino.evaluation.video import VideoSettings
from tiny_models import SIDE, tiny_model

GENERATED = Request("procedural", episodes=6)


def settings(protocol: str = "joint-seeded", **changes: Any) -> Settings:
    return Settings(SIDE, protocols.find(protocol), **changes)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def voc(tmp_path: Path) -> tuple[Path, Path]:
    write_voc(tmp_path / "VOC2012", tmp_path / "splits")
    return tmp_path / "VOC2012", tmp_path / "splits"


def test_without_out_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fold is the one that the bundled model has not seen."""
    monkeypatch.chdir(tmp_path)
    summary = evaluation.run(tiny_model(), "tiny", GENERATED, settings())
    assert (summary["fold"], summary["episodes"], summary["model"]) == (3, 6, "tiny")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="pass --out"):
        evaluation.run(tiny_model(), "tiny", GENERATED, settings(), pictures=1)


def test_pascal_by_votes_at_the_images_own_sizes(voc: tuple[Path, Path], tmp_path: Path) -> None:
    """Published lists and episodes, five shots; the result names them."""
    request = Request("pascal5i", *voc, fold=1, shots=5)
    out = tmp_path / "r.json"
    summary = evaluation.run(
        tiny_model(), "tiny", request, settings("hsnet-original", batch_size=50), out=out
    )
    expected = {
        "dataset": "pascal5i", "fold": 1, "sampling": "hsnet", "lists": "published",
        "mask_source": "published", "protocol": "hsnet-original", "fusion": "vote",
        "scored_at": "original size", "episodes": 1000, "seed": 0,
    }  # fmt: skip
    assert {key: summary[key] for key in expected} == expected
    assert list(summary["per_class"]) == [6, 7, 8, 9, 10]
    assert json.loads(out.read_text())["miou"] == summary["miou"] > 0


def test_fss1000_asks_each_test_image_once(tmp_path: Path) -> None:
    """Its square alone is scored."""
    (tmp_path / "splits" / "fss").mkdir(parents=True)
    classes = {"trn": "ab", "val": "cd", "test": "ef"}
    for part, letters in classes.items():
        (tmp_path / "splits" / "fss" / f"{part}.txt").write_text("\n".join(letters) + "\n")
    write_fss(tmp_path / "FSS", "abcdef")
    request = Request("fss1000", tmp_path / "FSS", tmp_path / "splits", shots=5)
    summary = evaluation.run(tiny_model(), "tiny", request, settings("joint"))
    assert (summary["episodes"], summary["fold"], len(summary["per_class"])) == (20, None, 2)
    with pytest.raises(UsageError, match="not defined for fss1000"):
        evaluation.run(tiny_model(), "tiny", request, settings("joint-original"))


def test_lvis_92i_asks_for_classes_in_turn(tmp_path: Path) -> None:
    """Matcher's 2,300 episodes, pooled by the classes of the fold."""
    write_lvis(tmp_path / "LVIS")
    request = Request("lvis92i", tmp_path, fold=2, shots=2)
    assert len(request.open(settings("joint"))[0]) == 2300
    request = dataclasses.replace(request, episodes=7)
    summary = evaluation.run(tiny_model(), "tiny", request, settings("joint-rounded"))
    assert (summary["episodes"], summary["fold"], summary["lists"]) == (7, 2, "published")
    assert (summary["fusion"], summary["pixels"], summary["sampling"]) == (
        "joint", "rounded", "hsnet",
    )  # fmt: skip
    assert list(summary["per_class"]) == list(Lvis(tmp_path, 2).classes(2, "val"))
    assert summary["undrawn_classes"] == []


def test_pascal_part_asks_for_objects(tmp_path: Path) -> None:
    """Rows name the object, and an episode has features of its own for each object of an image."""
    write_pascal_part(tmp_path)
    write_paco_part(tmp_path / "PACO-Part")
    assert len(Request("paco-part", tmp_path, fold=1).open(settings("joint"))[0]) == 2500
    request = Request("pascal-part", tmp_path, fold=0, shots=2, episodes=9)
    summary = evaluation.run(tiny_model(), "tiny", request, settings("joint-rounded"))
    assert (summary["episodes"], summary["fold"], summary["lists"]) == (9, 0, "published")
    assert list(summary["per_class"]) == [0, 1, 2, 3] and summary["undrawn_classes"] == []
    again = evaluation.run(tiny_model(), "tiny", request, settings("joint-rounded", batch_size=1))
    assert again["miou"] == summary["miou"]


def test_truncated_images_stop_or_are_skipped(
    voc: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By default an error with the file's name; else counted and named in the result."""
    root, splits = voc
    request = Request("pascal5i", root, splits, fold=0, episodes=40, seeds=(5,))
    first = evaluation.run(tiny_model(), "tiny", request, settings())
    episodes = request.open(settings())[0]
    name = episodes.key(3).query
    whole = (root / name).read_bytes()
    (root / name).write_bytes(whole[: len(whole) // 3])
    with pytest.raises(DataError, match=Path(name).name):
        evaluation.run(tiny_model(), "tiny", request, settings())
    summary = evaluation.run(tiny_model(), "tiny", request, settings(skip_bad=True))
    bad = [i for i in range(40) if name in episodes.key(i).names]
    assert [entry["episode"] for entry in summary["skipped"]] == bad and 3 in bad
    assert all(Path(name).name in entry["error"] for entry in summary["skipped"])
    assert summary["episode_hash"] == first["episode_hash"]


def test_an_interruption_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same call goes on to the result of an unbroken one."""
    one_by_one = settings(batch_size=1)
    whole = evaluation.run(tiny_model(), "tiny", GENERATED, one_by_one)
    original, asked = evaluation.ModelPredictor, []

    def stopping(*arguments: Any) -> Any:
        predict = original(*arguments)

        def answer(questions: Any) -> Any:
            asked.append(1)
            if len(asked) == 4:
                raise KeyboardInterrupt
            return predict(questions)

        return answer

    monkeypatch.setattr(evaluation, "ModelPredictor", stopping)
    out = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt, match="3 episodes are done and kept beside"):
        evaluation.run(tiny_model(), "tiny", GENERATED, one_by_one, out=out)
    assert names(tmp_path) == ["r.part0.jsonl"]
    resumed = evaluation.run(tiny_model(), "tiny", GENERATED, one_by_one, out=out)
    assert len(asked) == 4 + 3 and names(tmp_path) == ["r.episodes.jsonl", "r.json"]
    changing = {"seconds", "environment"}
    assert {k: v for k, v in resumed.items() if k not in changing} == {
        k: v for k, v in whole.items() if k not in changing
    }


def test_another_call_needs_another_file(tmp_path: Path) -> None:
    """Two results never mix, unless one is to be overwritten."""
    out = tmp_path / "r.json"
    evaluation.run(tiny_model(), "tiny", GENERATED, settings(), out=out)
    with pytest.raises(UsageError, match=r"differs in threshold\): pass another --out"):
        evaluation.run(tiny_model(), "tiny", GENERATED, settings(threshold=0.4), out=out)
    again = evaluation.run(
        tiny_model(), "tiny", GENERATED, settings(threshold=0.4), out=out, overwrite=True
    )
    assert json.loads(out.read_text())["threshold"] == again["threshold"] == 0.4


def test_the_bundled_model_on_its_own_classes_is_not_called_novel(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Folds 0 to 2 of the generated set trained it."""
    for fold, warned in ((3, False), (0, True)):
        caplog.clear()
        request = Request("procedural", fold=fold, episodes=1)
        evaluation.run(tiny_model(), "fsdino-tiny", request, settings())
        assert ("not one on novel classes" in caplog.text) == warned


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_that_cannot_be_meant(seeds: tuple[int, ...]) -> None:
    """None at all, or one twice, which would narrow the interval."""
    with pytest.raises(UsageError, match="seeds must be different numbers"):
        Request("procedural", seeds=seeds)


def test_davis(tmp_path: Path) -> None:
    """One command: masks, scores of each sequence, and the same result when it is done again."""
    write_davis(tmp_path / "DAVIS")
    out = tmp_path / "results" / "r.json"
    out.parent.mkdir()
    summary = evaluation.run_videos(
        tiny_model(), "tiny", tmp_path, settings(), out=out, videos=VideoSettings(1)
    )
    assert summary["dataset"] == "davis17" and summary["objects"] == 4 and summary["memory"] == 1
    assert set(summary["per_sequence"]) == {"bear", "dogs"}
    assert summary["j_and_f"] == pytest.approx((summary["j"] + summary["f"]) / 2)
    assert len(list((out.parent / "r" / "masks").rglob("*.png"))) == 6
    again = evaluation.run_videos(
        tiny_model(), "tiny", tmp_path, settings(), out=out, videos=VideoSettings(1)
    )
    assert again["per_sequence"] == summary["per_sequence"]
    with pytest.raises(UsageError, match="differs in memory"):
        evaluation.run_videos(tiny_model(), "tiny", tmp_path, settings(), out=out)
    overwritten = evaluation.run_videos(
        tiny_model(), "tiny", tmp_path, settings(), out=out, overwrite=True
    )
    assert overwritten["memory"] == 0 and overwritten["protocol"] == "first-frame"


def damaged_file(folder: Path) -> Path:
    """A part that would be an error if it were read."""
    part = folder / "r.part0.jsonl"
    part.write_text('{"format": "other"}\n')
    return part


def test_one_call_writes_a_result_at_a_time(tmp_path: Path) -> None:
    """The second one says who holds it, before it reads, removes or writes anything."""
    out, part = tmp_path / "r.json", damaged_file(tmp_path)
    with journal.lock(out):
        for arguments in ({}, {"overwrite": True}):
            with pytest.raises(UsageError, match=rf"r\.json is in use by process {os.getpid()} on"):
                evaluation.run(tiny_model(), "tiny", GENERATED, settings(), out=out, **arguments)
        with pytest.raises(UsageError, match="is in use by process"):
            # The data set is not looked for, either.
            evaluation.run_videos(tiny_model(), "tiny", tmp_path, settings(), out=out)
        assert part.read_text() == '{"format": "other"}\n'
        assert names(tmp_path) == ["r.lock", "r.lock.json", "r.part0.jsonl"]
    with pytest.raises(DataError, match="is not a file of episodes"):
        evaluation.run(tiny_model(), "tiny", GENERATED, settings(), out=out)
    assert names(tmp_path) == ["r.part0.jsonl"]


def test_a_result_is_held_to_the_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, rows and pictures are written under the lock, and then it is gone."""
    out, held = tmp_path / "r.json", []

    def watched(name: str, owner: Any) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            held.append((name, (tmp_path / "r.lock.json").exists()))
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    for name, owner in (
        ("open", Request), ("write", results), ("save", pictures),
        ("finish", journal.Journal),
    ):  # fmt: skip
        watched(name, owner)
    evaluation.run(tiny_model(), "tiny", GENERATED, settings(), out=out, pictures=1)
    assert dict(held) == dict.fromkeys(("open", "write", "save", "finish"), True)
    assert names(tmp_path) == ["r.episodes.jsonl", "r.json", "r.pictures"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError("x"), MemoryError])
def test_a_failed_call_lets_go_of_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    """Whatever ends it, the next one can begin."""

    def failing(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: failing())
    monkeypatch.setattr(evaluation, "evaluate_videos", lambda *_, **__: failing())
    write_davis(tmp_path / "DAVIS")
    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind):
        evaluation.run(tiny_model(), "tiny", GENERATED, settings(), out=tmp_path / "r.json")
    with pytest.raises(kind):
        evaluation.run_videos(tiny_model(), "tiny", tmp_path, settings(), out=tmp_path / "r.json")
    assert names(tmp_path) == ["DAVIS"]
    journal.lock(tmp_path / "r.json").release()


def test_names_that_cannot_be_results(tmp_path: Path) -> None:
    """Said before the work, not after it."""
    (tmp_path / "folder.json").mkdir()
    for out in (tmp_path / "folder.json", tmp_path):
        with pytest.raises(UsageError, match="is a folder: pass the name of a file"):
            evaluation.run(tiny_model(), "tiny", GENERATED, settings(), out=out)
    with pytest.raises(UsageError, match=r"masks go into a folder of that name; pass .*/r\.json"):
        evaluation.run_videos(tiny_model(), "tiny", tmp_path, settings(), out=tmp_path / "r")


def test_an_interruption_of_videos_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Videos that are done are not done again."""
    write_davis(tmp_path / "DAVIS")

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate_videos", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"finished videos are kept in .*; the same"):
        evaluation.run_videos(tiny_model(), "tiny", tmp_path, settings(), out=tmp_path / "r.json")
