"""docs/numbers.md and the README's table: every number is the one that its record holds."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cpu_table
import pytest
import roofline
import torch
import yaml

from fsdino.bench.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "numbers.md"
RESULTS = ROOT / "benchmarks" / "results"
RECIPES = ROOT / "fsdino" / "recipes"

# Phrases whose numbers are settings of an experiment or names, not results.
SETTINGS = (
    *("PASCAL-5i", "COCO-20i", "FSS-1000", "1-shot", "5-shot", "1 shot", "5 shots", "95 %"),
    *("1 / 5 shots", "640 × 480", "AVX-512", "float32", "bfloat16", "K + 1", "1 %", "SA-1B"),
    *("float16", "sm_80", "sm_90", "sm_100", "an H200"),
    *("(fold 3, 1000 episodes, 112 pixels)", "seeds of 1000 episodes each", "960 episodes"),
    *("37 × 37", "768 channels, 4 or 12 layers (W4, W12)", "blocks of 16, 64 and 128"),
    *("74 × 74", "T12 is W12", "2 cores", "two Conv2d", "the rest 0"),
    *("DINOv2-S/14 at 518 pixels", "ViT-S/14, 8 images", "medians of 9 steps", "4D", "DINOv2"),
    *("(arXiv 2504.15669 v4)", "1-shot / 5-shot", "stage 1", "stage 2"),
    "The share of the background, 0.3,",
    *("one thread of an AMD EPYC (AVX512_BF16)", "above 1 where fsdino is faster"),
    "LVIS-92i has the episodes",
    *("VAT and INSID3 were not looked into", "on ResNet-50 at 400 pixels"),
    # The limits that a warning and its meaning have in fsdino.
    *("quality below 0.7", "mean IoU below 0.5"),
    *("in turns in one process, 5 rounds", "AVX512_VNNI and AVX512_BF16", "1 thread | 2 threads"),
    *("above 1e-4", "within 1e-3", "was 1e-4 everywhere", "int8", "was 1.5 times as fast"),
    *("supports of 1 to 5 photographs", "by more than 0.01"),
    *("at 518 pixels, one query of 600 × 800 pixels",),
)

# As the papers state them; no file of ours records them.
PUBLISHED = """
| HSNet, ResNet-50 | 64.0 / 69.5 | 39.2 / 46.9 | 85.5 / 87.8 |
| VAT, ResNet-50 | 65.3 / 70.0 | 41.3 / 47.9 | 89.5 / 90.3 |
| Matcher, DINOv2-L + SAM-H | – | 52.7 / 60.7 | 87.1 / 89.6 |
| GF-SAM, DINOv2-L + SAM-H | 72.3 / 82.6 | 58.7 / 66.8 | 88.0 / 88.9 |
| VRP-SAM | 71.9 / – | 53.9 / – (ResNet-50), 60.4 (DINOv2) | – |
| INSID3, DINOv3-L, training-free | – | 57.6 / 65.1 | – |
| FS-DINO (2504.15669 v4), DINOv2-B | 80.6 / – | 64.5 / – | – |
images of 400 pixels through PIL
| DCAMA | the same | 384 pixels |
| Matcher | the same | 518 pixels |
| GF-SAM | the same | 1024 pixels |
| all parts, DINOv2-B | 62.2, 66.0, 65.5, 64.4 | 64.5 |
| `comp`, DINOv2-S, B and L | | 54.3, 59.6 and 60.7 |
| `comp_frozen`, DINOv2-B | | 57.2 |
(arXiv 2504.15669 v4):
| | folds 0 to 3 | mean |
The paper's other 1-shot results on COCO-20i
the paper states 64.0 for the last row
+6.8 mIoU on COCO-20i (52.8 to 59.6, the simplified model)
"""


def record(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def lines(name: str) -> list[Any]:
    return [json.loads(line) for line in (RESULTS / name).read_text("utf-8").splitlines()]


def plain(text: str) -> str:
    """Without Markdown's line breaks, so that a fact may be wrapped anywhere."""
    return " ".join(text.split())


