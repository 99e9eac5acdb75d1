"""Video on a CPU: frames a second at 854 x 480, and J&F of a made sequence with known truth.

`python benchmarks/video.py --record benchmarks/results/video.json`. The sequence is that of
made_video.py; its first frame, with its true masks, is the support of every object, as in DAVIS-17.
Nothing was chosen on it. Times are processor time on one thread, which does not depend on what
else the machine does; without other work it is the time on the clock.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import record
import torch
from made_video import BACKGROUND, FRAMES, HEIGHT, OBJECTS, WIDTH, MadeVideo

import fsdino
from fsdino.bench.record import write_record
from fsdino.evaluation.metrics import VideoScores
from fsdino.evaluation.video import VideoSettings, segment_video
from fsdino.models.segmenter import Segmenter
from fsdino.models.video import track
from fsdino.tables import print_table

MEMORIES = (0, 3)
COUNTS = (1, 3)
TIMED, WARM = 4, 3  # frames; before them the memory fills


def scores(labels: Iterator[tuple[int, Any]], video: MadeVideo) -> dict[str, Any]:
    """J, F and J&F in percent, in total and by object."""
    found = VideoScores()
    for index, prediction in labels:
        truth = torch.from_numpy(video.annotation(index))
        found.update(video.name, index, torch.from_numpy(prediction), truth, video.objects)
    each = {
        OBJECTS[number - 1].sample: {"j": j, "f": f}
        for (_, number), (j, f) in found.per_object().items()
    }
    return {**found.total(), "objects": each}


def copied(video: MadeVideo) -> Iterator[tuple[int, Any]]:
    """The first frame's masks, for every frame."""
    first = video.annotation(0)
    return ((index, first) for index in range(len(video)))


def seconds(model: Segmenter, objects: int, memory: int) -> float:
    """Median processor time of a frame."""
    video = MadeVideo(objects, WARM + TIMED + 1)
    first, truth = video.frame(0), video.annotation(0)
    supports = model.encode_objects(first, {str(n): truth == n for n in video.objects})
    frames = [video.frame(index) for index in range(1, len(video))]
    took, before = [], time.process_time()
    for _ in track(model, frames, supports, memory=memory):
        now = time.process_time()
        took.append(now - before)
        before = now
    return statistics.median(took[WARM:])


def followed(name: str, memory: int, count: int) -> dict[str, Any]:
    """The scores of a model, in a process of its own."""
    video = MadeVideo(count=count)
    return scores(segment_video(fsdino.load(name), video, VideoSettings(memory)), video)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fsdino-photo")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of the sequence")
    parser.add_argument("--record", type=Path, help="file for the results")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model = fsdino.load(chosen.model)
    video = MadeVideo(count=chosen.frames)
    with ProcessPoolExecutor(len(MEMORIES), multiprocessing.get_context("spawn")) as pool:
        waiting = {m: pool.submit(followed, chosen.model, m, chosen.frames) for m in MEMORIES}
        timed = [
            {"objects": count, "memory": memory, "seconds": seconds(model, count, memory)}
            for count in COUNTS
            for memory in MEMORIES
        ]
        print_table(
            ["objects", "memory", "frames a second"],
            [[str(t["objects"]), str(t["memory"]), f"{1 / t['seconds']:.2f}"] for t in timed],
        )
        found = {"first masks copied": scores(copied(video), video)}
        found |= {f"memory {memory}": future.result() for memory, future in waiting.items()}
    print_table(
        ["percent", "J&F", "J", "F"],
        [[n, *(f"{s[k]:.1f}" for k in ("j_and_f", "j", "f"))] for n, s in found.items()],
    )
    if chosen.record is not None:
        write_record(
            chosen.record,
            record.command(),
            model=chosen.model,
            size=[HEIGHT, WIDTH],
            timed=timed,
            frames=chosen.frames,
            objects=[thing.sample for thing in OBJECTS],
            background=BACKGROUND,
            scores=found,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
