"""Evaluate a model on a benchmark: from the request to result.json and pictures."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from fsdino.data.catalog import open_source
from fsdino.data.davis import Davis
from fsdino.environment import environment
from fsdino.errors import UsageError
from fsdino.evaluation import journal, record
from fsdino.evaluation import pictures as picture_files
from fsdino.evaluation import results as results_file
from fsdino.evaluation.evaluate import Settings, evaluate
from fsdino.evaluation.journal import Journal
from fsdino.evaluation.predictors import ModelPredictor
from fsdino.evaluation.request import BUNDLED, BUNDLED_DATA, BUNDLED_FOLD, Request
from fsdino.evaluation.video import VideoSettings, evaluate_videos
from fsdino.locks import Lock
from fsdino.models.segmenter import Segmenter
from fsdino.processes import Processes
from fsdino.progress import Progress
from fsdino.version import __version__

logger = logging.getLogger("fsdino.evaluation")


def run(
    model: Segmenter,
    name: str,
    request: Request,
    settings: Settings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    pictures: int = 0,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Evaluate, and write `out` with the rows beside it; returns the content of `out`.

    Args:
        model: in eval mode, on `settings.device`.
        name: name of the model in the result.
        request: which episodes.
        settings: see `Settings`.
        out: result.json; without it nothing is stored, and an interrupted run starts again.
        overwrite: start again if `out` belongs to another call.
        pictures: number of best and of worst episodes that are drawn, next to `out`.
        processes: the processes that share the work.

    Raises:
        UsageError: another call is writing `out`; also see `Journal` and the data set.
        DataError, FsdinoError: see `evaluate`, `Journal` and the data set.
        KeyboardInterrupt: with a message about what was stored.
    """
    processes = processes or Processes()
    if pictures and out is None:
        raise UsageError("pictures are written next to the result: pass --out as well")
    settings.protocol.check(request.dataset)
    with _alone(out, processes):
        return _run(model, name, request, settings, out, overwrite, pictures, processes)


def _run(
    model: Segmenter,
    name: str,
    request: Request,
    settings: Settings,
    out: Path | None,
    overwrite: bool,
    pictures: int,
    processes: Processes,
) -> dict[str, Any]:
    began = time.monotonic()
    if (name, request.dataset) == (BUNDLED, BUNDLED_DATA) and request.fold != BUNDLED_FOLD:
        logger.warning(
            "%s was trained on the classes of fold %s: the result is not one on novel classes",
            name, request.fold,
        )  # fmt: skip
    runs = processes.in_turn(lambda: request.open(settings))
    call = record.describe_call(record.describe_model(model, name), runs[0], settings)
    kept = None
    if out is not None:
        header = {**call, "episodes": len(runs[0])}
        kept = Journal(out, header, processes, overwrite=overwrite)
    predict = ModelPredictor(model)
    results = []
    try:
        for episodes in runs:
            title = "evaluate" if len(runs) == 1 else f"evaluate, seed {episodes.seed}"
            with shown(title, processes) as report:
                options = {"journal": kept, "processes": processes, "report": report}
                results.append(evaluate(predict, episodes, settings, **options))  # type: ignore[arg-type]
    except KeyboardInterrupt:
        if kept is None:
            raise
        state = f"{len(kept.rows)} episodes are done and kept beside {out}"
        raise KeyboardInterrupt(f"{state}; the same command does the rest") from None
    done = list(zip(runs, results, strict=True))
    summary = record.summarise(
        call, done,
        processes=processes.count,
        seconds=round(time.monotonic() - began, 1),
        environment=environment(),
    )  # fmt: skip
    if out is not None and kept is not None:
        if processes.is_first:
            results_file.write(out, summary)
            if pictures:
                folder = out.with_suffix(".pictures")
                picture_files.save(folder, model, done[0], settings, pictures)
        kept.finish([row for result in results for row in result.rows])
    return summary


def run_videos(
    model: Segmenter,
    name: str,
    root: Path | None,
    settings: Settings,
    *,
    out: Path,
    videos: VideoSettings | None = None,
    overwrite: bool = False,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Evaluate on DAVIS-17; writes `out`, and masks and scores into the folder of that name.

    Args:
        model: in eval mode, on `settings.device`.
        name: name of the model in the result.
        root: the data set's folder.
        settings: threshold, device and dtype are read; frames enter at the model's own size.
        out: result.json.
        videos: memory, and which objects count; None takes the defaults.
        overwrite: start again if the folder belongs to another call.
        processes: the processes that share the videos.

    Raises:
        UsageError: another call is writing `out`, or has written it; the data set is missing.
        DataError: see `evaluate_videos` and `fsdino.data.davis`.
        KeyboardInterrupt: with a message about what was stored.
    """
    processes = processes or Processes()
    if not out.suffix:
        raise UsageError(f"--out {out}: masks go into a folder of that name; pass {out}.json")
    asked = replace(videos or VideoSettings(), threshold=settings.threshold)
    with _alone(out, processes):
        return _run_videos(model, name, root, settings, out, asked, overwrite, processes)


def _run_videos(
    model: Segmenter,
    name: str,
    root: Path | None,
    settings: Settings,
    out: Path,
    videos: VideoSettings,
    overwrite: bool,
    processes: Processes,
) -> dict[str, Any]:
    began, folder = time.monotonic(), out.with_suffix("")
    davis = open_source("davis17", root)
    assert isinstance(davis, Davis)
    call = {
        **asdict(davis.provenance()),
        "protocol": videos.protocol,
        "pixels": "float",
        "memory": videos.memory,
        **record.describe_model(model, name),
        **record.describe_settings(replace(settings, size=model.config.image_size)),
    }
    if overwrite and processes.is_first:
        shutil.rmtree(folder / "scores", ignore_errors=True)
    processes.gather(None)
    device = torch.device(settings.device)
    with (
        torch.autocast(device.type, settings.dtype, enabled=settings.dtype != torch.float32),
        shown("segment", processes, unit="frames", metric="J&F") as report,
    ):
        try:
            scores = evaluate_videos(
                model,
                davis.sequences(),
                videos,
                folder,
                call,
                processes=processes,
                report=report,
            )
        except KeyboardInterrupt:
            state = f"finished videos are kept in {folder}"
            raise KeyboardInterrupt(f"{state}; the same command does the rest") from None
    summary = {
        "format": results_file.FORMAT,
        **call,
        "version": __version__,
        **scores.total(),
        "objects": len(scores.per_object()),
        "per_sequence": scores.per_sequence(),
        "processes": processes.count,
        "seconds": round(time.monotonic() - began, 1),
        "environment": environment(),
    }
    if processes.is_first:
        results_file.write(out, summary)
    return summary


@contextlib.contextmanager
def _alone(out: Path | None, processes: Processes) -> Iterator[None]:
    """Prevent other calls from writing a result; the first process holds the lock for all."""
    if out is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        processes.by_first(lambda: stack.enter_context(_lock(out)))
        yield


def _lock(out: Path) -> Lock:
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: pass the name of a file, such as result.json")
    return journal.lock(out)


@contextlib.contextmanager
def shown(
    title: str, processes: Processes, unit: str = "episodes", metric: str = "mIoU"
) -> Iterator[Callable[[int, int, float | None], None] | None]:
    """Progress of the first process's share: rate, time left and the metric so far."""
    if not processes.is_first:
        yield None
        return
    if processes.count > 1:
        title = f"{title}, first of {processes.count} processes"
    with Progress(title, unit=unit) as progress:

        def report(done: int, total: int, value: float | None) -> None:
            progress.report(done, total, "" if value is None else f"{metric} {value:.2f} %")

        yield report
