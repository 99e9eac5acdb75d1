"""The demo's results as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fsdino import images as pixels
from fsdino.apps import report
from fsdino.apps.benchmark import Comparison, Timing
from fsdino.apps.demo import (
    BASELINE,
    FOLD,
    MODEL,
    SCALE,
    SEED,
    SHOTS,
    WAYS,
    Answer,
    Results,
    Settings,
    WayAnswer,
)
from fsdino.apps.report import text
from fsdino.data import procedural
from fsdino.environment import environment


def render(results: Results) -> str:
    """The report as one HTML document."""
    return report.page(
        "Finding objects from one marked example",
        "Mark an object in one image, the support, and a few-shot model finds that class in other "
        "images, the queries, without being trained again. This page shows what a model does "
        f"on {len(results.answers)} such tasks with classes that it never saw in training.",
        [
            *_summary(results),
            *_gallery(results, 1),
            *_gallery(results, 5),
            *_ways(results),
            *_quality(results),
            *_kernels(results.kernels),
            *_making(results),
        ],
    )


def _summary(results: Results) -> list[str]:
    numbers = {}
    for shots in SHOTS:
        own, base = results.scores[MODEL, shots], results.scores[BASELINE, shots]
        meaning = f"mean IoU from {_images(shots)} (training-free: {_percent(base.miou)})"
        numbers[meaning] = _percent(own.miou)
    numbers["for one query on one CPU thread, its support encoded before"] = (
        f"{1000 * results.seconds_per_query:.0f} ms"
    )
    note = "The pictures are drawn by a generator, so the numbers say nothing about photographs."
    if results.settings.model == Settings.model:
        note += (
            f" {Settings.model} is a small model that was trained on such drawings, to run "
            "offline; for photographs, load DINOv2 weights."
        )
    return [report.tiles(numbers), f'<p class="note">{text(note)}</p>']


def _gallery(results: Results, shots: int) -> list[str]:
    shown = results.answers[: results.settings.pictures]
    intro = (
        "The class to find is marked in one support image. Each scene also holds look-alikes: "
        "objects that share a part, a pattern or colours with it."
        if shots == 1
        else "The same queries, with four more support images of the class."
    )
    return [
        f"<h2>{'One support image' if shots == 1 else f'{shots} support images'}</h2>",
        f"<p>{intro} These are the first {len(shown)} tasks in the generator's order, whatever "
        "came out.</p>",
        *(_card(answer, shots) for answer in shown),
    ]


def _card(answer: Answer, shots: int) -> str:
    episode = answer.shown
    supports = [_shown(sample.image, sample.mask) for sample in episode.supports[:shots]]
    query, name = episode.query.image, episode.class_name
    figures = [
        report.figure(
            supports,
            f"Support image with the {name} marked",
            "Support" if shots == 1 else f"{shots} supports",
        ),
        report.figure([Image.fromarray(query)], f"Query image {episode.index}", "Query"),
    ]
    for method in (MODEL, BASELINE):
        iou = answer.iou[method, shots]
        figures.append(
            report.figure(
                [_shown(query, answer.masks[method, shots])],
                f"Query with the mask predicted by {method}, IoU {iou:.2f}",
                f"{text(method)} <b>IoU {iou:.2f}</b>",
            )
        )
    truth = _shown(query, episode.query.mask)
    figures.append(report.figure([truth], "Query with the true mask", "Truth"))
    return report.card(f"Task {episode.index}: {name}", figures)


def _ways(results: Results) -> list[str]:
    names = [way.episode.class_name for way in results.ways]
    colours = {name: _css(pixels.label_color(i)) for i, name in enumerate(names, 1)}
    return [
        f"<h2>{WAYS} classes at once</h2>",
        "<p>Each query is asked for all of these classes in one pass over the image, with one "
        "support image per class. A pixel goes to the class with the highest probability above "
        "the threshold. Truth and IoU are those of the query's own class; whether the scene also "
        "holds objects of the other two is not recorded.</p>",
        report.legend(colours),
        *(_way_card(way) for way in results.ways),
    ]


def _way_card(way: WayAnswer) -> str:
    episode, name = way.shown, way.shown.class_name
    support, query = episode.supports[0], episode.query
    figures = [
        report.figure(
            [_shown(support.image, np.where(support.mask, way.own, 0))],
            f"Support image with the {name} marked",
            "Support",
        ),
        report.figure([Image.fromarray(query.image)], f"Query image {episode.index}", "Query"),
        report.figure(
            [_shown(query.image, way.labels)],
            f"Query with the labels predicted for {WAYS} classes, IoU {way.iou:.2f}",
            f"{text(MODEL)} <b>IoU {way.iou:.2f}</b>",
        ),
        report.figure(
            [_shown(query.image, np.where(query.mask, way.own, 0))],
            "Query with the true mask",
            "Truth",
        ),
    ]
    return report.card(f"Task {episode.index}: {name}", figures)


def _shown(image: npt.NDArray[np.uint8], labels: npt.NDArray[Any]) -> Image.Image:
    """The regions in their colours, the rest of the image grayer and darker.

    Labels may be smaller than the image by a whole factor.
    """
    factor = len(image) // len(labels)
    labels = labels.repeat(factor, axis=0).repeat(factor, axis=1)
    gray = image.mean(axis=2, keepdims=True)
    dimmed = (0.3 * image + 0.3 * gray).astype(np.uint8)
    return pixels.overlay(np.where(labels[..., None] > 0, image, dimmed), labels, alpha=0.3)


def _quality(results: Results) -> list[str]:
    rows = []
    for shots in SHOTS:
        for method in (MODEL, BASELINE):
            score = results.scores[method, shots]
            rows.append(
                [
                    text(method),
                    text(_images(shots)),
                    f"{score.miou:.1f}",
                    f"{score.fb_iou:.1f}",
                    report.bar(score.miou / 100, other=method == BASELINE),
                ]
            )
    main, other = ([a.iou[method, 1] for a in results.answers] for method in (MODEL, BASELINE))
    colours = {MODEL: "var(--main)", BASELINE: "var(--other)"}
    return [
        "<h2>How good are the masks?</h2>",
        "<p>IoU is the area that prediction and truth share over the area that either covers: 1 "
        "is perfect, 0 is a miss. mIoU averages it over classes; FB-IoU averages object and "
        "background. “Training-free” uses the same encoder and matches its features, "
        "without a trained segmenter.</p>",
        report.table(["method", "support", "mIoU %", "FB-IoU %", ""], rows, numbers=(2, 3)),
        f"<p>All {len(main)} tasks with one support image, in the generator's order:</p>",
        report.legend(colours),
        report.pairs_chart(main, other, f"IoU of {len(main)} tasks for both methods"),
    ]


def _kernels(kernels: Comparison) -> list[str]:
    fastest = min((t.median for t in kernels.timings if t.median is not None), default=1.0)
    rows = [_kernel_row(kernels, timing, fastest) for timing in kernels.timings]
    rows += [
        [text(name), "–", "–", text(f"cannot run here: {reason}"), ""]
        for name, reason in kernels.missing.items()
    ]
    return [
        "<h2>How fast are the 4D operations?</h2>",
        "<p>At its heart the model compares every place in the query with every place in the "
        "support, and filters that four-dimensional table. The same work is timed here for every "
        "backend, beside the formulation that people write in PyTorch today (“eager”), "
        f"on the standard workload {text(kernels.workload)} ({text(kernels.dtype)}, "
        f"{text(kernels.device)}): medians of {len(kernels.timings[0].seconds)} rounds in which "
        "all take turns, results checked first.</p>",
        report.table(
            ["implementation", "median", "× eager", "check against float64", ""],
            rows,
            numbers=(1, 2),
        ),
    ]


def _kernel_row(kernels: Comparison, timing: Timing, fastest: float) -> list[str]:
    ratio = kernels.ratio(timing)
    if timing.median is None:
        return [text(timing.name), "–", "–", "FAILED, so no time is shown", ""]
    return [
        text(timing.name),
        f"{1000 * timing.median:.0f} ms",
        "–" if ratio is None else f"{ratio:.2f}",
        "passed",
        report.bar(fastest / timing.median, other=timing is kernels.timings[0]),
    ]


def _making(results: Results) -> list[str]:
    facts = [
        ("model", f"{results.settings.model}, fingerprint {results.model.fingerprint()}"),
        ("input", f"{results.model.config.image_size} pixels a side, shown {SCALE} times as large"),
        ("data", f"procedural, version {procedural.VERSION}, {procedural.fingerprint()[:16]}"),
        ("classes", f"the {procedural.CLASSES_PER_FOLD} of fold {FOLD}, held out of training"),
        ("tasks", f"the first {len(results.answers)} at seed {SEED}, none left out"),
        ("time for everything", f"{results.seconds:.0f} s"),
        *environment().items(),
    ]
    return [
        "<h2>How this page was made</h2>",
        f"<pre>{text(results.settings.command)}</pre>",
        "<p>The same command draws the same scenes everywhere. Every number of this page is in "
        f"<code>demo.json</code> beside it, every mask of {text(MODEL)} in "
        "<code>overlays/</code>.</p>",
        report.table([], [[text(key), text(value)] for key, value in facts]),
    ]


def _percent(value: float) -> str:
    return f"{value:.1f}\N{NO-BREAK SPACE}%"


def _images(shots: int) -> str:
    return "1 support image" if shots == 1 else f"{shots} support images"


def _css(colour: Sequence[Any]) -> str:
    return f"rgb({', '.join(str(part) for part in colour)})"
