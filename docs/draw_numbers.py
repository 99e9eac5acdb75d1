"""Plots of recorded numbers: `python docs/draw_numbers.py` writes two pictures.

numbers-photographs.svg and numbers-ablation.svg show what docs/numbers.md lists, read from the same
files in benchmarks/results.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drawing import EDGE, INK, SOFT, STEP, TITLE, sheet, text

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "benchmarks" / "results"
LEFT, WIDTH, BAR = 300, 540, 15  # pixels: of the names, of 100 %, of a bar
TINTS = ("#1f5fbf", "#5b8fd9", "#b85400", "#8a94a6")

METHODS = {
    "training-free": "fsdino-photo",
    "mutual nearest": "the score of earlier versions, same encoder",
    "prototypes": "prototypes, same encoder",
    "everything": "everything is foreground",
}


@dataclass(frozen=True)
class Bar:
    """A value in percent.

    Attributes:
        value: length.
        low: where its interval begins; nothing is drawn where both are 0.
        high: where it ends.
        dots: single measurements.
        colour: of the bar.
    """

    value: float
    low: float = 0
    high: float = 0
    dots: tuple[float, ...] = ()
    colour: str = TINTS[0]


def record(name: str) -> Any:
    """A file of benchmarks/results."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def photographs() -> list[tuple[str, list[Bar]]]:
    """Mean IoU of each method in each column of the table, with 95 % intervals."""
    found = record("photographs.json")
    columns = []
    for place in ("same drive", "other drives"):
        for result, shots in zip(found["camvid"]["results"], ("1 shot", "5 shots"), strict=True):
            columns.append((f"road scenes, {place}, {shots}", result["columns"][f"main, {place}"]))
    eight, held_out = found["pairs"]
    columns.append(("eight pairs of photographs", eight["columns"]["pictures"]))
    columns.append(("held-out pairs", held_out["columns"]["classes"]))
    rows = []
    for title, column in columns:
        bars = []
        for method, colour in zip(METHODS, TINTS, strict=True):
            entry = column["methods"][method]
            bars.append(Bar(entry["iou"], *entry["interval"], colour=colour))
        rows.append((title, bars))
    return rows


def ablation() -> list[tuple[str, list[Bar]]]:
    """mIoU of each row of the table: the mean, and the seeds as dots."""
    results = record("ablation.json")["results"]
    seeds = {name: tuple(run["miou"] for run in runs) for name, runs in results.items()}
    return [(name, [Bar(statistics.mean(values), dots=values)]) for name, values in seeds.items()]


def draw_bar(bar: Bar, top: float) -> list[str]:
    """A bar with its number behind it."""
    scale, middle = WIDTH / 100, top + BAR / 2
    drawn = [
        f'<rect x="{LEFT}" y="{top:g}" width="{bar.value * scale:.1f}" height="{BAR - 2}" '
        f'fill="{bar.colour}"/>'
    ]
    end = bar.value
    if bar.high > bar.low:
        drawn.append(
            f'<line x1="{LEFT + bar.low * scale:.1f}" y1="{middle - 1:g}" '
            f'x2="{LEFT + bar.high * scale:.1f}" y2="{middle - 1:g}" stroke="{INK}"/>'
        )
        end = max(end, bar.high)
    for dot in bar.dots:
        drawn.append(
            f'<circle cx="{LEFT + dot * scale:.1f}" cy="{middle - 1:g}" r="4" fill="#ffffff" '
            f'stroke="{INK}"/>'
        )
        end = max(end, dot + 1)
    drawn.append(text(LEFT + end * scale + 7, middle + 4, f"{bar.value:.1f}", size=12))
    return drawn


def draw(title: str, rows: list[tuple[str, list[Bar]]], legend: dict[str, str], note: str) -> str:
    """Rows of bars below each other.

    Args:
        title: what is shown.
        rows: their names and bars.
        legend: what the colours mean, by colour.
        note: what lines and dots mean, and the record.
    """
    top, parts = 34.0, [text(24, 34, title, size=TITLE, more=' font-weight="bold"')]
    for colour, words in legend.items():
        top += STEP + 3
        parts.append(f'<rect x="24" y="{top - 11:g}" width="24" height="12" fill="{colour}"/>')
        parts.append(text(56, top, words))
    top = begin = top + 26
    for name, bars in rows:
        parts.append(text(24, top + BAR * len(bars) / 2 + 4, name))
        for bar in bars:
            parts += draw_bar(bar, top)
            top += BAR
        top += 12
    for tick in range(0, 101, 20):
        x = LEFT + WIDTH * tick / 100
        parts.insert(0, f'<line x1="{x:g}" y1="{begin:g}" x2="{x:g}" y2="{top:g}" stroke="{EDGE}" '
                        'stroke-width="0.5"/>')  # fmt: skip
        parts.append(text(x, top + 16, f"{tick} %", size=12, more=' text-anchor="middle"'))
    parts.append(text(24, top + 44, note, size=12, colour=SOFT))
    return sheet((LEFT + WIDTH + 80, round(top + 62)), title, parts)


def drawings() -> dict[str, str]:
    """The content of each file, by name."""
    return {
        "numbers-photographs.svg": draw(
            "Mean IoU on photographs",
            photographs(),
            dict(zip(TINTS, METHODS.values(), strict=True)),
            "Lines: 95 % intervals. From benchmarks/results/photographs.json",
        ),
        "numbers-ablation.svg": draw(
            "What the parts of the prompt generator add: mIoU on drawings, held-out fold, 1-shot",
            ablation(),
            {},
            "Each row adds a part to the one before, but for the last one. Dots: three seeds. "
            "From benchmarks/results/ablation.json",
        ),
    }


def main() -> None:
    """Write the files."""
    for name, content in drawings().items():
        (HERE / name).write_text(content, encoding="utf-8")
        print(HERE / name)


if __name__ == "__main__":
    main()
