"""The demo's results as a page."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fsdino import overlay
from fsdino.bench.compare import Comparison, Timing
from fsdino.commands.demo import report
from fsdino.commands.demo.drawings import (
    BASELINE,
    FOLD,
    MODEL,
    SEED,
    SHOTS,
    WAYS,
    Answer,
    Fate,
    WayAnswer,
)
from fsdino.commands.demo.report import text
from fsdino.commands.demo.run import Results, Settings
from fsdino.data import procedural
from fsdino.environment import environment
from fsdino.evaluation.photographs import EVERYTHING, TRAINING_FREE, PhotographAnswer
from fsdino.overlay import marked

MISSED = 0.5  # IoU, or share of its pixels, below which a class counts as missed


def render(results: Results) -> str:
    """The report as one HTML document."""
    return report.page(
        "fsdino: find an object from one marked example",
        "Mark an object in one image, the support, and fsdino finds that kind of object in other "
        "images, the queries, without being trained again. First photographs, then drawings with "
        "classes that no training has seen, then the time that the work takes. A click enlarges "
        "a picture.",
        [
            *_summary(results),
            *_photographs(results),
            *_drawings(results),
            *_gallery(results, 1),
            *_gallery(results, 5),
            *_ways(results),
            *_quality(results),
            *_kernels(results.kernels),
            *_making(results),
            *_yours(results),
        ],
    )


def _summary(results: Results) -> list[str]:
    name, means = results.settings.model, results.mean_iou()
    answers = results.photographs
    times = [statistics.median(t) for t in zip(*(
        (a.segment_seconds, a.encode_seconds) for a in answers), strict=True)]  # fmt: skip
    numbers = {
        f"mean IoU of {name} over the {len(answers)} photographs": f"{means[name]:.2f}",
        **{f"{method}, on the same": f"{value:.2f}" for method, value in means.items()
           if method != name},
        "for one photograph on this CPU, its support encoded before": _duration(times[0]),
        "to encode a support and to find its quality": _duration(times[1]),
    }  # fmt: skip
    return [report.tiles(numbers)]


def _photographs(results: Results) -> list[str]:
    answers = results.photographs
    intro = (
        f"These are the {len(answers)} photographs that are installed with fsdino, each as the "
        "support for another one, and none left out. Masks were drawn by hand. IoU is the area "
        "that result and truth share over the area that either covers: 1 is perfect, 0 is a miss. "
        "A support's quality is the IoU with which it finds itself, seen from nearer and mirrored."
    )
    if TRAINING_FREE in answers[0].iou:
        intro += f" “{TRAINING_FREE}” is the same encoder without what was trained on top."
    elif results.model.config.variant == "training_free":
        intro += (
            f" {results.settings.model} takes an encoder's features as they are; no part of it was "
        )
        intro += "trained for this task."
    return [
        "<h2>Photographs</h2>",
        f"<p>{text(intro)}</p>",
        *(_photograph_card(answer) for answer in answers),
        _photograph_table(results),
    ]


def _photograph_card(answer: PhotographAnswer) -> str:
    support, query = answer.support, answer.query
    image, truth = np.asarray(query.image), np.asarray(query.mask) == 255
    figures = [
        report.figure(
            [marked(np.asarray(support.image), np.asarray(support.mask) == 255)],
            f"Support photograph, {support.shows}, with {support.covers} marked",
            f"Support: {text(support.covers)}. Quality <b>{_quality_of(answer)}</b>",
        ),
        report.figure([query.image], f"Query photograph, {query.shows}", "Query"),
    ]
    for method, mask in answer.masks.items():
        value = f"IoU {answer.iou[method]:.2f}"
        figures.append(
            report.figure(
                [_shown(image, mask)],
                f"Query with the mask found by {method}, {value}",
                f"{text(method)} <b>{value}</b>",
            )
        )
    everything = f"{EVERYTHING}: IoU {answer.iou[EVERYTHING]:.2f}"
    figures.append(
        report.figure(
            [marked(image, truth)],
            f"Query with the true mask; {everything}",
            f"Truth. {text(everything[0].upper() + everything[1:])}",
        )
    )
    origin = "; ".join(f"{sample.name}: {sample.author} ({sample.licence})" for sample in
                       (support, query))  # fmt: skip
    title = f"{support.shows[0].upper()}{support.shows[1:]} → {query.shows}"
    return report.card(title, figures, note=origin)


def _quality_of(answer: PhotographAnswer) -> str:
    return "–" if answer.quality is None else f"{answer.quality:.2f}"


def _photograph_table(results: Results) -> str:
    methods = list(results.mean_iou())
    rows = [
        [
            f"{text(answer.support.name)} → {text(answer.query.name)}",
            *(f"{answer.iou[method]:.2f}" for method in methods),
            _quality_of(answer),
        ]
        for answer in results.photographs
    ]
    means = [f"<b>{value:.2f}</b>" for value in results.mean_iou().values()]
    rows.append(["<b>mean</b>", *means, ""])
    headers = ["support → query", *map(text, methods), "quality of the support"]
    last = len(headers) - 1  # which the cards have, too
    return report.table(headers, rows, numbers=range(1, len(headers)), wide=(last,))


def _drawings(results: Results) -> list[str]:
    note = (
        f"The pictures below are drawn by a generator; {results.settings.drawn_model} segments "
        "them, and what it reaches here says nothing about photographs."
    )
    if results.settings.drawn_model == Settings.drawn_model:
        note += (
            f" {Settings.drawn_model} is a small model that was trained on such drawings, for "
            "tests and ablations: their classes are known, and a fourth of them was held out of "
            "its training."
        )
    return ["<h2>Drawings, with classes held out of training</h2>",
            f'<p class="note">{text(note)}</p>']  # fmt: skip


def _gallery(results: Results, shots: int) -> list[str]:
    shown = results.answers[: results.settings.pictures]
    intro = (
        "The class to find is marked in one support image. Each scene also holds look-alikes: "
        "objects that share a part, a pattern or colours with it."
        if shots == 1
        else "The same queries, with four more support images of the class."
    )
    return [
        f"<h3>{'One support image' if shots == 1 else f'{shots} support images'}</h3>",
        f"<p>{intro} These are the first {len(shown)} tasks in the generator's order, whatever "
        "came out.</p>",
        *(_card(answer, shots) for answer in shown),
    ]


def _card(answer: Answer, shots: int) -> str:
    episode = answer.shown
    supports = [marked(sample.image, sample.mask) for sample in episode.supports[:shots]]
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
    truth = marked(query, episode.query.mask)
    figures.append(report.figure([truth], "Query with the true mask", "Truth"))
    return report.card(f"Task {episode.index}: {name}", figures)


def _ways(results: Results) -> list[str]:
    names = [way.episode.class_name for way in results.ways]
    colours = {name: _css(overlay.label_color(i)) for i, name in enumerate(names, 1)}
    return [
        f"<h3>{WAYS} classes at once</h3>",
        "<p>Each query is asked for all of these classes in one pass over the image, with one "
        "support image per class. A pixel goes to the class with the highest probability above "
        "the threshold. Truth and IoU are those of the query's own class; whether the scene also "
        "holds objects of the other two is not recorded.</p>",
        report.legend(colours),
        *(_way_card(way, results.drawn_model.config.threshold) for way in results.ways),
    ]


def _way_card(way: WayAnswer, threshold: float) -> str:
    episode, name = way.shown, way.shown.class_name
    support, query = episode.supports[0], episode.query
    figures = [
        report.figure(
            [marked(support.image, np.where(support.mask, way.own, 0))],
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
            [marked(query.image, np.where(query.mask, way.own, 0))],
            "Query with the true mask",
            "Truth",
        ),
    ]
    return report.card(f"Task {episode.index}: {name}", figures, note=_fate(way, threshold))


def _fate(way: WayAnswer, threshold: float) -> str:
    """What became of the pixels of the query's own class, and why, if it was missed."""
    none, own = way.fates[0], way.fates[way.own]
    rival = max((fate for fate in way.fates if fate not in (none, own)), key=lambda f: f.share)
    where = f"{own.share:.0%} of the pixels of the {own.name} got its label"
    if way.iou >= MISSED:
        return f"{where[0].upper()}{where[1:]}."
    if own.share >= MISSED:
        why = (
            f"but so did pixels around it, {way.spill:.1f} times as many as it has: to the model, "
            "what is there looks like the support as well"
        )
    elif rival.share > none.share:
        why = (
            f"{rival.share:.0%} went to the {rival.name}, whose probability there is the higher "
            f"one (mean {rival.best:.2f}, its own {rival.own:.2f}){_likeness(own, rival)}"
        )
    else:
        why = (
            f"{none.share:.0%} went to no class: there its probability (mean {none.own:.2f}) is "
            f"below the threshold of {threshold:g}"
        )
    return f"Missed: {where}, {why}. Asked for alone, it is found with IoU {way.alone:.2f}."


