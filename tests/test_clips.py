"""Clips: which frame is shown when, turned upright, and what is not a video."""

from __future__ import annotations

import sys
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_files import break_frame, moving, turn, write_clip
from fsdino.clips import Damage, Moment, open_clip
from fsdino.errors import DataError, FsdinoError, UsageError

FRAMES = moving(6)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames, the last three at irregular times."""
    times = [Fraction(t, 100) for t in (0, 4, 8, 30, 31, 60)]
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mov", FRAMES, times, sound=True)


def shown(path: Path, moment: str) -> int:
    """The number of the frame at a moment."""
    pixels = open_clip(path).frame_at(Moment.parse(moment))[1]
    [number] = [k for k, frame in enumerate(FRAMES) if np.array_equal(frame, pixels)]
    return number


def test_frames_come_in_order_with_their_times(clip: Path) -> None:
    found = list(open_clip(clip).frames())
    assert [float(frame.time) for frame in found] == [0, 0.04, 0.08, 0.3, 0.31, 0.6]
    assert [frame.index for frame in found] == [*range(6)]
    assert [frame.image for frame in found] == [f"{k:06d}.png" for k in range(6)]
    for frame, expected in zip(found, FRAMES, strict=True):
        assert np.array_equal(frame.pixels, expected) and frame.pixels.flags.c_contiguous
    info = open_clip(clip).info
    assert (info.size, info.frames, info.audio) == ((48, 64), 6, True)


def test_a_clip_says_what_it_is(clip: Path, tmp_path: Path) -> None:
    """One line with its name, its size, and its frames, if the file says how many."""
    assert repr(open_clip(clip)) == f"Clip({clip.name}, 48x64, 6 frames, {6 / 0.64:.4g} a second)"
    Image.fromarray(FRAMES[0]).save(tmp_path / "0.png")
    assert repr(open_clip(tmp_path)) == f"Clip({tmp_path.name}, 48x64, 1 frame, 25 a second)"


def test_moments(clip: Path) -> None:
    """A frame is shown until the next one begins; numbers count frames."""
    at = {
        "0": 0,
        "0:00.04": 1,
        "0.0799": 1,
        "0.29": 2,
        "0:00:00.305": 3,
        "0.6": 5,
        "5f": 5,
        "2f": 2,
    }
    assert {moment: shown(clip, moment) for moment in at} == at
    assert Moment.parse("1:02:03.25") == Moment(seconds=Fraction(3723) + Fraction(1, 4))
    assert Moment.parse("0:03") == Moment(seconds=Fraction(3))
    assert Moment.parse("90f") == Moment(frame=90)
    for text in ("3s", "", "1:2:3:4", "-1", "nan", "f", "0:"):
        with pytest.raises(UsageError, match="is not a time: write seconds"):
            Moment.parse(text)


def test_a_moment_after_the_end(clip: Path) -> None:
    for moment in ("0:03", "6f"):
        with pytest.raises(UsageError, match=r"has ended before .*: its last frame is at 0\.60 s"):
            open_clip(clip).frame_at(Moment.parse(moment))


def test_moments_in_a_clip_with_few_keyframes(tmp_path: Path) -> None:
    """A decoder begins at a keyframe before: the frame is the one that decoding in order gives."""
    path = write_clip(tmp_path / "clip.mp4", moving(40), codec="mpeg4")
    every = [(frame.time, frame.pixels) for frame in open_clip(path).frames()]
    for number in (0, 13, 39):
        time, pixels = open_clip(path).frame_at(Moment(seconds=Fraction(number, 25)))
        assert time == every[number][0] and np.array_equal(pixels, every[number][1])


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotation_is_applied(tmp_path: Path, quarters: int) -> None:
    """As phones state it: clockwise by quarter turns."""
    path = write_clip(tmp_path / "clip.mov", FRAMES[:1])
    turn(path, quarters)
    opened = open_clip(path)
    expected = np.rot90(FRAMES[0], -quarters)
    assert np.array_equal(next(opened.frames()).pixels, expected)
    assert opened.info.size == expected.shape[:2]


def test_a_folder_of_frames(tmp_path: Path) -> None:
    """In the order of names; an unreadable image is skipped and noted, and the others keep their
    numbers."""
    for k in (2, 0, 1, 3):
        Image.fromarray(FRAMES[k]).save(tmp_path / f"{k:05d}.png")
    (tmp_path / "00001.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("hello")
    damage = Damage()
    found = list(open_clip(tmp_path).frames(damage))
    assert [(frame.index, frame.image) for frame in found] == [
        (k, f"{k:05d}.png") for k in (0, 2, 3)
    ]
    assert all(np.array_equal(frame.pixels, FRAMES[frame.index]) for frame in found)
    assert damage.count == 1 and "00001.png" in damage.first
    info = open_clip(tmp_path).info
    assert (info.size, info.rate, info.frames, info.audio) == ((48, 64), 25, 4, False)


def test_frames_whose_masks_would_have_one_name(tmp_path: Path) -> None:
    for name in ("a.png", "A.jpg"):
        Image.fromarray(FRAMES[0]).save(tmp_path / name)
    with pytest.raises(UsageError, match=r"A\.jpg and a\.png are one name without endings"):
        open_clip(tmp_path)


def test_a_broken_middle_is_skipped_and_noted(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mov", FRAMES)
    break_frame(path, 2)
    damage = Damage()
    found = [frame.pixels for frame in open_clip(path).frames(damage)]
    assert len(found) == 5 and all(map(np.array_equal, found, FRAMES[:2] + FRAMES[3:]))
    assert damage.count == 1 and damage.first.startswith("after 0.0")


def test_a_clip_that_was_cut_off(tmp_path: Path) -> None:
    """What a recorder had written when its battery died, in a format that allows it."""
    path = write_clip(tmp_path / "clip.avi", FRAMES)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\x89PNG", len(content) // 2) + 50])
    damage = Damage()
    found = [frame.pixels for frame in open_clip(path).frames(damage)]
    assert 0 < len(found) < 6 and all(map(np.array_equal, found, FRAMES))
    assert damage.count >= 1


def test_nothing_can_be_decoded(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mov", FRAMES)
    for number in reversed(range(6)):
        break_frame(path, number)
    with pytest.raises(DataError, match="no frame can be decoded"):
        open_clip(path)


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "hello")


def image(path: Path) -> None:
    Image.fromarray(FRAMES[0]).save(path, "PNG")


def playlist(path: Path) -> None:
    other = write_clip(path.with_name("other.mov"), FRAMES)
    path.write_text(f"#EXTM3U\n#EXTINF:10,\n{other}\n")


def list_of_files(path: Path) -> None:
    other = write_clip(path.with_name("other.mov"), FRAMES)
    path.write_text(f"ffconcat version 1.0\nfile {other}\n")


def cut_off(path: Path) -> None:
    """Without the index, which MP4 has at its end."""
    content = write_clip(path.with_name("other.mov"), FRAMES).read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (archive, "not a video but an archive"),
        (image, "this is an image; pass a video"),
        (playlist, "not a video but text"),
        (list_of_files, "not a video but text"),
        (lambda path: path.write_bytes(b""), "not a video but empty"),
        (lambda path: path.write_text("hello\n" * 99), "not a video but text"),
        (lambda path: path.write_bytes(bytes(range(256)) * 9), "this is not a video"),
        (cut_off, "damaged or incomplete"),
    ],
)
def test_what_is_not_a_video(tmp_path: Path, make, words: str) -> None:
    """Said in one line. A playlist could name files and addresses that are nobody's business."""
    make(tmp_path / "clip.mp4")
    with pytest.raises(DataError, match=words) as caught:
        open_clip(tmp_path / "clip.mp4")
    assert "clip.mp4" in str(caught.value) and "\n" not in str(caught.value)


def test_sound_alone(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(DataError, match="no video stream"):
        open_clip(tmp_path / "sound.mp4")


def test_missing_paths_and_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        open_clip(tmp_path / "clip.mp4")
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(UsageError, match=r"no image in this folder \(.*a.txt \(text\)"):
        open_clip(tmp_path)


def test_frames_of_too_many_pixels(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 64 // 2 - 1)
    with pytest.raises(DataError, match="exceeds limit"):
        open_clip(clip)


def test_without_pyav(clip: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error names the extra; a folder of frames needs nothing."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(FsdinoError, match=r'pip install "fsdino\[video\]"'):
        open_clip(clip)
    image(tmp_path / "0.png")
    assert len(list(open_clip(tmp_path).frames())) == 1