def signed(value: float, digits: int = 1) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def gain(entry: dict[str, Any]) -> str:
    """A difference with its interval, as in "+4.4 (1.9 to 6.8)"."""
    low, high = (f"{bound:.1f}".replace("-", "−") for bound in entry["interval"])
    return f"{signed(entry['iou'])} ({low} to {high})"


def spread(values: list[float], *, sign: bool = False) -> str:
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return f"{signed(mean) if sign else f'{mean:.1f}'} ± {deviation:.1f}"


PHOTOGRAPHS = {
    "training-free": "| **`fsdino-photo`** (training-free)",
    "mutual nearest": "| the training-free score of earlier versions, same encoder",
    "prototypes": "| prototypes, same encoder",
    "fsdino-tiny": "| `fsdino-tiny`",
    "everything": "| everything is foreground",
}


def photographs_table() -> Iterator[str]:
    found = record("photographs.json")
    one, five = (result["columns"] for result in found["camvid"]["results"])
    eight, held_out = (pairs["columns"] for pairs in found["pairs"])
    places = ("main, same drive", "main, other drives")
    for method, title in PHOTOGRAPHS.items():
        drives = (
            tuple(shots[p]["methods"][method]["iou"] for shots in (one, five)) for p in places
        )
        cells = [f"{first:.1f} / {second:.1f}" for first, second in drives]
        cells.append(f"{eight['pictures']['methods'][method]['iou']:.1f}")
        cells.append(f"{held_out['classes']['methods'][method]['iou']:.1f}")
        yield f"{title} | {' | '.join(cells)} |"


def photographs() -> Iterator[str]:
    yield from photographs_table()
    found = record("photographs.json")
    one, five = found["camvid"]["results"]
    both = "training-free minus mutual nearest"
    for kind, words in (("main", "six classes"), ("small", "poles, signs and pedestrians")):
        for result, shots in ((one, "1 shot"), (five, "5 shots")):
            gains = [
                gain(result["columns"][f"{kind}, {drive}"]["differences"][both])
                for drive in ("same drive", "other drives")
            ]
            yield f"| {words}, {shots} | {' | '.join(gains)} |"
    pairs = found["pairs"][1]
    difference = gain(pairs["columns"]["classes"]["differences"][both])
    yield f"On the held-out pairs it is {difference[:-1]}, over classes)"
    same, other = (
        one["columns"][f"small, {drive}"]["methods"]["training-free"]["iou"]
        for drive in ("same drive", "other drives")
    )
    yield f"with an IoU of {same:.0f} % on the same drive and {other:.0f} % on the others"
    quality, presence = one["quality"]["training-free"], one["presence"]["training-free"]
    warning = next(row for row in quality["warning"] if row["threshold"] == 0.7)
    yield f"(Spearman {quality['spearman']:.2f}, 1 shot)"
    yield f"{warning['precision']:.0%} have a mean IoU".replace("%", " %")
    yield f"and {warning['recall']:.0%} of all".replace("%", " %")
    held_out = pairs["presence"]["training-free"]["auroc"]
    yield f"an AUROC of {presence['auroc']:.2f} (1 shot; {held_out:.2f} on the held-out pairs)"
    yield f"show it, {presence['not_found_percent']:.1f} % are reported"
    yield f"do not, {100 - presence['found_without_percent']:.0f} %."


PARTS = {
    "without the support's classifier": "classifier",
    "without matches": "matches",
    "with a threshold from tokens that the classifier was fitted to": "held-out threshold",
    "without adapting the threshold to the query": "adaptation",
    "with border tokens in the classifier": "leaving borders out",
    "without the query's classifier": "the query's classifier",
    "without refinement along edges": "refinement",
}


