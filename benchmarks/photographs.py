"""Few-shot segmentation of real photographs: `python benchmarks/photographs.py`.

Segments the pairs of tests/photographs; `--pairs FOLDER` others in that form, `--labels FOLDER`
frames with labels as CamVid has them (see camvid.py). Every row is a method: everything is
foreground, fsdino-tiny, and on the encoder of `--model`: prototypes, the training-free score of
earlier versions, today's, and the model itself. IoU in percent with bootstrap intervals over
supports, differences of methods likewise; whether a result's score tells pictures with the object
from those without, and how a support's quality follows its IoU elsewhere. `--latency` measures time
and memory. Prints tables and writes a JSON file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read when torch is imported: on a busy machine, threads that spin while they wait slow each other
# down by more than an order of magnitude.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import camvid
import numpy as np
import photo_latency
from photo_methods import ABLATIONS, FREE, OLD, PHOTO, Answer, Method, Trial, label, methods
from photo_pairs import FOLDER, Pair, load_pairs
from photo_statistics import (
    Floats,
    auroc,
    bootstrap,
    interval,
    mean_of_groups,
    spearman,
    warnings_by_threshold,
)
from record import write_record
from rich.console import Console
from rich.table import Table

import fsdino
from fsdino import processes as sharing
from fsdino.environment import environment
from fsdino.errors import FsdinoError, UsageError
from fsdino.progress import Progress

SAME, OTHER = "same drive", "other drives"
PAIRS = "pairs"
SHOTS = (1, 5)
FEW_FILES, FILES, LATENCY_THREADS = 8, 48, (1, 2)
CAMVID_PROTOCOL = (
    f"per class {camvid.SUPPORTS} supports by RandomState(0), each against up to {camvid.QUERIES} "
    "other frames; IoU per pair without unlabelled pixels, mean over a class's pairs, then over "
    "classes; further shots are frames of the support's drive; 95 % intervals by percentile "
    "bootstrap over supports"
)
PAIRS_PROTOCOL = (
    "IoU per pair, mean over the pairs of a query's picture (of a class), then over pictures "
    "(classes); 95 % intervals by percentile bootstrap over pictures (classes)"
)

Row = dict[str, Any]


@dataclass
class Asked:
    """The trials of one protocol and every method's answers, in the same order."""

    supports: list[int]
    groups: list[str]
    columns: list[tuple[str, ...]]
    answers: dict[str, list[Answer]]

    @property
    def names(self) -> list[str]:
        return list(self.answers)


def ask_all(trials: Iterator[Trial], count: int, rows: Sequence[Method], tiles: bool) -> Asked:
    """Ask every method about every trial.

    With `tiles` each model but the ablated ones has a second row. Where no picture is larger than
    the supports, a tile is the picture, and the answer is the first row's.
    """
    asked = Asked([], [], [], {})
    with Progress("photographs", count, unit="supports") as progress:
        for trial in trials:
            asked.supports.append(trial.support())
            asked.groups.append(trial.group)
            asked.columns.append(trial.columns)
            for method in rows:
                answer = method.ask(trial)
                asked.answers.setdefault(method.name, []).append(answer)
                if tiles and method.model is not None and method.name not in ABLATIONS:
                    cut = method.ask(trial, tiles=True) if trial.is_cut() else answer
                    asked.answers.setdefault(f"{method.name}, tiles", []).append(cut)
            progress.advance(note=trial.group)
    return asked


# ------------------------------------------------------------------------------------ the protocols


def camvid_trials(frames: camvid.Frames, draws: Sequence[camvid.Draw]) -> Iterator[Trial]:
    """The draws with their pictures."""
    for draw in draws:
        drive = frames.drives[draw.shots[0]]
        yield Trial(
            camvid.CLASSES[draw.class_id],
            tuple(frames.photograph(shot, draw.class_id) for shot in draw.shots),
            tuple(frames.photograph(query, draw.class_id) for query in draw.queries),
            tuple(SAME if frames.drives[q] == drive else OTHER for q in draw.queries),
            tuple(frames.images[frame] for frame in draw.without),
        )


def pair_trials(pairs: Sequence[Pair]) -> Iterator[Trial]:
    """Each pair; what it does not show are the queries of pairs from other pictures, each once,
    where the classes are known those of pictures without its class."""
    for pair in pairs:
        without = {
            p.query.image.tobytes(): p.query.image
            for p in pairs
            if p.picture not in pair.pictures and pair.kind not in p.shown
        }
        yield Trial(pair.picture, pair.supports, (pair.query,), (PAIRS,), tuple(without.values()))


# ---------------------------------------------------------------------------------- what comes out