def _likeness(one: Fate, other: Fate) -> str:
    """Textures that two classes of drawings share, if any."""
    first, second = (
        {texture.name for kind in procedural.OBJECT_CLASSES if kind.name == fate.name
         for texture in kind.textures}
        for fate in (one, other)
    )  # fmt: skip
    shared = " and ".join(sorted(first & second))
    return f"; both classes have a {shared} part" if shared else ""


def _shown(image: npt.NDArray[np.uint8], labels: npt.NDArray[Any]) -> Image.Image:
    """The regions in their colours, the rest of the image grayer and darker.

    Labels may be smaller than the image by a whole factor.
    """
    factor = len(image) // len(labels)
    labels = labels.repeat(factor, axis=0).repeat(factor, axis=1)
    gray = image.mean(axis=2, keepdims=True)
    dimmed = (0.3 * image + 0.3 * gray).astype(np.uint8)
    return overlay.overlay(np.where(labels[..., None] > 0, image, dimmed), labels, alpha=0.3)


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
        "<h3>How good are these masks?</h3>",
        "<p>IoU is the area that prediction and truth share over the area that either covers: 1 "
        "is perfect, 0 is a miss. mIoU averages it over classes; FB-IoU averages object and "
        "background. “Training-free” uses the same encoder and matches its features, "
        "without a trained segmenter.</p>",
        report.table(["method", "support", "mIoU %", "FB-IoU %", ""], rows, (2, 3), (4,)),
        f"<p>All {len(main)} tasks with one support image, in the generator's order:</p>",
        report.legend(colours),
        report.pairs_chart(main, other, f"IoU of {len(main)} tasks for both methods"),
    ]