def photographs_ablation() -> Iterator[str]:
    columns = record("photographs-ablation.json")["camvid"]["results"][0]["columns"]
    same, other = columns["main, same drive"], columns["main, other drives"]
    both = "training-free minus mutual nearest"
    first, second = gain(same["differences"][both]), gain(other["differences"][both])
    yield f"the gains are {first} on the same drive and {second} across drives"
    whole = [f"{c['methods']['training-free']['iou']:.1f}" for c in (same, other)]
    yield f"| the whole score | {' | '.join(whole)} |"
    for title, part in PARTS.items():
        name = f"training-free without {part} minus training-free"
        changes = [signed(c["differences"][name]["iou"]) for c in (same, other)]
        yield f"| {title} | {' | '.join(changes)} |"


def photographs_latency() -> Iterator[str]:
    latency = record("photographs-latency.json")["latency"]
    one, two = (entry["milliseconds"] for entry in latency["array"])
    yield f"takes {one:.0f} ms on one core and {two:.0f} ms on two"
    folder = latency["folder"]
    assert folder["threads"] == 2
    yield f"a folder at {folder['images_per_second']:.1f} images per second"
    yield f"with a peak of {folder['peak_megabytes'] / 1e3:.1f} GB"


def photographs_trained() -> Iterator[str]:
    columns = record("photographs-trained.json")["camvid"]["results"][0]["columns"]
    same, other = (
        gain(columns[f"main, {drive}"]["differences"]["model minus training-free"])
        for drive in ("same drive", "other drives")
    )
    yield f"({lines('fsdino-photo-training.jsonl')[-1]['step']} steps, [log]"
    yield f"gains {same} on the same drive and {other} across drives"


MARKED = {
    "photographs": "photographs",
    "coins": "coins",
    "road, drives of the settings": "road scenes, the drive of the settings",
    "road, other drives": "road scenes, other drives",
    "road, all": "road scenes, all drives",
}


def marks() -> Iterator[str]:
    found = record("marks.json")
    yield f"`{found['command']}`"
    for group, title in MARKED.items():
        part = found["means"][group]
        box = [part["box"][method] for method in ("box filled", "ellipse", "random walker")]
        cells = [f"{value:.1f}" for value in (*box, part["box"]["fsdino"])]
        yield f"| {title} | {part['objects']} | {' | '.join(cells)} | {signed(part['gain'])} |"
        clicks = [f"{part['clicks'][n - 1]:.1f}" for n in (1, 3, 5)]
        yield f"| {title} | {part['objects_clicked']} | {' | '.join(clicks)} |"
    apart = record("marks-held-out.json")
    yield f"`{apart['command']}`"
    part = apart["means"]["held out"]
    cells = [*(f"{value:.1f}" for value in part["box"].values()), signed(part["gain"])]
    yield f"| held-out pictures | {part['objects']} | {' | '.join(cells)} |"


def drawings() -> Iterator[str]:
    found = {(r["method"], r["shots"]): r["miou"] for r in record("fsdino-tiny.json")["results"]}
    names = ("fsdino-tiny-base", "fsdino-tiny-invented", "fsdino-tiny")
    runs = [lines(f"{name}-training.jsonl")[-1] for name in names]
    minutes = round(sum(run["seconds"] for run in runs) / 60)
    weights = (ROOT / "fsdino/weights/fsdino-tiny/model.safetensors").read_bytes()
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    header.pop("__metadata__", None)
    count = sum(math.prod(tensor["shape"]) for tensor in header.values())
    facts = f"{count / 1e6:.1f} M parameters, trained for {minutes // 60} h {minutes % 60} min"
    for title, method in (
        (f"`fsdino-tiny` ({facts} on two cores)", "fsdino-tiny"),
        ("its encoder alone, prototypes, tuned on base classes", "training-free prototype"),
        ("its encoder alone, training-free score, tuned on base classes",
         "training-free correspondence"),
        ("everything is foreground", "all foreground"),
    ):  # fmt: skip
        yield f"| {title} | {found[method, 1]:.2f} | {found[method, 5]:.2f} |"
    yield f"it reaches {runs[-1]['base_miou']:.1f}:"
    yield f"in {sum(run['step'] for run in runs):,} steps; HSNet's head"
    methods = record("procedural_difficulty.json")["methods"]
    difficult = max(m["miou"] for m in methods if m["method"] != "all foreground")
    yield f"stay below {math.ceil(difficult)} there"


