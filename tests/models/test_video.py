"""Tracking: one encoder pass a frame, what the memory holds, and going on after an interruption."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from clip_files import box, moving
from fsdino.errors import DataError, UsageError
from fsdino.models import segmentation
from fsdino.models.fsdino import FSDINO
from fsdino.models.segmenter import Segmenter
from fsdino.models.supports import Support
from fsdino.models.video import Tracker, track
from tiny_models import picture, tiny_model

FRAMES = moving(5)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["full", "training_free"])
def model(request: pytest.FixtureRequest) -> FSDINO:
    return tiny_model(variant=request.param)


@pytest.fixture
def supports(model: FSDINO, monkeypatch: pytest.MonkeyPatch) -> dict[str, Support]:
    """Two objects: the box, and what lies below it. Nothing is too unclear to be found."""
    monkeypatch.setattr(segmentation, "LEAST_SCORE", 0.0)  # an untrained encoder tells little
    ground = np.zeros((48, 64), bool)
    ground[34:] = True
    return model.encode_objects(FRAMES[0], {"box": box(0), "ground": ground})


def test_one_encoder_pass_a_frame(
    model: FSDINO, supports: dict[str, Support], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all objects together, with a memory; and no frame is read before its turn."""
    encoded, drawn = [], []
    encode = Segmenter.encode_list
    monkeypatch.setattr(
        Segmenter,
        "encode_list",
        lambda self, images: encoded.extend(images) or encode(self, images),
    )

    def frames() -> Iterator[np.ndarray]:
        for frame in FRAMES:
            drawn.append(frame)
            yield frame

    for count, found in enumerate(track(model, frames(), supports, memory=2), 1):
        assert len(encoded) == len(drawn) == count
        assert found.names == ("box", "ground")
    assert count == 5


def test_without_memory_frames_are_answered_alone(
    model: FSDINO, supports: dict[str, Support]
) -> None:
    found = [*track(model, FRAMES, supports, threshold=0.4)]
    for frame, result in zip(FRAMES, found, strict=True):
        assert result.same_as(model.segment(frame, supports, threshold=0.4))


def test_the_memory_is_the_last_frames_with_their_masks(
    model: FSDINO, supports: dict[str, Support]
) -> None:
    """Frame 4 is answered as by supports of frames 0, 2 and 3 that were encoded for themselves."""
    found = [*track(model, FRAMES, supports, memory=2, threshold=0.3)]
    ground = np.zeros((48, 64), bool)
    ground[34:] = True
    first = {"box": box(0), "ground": ground}
    expected = {}
    for place, name in enumerate(supports, 1):
        masks = [found[k].labels == place for k in (2, 3)]
        kept = [(FRAMES[k], mask) for k, mask in zip((2, 3), masks, strict=True) if mask.any()]
        images = [FRAMES[0], *(image for image, _ in kept)]
        expected[name] = model.encode_support(images, [first[name], *(mask for _, mask in kept)])
    assert max(support.shots for support in expected.values()) == 3
    assert found[4].same_as(model.segment(FRAMES[4], expected, threshold=0.3))


def test_remembered_frames_restore_the_memory(model: FSDINO, supports: dict[str, Support]) -> None:
    """A tracker that is told the last frames' labels answers the next ones alike, to the bit."""
    whole = [*track(model, FRAMES, supports, memory=2, threshold=0.3)]
    tracker = Tracker(model, supports, memory=2, threshold=0.3)
    for k in (1, 2):
        tracker.remember(FRAMES[k], whole[k].labels)
    for k in (3, 4):
        assert tracker.segment(FRAMES[k]).same_as(whole[k])


def test_an_object_that_leaves_does_not_join(model: FSDINO, supports: dict[str, Support]) -> None:
    """Its support stays as it was, whatever the frames without it show."""
    tracker = Tracker(model, supports, memory=3)
    tracker.remember(picture(48, 64), np.zeros((48, 64), np.uint8))
    assert tracker.segment(FRAMES[1]).same_as(model.segment(FRAMES[1], supports))


def test_supports_from_other_photographs_and_frames_of_any_size(model: FSDINO) -> None:
    support = model.encode_support([picture(50, 60, 1)], [box(0, 50, 60)])
    frames = [FRAMES[0], picture(30, 40), FRAMES[1]]
    found = [*track(model, frames, {"thing": support}, memory=1)]
    assert [result.labels.shape for result in found] == [(48, 64), (30, 40), (48, 64)]


def test_bad_input(model: FSDINO, supports: dict[str, Support]) -> None:
    """At the call, before a frame is drawn; a bad frame when its turn comes, and no later."""
    with pytest.raises(UsageError, match="memory must be at least 0, got -1"):
        track(model, FRAMES, supports, memory=-1)
    with pytest.raises(UsageError, match="no support given"):
        track(model, FRAMES, {})
    with pytest.raises(UsageError, match="threshold must lie between 0 and 1"):
        track(model, FRAMES, supports, threshold=1.0)
    with pytest.raises(UsageError, match="made by another model"):
        track(tiny_model(5), FRAMES, supports)
    tracker = Tracker(model, supports, memory=1)
    with pytest.raises(UsageError, match=r"labels \[3, 4\] of a frame \[48, 64\]"):
        tracker.remember(FRAMES[0], np.zeros((3, 4), np.uint8))
    with pytest.raises(DataError, match="frame"):
        tracker.segment(b"no image")
    assert tracker.segment(FRAMES[1]).same_as(model.segment(FRAMES[1], supports))