def by_support(asked: Asked, column: str, groups: Sequence[str]) -> tuple[list[Floats], ...]:
    """Sums [S, M] of a column's IoUs and their counts [S], of each group that has supports."""
    sums, counts = [], []
    for group in groups:
        places = [place for place, name in enumerate(asked.groups) if name == group]
        kept = [np.array([c == column for c in asked.columns[place]]) for place in places]
        if not places:
            continue
        counts.append(np.array([float(k.sum()) for k in kept]))
        sums.append(
            np.array(
                [
                    [np.dot(asked.answers[name][place].ious, k) for name in asked.names]
                    for place, k in zip(places, kept, strict=True)
                ]
            )
        )
    return sums, counts


def by_label(asked: Asked, labels: Sequence[str]) -> tuple[list[Floats], ...]:
    """Labels in the place of supports: one group of their means over trials of one query."""
    values = np.array([[answer.ious[0] for answer in row] for row in asked.answers.values()]).T
    names = np.array(labels)
    means = [values[names == label].mean(0) for label in dict.fromkeys(labels)]
    return [np.stack(means)], [np.ones(len(means))]


def column_of(
    names: Sequence[str], sums: Sequence[Floats], counts: Sequence[Floats], model: str
) -> Row:
    """Means and differences of one column, with their intervals; empty without a value."""
    if not sum(count.sum() for count in counts):
        return {}
    means, samples = mean_of_groups(sums, counts), bootstrap(sums, counts)
    place = {name: index for index, name in enumerate(names)}
    found = {
        name: {"iou": round(float(means[m]), 2), "interval": interval(samples[:, m])}
        for name, m in place.items()
    }
    differences = {
        f"{first} minus {second}": {
            "iou": round(float(means[place[first]] - means[place[second]]), 2),
            "interval": interval(samples[:, place[first]] - samples[:, place[second]]),
        }
        for first, second in compared(names, model)
    }
    return {"methods": found, "differences": differences}


def compared(names: Sequence[str], model: str) -> list[tuple[str, str]]:
    """Training-free beside its older form, the model beside training-free, shortened scores."""
    wanted = [(FREE, OLD), (model, FREE)]
    for full in (OLD, FREE):
        wanted += [(name, full) for name in names if name in ABLATIONS and name.startswith(full)]
    return [(a, b) for a, b in wanted if a in names and b in names and a != b]


def presence(answers: Sequence[Answer]) -> Row | None:
    """Whether scores tell queries with the object from those without."""
    scores = [score for answer in answers for score in answer.scores]
    without = [score for answer in answers for score in answer.scores_without]
    if not scores:
        return None
    found = [f for answer in answers for f in answer.found]
    false = [f for answer in answers for f in answer.found_without]
    return {
        "auroc": _rounded(auroc(scores, without)),
        "not_found_percent": round(100 * (1 - float(np.mean(found))), 1),
        "found_without_percent": round(100 * float(np.mean(false)), 1) if false else None,
        "queries": len(scores),
        "queries_without": len(without),
    }