def baselines() -> Iterator[str]:
    found = record("baselines.json")
    rows = {(r["method"], r["shots"]): r for r in found["results"]}
    assert len(found["seeds"]) == 3
    seeds = rows["fsdino-tiny", 1]["miou_by_seed"]
    assert seeds["0"] == max(seeds.values())
    steps = rows["hsnet head", 1]["steps"]
    for title, method in (
        ("`fsdino-tiny`", "fsdino-tiny"),
        (f"HSNet's head on its frozen encoder, {steps} steps", "hsnet head"),
        ("its encoder alone, the earlier training-free score, tuned on base classes",
         "training-free correspondence"),
        ("its encoder alone, prototypes, tuned on base classes", "training-free prototype"),
    ):  # fmt: skip
        cells = [
            f"{row['miou']:.1f} ± {row['miou_interval']:.1f}"
            for row in (rows[method, shots] for shots in (1, 5))
        ]
        yield f"| {title} | {' | '.join(cells)} |"


def ablation() -> Iterator[str]:
    found = record("ablation.json")
    yield f"`{found['command']}`"
    results = {name: [run["miou"] for run in runs] for name, runs in found["results"].items()}

    def added(name: str, before: str) -> list[float]:
        return [new - old for new, old in zip(results[name], results[before], strict=True)]

    first, svp, correlation, contrast, longer = results
    assert {run["steps"] for name in (first, svp) for run in found["results"][name]} == {900}
    yield "scratch for 900 steps"
    gains = {name: added(name, before) for name, before in (
        (svp, first), (correlation, svp), (contrast, correlation), (longer, svp)
    )}  # fmt: skip
    published = {first: "58.2", svp: "59.6 (+1.4)", correlation: "62.3 (+2.7)",
                 contrast: "64.5 (+2.2)"}  # fmt: skip
    for name, cell in published.items():
        change = spread(gains[name], sign=True) if name in gains else ""
        yield plain(f"| {name} | {spread(results[name])} | {change} | {cell} |")
    change = spread(gains[longer], sign=True)
    yield (
        f"| + SVP for as long as all parts take | {spread(results[longer])} "
        f"| {change} over + SVP | |"
    )
    # What the prose says without numbers.
    assert min(gains[correlation]) > statistics.mean(gains[longer]) and min(gains[correlation]) > 0
    assert [value > 0 for value in gains[svp]].count(True) == 1
    assert max(gains[contrast]) < 0
    seconds = [run["cpu_seconds"] for name in published for run in found["results"][name]]
    assert min(seconds) >= 6 * 60 and max(seconds) <= 9 * 60


def distillation() -> Iterator[str]:
    found = record("distillation.json")
    settings, stage = found["settings"], found["stage_1"]
    yield (
        f"{settings['teacher']['steps']} steps for the teacher, "
        f"{sum(part['steps'] for part in stage[0]['stages'])} on {stage[0]['images']} images for "
        f"stage 1, {settings['steps']} for each arm"
    )
    yield from distilled_rows(found)
    assert min(min(row["added_by_seed"]) for row in found["comparison"].values()) > 0
    teacher = found["teacher"]
    yield f"with an IoU of {teacher['point_iou']:.1f} %, an"
    yield f"an untrained one with {teacher['untrained_point_iou']:.1f} %"
    cosine = statistics.mean(part["stages"][-1]["held_out_cosine"] for part in stage)
    constant = statistics.mean(part["constant_cosine"] for part in stage)
    yield f"a cosine of {cosine:.2f}; the best constant answer gets {constant:.2f}"


