"""DAVIS-17 as few-shot segmentation: the first frame is the support of every object in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fsdino.errors import DataError, UsageError
from fsdino.evaluation.journal import differences
from fsdino.evaluation.metrics import VideoScores
from fsdino.files import make_folder, read_object, write_json
from fsdino.images import write_png
from fsdino.models.segmentation import Segmentation
from fsdino.models.segmenter import Segmenter
from fsdino.models.video import check_memory, track
from fsdino.overlay import palette
from fsdino.processes import Processes

_REMEDY = "pass another --out, or --overwrite"

Labels = npt.NDArray[np.uint8]
# Called with the frames done by this process, those it has to do, and J&F so far (None at first).
Report = Callable[[int, int, "float | None"], None]


class Video(Protocol):
    """A sequence; `fsdino.data.davis.Sequence` is one."""

    @property
    def name(self) -> str:
        """Its folder's name."""
        ...

    @property
    def frames(self) -> Sequence[Path]:
        """Its images' files."""
        ...

    @property
    def objects(self) -> tuple[int, ...]:
        """Indices of the objects in the first frame."""
        ...

    @property
    def palette(self) -> bytes:
        """Colours of the annotations, 3 bytes each."""
        ...

    def __len__(self) -> int:
        """Return the number of frames."""
        ...

    def frame(self, index: int) -> npt.NDArray[np.uint8]:
        """Read a frame, uint8 [H, W, 3]."""
        ...

    def annotation(self, index: int) -> npt.NDArray[np.uint8]:
        """Read a frame's object indices, uint8 [H, W]; 0 is background."""
        ...


@dataclass(frozen=True)
class VideoSettings:
    """How a video is segmented.

    Attributes:
        memory: number of last frames that, with the masks found in them, join the first frame as
            supports; 0 uses only the first.
        threshold: probability from which a pixel belongs to an object; None is the model's.
        official: score the indices 1 to the highest one of the first frame, as the official
            evaluation does; otherwise those that occur in it.
    """

    memory: int = 0
    threshold: float | None = None
    official: bool = False

    def __post_init__(self) -> None:
        check_memory(self.memory)

    @property
    def protocol(self) -> str:
        """Its name in results, one of `fsdino.data.names.VIDEO_PROTOCOLS`."""
        return "first-frame-official" if self.official else "first-frame"

    def scored(self, video: Video) -> tuple[int, ...]:
        """Indices of the objects that a video's mean is taken over."""
        return tuple(range(1, max(video.objects) + 1)) if self.official else video.objects


def segment_video(
    model: Segmenter, video: Video, settings: VideoSettings
) -> Iterator[tuple[int, Labels]]:
    """Object indices uint8 [H, W] of every frame; those of the first are its annotation.

    All objects share one encoder pass per frame, and a pixel goes to the object of the highest
    probability; see `fsdino.models.video.Tracker`.
    """
    truth = video.annotation(0)
    numbers = {str(number): number for number in video.objects}
    marked = {name: truth == number for name, number in numbers.items()}
    supports = model.encode_objects(video.frame(0), marked)
    frames = (video.frame(index) for index in range(1, len(video)))
    found = track(model, frames, supports, memory=settings.memory, threshold=settings.threshold)
    yield 0, truth
    for index, result in enumerate(found, 1):
        yield index, _labels(result, numbers)


def evaluate_videos(
    model: Segmenter,
    videos: Sequence[Video],
    settings: VideoSettings,
    out: Path,
    call: Mapping[str, Any],
    *,
    processes: Processes | None = None,
    report: Report | None = None,
) -> VideoScores:
    """Segment and score videos; every process returns the scores of all videos.

    Writes the masks as DAVIS' Annotations/480p has them, `masks/NAME/00000.png` and so on in
    `out`, and a finished video's scores as `scores/NAME.json`: an interrupted run resumes with the
    videos that have none.

    Args:
        model: in eval mode.
        videos: all of them; processes take turns.
        settings: see `VideoSettings`.
        out: folder of this call, not shared with others.
        call: everything that determines the masks.
        processes: the processes that share the work.
        report: called with the progress.

    Raises:
        UsageError: `out` has the scores of another call.
        DataError: a frame or annotation cannot be used.
    """
    processes = processes or Processes()
    found = {
        video.name: _read_scores(_scores_file(out, video), len(video), asked, call)
        for video in videos
        for asked in [{(video.name, number) for number in settings.scored(video)}]
    }
    processes.gather(None)  # all have read before one continues
    scores = VideoScores()
    for kept in found.values():
        scores.merge(kept or VideoScores())
    mine = processes.share([video for video in videos if found[video.name] is None])
    total, done = sum(map(len, mine)), 0
    if report is not None:
        report(done, total, None)
    for video in mine:
        own = VideoScores()
        for index, labels in segment_video(model, video, settings):
            _write_labels(out / "masks" / video.name, labels, video, index)
            truth = torch.from_numpy(video.annotation(index))
            own.update(video.name, index, torch.from_numpy(labels), truth, settings.scored(video))
            done += 1
            if report is not None:
                report(done, total, scores.total()["j_and_f"] if scores.per_object() else None)
        _write_scores(_scores_file(out, video), call, own)
        scores.merge(own)
    for others in processes.gather(scores):
        scores.merge(others)
    return scores


def _labels(found: Segmentation, numbers: Mapping[str, int]) -> Labels:
    """Places among the supports -> the objects' own indices."""
    table = np.array([0, *(numbers[name] for name in found.names)], np.uint8)
    return table[found.labels]


def _write_labels(folder: Path, labels: Labels, video: Video, index: int) -> None:
    make_folder(folder, _REMEDY)
    image = Image.fromarray(labels)
    image.putpalette(video.palette or palette())
    write_png(folder / f"{video.frames[index].stem}.png", image)


def _scores_file(out: Path, video: Video) -> Path:
    return out / "scores" / f"{video.name}.json"


def _write_scores(path: Path, call: Mapping[str, Any], scores: VideoScores) -> None:
    make_folder(path.parent, _REMEDY)
    frames = [[*key, found] for key, found in scores.frames.items()]
    write_json(path, {"call": dict(call), "frames": frames})


def _read_scores(
    path: Path, frames: int, asked: Set[tuple[str, int]], call: Mapping[str, Any]
) -> VideoScores | None:
    """The stored scores of a finished video, or None."""
    if not path.exists():
        return None
    data = read_object(path, _REMEDY)
    before = data.get("call")
    if not isinstance(before, dict):
        raise DataError(f"{path} is damaged (it does not name its call): {_REMEDY}")
    changed = differences(before, call)
    if changed:
        raise UsageError(
            f"{path} belongs to another call (it differs in {', '.join(changed)}): {_REMEDY}"
        )
    scores = VideoScores()
    try:
        for name, number, found in data["frames"]:
            scores.frames[name, number] = {int(i): (j, f) for i, (j, f) in found.items()}
        whole = {key: _are_scores(found, frames) for key, found in scores.frames.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {_REMEDY}") from error
    if whole != dict.fromkeys(asked, True):
        raise DataError(f"{path} is damaged (scores are missing or out of range): {_REMEDY}")
    return scores


def _are_scores(frames: Mapping[int, tuple[Any, Any]], count: int) -> bool:
    """Whether every frame has a J and an F in [0, 1]."""
    numbers = [value for pair in frames.values() for value in pair]
    return set(frames) == set(range(count)) and all(
        type(value) in (int, float) and 0 <= value <= 1 for value in numbers
    )
