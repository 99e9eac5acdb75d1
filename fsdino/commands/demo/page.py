"""The demo's results as a page, whose texts are in templates/demo.html.j2."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
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
from fsdino.commands.demo.run import Results, Settings
from fsdino.data import procedural
from fsdino.environment import environment
from fsdino.evaluation.photographs import EVERYTHING, TRAINING_FREE, PhotographAnswer
from fsdino.overlay import marked

MISSED = 0.5  # IoU, or share of its pixels, below which a class counts as missed


def render(results: Results) -> str:
    """The report as one HTML document."""
    main, other = ([a.iou[method, 1] for a in results.answers] for method in (MODEL, BASELINE))
    ways = [way.episode.class_name for way in results.ways]
    return report.render(
        "demo.html.j2",
        numbers=report.tiles(_numbers(results)),
        settings=results.settings,
        defaults=Settings,
        photographs=[_photograph_card(answer) for answer in results.photographs],
        photograph_table=_photograph_table(results),
        compares_training_free=TRAINING_FREE in results.photographs[0].iou,
        training_free=TRAINING_FREE,
        is_training_free=results.model.config.variant == "training_free",
        galleries={shots: _gallery(results, shots) for shots in SHOTS},
        ways=[_way_card(way, results.drawn_model.config.threshold) for way in results.ways],
        way_colours=report.legend(
            {name: _css(overlay.label_color(i)) for i, name in enumerate(ways, 1)}
        ),
        quality_table=_quality_table(results),
        tasks=len(main),
        methods=report.legend({MODEL: "var(--main)", BASELINE: "var(--other)"}),
        chart=report.pairs_chart(main, other, f"IoU of {len(main)} tasks for both methods"),
        kernels=results.kernels,
        rounds=len(results.kernels.timings[0].seconds),
        kernel_table=_kernel_table(results.kernels),
        making=report.command(results.settings.command),
        facts=report.table([], _facts(results)),
        yours=report.command(_own_command(results)),
    )


def _numbers(results: Results) -> dict[str, str]:
    """The numbers at the top, by what they mean."""
    name, means = results.settings.model, results.mean_iou()
    answers = results.photographs
    segment = statistics.median(answer.segment_seconds for answer in answers)
    encode = statistics.median(answer.encode_seconds for answer in answers)
    return {
        f"mean IoU of {name} over the {len(answers)} photographs": f"{means[name]:.2f}",
        **{f"{method}, on the same": f"{value:.2f}" for method, value in means.items()
           if method != name},
        "for one photograph on this CPU, its support encoded before": _duration(segment),
        "to encode a support and to find its quality": _duration(encode),
    }  # fmt: skip


def _photograph_card(answer: PhotographAnswer) -> Markup:
    support, query = answer.support, answer.query
    image, truth = np.asarray(query.image), np.asarray(query.mask) == 255
    figures = [
        report.figure(
            [marked(np.asarray(support.image), np.asarray(support.mask) == 255)],
            f"Support photograph, {support.shows}, with {support.covers} marked",
            _strong("Support: {}. Quality <b>{}</b>", support.covers, _quality_of(answer)),
        ),
        report.figure([query.image], f"Query photograph, {query.shows}", "Query"),
    ]
    for method, mask in answer.masks.items():
        value = f"IoU {answer.iou[method]:.2f}"
        figures.append(
            report.figure(
                [_shown(image, mask)],
                f"Query with the mask found by {method}, {value}",
                _strong("{} <b>{}</b>", method, value),
            )
        )
    everything = f"{EVERYTHING}: IoU {answer.iou[EVERYTHING]:.2f}"
    figures.append(
        report.figure(
            [marked(image, truth)],
            f"Query with the true mask; {everything}",
            f"Truth. {everything[0].upper()}{everything[1:]}",
        )
    )
    origin = "; ".join(f"{sample.name}: {sample.author} ({sample.licence})" for sample in
                       (support, query))  # fmt: skip
    title = f"{support.shows[0].upper()}{support.shows[1:]} → {query.shows}"
    return report.card(title, figures, note=origin)


def _quality_of(answer: PhotographAnswer) -> str:
    return "–" if answer.quality is None else f"{answer.quality:.2f}"


def _photograph_table(results: Results) -> Markup:
    methods = list(results.mean_iou())
    rows = [
        [
            f"{answer.support.name} → {answer.query.name}",
            *(f"{answer.iou[method]:.2f}" for method in methods),
            _quality_of(answer),
        ]
        for answer in results.photographs
    ]
    means = [_strong("<b>{}</b>", f"{value:.2f}") for value in results.mean_iou().values()]
    rows.append([Markup("<b>mean</b>"), *means, ""])
    headers = ["support → query", *methods, "quality of the support"]
    last = len(headers) - 1  # which the cards have, too
    return report.table(headers, rows, numbers=range(1, len(headers)), wide=(last,))


def _gallery(results: Results, shots: int) -> list[Markup]:
    return [_card(answer, shots) for answer in results.answers[: results.settings.pictures]]


def _card(answer: Answer, shots: int) -> Markup:
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
                _strong("{} <b>IoU {}</b>", method, f"{iou:.2f}"),
            )
        )
    truth = marked(query, episode.query.mask)
    figures.append(report.figure([truth], "Query with the true mask", "Truth"))
    return report.card(f"Task {episode.index}: {name}", figures)


def _way_card(way: WayAnswer, threshold: float) -> Markup:
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
            _strong("{} <b>IoU {}</b>", MODEL, f"{way.iou:.2f}"),
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


def _quality_table(results: Results) -> Markup:
    rows = []
    for shots in SHOTS:
        for method in (MODEL, BASELINE):
            score = results.scores[method, shots]
            rows.append(
                [
                    method,
                    _images(shots),
                    f"{score.miou:.1f}",
                    f"{score.fb_iou:.1f}",
                    report.bar(score.miou / 100, other=method == BASELINE),
                ]
            )
    return report.table(["method", "support", "mIoU %", "FB-IoU %", ""], rows, (2, 3), (4,))


def _kernel_table(kernels: Comparison) -> Markup:
    fastest = min((t.median for t in kernels.timings if t.median is not None), default=1.0)
    headers = ["implementation", "median", "× eager", "check against float64", ""]
    rows = [_kernel_row(kernels, timing, fastest) for timing in kernels.timings]
    return report.table(headers, rows, numbers=(1, 2), wide=(4,))


def _kernel_row(kernels: Comparison, timing: Timing, fastest: float) -> list[str]:
    ratio = kernels.ratio(timing)
    if timing.median is None:
        return [timing.name, "–", "–", "FAILED, so no time is shown", ""]
    return [
        timing.name,
        f"{1000 * timing.median:.0f} ms",
        "–" if ratio is None else f"{ratio:.2f}",
        "passed",
        report.bar(fastest / timing.median, other=timing is kernels.timings[0]),
    ]


def _facts(results: Results) -> list[tuple[str, str]]:
    """What decides the page, by name."""
    return [
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


def _own_command(results: Results) -> str:
    """The command for the reader's own photograph."""
    line = "fsdino segment --support PHOTO.jpg MASK.png --query FOLDER --out found"
    if results.settings.model != Settings.model:
        line += f" --model {shlex.quote(results.settings.model)}"
    return line


def _strong(text: str, *values: object) -> Markup:
    """A text with tags of its own around values, which are escaped."""
    return Markup(text).format(*values)


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f}\N{NO-BREAK SPACE}ms"
    return f"{seconds:.1f}\N{NO-BREAK SPACE}s"


def _images(shots: int) -> str:
    return "1 support image" if shots == 1 else f"{shots} support images"


def _css(colour: Sequence[Any]) -> str:
    return f"rgb({', '.join(str(part) for part in colour)})"