def _kernels(kernels: Comparison) -> list[str]:
    fastest = min((t.median for t in kernels.timings if t.median is not None), default=1.0)
    rows = [_kernel_row(kernels, timing, fastest) for timing in kernels.timings]
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
            wide=(4,),
        ),
        *(
            f'<p class="small">{text(name)} cannot run here: {text(reason)}</p>'
            for name, reason in kernels.missing.items()
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
        *(
            (
                f"model of the {what}",
                f"{name}, fingerprint {model.fingerprint()}, "
                f"{model.config.image_size} pixels a side",
            )
            for what, name, model in (
                ("photographs", results.settings.model, results.model),
                ("drawings", results.settings.drawn_model, results.drawn_model),
            )
        ),
        ("drawings", f"procedural, version {procedural.VERSION}, {procedural.fingerprint()[:16]}"),
        ("classes", f"the {procedural.CLASSES_PER_FOLD} of fold {FOLD}, held out of training"),
        ("drawn tasks", f"the first {len(results.answers)} at seed {SEED}, none left out"),
        ("time to the first photograph's mask", f"{results.first_seconds:.1f} s"),
        ("time for everything", f"{results.seconds:.0f} s"),
        *environment().items(),
    ]
    return [
        "<h2>How this page was made</h2>",
        report.command(results.settings.command),
        "<p>The same command draws the same scenes everywhere. Every number of this page is in "
        "<code>demo.json</code> beside it, the masks of photographs in <code>photographs/</code>, "
        "those of drawings in <code>overlays/</code>.</p>",
        report.table([], [[text(key), text(value)] for key, value in facts]),
    ]


def _yours(results: Results) -> list[str]:
    line = "fsdino segment --support PHOTO.jpg MASK.png --query FOLDER --out found"
    if results.settings.model != Settings.model:
        line += f" --model {shlex.quote(results.settings.model)}"
    return [
        "<h2>Your own photograph</h2>",
        "<p>The mask is a picture of the photograph's size, white where the object is and black "
        "elsewhere; any paint program draws one. Masks and overlays of all pictures in the folder "
        "come into <code>found/</code>:</p>",
        report.command(line),
    ]


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f}\N{NO-BREAK SPACE}ms"
    return f"{seconds:.1f}\N{NO-BREAK SPACE}s"


def _images(shots: int) -> str:
    return "1 support image" if shots == 1 else f"{shots} support images"


def _css(colour: Sequence[Any]) -> str:
    return f"rgb({', '.join(str(part) for part in colour)})"