def distillation_student() -> Iterator[str]:
    found, other = record("distillation_student.json"), record("distillation.json")
    yield from distilled_rows(found)
    assert found["settings"]["loss_grid"] == "student"
    assert found["data_fingerprint"] == other["data_fingerprint"]
    for name in ("teacher", "images", "epochs", "steps"):
        assert found["settings"][name] == other["settings"][name]
    cosine = statistics.mean(part["stages"][-1]["held_out_cosine"] for part in found["stage_1"])
    yield f"agrees with the teacher by a cosine of {cosine:.2f}"
    for kind in ("frozen", "trained"):
        means = [runs["comparison"][kind]["mean"] for runs in (found, other)]
        deviations = [runs["comparison"][kind]["deviation"] for runs in (found, other)]
        assert abs(means[0] - means[1]) < max(deviations)  # "less than the spread"


def distilled_rows(found: Any) -> Iterator[str]:
    """The table of one loss."""
    for state in ("frozen", "trained"):
        distilled, random = ([run["miou"] for run in found["arms"][f"{adapter}, {state}"]]
                             for adapter in ("distilled", "random"))  # fmt: skip
        added = [new - old for new, old in zip(distilled, random, strict=True)]
        by_seed = ", ".join(signed(value) for value in added)
        yield (
            f"| {state} | {spread(distilled)} | {spread(random)} | {spread(added, sign=True)} "
            f"| {by_seed} |"
        )


PROGRAMS = ("torch.export", "AOTInductor")
WITH = ("matrix products", "C++ kernels")


def exported() -> Iterator[str]:
    found = record("exported.json")
    versions = found["environment"]
    yield f"with PyTorch {versions['torch'].partition('+')[0]},"
    yield f"onnxruntime {versions['onnxruntime']}, OpenVINO {versions['openvino']}"
    yield f"files of onnx {versions['onnx']}"
    one, two = found["results"]["1"], found["results"]["2"]
    for single, double in zip(one, two, strict=True):
        if "error" in single:
            yield f"| {single['row']} | fails | fails | – | – | – | – |"
            continue
        apart = single["differences"]
        yield (
            f"| {single['row']} | {single['milliseconds']:.0f} | {double['milliseconds']:.0f} "
            f"| {single['iou']:.1f} | {apart['largest']:.1e} | {apart['above_1e-4']} "
            f"| {apart['flipped']} |"
        )
    rows = {row["row"]: row for row in one}
    slowest = max(row["milliseconds"] for row in one if "error" not in row)
    assert slowest in [rows[f"{PROGRAMS[0]}, {name}"]["milliseconds"] for name in WITH]
    exact = ("onnxruntime, float32", *(f"{p}, {name}" for p in PROGRAMS for name in WITH))
    assert not any(rows[name]["differences"]["flipped"] for name in exact)
    whole, small = rows["onnxruntime, float32"], rows["onnxruntime, int8"]
    faster = whole["milliseconds"] / small["milliseconds"]
    yield f"{faster:.1f} times as fast as float32 in one thread, and costs"
    yield f"costs {whole['iou'] - small['iou']:.1f} points"
    sizes = [sum(found["megabytes"][kind].values()) for kind in ("float32", "int8")]
    yield f"its files have {sizes[1]:.1f} MB instead of {sizes[0]:.1f}"
    peaks = found["memory"]["gigabytes"]
    yield f"a peak of {peaks['1']:.2f} GB with one shot and {peaks['5']:.2f} GB with five"
    yield f"the {found['pairs']} held-out pairs"
    yield f"`fsdino-photo` at {found['size']} pixels"
    yield f"{found['one_graph']['threads']} threads, each sequence"
    for row in found["one_graph"]["sequences"]:
        outcome = f"run {row['first_wrong']} is wrong: up to {row['largest']:.2f}"
        if row["first_wrong"] is None:
            outcome = f"right: {row['largest']:.1e} at most"
        elif row["signal"]:
            outcome = f"run {row['first_wrong']} ends the process (signal {row['signal']})"
        yield f"| {row['photographs']} | {outcome} |"


