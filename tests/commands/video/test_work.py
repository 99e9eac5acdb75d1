"""`segment_clip`: what it writes, and that an interrupted run gives what a whole one gives."""

from __future__ import annotations

import gc
import itertools
import json
import shutil
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from clip_files import box, break_frame, moving, write_clip
from fsdino.clips import Clip, ClipInfo, Damage, Frame, Moment, open_clip
from fsdino.commands.video import output, work
from fsdino.commands.video.formats import VideoFormats
from fsdino.commands.video.plan import Plan
from fsdino.errors import DataError, UsageError
from fsdino.models import segmentation
from fsdino.models.fsdino import FSDINO
from fsdino.models.segmentation import Segmentation
from fsdino.models.segmenter import Segmenter
from fsdino.models.supports import Support
from fsdino.models.video import track
from tiny_models import tiny_model
from video_work import BOTH, content, run

FRAMES = moving(11)
TIMES = [Fraction(k, 25) + (Fraction(3, 10) if k > 6 else 0) for k in range(11)]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> FSDINO:
    return tiny_model()


@pytest.fixture(scope="module")
def supports(model: FSDINO) -> dict[str, Support]:
    ground = np.zeros((48, 64), bool)
    ground[34:] = True
    return model.encode_objects(FRAMES[0], {"box": box(0), "ground": ground})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mov", FRAMES, TIMES, sound=True)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of four frames; nothing is too unclear to be found by an untrained encoder."""
    monkeypatch.setattr(output, "PART", 4)
    monkeypatch.setattr(segmentation, "LEAST_SCORE", 0.0)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with every image that a model encodes."""
    found: list[object] = []
    encode = Segmenter.encode_list

    def watched(self, images):
        found.extend(images)
        return encode(self, images)

    monkeypatch.setattr(Segmenter, "encode_list", watched)
    return found


def test_masks_are_those_of_track(model, supports, clip, tmp_path: Path) -> None:
    """Each frame's labels in an indexed PNG; a row with its time and shares."""
    summary = run(model, supports, clip, tmp_path / "out", memory=2)
    expected = [r.labels for r in track(model, FRAMES, supports, memory=2, threshold=0.3)]
    rows = [json.loads(x) for x in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert [row["time"] for row in rows] == [float(time) for time in TIMES]
    assert len(list((tmp_path / "out/masks").iterdir())) == 11
    for k, (row, labels) in enumerate(zip(rows, expected, strict=True)):
        assert (row["frame"], row["mask"]) == (k, f"masks/{k:06d}.png")
        with Image.open(tmp_path / "out" / row["mask"]) as mask:
            assert mask.mode == "P" and np.array_equal(np.asarray(mask), labels)
        assert row["classes"]["box"] == pytest.approx((labels == 1).mean(), abs=1e-6)
    shown = {name: sum((r == n).any() for r in expected) for n, name in ((1, "box"), (2, "ground"))}
    assert summary == {
        "frames": 11, "from": 0.0, "to": 0.7, "size": [48, 64], "rate": summary["rate"],
        "shown_in": shown, "damaged": 0, "damage": "", "sound": True,
    }  # fmt: skip
    names = {"annotations.json", "masks", "overlay.mp4", "results.jsonl", "summary.json"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names | {"video.json"}


def test_the_overlay_video(model, supports, clip, tmp_path: Path) -> None:
    """Every frame at its own time, coloured where its mask is."""
    run(model, supports, clip, tmp_path / "out")
    found = list(open_clip(tmp_path / "out/overlay.mp4").frames())
    assert [float(frame.time) for frame in found] == pytest.approx([float(t) for t in TIMES])
    for frame, result in zip(found, track(model, FRAMES, supports, threshold=0.3), strict=True):
        drawn, expected, plain = (
            pixels.mean(2) for pixels in (frame.pixels, np.asarray(result.overlay()), result.image)
        )  # without colours, of which the video has a quarter of the pixels
        assert np.abs(drawn - expected).mean() < np.abs(drawn - plain).mean() / 3


def test_coco_annotations(model, supports, clip, tmp_path: Path) -> None:
    """pycocotools finds every pixel of the labels, and each frame is an image with its time."""
    run(model, supports, clip, tmp_path / "out")
    coco = COCO(str(tmp_path / "out/annotations.json"))
    images = [coco.imgs[number] for number in range(1, 12)]
    assert [image["time"] for image in images] == [float(time) for time in TIMES]
    assert [image["file_name"] for image in images] == [f"{k:06d}.png" for k in range(11)]
    assert sorted(coco.anns) == [*range(1, len(coco.anns) + 1)]
    results = track(model, FRAMES, supports, threshold=0.3)
    for image, result in zip(images, results, strict=True):
        drawn = np.zeros((48, 64), int)
        for annotation in coco.imgToAnns[image["id"]]:
            drawn[coco.annToMask(annotation) > 0] = annotation["category_id"]
        assert np.array_equal(drawn, result.labels)
    assert {c["id"]: c["name"] for c in coco.dataset["categories"]} == {1: "box", 2: "ground"}


@pytest.mark.parametrize("stops", [(1,), (4,), (6, 7), (3, 9), (11,)])
def test_interrupted_runs_give_the_same_files(
    model, supports, clip, tmp_path: Path, stops: tuple[int, ...], encoded: list[object]
) -> None:
    """No frame is segmented twice; the memory costs its own frames again, once a run."""
    run(model, supports, clip, tmp_path / "whole", memory=2)
    done = 0
    for stop in (*stops, None):
        encoded.clear()
        # The first step of a run that goes on tells what is done.
        steps = None if stop is None else stop - done + (1 if done else 0)
        run(model, supports, clip, tmp_path / "out", memory=2, stop=steps)
        now = 11 if stop is None else stop
        assert len(encoded) == now - done + min(done, 2)
        done = now
        hidden = [p for p in (tmp_path / "out").rglob(".fsdino-*")]
        assert not hidden
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_killed_run_gives_the_same_files(model, supports, clip, tmp_path: Path) -> None:
    """Whatever is on disk at any moment is enough, torn lines and cut masks included."""
    whole = run(model, supports, clip, tmp_path / "whole", memory=1)
    steps = work.segment_clip(model, supports, clip, tmp_path / "out", Plan(1, threshold=0.3), BOTH)
    for count in range(1, 12):
        next(steps)
        shutil.copytree(tmp_path / "out", tmp_path / f"killed-{count}")
    steps.close()
    journal = tmp_path / "killed-2/parts/000000.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    mask = tmp_path / "killed-7/masks/000005.png"
    mask.write_bytes(mask.read_bytes()[:30])
    for count in (2, 4, 7, 11):
        assert run(model, supports, clip, tmp_path / f"killed-{count}", memory=1) == whole
        found = content(tmp_path / f"killed-{count}")
        left = {n for n in found if "/.fsdino-" in n or n.startswith("video.lock")}
        assert {n: c for n, c in found.items() if n not in left} == content(tmp_path / "whole")


def test_an_interruption_while_parts_are_joined(
    model, supports, clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[object]
) -> None:
    """Nothing is segmented again."""
    run(model, supports, clip, tmp_path / "whole")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(output, "join_videos", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"11 frames are done and kept in .*out; "):
            run(model, supports, clip, tmp_path / "out")
    encoded.clear()
    run(model, supports, clip, tmp_path / "out")
    assert not encoded
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_finished_run_does_nothing(model, supports, clip, tmp_path, encoded) -> None:
    """It says again what it found. A result that was removed is made again."""
    first = run(model, supports, clip, tmp_path / "out")
    before = content(tmp_path / "out")
    encoded.clear()
    (tmp_path / "out/parts").mkdir()  # as a kill after the summary leaves it
    assert run(model, supports, clip, tmp_path / "out") == first and not encoded
    assert not (tmp_path / "out/parts").exists()
    (tmp_path / "out/overlay.mp4").unlink()
    assert run(model, supports, clip, tmp_path / "out") == first
    assert content(tmp_path / "out") == before


def test_damaged_frames_are_counted_also_after_an_interruption(
    model, supports, tmp_path: Path
) -> None:
    path = write_clip(tmp_path / "clip.mov", FRAMES)
    break_frame(path, 1)
    run(model, supports, path, tmp_path / "out", stop=6)
    summary = run(model, supports, path, tmp_path / "out")
    assert (summary["frames"], summary["damaged"]) == (10, 1)
    assert summary["damage"].startswith("after 0.0")


def test_which_frames(model, supports, clip, tmp_path: Path) -> None:
    """--every counts the clip's frames; a video that begins later begins at 0."""
    plan = {"every": 2, "begin": Moment.parse("0.05"), "end": Moment.parse("9f")}
    summary = run(model, supports, clip, tmp_path / "out", **plan)
    assert sorted(p.stem for p in (tmp_path / "out/masks").iterdir()) == [
        f"{k:06d}" for k in (2, 4, 6, 8)
    ]
    assert (summary["frames"], summary["from"], summary["to"]) == (4, 0.08, 0.62)
    times = [float(frame.time) for frame in open_clip(tmp_path / "out/overlay.mp4").frames()]
    assert times == pytest.approx([0, 0.08, 0.16, 0.54])
    assert run(model, supports, clip, tmp_path / "few", most=3)["frames"] == 3
    with pytest.raises(DataError, match="no frame lies between"):
        run(model, supports, clip, tmp_path / "none", begin=Moment.parse("0:09"))


def test_another_call_is_refused(model, supports, clip, tmp_path: Path) -> None:
    run(model, supports, clip, tmp_path / "out", stop=2)
    with pytest.raises(UsageError, match=r"another call \(it differs in memory\): pass another"):
        run(model, supports, clip, tmp_path / "out", memory=3)
    with pytest.raises(UsageError, match=r"\(it differs in support\)"):
        run(model, {"box": supports["ground"]}, clip, tmp_path / "out")
    clip = write_clip(tmp_path / "clip.mov", FRAMES[:5])
    with pytest.raises(UsageError, match=r"\(it differs in clip\)"):
        run(model, supports, clip, tmp_path / "out")


class Generated(Clip):
    """Frames of 8 x 8 pixels that nobody keeps."""

    def __init__(self, count: int) -> None:
        self.path, self.count = Path("generated"), count
        self.info = ClipInfo((8, 8), 25, count, None, Fraction(1, 25), False)

    def frames(self, damage: Damage | None = None) -> Iterator[Frame]:
        for k in range(self.count):
            pixels = np.full((8, 8, 3), k % 256, np.uint8)
            yield Frame(k, Fraction(k, 25), f"{k:06d}.png", lambda pixels=pixels: pixels)

    def stamp(self) -> list[int]:
        return [self.count]


class Instant:
    """In the place of `Tracker`: an answer without a model."""

    memory = 0

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def segment(self, frame: np.ndarray) -> Segmentation:
        maps = np.zeros((1, 8, 8), np.float32)
        maps[0, 2:5, 3:6] = 1
        return Segmentation(frame, maps, ("box",), 0.5, (1.0,))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(
    model, supports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five times the frames take no more memory at the peak, from the first one to the files."""
    monkeypatch.setattr(output, "PART", 20)
    monkeypatch.setattr(work, "Tracker", Instant)
    monkeypatch.setattr(output.files, "_sync", lambda path: None)  # the disk is not the subject

    def peak(count: int) -> int:
        clip, folder = Generated(count), tmp_path / str(count)
        tracemalloc.start()
        try:
            made = output.Output(folder, {}, ["box"], BOTH)
            for step in work.work(model, {"box": supports["box"]}, clip, made, Plan()):
                last = step
            made.close()
            assert last.summary is not None and last.summary["frames"] == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # Pillow's images are cycles, which are collected at once; a full collection would also empty
    # Python's own lists of free objects, which the first run fills.
    before = gc.get_threshold()
    gc.set_threshold(20, 10**6, 10**6)
    try:
        peak(200)
        few, many = peak(60), peak(300)
    finally:
        gc.set_threshold(*before)
    assert many - few < 150_000, f"{many - few} bytes for 240 frames more"


def test_formats_without_a_video(model, supports, clip, tmp_path: Path) -> None:
    """Masks alone need no writer of videos, and parts are whole without one."""
    formats = VideoFormats.parse("png")
    for stop in (6, None):
        steps = work.segment_clip(model, supports, clip, tmp_path / "out", formats=formats)
        *_, last = itertools.islice(steps, stop)
        steps.close()
    assert last.summary["frames"] == 11
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"masks", "results.jsonl", "summary.json", "video.json"}
