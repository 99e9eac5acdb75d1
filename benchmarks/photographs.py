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
from pathlib import Path

# Read when torch is imported: on a busy machine, threads that spin while they wait slow each other
# down by more than an order of magnitude.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import camvid
import photo_latency
from photo_methods import ABLATIONS, PHOTO, Method, Trial, label, methods
from photo_pairs import FOLDER, Pair, load_pairs
from photo_results import OTHER, SAME, Asked, Row, camvid_result, pairs_result
from photo_tables import show, show_latency, show_parts
from rich.console import Console

import fsdino
from fsdino import processes as sharing
from fsdino.bench.record import write_record
from fsdino.errors import FsdinoError, UsageError
from fsdino.progress import Progress

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
