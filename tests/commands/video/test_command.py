"""`fsdino video`: what it prints, supports from the clip itself, bad input, and interruptions."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fsdino
from clip_files import box, break_frame, moving, write_clip
from command_line import error_line
from fsdino import cli
from fsdino.commands.video import work
from fsdino.models import segmentation
from fsdino.models.segmenter import Segmenter
from fsdino.models.video import track

FRAMES = moving(8)

pytestmark = pytest.mark.usefixtures("one_thread", "workplace")


@pytest.fixture(autouse=True)
def clip(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip with sound, masks of its frames 0 and 5; an untrained encoder finds everything."""
    monkeypatch.setattr(segmentation, "LEAST_SCORE", 0.0)
    write_clip(workplace / "clip.mov", FRAMES, sound=True)
    for k in (0, 5):
        Image.fromarray(box(k)).save(workplace / f"box{k}.png")


def video(*arguments: str, clip: str = "clip.mov") -> list[str]:
    found = ["video", clip, "--model", "model", "--device", "cpu", "--out", "out", *arguments]
    given = {"--support", "--at"} & set(arguments)
    return found if given else [*found, "--support", "a.png", "mask.png"]


def labels(out: str = "out") -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(Path(out, "masks").iterdir())]


def test_a_photograph_as_support(capsys: pytest.CaptureFixture[str]) -> None:
    """The masks of `track`; the words say where they are, and that the sound is left out."""
    assert cli.main(video("--memory", "2", "--threshold", "0.3")) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("quality of the support: ")
    assert printed[1:] == [
        "8 masks in out, and results.jsonl, overlay.mp4",
        "foreground: in 8 of 8 frames",
        "the sound of the clip is left out of overlay.mp4",
    ]
    model = fsdino.load("model")
    supports = {"foreground": model.encode_support(["a.png"], ["mask.png"])}
    expected = track(model, FRAMES, supports, memory=2, threshold=0.3)
    for found, result in zip(labels(), expected, strict=True):
        assert np.array_equal(found, np.where(result.mask, 255, 0))