def explained(supports: Sequence[int], answers: Sequence[Answer]) -> Row | None:
    """How a support's quality follows its mean IoU on other pictures."""
    known: dict[int, tuple[float, list[float]]] = {}
    for support, answer in zip(supports, answers, strict=True):
        if answer.quality is not None:
            known.setdefault(support, (answer.quality, []))[1].extend(answer.ious)
    if not known:
        return None
    quality = [value for value, _ in known.values()]
    ious = [float(np.mean(found)) for _, found in known.values()]
    return {
        "spearman": _rounded(spearman(quality, ious)),
        "supports": len(known),
        "warning": warnings_by_threshold(quality, ious),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def explanations(asked: Asked) -> Row:
    """Presence and quality of the methods that tell them."""
    found = {name: (presence(a), explained(asked.supports, a)) for name, a in asked.answers.items()}
    return {
        "presence": {name: p for name, (p, _) in found.items() if p is not None},
        "quality": {name: q for name, (_, q) in found.items() if q is not None},
    }


def camvid_result(asked: Asked, shots: int, model: str) -> Row:
    """Both columns over the main and the small classes, and each class by itself."""
    columns = {
        f"{kind}, {column}": column_of(
            asked.names, *by_support(asked, column, classes), model=model
        )
        for kind, classes in (("main", camvid.MAIN), ("small", camvid.SMALL))
        for column in (SAME, OTHER)
    }
    classes = {
        name: {
            column: column_of(asked.names, *by_support(asked, column, [name]), model=model)
            for column in (SAME, OTHER)
        }
        for name in dict.fromkeys(asked.groups)
    }
    return {
        "shots": shots,
        "supports": {name: asked.groups.count(name) for name in dict.fromkeys(asked.groups)},
        "queries": {c: sum(cs.count(c) for cs in asked.columns) for c in (SAME, OTHER)},
        "columns": columns,
        "classes": classes,
        **explanations(asked),
    }


def pairs_result(asked: Asked, pairs: Sequence[Pair], model: str) -> Row:
    """The mean over pictures, and over classes where they are named; each of them, each pair."""
    labels = {"pictures": [pair.picture for pair in pairs]}
    if any(pair.kind for pair in pairs):
        labels["classes"] = [pair.kind for pair in pairs]
    labels["pairs"] = [pair.name for pair in pairs]
    means = {kind: by_label(asked, values) for kind, values in labels.items()}
    return {
        "columns": {
            kind: column_of(asked.names, *mean, model=model)
            for kind, mean in means.items()
            if kind != "pairs"
        },
        "parts": {
            kind: {
                label: dict(zip(asked.names, map(float, row.round(1)), strict=True))
                for label, row in zip(dict.fromkeys(labels[kind]), sums[0], strict=True)
            }
            for kind, (sums, _) in means.items()
        },
        **explanations(asked),
    }


# ------------------------------------------------------------------------------------------ tables


def show(title: str, result: Row, names: Sequence[str], console: Console) -> None:
    """The columns and what the methods explain, then the differences."""
    columns = {name: column for name, column in result["columns"].items() if column}
    table = Table(title=title, title_justify="left")
    table.add_column("IoU in percent")
    for heading in (*columns, "AUROC", "not found", "Spearman"):
        table.add_column(heading, justify="right")
    for name in names:
        cells = [_cell(column["methods"][name]) for column in columns.values()]
        there, quality = result["presence"].get(name, {}), result["quality"].get(name, {})
        cells += [_number(there.get("auroc"), 3), _number(there.get("not_found_percent"), 1)]
        table.add_row(name, *cells, _number(quality.get("spearman"), 3))
    console.print(table)
    rows = {d: None for column in columns.values() for d in column["differences"]}
    if rows:
        table = Table("difference", *columns)
        for row in rows:
            table.add_row(row, *(_cell(c["differences"][row], "+") for c in columns.values()))
        console.print(table)


def show_parts(title: str, parts: dict[str, dict[str, float | None]], console: Console) -> None:
    """One column for each class, picture or pair."""
    table = Table(title, *parts)
    for name in next(iter(parts.values())):
        table.add_row(name, *(_number(values[name], 1) for values in parts.values()))
    console.print(table)


def _cell(value: Row, sign: str = "") -> str:
    low, high = value["interval"]
    return f"{value['iou']:{sign}.1f} [dim]({low:.1f} to {high:.1f})[/dim]"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def show_latency(found: Row, console: Console) -> None:
    table = Table("latency", "ms", "slowest", "peak MB", title=environment()["processor"])
    for row in found["array"]:
        values = [row["milliseconds"], row["slowest_milliseconds"], row["peak_megabytes"]]
        table.add_row(f"{row['threads']} threads", *(_number(v, 0) for v in values))
    console.print(table)
    folder = found["folder"]
    console.print(
        f"fsdino segment, {folder['threads']} threads: {folder['images_per_second']:.1f} images/s, "
        f"{_number(folder['peak_megabytes'], 0)} MB"
    )


# ------------------------------------------------------------------------------------------ the run


def run_camvid(
    options: argparse.Namespace, rows: Sequence[Method], model: str, console: Console
) -> Row:
    """Every number of shots on the labelled frames."""
    queries = options.query_drives or options.drives
    read = None if options.drives is None else [*options.drives, *queries]
    frames = camvid.read_frames(options.labels, read)
    results = []
    for shots in options.shots:
        draws = camvid.draw(
            frames.cover(), frames.drives, shots,
            support_drives=options.drives, query_drives=queries,
        )  # fmt: skip
        if not draws:
            raise UsageError(
                f"--labels {options.labels}: too few frames for {shots} shots: choose more drives "
                "or fewer shots"
            )
        asked = ask_all(camvid_trials(frames, draws), len(draws), rows, options.tiles)
        results.append(camvid_result(asked, shots, model))
        show(f"CamVid, {shots}-shot", results[-1], asked.names, console)
        for column in (SAME, OTHER):
            parts = {
                name: {m: cell["iou"] for m, cell in found[column]["methods"].items()}
                for name, found in results[-1]["classes"].items()
                if found[column]
            }
            if parts:
                show_parts(f"{column}, {shots}-shot", parts, console)
    return {
        "protocol": CAMVID_PROTOCOL,
        "shows_percent": {"main": camvid.COVER, "small": camvid.SMALL_COVER},
        "shows_reason": "hardly a frame has 2 % of a small class",
        "frames": len(frames.names),
        "support_drives": sorted(set(options.drives or frames.drives)),
        "query_drives": sorted(set(queries or frames.drives)),
        "sha256": frames.sha256,
        "results": results,
    }


def run_pairs(
    folder: Path, tiles: bool, rows: Sequence[Method], model: str, console: Console
) -> Row:
    """The pairs of one folder."""
    if not (folder / "pairs.json").is_file():
        raise UsageError(f"--pairs {folder}: it holds no pairs.json")
    pairs = load_pairs(folder)
    asked = ask_all(pair_trials(pairs), len(pairs), rows, tiles)
    result = pairs_result(asked, pairs, model)
    show(f"{len(pairs)} pairs of {folder.name}", result, asked.names, console)
    for kind, parts in result["parts"].items():
        show_parts(kind, parts, console)
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        digest.update(file.read_bytes())
    return {
        "protocol": PAIRS_PROTOCOL,
        "folder": folder.name,
        "sha256": digest.hexdigest(),
        **result,
    }


def run_latency(model: str, console: Console) -> Row:
    """An array with one and two threads, a folder with two; each in a new process."""
    array = [photo_latency.measure(model, threads) for threads in LATENCY_THREADS]
    few, many = (
        photo_latency.measure(model, LATENCY_THREADS[-1], files=n) for n in (FEW_FILES, FILES)
    )
    rate = (FILES - FEW_FILES) / (many["seconds"] - few["seconds"])
    found = {
        "settings": photo_latency.AVX2,
        "image": [photo_latency.WIDTH, photo_latency.HEIGHT],
        "array": array,
        "folder": {
            **many,
            "images_per_second": round(rate, 2),
            "images_per_second_with_start": round(FILES / many["seconds"], 2),
        },
    }
    show_latency(found, console)
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=PHOTO, help="name or folder of a model")
    parser.add_argument("--labels", type=Path, help="folder of frames with CamVid's labels")
    parser.add_argument("--drives", nargs="+", help="of the supports, and of the queries")
    parser.add_argument("--query-drives", nargs="+", help="of the queries, where they differ")
    parser.add_argument("--shots", type=int, nargs="+", default=SHOTS, help="with --labels")
    parser.add_argument(
        "--pairs",
        type=Path,
        nargs="*",
        help="folders with a pairs.json, or none (default: tests/photographs, none with --labels)",
    )
    parser.add_argument("--methods", nargs="+", help="rows to measure; default: all")
    parser.add_argument("--tiles", action="store_true", help="also in tiles of the supports' size")
    parser.add_argument("--ablate", action="store_true", help="also scores without one part")
    parser.add_argument("--latency", action="store_true", help="also time and memory")
    parser.add_argument("--threads", type=int, default=sharing.cores())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/photographs.json"))
    options = parser.parse_args(arguments)
    if options.drives and options.labels is None:
        parser.error("--drives needs --labels")
    if options.query_drives and not options.drives:
        parser.error("--query-drives needs --drives")
    if any(shots < 1 for shots in options.shots):
        parser.error("--shots must be at least 1")
    if options.pairs is None:
        options.pairs = [] if options.labels else [FOLDER]
    return options