def cpu_kernels() -> Iterator[str]:
    yield from cpu_table.block().split("\n\n")


GPU_PARTS = {
    "lengths, weights in order": ("lengths", "tokens", "matrices"),
    "correlation": ("correlation",),
    "convolutions, their transposes": ("walk", "mend_edges"),
    "normalisation, mean": ("statistics", "normalise", "normalise_mean"),
    "gradients through it": ("distance_sums", "gradient_sums", "merge", "gradient"),
    "gradients of the weights": ("weight_gradient", "weight_sums"),
}


def gpu_counts() -> Iterator[str]:
    before, found = record("gpu-counts-before.json"), record("gpu-counts.json")
    assumed = found["assumed"]
    assert before["assumed"] == assumed
    yield f"`{found['command']}`"
    yield f"`{before['command']}`"
    yield (
        f"multiplying ({assumed['flop_a_second'] / 1e12:.0f} TFLOP/s), moving bytes "
        f"({assumed['memory_bytes_a_second'] / 1e12:.1f} TB/s from memory, "
        f"{assumed['l2_bytes_a_second'] / 1e12:.0f} TB/s through the L2 cache) and issuing "
        f"instructions ({assumed['schedulers']} schedulers at {assumed['clock'] / 1e9:.2f} GHz)"
    )
    yield "W6 has 6 layers, x8 a batch of 8"
    gpu = roofline.given_gpu(assumed["flop_a_second"] / 1e12, 4.3)
    names = list(found["counts"]["sm_90"])

    def millions(counts: dict[str, Any], name: str, kernels: Sequence[str] = ()) -> float:
        rows = counts[name]
        chosen = {f"{kernel}_kernel" for kernel in kernels} or {row["kernel"] for row in rows}
        return sum(row["instructions"] for row in rows if row["kernel"] in chosen) / 1e6

    for name in names:
        totals = [
            f"{millions(before['counts'][sm], name):.0f} → {millions(of, name):.0f}"
            for sm, of in found["counts"].items()
        ]
        bounds = [
            sum(row["microseconds"] for row in of["counts"]["sm_90"][name]) / 1e3
            for of in (before, found)
        ]
        floor = roofline.floor_seconds(WORKLOADS[name], torch.bfloat16, gpu) * 1e3
        cells = (*totals, "{:.2f} → {:.2f} ms".format(*bounds), f"{floor:.2f} ms")
        yield f"| {name} | {' | '.join(cells)} |"
    yield f"Million warp instructions of each part, sm_90: | | {' | '.join(names)} |"
    for part, kernels in GPU_PARTS.items():
        cells = []
        for name in names:
            old, new = (millions(of["counts"]["sm_90"], name, kernels) for of in (before, found))
            cells.append(f"{old:.0f} → {new:.0f}" if old or new else "–")
        yield f"| {part} | {' | '.join(cells)} |"


def call_overhead() -> Iterator[str]:
    found = record("call_overhead.json")
    yield f"`{found['command']}`"
    yield f"medians of {found['repeats']} calls on one thread"
    yield "The goals are 20 µs for the correlation and 40 µs for the others"
    yield "the correlation misses its 40 µs, and the others keep their 80 µs"
    for row in found["results"]:
        call = row["call"] - row["kernel"]
        bare = row["function_with_gradients"] - row["kernels_with_gradients"]
        ours = row["call_with_gradients"] - row["function_with_gradients"]
        yield f"| `{row['op']}` | {call:.0f} | {ours + bare:.0f} | {bare:.0f} | {ours:.0f} |"
        goal = 20 if row["op"] == "correlation4d" else 40
        assert call <= goal and bare + ours > 2 * goal
        assert (ours <= 2 * goal) == (row["op"] != "correlation4d")