def test_frames_of_the_clip_as_supports(capsys: pytest.CaptureFixture[str]) -> None:
    """By time and by number, beside a photograph; frames before them are segmented, too."""
    given = ["--support", "dog=a.png", "mask.png", "--at", "box=0:00.2", "box5.png"]
    assert cli.main(video(*given, "0f", "box0.png", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["frames"], [*found["quality"]]) == (8, ["dog", "box"])
    assert [*found["shown_in"]] == ["dog", "box"]
    assert found["files"] == ["out/results.jsonl", "out/overlay.mp4"]
    model = fsdino.load("model")
    supports = {
        "dog": model.encode_support(["a.png"], ["mask.png"]),
        "box": model.encode_support([FRAMES[5], FRAMES[0]], [box(5), box(0)]),
    }
    for found_labels, result in zip(labels(), track(model, FRAMES, supports), strict=True):
        assert np.array_equal(found_labels, result.labels)


def test_marked_frames_of_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes and points belong to the --at before them, wherever other options stand."""
    given = ["--at", "box=0f", "--memory", "0", "--box", "5,10,25,30", "--at", "box=5f"]
    given += ["--point", "20,20", "--not-point", "60,5", "--at", "ground=0f", "--point=30,40"]
    asked, encode = [], Segmenter.encode_support

    def watched(self, images, masks=None, **marks):
        asked.append((images, masks, marks))
        return encode(self, images, [box(0)] * len(images))  # an untrained encoder finds no object

    monkeypatch.setattr(Segmenter, "encode_support", watched)
    assert cli.main(video(*given, "--format", "png")) == 0
    [(images, masks, marks), (others, _, points)] = asked
    assert all(map(np.array_equal, images, (FRAMES[0], FRAMES[5]))) and masks == [None, None]
    assert marks["boxes"] == [((5, 10, 25, 30),), None]
    assert marks["points"] == [None, ((20, 20), (60, 5))] and marks["labels"] == [None, (1, 0)]
    assert np.array_equal(others, [FRAMES[0]]) and points["boxes"] == [None]
    assert (points["points"], points["labels"]) == ([((30, 40),)], [(1,)])


def test_a_folder_of_frames(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks have the frames' names. Without an overlay it needs no PyAV."""
    (workplace / "frames").mkdir()
    for k, frame in enumerate(FRAMES[:3]):
        Image.fromarray(frame).save(workplace / f"frames/{k:05d}.jpg")
    monkeypatch.setitem(sys.modules, "av", None)
    assert cli.main(video("--format", "png,coco", clip="frames")) == 0
    assert [p.name for p in sorted(Path("out/masks").iterdir())] == [
        "00000.png", "00001.png", "00002.png",
    ]  # fmt: skip
    images = json.loads(Path("out/annotations.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["00000.jpg", "00001.jpg", "00002.jpg"]


def test_ctrl_c_keeps_what_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 130, and one line with the way on; the same command does the rest."""
    assert cli.main(video("--json")) == 0
    whole = json.loads(capsys.readouterr().out)
    Path("out").rename("whole")
    segment, count = work.Tracker.segment, 0

    def interrupted(self, frame):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return segment(self, frame)

    monkeypatch.setattr(work.Tracker, "segment", interrupted)
    assert cli.main(video()) == 130
    assert error_line(capsys) == (
        "fsdino: interrupted: 3 frames are done and kept in out; the same command does the rest"
    )
    assert cli.main(video("--json")) == 0
    captured = capsys.readouterr()
    assert "3 frames are done already" in captured.err
    assert count == 4 + 5
    assert json.loads(captured.out) == whole
    files = [p for p in Path("whole").rglob("*") if p.is_file()]
    assert all((Path("out") / p.relative_to("whole")).read_bytes() == p.read_bytes() for p in files)


def test_a_broken_middle(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 and a sentence; the other frames' results are whole, also when asked again."""
    break_frame(Path("clip.mov"), 3)
    for _ in range(2):
        assert cli.main(video("--json")) == 1
        captured = capsys.readouterr()
        found = json.loads(captured.out)
        assert (found["frames"], found["damaged"]) == (7, 1)
        assert "1 damaged part of clip.mov skipped (after 0.0" in captured.err
        assert "the results of the other 7 frames are in out" in captured.err
    assert len(labels()) == 7 and Path("out/overlay.mp4").is_file()


def archive() -> None:
    with zipfile.ZipFile("clip.mov", "w") as file:
        file.writestr("a.txt", "hello")


@pytest.mark.parametrize(
    ("prepare", "arguments", "words", "code"),
    [
        (
            None,
            ["--at", "0:03", "box0.png"],
            "before 3 s: its last frame is at 0.28 s",
            2,
        ),
        (None, ["--at", "soon", "box0.png"], "'soon' is not a time: write seconds (3.5)", 2),
        (None, ["--at", "0:00"], "--at 0:00 has no mark: pass its mask", 2),
        (None, ["--at", "0:00", "none.png"], "no such file none.png", 2),
        (None, ["--at", "0:00", "mask.png"], "mask 1 (mask.png)", 2),
        (None, ["--at", "0f", "box0.png", "--support", "a.png", "mask.png"], "need names", 2),
        (None, ["--at", "0f", "--box", "1,2,3"], "--box '1,2,3': pass X0,Y0,X1,Y1 in pixels", 2),
        (None, ["--at", "0f", "--box", "-5,0,9,9"], "boxes of image 1: (-5, 0, 9, 9)", 2),
        (None, ["--at", "0f", "--not-point", "9,9"], "--not-point alone marks no object", 2),
        (None, ["--at", "0f", "box0.png", "--point", "9,9"], "has a mask, box0.png, and marks", 2),
        (None, ["--at", "0f", "--box", "1,1,9,9", "--point", "9,9"], "pass one kind of mark", 2),
        (None, ["--box", "1,1,9,9", "--at", "0f"], "--box 1,1,9,9 stands before", 2),
        (None, ["--from", "x"], "'x' is not a time", 2),
        (None, ["--from", "0:09"], "no frame lies between --from and --to", 1),
        (None, ["--from", "0:02", "--to", "0:01"], "--from 0:02 must lie before --to 0:01", 2),
        (None, ["--from", "5f", "--to", "5f"], "--from 5f must lie before --to 5f", 2),
        (None, ["--memory", "-1"], "--memory must be at least 0, got -1", 2),
        (None, ["--every", "0"], "--every must be at least 1, got 0", 2),
        (None, ["--format", "gif"], "--format 'gif' is unknown: choose from coco, overlay, png", 2),
        (archive, [], "this is not a video but an archive", 1),
        (lambda: Image.fromarray(FRAMES[0]).save("clip.mov", "PNG"), [], "this is an image", 1),
        (lambda: Path("clip.mov").unlink(), [], "no such file or folder", 2),
    ],
)
def test_bad_input_is_one_line(prepare, arguments, words, code, capsys) -> None:
    """Before anything is written, with what to do."""
    if prepare is not None:
        prepare()
    assert cli.main(video(*arguments)) == code
    assert words in error_line(capsys)
    assert not Path("out/results.jsonl").exists()


def test_without_pyav(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert cli.main(video()) == 1
    assert 'pip install "fsdino[video]"' in error_line(capsys)


def test_folders_of_others(capsys) -> None:
    """Files of another program are never touched; another call's only with --overwrite."""
    Path("out/masks").mkdir(parents=True)
    Path("out/masks/mine.png").write_text("mine")
    for more in ([], ["--overwrite"]):
        assert cli.main(video(*more)) == 2
        assert "has masks of another program: pass another --out" in error_line(capsys)
    assert Path("out/masks/mine.png").read_text() == "mine"
    Path("out/masks/mine.png").unlink()
    assert cli.main(video("--format", "png,coco")) == 0
    Path("out/masks/mine.png").write_text("mine")
    capsys.readouterr()
    again = video("--every", "3")
    assert cli.main(again) == 2
    assert (
        "(it differs in every, formats, min_area, split): pass another --out, or --overwrite"
        in (error_line(capsys))
    )
    assert cli.main([*again, "--overwrite"]) == 0
    names = sorted(p.name for p in Path("out/masks").iterdir())
    assert names == ["000000.png", "000003.png", "000006.png", "mine.png"]
    assert not Path("out/annotations.json").exists()
