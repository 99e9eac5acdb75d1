"""Videos: what the model is asked, how answers become object indices, and what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_sets import VOC_COLOURS, write_davis
from fsdino.data.davis import Davis
from fsdino.errors import DataError, UsageError
from fsdino.evaluation import video
from fsdino.evaluation.metrics import VideoScores
from fsdino.evaluation.video import VideoSettings, evaluate_videos, segment_video
from fsdino.models.segmenter import Segmenter
from tiny_models import tiny_model


@pytest.fixture
def davis(tmp_path: Path) -> Davis:
    write_davis(tmp_path / "DAVIS")
    return Davis(tmp_path)


def test_one_encoder_pass_for_each_frame(davis: Davis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two objects share it; a memory encodes each frame that enters it once more."""
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
    assert len(encoded) == 3 + 2


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


def test_memory_joins_the_masks_found(davis: Davis) -> None:
    """Frame 2 is answered from frame 0's annotation and frame 1's answer, as two shots."""
    model, bear = tiny_model(), davis.sequences()[0]
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
        assert torch.equal(found[name].masks[0], expected.masks[0])
        assert found[name].image_sizes == expected.image_sizes == ((40, 50),)


def test_memory_below_zero_is_refused() -> None:
    """It cannot be meant."""
    with pytest.raises(UsageError, match="memory must be at least 0"):
        VideoSettings(memory=-1)