def training() -> Iterator[str]:
    memory = record("training_memory.json")
    yield f"`{memory['command']}`"
    for letter, size in (("S", "small"), ("B", "base"), ("L", "large")):
        one, five = (r for r in memory["results"] if r["encoder"].startswith(f"vit_{size}_"))
        values = [one["weight_bytes"]]
        values += [
            entry[f"{what}_bytes"] for entry in (one, five) for what in ("activation", "least")
        ]
        cells = [f"{value / 1e9:.2f} GB" for value in values]
        yield f"| DINOv2-{letter}/14 | {' | '.join(cells)} |"
    speed = record("training_speed.json")
    yield f"`{speed['command']}`"
    ours, eager = speed["results"]
    for name, row in (("`cpp`", ours), ("eager", eager)):
        yield (
            f"| {name} | {1 / row['step_seconds']:.3f} | {row['prior_seconds']:.2f} s "
            f"| {row['peak_bytes'] / 1e6:.0f} MB |"
        )
    yield f"The 4D part is {eager['prior_seconds'] / ours['prior_seconds']:.1f} times as fast"
    yield f"included, {eager['step_seconds'] / ours['step_seconds']:.1f} times"
    pascal, coco = (
        yaml.safe_load((RECIPES / f"dinov2-s-{data}.yaml").read_text(encoding="utf-8"))
        for data in ("pascal5i", "coco20i")
    )
    assert coco["steps"] == 2 * pascal["steps"]
    episodes = pascal["images_per_step"] // 2  # one shot and its query
    days = pascal["steps"] * episodes * ours["step_seconds"] / 86400
    yield f"the {pascal['steps']:,} steps of `dinov2-s-pascal5i`"
    yield f"of {episodes} one-shot episodes each, would take {days:.0f} days"
    yield f"the {coco['steps']:,} of `dinov2-s-coco20i`"


def distillation_speed() -> Iterator[str]:
    found = record("distillation_speed.json")
    yield f"`{found['command']}`"
    images, days = 111_000, 0.0
    for row in found["results"]:
        rate = row["images_per_second"]
        yield f"| {row['image_size']} | {rate:.1f} | {row['peak_bytes'] / 1e6:.0f} |"
        days += 2 * images / rate / 86400
    assert 0.8 < days < 1.3
    yield f"(about {images:,} images, two epochs at each size)"


VIDEO = {
    "memory 0": "| without a memory",
    "memory 3": "| memory of the last 3 frames",
    "first masks copied": "| the first frame's masks, copied",
}


def video() -> Iterator[str]:
    found = record("video.json")
    yield f"{found['frames']} frames of {found['size'][1]} × {found['size'][0]} pixels"
    for key, title in VIDEO.items():
        scores = found["scores"][key]
        cells = [f"{scores[name]:.1f}" for name in ("j_and_f", "j", "f")]
        cells += [f"{scores['objects'][name]['j']:.1f}" for name in found["objects"]]
        yield f"{title} | {' | '.join(cells)} |"
    yield "| | without a memory | memory of the last 3 frames |"
    rates = {(row["objects"], row["memory"]): 1 / row["seconds"] for row in found["timed"]}
    for objects in (1, 3):
        words = "1 object" if objects == 1 else f"{objects} objects"
        yield f"| {words} | {rates[objects, 0]:.2f} | {rates[objects, 3]:.2f} |"


