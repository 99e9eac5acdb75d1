"""The tables of docs/numbers.md on the C++ kernels: `python benchmarks/cpu_table.py`.

Writes them from the records of `pytest benchmarks`, in place of those that are there: float32 from
benchmarks/results/cpu.json, other types from cpu-TYPE.json beside it, each made by

    pytest benchmarks --benchmark-only --rounds 9 --workloads tiny,W12,T12,HR --backends cpp \\
        --dtype TYPE --record FILE

A record that does not exist has no table. The picture docs/cpu-kernels.svg, by `--plot`, is shown
if it exists. tests/test_numbers.py compares the document with what this writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "numbers.md"
PICTURE = "cpu-kernels.svg"
RESULTS = ROOT / "benchmarks" / "results"
# By data type; AMX is another processor's.
RECORDS = {
    "float32": "cpu.json",
    "bfloat16": "cpu-bfloat16.json",
    "bfloat16, AMX": "cpu-bfloat16-amx.json",
    "float16": "cpu-float16.json",
}
BEGIN, END = "<!-- from benchmarks/cpu_table.py -->", "<!-- to here -->"

Key = tuple[str, str, float | None, int]  # workload, part, foreground, threads
Row = dict[str, dict[str, Any]]  # timings by name

# What a table shows: the title of its lines, workload, part, foreground.
LINES: tuple[tuple[str, str, str, float | None], ...] = (
    ("W12, the three blocks", "W12", "blocks", None),
    ("W12, the three blocks, contiguous input", "W12", "blocks-contiguous", None),
    ("W12, all, signed weights", "W12", "chain", None),
    ("W12, all, 20 % foreground, the rest 0", "W12", "chain", 0.2),
    ("T12, all, signed weights", "T12", "chain", None),
    ("HR, all, signed weights", "HR", "chain", None),
)
MEMORY = (
    ("HR, first block, the correlation never held", "fused-block"),
    ("HR, all in one call", "chain"),
)
# How many times faster than eager it should be at least, and how many times less memory it should
# take. Processors without products of bfloat16 have no goal of their own for it.
FASTER: tuple[tuple[str, str, str, float | None, dict[str, float]], ...] = (
    ("W12, the three blocks", "W12", "blocks", None, {"float32": 3, "bfloat16": 2}),
    ("W12, all, signed weights", "W12", "chain", None, {"float32": 2.3, "bfloat16": 1.5}),
    ("W12, all, 20 % foreground", "W12", "chain", 0.2, {"float32": 4}),
    ("T12, all, signed weights", "T12", "chain", None, {"float32": 2}),
)
SMALLER = (("HR, first block", "fused-block", 8), ("HR, all in one call", "chain", 5))
MEMORY_RECORD = "cpu-hr.json"  # HR in float32; peaks do not depend on the processor's speed
COLUMNS = ("eager", "compiled", "cpp")
TITLES = {"eager": "eager", "compiled": "compiled", "cpp": "`cpp`"}


def read(file: str) -> dict[str, Any] | None:
    """A record; None where it was not made."""
    path = RESULTS / file
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def rows(record: dict[str, Any]) -> dict[Key, Row]:
    """Every comparison of a record."""
    return {
        (r["workload"], r["part"], r["foreground"], r["threads"]): {
            timing["name"]: timing for timing in r["timings"]
        }
        for r in record["results"]
    }


def block() -> str:
    """All tables, as they stand in the document."""
    parts = []
    for name, file in RECORDS.items():
        record = read(file)
        if record is not None:
            parts += [caption(name, record), seconds_table(name, record), remarks(record)]
    peaks = read(MEMORY_RECORD)
    if peaks is not None:
        parts += memory_tables(peaks)
    parts.append(table([*goals()]))
    auto = RESULTS / "auto.json"
    if auto.is_file():
        entries = json.loads((ROOT / "fsdino" / "ops" / "measured.json").read_text("utf-8"))
        parts.append(
            f"Classes of sizes in which `auto` takes another backend than `cpp`, since that was "
            f"measured\nto be faster: {len(entries)} (`python benchmarks/measure_auto.py`,\n"
            f"[recorded](../benchmarks/results/auto.json))."
        )
    if (DOCUMENT.parent / PICTURE).is_file():
        parts.append(
            f"![Seconds of the chain of W12 by grid side and floating type]({PICTURE})\n"
            f"([recorded](../benchmarks/results/cpu-plot.json))"
        )
    return "\n\n".join([BEGIN, *parts, END])


def caption(name: str, record: dict[str, Any]) -> str:
    """Where the numbers of a record come from."""
    processor = record["environment"]["processor"].rpartition(", ")[0]
    machine = record["machine"]
    # Records of earlier versions have PyTorch's word for it.
    instructions = machine.get("instruction_set") or machine["capability"]
    rounds = max(
        timing["rounds"]
        for key, row in rows(record).items()
        for timing in row.values()
        if key[0] == "W12"
    )
    return (
        f"**{name}**: {processor} ({instructions}), {machine['cores']} cores, medians of {rounds} "
        f"rounds\n"
        f"(`{record['command']}`,\n"
        f"[recorded](../benchmarks/results/{RECORDS[name]})):"
    )


def seconds_table(name: str, record: dict[str, Any]) -> str:
    """Medians, and how many times as fast `cpp` is."""
    found = rows(record)
    columns = [column for column in COLUMNS if any(column in row for row in found.values())]
    others = [column for column in columns if column != "cpp"]
    peak = name == "float32"  # the large product is in float32
    headers = ["", "threads", *(TITLES[column] for column in columns)]
    headers += [f"times {column}" for column in others] + ["share of the peak"] * peak
    lines = [headers]
    for title, workload, part, foreground in LINES:
        for threads in sorted({key[3] for key in found}):
            row = found.get((workload, part, foreground, threads))
            if row is None:
                continue
            above = next((line[0] for line in reversed(lines) if line[0]), "")
            cells = ["" if title == above else title, str(threads)]
            cells += [seconds(row.get(column)) for column in columns]
            cells += [times(row, column) for column in others]
            if peak:  # where weights are 0, products are left out
                cells.append(share(row["cpp"]) if foreground is None else "")
            lines.append(cells)
    return table(lines)


def memory_tables(record: dict[str, Any]) -> Iterator[str]:
    """The peak of memory, and where it was recorded."""
    memory = [["peak memory beyond inputs and result", *(TITLES[column] for column in COLUMNS)]]
    for title, part in MEMORY:
        for key, row in rows(record).items():
            if key[:2] == ("HR", part):
                memory.append([title, *(mebibytes(row.get(column)) for column in COLUMNS)])
    yield (f"Memory (`{record['command']}`,\n[recorded](../benchmarks/results/{MEMORY_RECORD})):")
    yield table(memory)


def remarks(record: dict[str, Any]) -> str:
    """Where `cpp` is not the fastest, and what a call costs."""
    found = rows(record)
    slower = [
        f"{', '.join(words(key))} ({row['cpp']['median'] / best:.2f} times)"
        for key, row in found.items()
        for best in [min(t["median"] for name, t in row.items() if name != "cpp" and t["median"])]
        if row["cpp"]["median"] > best
    ]
    tiny = [row for key, row in found.items() if key[0] == "tiny"]
    count = f"{len(found) - len(slower)} of {len(found)} comparisons"
    text = f"In {count} of this record `cpp` is the fastest"
    text += f"; it is slower than the fastest in: {'; '.join(slower)}." if slower else "."
    if tiny:
        ours, eager = ([row[name]["median"] * 1e6 for row in tiny] for name in ("cpp", "eager"))
        text += (
            f" On a tiny shape it takes\n{min(ours):.0f} to {max(ours):.0f} µs, eager code "
            f"{min(eager):.0f} to {max(eager):.0f} µs."
        )
    return text


def goals() -> Iterator[list[str]]:
    """Which are met, with the number of threads that gains less."""
    records = {name: read(file) for name, file in RECORDS.items()}
    found = {name: rows(record) for name, record in records.items() if record is not None}
    peaks = read(MEMORY_RECORD)
    large = {} if peaks is None else rows(peaks)
    yield ["goal, and what was reached", *found]
    for title, *part, least in FASTER:
        cells = [title + ": times as fast as eager"]
        for name, of in found.items():
            fitting = [row for key, row in of.items() if key[:3] == tuple(part)]
            factors = [row["eager"]["median"] / row["cpp"]["median"] for row in fitting]
            cells.append(met(least.get(name.partition(",")[0]), factors))
        yield cells
    for title, part, factor in SMALLER:
        cells = [title + ": eager memory over ours"]
        fitting = [row for key, row in large.items() if key[:2] == ("HR", part)]
        factors = [row["eager"]["memory"] / row["cpp"]["memory"] for row in fitting]
        cells += [met(factor, factors) if name == "float32" else "–" for name in found]
        yield cells


def met(goal: float | None, factors: list[float]) -> str:
    """A goal, and how far the smallest factor got."""
    if goal is None or not factors:
        return "–"
    return f"{goal:g}: {min(factors):.2f}{'' if min(factors) >= goal else ', missed'}"


def words(key: Key) -> Iterator[str]:
    """A comparison in words."""
    workload, part, foreground, threads = key
    yield f"{workload} {part}"
    if foreground is not None:
        yield f"{100 * foreground:.0f} % foreground"
    yield f"{threads} thread{'s' * (threads != 1)}"


def table(lines: list[list[str]]) -> str:
    """In Markdown; the first line is the head."""
    head, *others = (f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *others])


def seconds(timing: dict[str, Any] | None) -> str:
    return "–" if timing is None or timing["median"] is None else f"{timing['median']:.3f} s"


def mebibytes(timing: dict[str, Any] | None) -> str:
    memory = None if timing is None else timing["memory"]
    return "–" if memory is None else f"{memory / 2**20:.0f} MiB"


def times(row: Row, name: str) -> str:
    """How many times as fast as another `cpp` is."""
    other, ours = row.get(name, {}).get("median"), row["cpp"]["median"]
    return "–" if other is None or ours is None else f"{other / ours:.2f}"


def share(timing: dict[str, Any]) -> str:
    return f"{100 * timing['share_of_peak']:.0f} %"


def main() -> None:
    """Write the document again."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, f"{DOCUMENT}: {BEGIN} … {END} is missing"
    DOCUMENT.write_text(before + block() + after, encoding="utf-8")


if __name__ == "__main__":
    main()