def chosen(rows: Sequence[Method], names: Sequence[str] | None) -> list[Method]:
    """The rows of these names, in the table's order."""
    known = [row.name for row in rows]
    for name in names or ():
        if name not in known:
            raise UsageError(f"--methods: unknown {name!r}; choose from {', '.join(known)}")
    return [row for row in rows if names is None or row.name in names]


def command(options: argparse.Namespace, model: str) -> str:
    """What was called, without names of folders."""
    words = ["python benchmarks/photographs.py", f"--model {model}"]
    if options.labels:
        words.append("--labels CAMVID")
        words += ["--shots", *map(str, options.shots)]
        for name in ("drives", "query_drives"):
            if values := getattr(options, name):
                words += [f"--{name.replace('_', '-')}", *values]
    if options.pairs:
        words += ["--pairs", *(folder.name for folder in options.pairs)]
    if options.methods:
        words += ["--methods", *(f"'{name}'" for name in options.methods)]
    words += [f"--{name}" for name in ("tiles", "ablate", "latency") if getattr(options, name)]
    return " ".join(words)


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure, print, write."""
    model = fsdino.load(options.model)
    name = label(options.model)
    rows = chosen(methods(model, name, ablate=options.ablate), options.methods)
    fingerprints = {row.name: row.model.fingerprint() for row in rows if row.model and row.explains}
    facts: Row = {"model": name, "model_fingerprints": fingerprints}
    if options.latency:  # first, while this process is idle and has no features in memory
        facts["latency"] = run_latency(options.model, console)
    with sharing.threads(options.threads):
        if options.labels:
            facts["camvid"] = run_camvid(options, rows, name, console)
        facts["pairs"] = [
            run_pairs(folder, options.tiles, rows, name, console) for folder in options.pairs
        ]
    write_record(options.out, command(options, name), **facts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, with errors in one line."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)  # files are as wide as it takes
    try:
        run(options, console)
    except FsdinoError as error:
        raise SystemExit(f"photographs.py: {error}") from error


if __name__ == "__main__":
    main()