def hsnet() -> Iterator[str]:
    found = record("hsnet.json")
    rows = {(r["backward"], r["foreground"], r["implementation"]): r for r in found["results"]}
    for backward, title in ((False, "forward"), (True, "forward and backward")):
        for share in (1.0, 0.2):
            ours, plain, compiled = (
                rows[backward, share, name] for name in ("fsdino", "plain", "compiled")
            )
            cells = [f"{1e3 * row['median_seconds']:.0f}" for row in (ours, plain, compiled)]
            cells += [
                f"{row['fastest_seconds'] / ours['fastest_seconds']:.2f}"
                for row in (plain, compiled)
            ]
            cells += [f"{row['peak_bytes'] / 1e6:.0f}" for row in (ours, plain)]
            yield f"| {title}, {100 * share:.0f} % | {' | '.join(cells)} |"
    yield f"{found['rounds']} rounds"
    least = min(
        rows[False, share, name]["fastest_seconds"]
        / rows[False, share, "fsdino"]["fastest_seconds"]
        for share in (1.0, 0.2)
        for name in ("plain", "compiled")
    )
    yield f"at least {least:.1f} times as fast forward"


def several_classes() -> Iterator[str]:
    found = record("n_way.json")
    for count in ("2", "3", "4", "6"):
        for method, title in (("alone", "each asked alone"), ("beside", "in one call")):
            values = [
                found["results"][method][count][k] for k in ("iou", "others", "false", "first")
            ]
            cells = " | ".join(f"{value:.1f}" for value in values)
            yield f"| {count} | {title} | {cells} |"
    yield f"there are {found['calls']} draws"


def published() -> Iterator[str]:
    yield from PUBLISHED.strip().splitlines()


SOURCES = (
    photographs, marks, photographs_ablation, photographs_latency, photographs_trained, drawings,
    baselines, ablation, distillation, distillation_student, exported, cpu_kernels, gpu_counts,
    call_overhead, training, distillation_speed, video, several_classes, hsnet, published,
)  # fmt: skip


@pytest.mark.parametrize("facts", SOURCES, ids=lambda facts: facts.__name__)
def test_numbers_are_those_of_their_records(facts):
    """A number that was mistyped, or left behind by a new record."""
    text = plain(DOCUMENT.read_text(encoding="utf-8"))
    missing = [fact for fact in map(plain, facts()) if fact not in text]
    assert not missing, "docs/numbers.md should have: " + "\n".join(missing)


def unlinked(text: str) -> str:
    """Plain text whose links have lost their addresses."""
    return re.sub(r"\]\([^)]*\)", "]", plain(text))


def test_no_other_number_is_in_the_document():
    """One that no record gives would be checked by nobody."""
    text = unlinked(re.sub(r"```.*?```", "", DOCUMENT.read_text("utf-8"), flags=re.DOTALL))
    covered = set()
    for pattern in (r"`[^`]*`", r"\[[123]\]"):  # names and commands; the links to three logs
        covered.update(place for m in re.finditer(pattern, text) for place in range(*m.span()))
    facts = {unlinked(fact) for source in SOURCES for fact in source()}
    for phrase in (*facts, *SETTINGS):
        found = list(re.finditer(re.escape(phrase), text))
        assert found, f"no longer in the document: {phrase!r}"
        covered.update(place for m in found for place in range(*m.span()))
    numbers = [m for m in re.finditer(r"\d+", text) if m.start() not in covered]
    assert not [text[max(m.start() - 40, 0) : m.end() + 20] for m in numbers]


def test_the_records_are_linked():
    """Each results file that holds numbers of a model is linked beside them."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for file in RESULTS.iterdir():
        if file.name != "training-photographs.json":
            assert f"](../benchmarks/results/{file.name})" in text, file.name


def test_the_readme_repeats_rows():
    """Its one table of results is a part of the one in docs/numbers.md."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = set(photographs_table())
    found = [line for line in readme.splitlines() if line.startswith("|") and "/" in line]
    results = [line for line in found if re.search(r"\d\.\d / \d", line)]
    assert results and set(results) <= rows
