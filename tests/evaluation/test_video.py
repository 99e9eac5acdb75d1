"""Videos: what the model is asked, how answers become object indices, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_sets import VOC_COLOURS, save_labels, write_davis
from fsdino.data.davis import Davis
from fsdino.errors import DataError, UsageError
from fsdino.evaluation import video
from fsdino.evaluation.metrics import VideoScores
from fsdino.evaluation.video import VideoSettings, evaluate_videos, segment_video
from fsdino.models import segmentation
from fsdino.models.segmenter import Segmenter
from tiny_models import tiny_model


@pytest.fixture
def davis(tmp_path: Path) -> Davis:
    write_davis(tmp_path / "DAVIS")
    return Davis(tmp_path)


def test_one_encoder_pass_for_each_frame(davis: Davis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two objects share it, and so does the memory."""
    model, bear, encoded = tiny_model(), davis.sequences()[0], []
    encode = Segmenter.encode_list
    monkeypatch.setattr(
        Segmenter,
        "encode_list",
        lambda self, images: encoded.extend(images) or encode(self, images),
    )
    list(segment_video(model, bear, VideoSettings()))
    assert len(encoded) == 3
    encoded.clear()
    list(segment_video(model, bear, VideoSettings(memory=2)))
    assert len(encoded) == 3


def test_labels_are_those_of_segment(davis: Davis) -> None:
    """Frame 0 is the annotation; later ones are N-way answers, by the objects' own indices."""
    model, bear = tiny_model(), davis.sequences()[0]
    first = bear.annotation(0)
    supports = {str(n): model.encode_support(bear.frame(0), first == n) for n in (1, 2)}
    found = dict(segment_video(model, bear, VideoSettings(threshold=0.3)))
    assert np.array_equal(found[0], first)
    for index in (1, 2):
        expected = model.segment(bear.frame(index), supports, threshold=0.3).labels
        assert np.array_equal(found[index], expected) and found[index].dtype == np.uint8
        assert expected.any()


@pytest.mark.parametrize("variant", ["full", "training_free"])
def test_memory_joins_the_masks_found(
    davis: Davis, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frame 2 is answered from frame 0's annotation and frame 1's answer, as two shots."""
    monkeypatch.setattr(segmentation, "LEAST_SCORE", 0.0)  # an untrained encoder tells little
    model, bear = tiny_model(variant=variant), davis.sequences()[0]
    found = dict(segment_video(model, bear, VideoSettings(memory=1, threshold=0.3)))
    frames, labels = [bear.frame(0), bear.frame(1)], [bear.annotation(0), found[1]]
    supports = {
        str(n): model.encode_support(
            [f for f, label in zip(frames, labels, strict=True) if (label == n).any()],
            [label == n for label in labels if (label == n).any()],
        )
        for n in (1, 2)
    }
    assert max(support.shots for support in supports.values()) == 2
    expected = model.segment(bear.frame(2), supports, threshold=0.3).labels
    assert np.array_equal(found[2], expected)


def test_masks_have_the_official_layout(davis: Davis, tmp_path: Path) -> None:
    """NAME/00000.png, palette images of object indices in the annotations' colours."""
    out = tmp_path / "out"
    evaluate_videos(tiny_model(), davis.sequences(), VideoSettings(), out, {})
    files = sorted(str(p.relative_to(out / "masks")) for p in (out / "masks").rglob("*.png"))
    assert files == [f"{name}/{i:05d}.png" for name in ("bear", "dogs") for i in range(3)]
    with Image.open(out / "masks" / "bear" / "00000.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.array(image), davis.sequences()[0].annotation(0))
        assert image.getpalette()[:9] == list(VOC_COLOURS)[:9]


def test_a_perfect_model_scores_100(
    davis: Davis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every object of every sequence; the truth is read again for the score."""
    monkeypatch.setattr(
        video, "segment_video",
        lambda model, video, settings: ((i, video.annotation(i)) for i in range(len(video))),
    )  # fmt: skip
    seen = []
    scores = evaluate_videos(
        tiny_model(), davis.sequences(), VideoSettings(), tmp_path / "out", {},
        report=lambda done, total, value: seen.append((done, total, value)),
    )  # fmt: skip
    assert scores.total() == {"j": 100, "f": 100, "j_and_f": 100}
    assert len(scores.per_object()) == 4 and set(scores.per_sequence()) == {"bear", "dogs"}
    assert seen[0] == (0, 6, None) and seen[-1] == (6, 6, 100)


def test_finished_videos_are_not_done_again(
    davis: Davis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted run goes on with the video that it was in, to the same scores."""
    model, whole = tiny_model(), tmp_path / "whole"
    expected = evaluate_videos(model, davis.sequences(), VideoSettings(), whole, {"model": "a"})
    asked: list[str] = []
    original = video.segment_video

    def watched(model, sequence, settings):
        asked.append(sequence.name)
        if asked == ["bear", "dogs"]:
            raise KeyboardInterrupt
        return original(model, sequence, settings)

    monkeypatch.setattr(video, "segment_video", watched)
    arguments = (model, davis.sequences(), VideoSettings(), tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        evaluate_videos(*arguments, {"model": "a"})
    scores = evaluate_videos(*arguments, {"model": "a"})
    assert asked == ["bear", "dogs", "dogs"]
    assert isinstance(scores, VideoScores) and scores.frames == expected.frames
    with pytest.raises(UsageError, match=r"another call \(it differs in model\): pass another"):
        evaluate_videos(*arguments, {"model": "b"})
    (tmp_path / "out" / "scores" / "bear.json").write_text("[]")
    with pytest.raises(DataError, match="damaged"):
        evaluate_videos(*arguments, {"model": "a"})


def test_gaps_in_the_indices_are_not_objects(
    davis: Davis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official code counts index 2 as an object that scores 1; so do we, by name."""
    [bear] = davis.sequences()[:1]
    for path in bear.annotations:
        with Image.open(path) as image:
            labels = np.array(image)
        save_labels(path, np.where(labels == 2, 3, labels).astype(np.uint8), VOC_COLOURS)
    monkeypatch.setattr(
        video, "segment_video",
        lambda model, video, settings: (
            (i, np.where(video.annotation(i) == 3, 0, video.annotation(i)))
            for i in range(len(video))
        ),
    )  # fmt: skip
    scores = evaluate_videos(tiny_model(), [bear], VideoSettings(), tmp_path / "out", {})
    assert scores.per_object() == {("bear", 1): (100, 100), ("bear", 3): (0, 0)}
    assert scores.total() == {"j": 50, "f": 50, "j_and_f": 50}
    official = VideoSettings(official=True)
    scores = evaluate_videos(tiny_model(), [bear], official, tmp_path / "official", {})
    assert scores.per_object() == {
        ("bear", 1): (100, 100),
        ("bear", 2): (100, 100),
        ("bear", 3): (0, 0),
    }
    assert scores.total()["j_and_f"] == pytest.approx(200 / 3)
    again = evaluate_videos(tiny_model(), [bear], official, tmp_path / "official", {})
    assert again.frames == scores.frames


GOOD = [0.5, 0.25]
OBJECTS = {1: {"0": GOOD, "1": GOOD, "2": GOOD}, 2: {"0": GOOD, "1": GOOD, "2": GOOD}}


def kept(**changes: Any) -> Any:
    """Scores of the video "bear" as they are kept, with changes."""
    frames = [["bear", number, found] for number, found in OBJECTS.items()]
    return {"call": {"model": "a"}, "frames": frames, **changes}


def first(found: Any) -> Any:
    return [["bear", 1, found], ["bear", 2, OBJECTS[2]]]


DAMAGED_SCORES = {
    "no JSON": b"\0\0\0",
    "deep": b"[" * 100_000,
    "no call": kept(call=None),
    "no frames": kept(frames=...),
    "frames of another type": kept(frames={"a": 1}),
    "an object that is missing": kept(frames=[["bear", 1, OBJECTS[1]]]),
    "another video": kept(frames=[["dogs", 1, OBJECTS[1]], ["bear", 2, OBJECTS[2]]]),
    "a frame that is missing": kept(frames=first({"0": GOOD, "2": GOOD})),
    "a frame too many": kept(frames=first({**OBJECTS[1], "3": GOOD})),
    "a number for scores": kept(frames=first({**OBJECTS[1], "1": 0.5})),
    "text for a score": kept(frames=first({**OBJECTS[1], "1": ["a", 0.5]})),
    "a score above 1": kept(frames=first({**OBJECTS[1], "1": [1.5, 0.5]})),
    "not a number": kept(frames=first({**OBJECTS[1], "1": [float("nan"), 0.5]})),
    "scores in a list": kept(frames=first([GOOD] * 3)),
}


@pytest.mark.parametrize("damage", DAMAGED_SCORES)
def test_damaged_scores_are_named(davis: Davis, tmp_path: Path, damage: str) -> None:
    """They would move J&F without a word, or end in an error of Python's own."""
    path = tmp_path / "out" / "scores" / "bear.json"
    path.parent.mkdir(parents=True)
    content = DAMAGED_SCORES[damage]
    if isinstance(content, dict):
        content = json.dumps({k: v for k, v in content.items() if v is not ...}).encode()
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bear\.json is damaged.*: pass another --out, or --over"):
        evaluate_videos(
            tiny_model(), davis.sequences()[:1], VideoSettings(), tmp_path / "out", {"model": "a"}
        )
    path.write_text(json.dumps(kept()))
    scores = evaluate_videos(
        tiny_model(), davis.sequences()[:1], VideoSettings(), tmp_path / "out", {"model": "a"}
    )
    assert scores.total() == {"j": 50, "f": 25, "j_and_f": 37.5}


def test_objects_of_one_image_are_encoded_together() -> None:
    """`encode_objects` gives the supports that one call of `encode_support` each gives."""
    model = tiny_model()
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    masks = {name: np.zeros((40, 50), bool) for name in "ab"}
    masks["a"][5:20, 5:20] = masks["b"][22:35, 10:45] = True
    found = model.encode_objects(image, masks)
    for name, mask in masks.items():
        expected = model.encode_support(image, mask)
        assert torch.equal(found[name].foreground, expected.foreground)
        assert torch.equal(found[name].masks[0][0], expected.masks[0][0])
        assert found[name].image_sizes == expected.image_sizes == ((40, 50),)


def test_memory_below_zero_is_refused() -> None:
    """The error names the range."""
    with pytest.raises(UsageError, match="memory must be at least 0"):
        VideoSettings(memory=-1)
