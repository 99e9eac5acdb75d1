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
RECORDS = {"float32": "cpu.json", "bfloat16": "cpu-bfloat16.json", "float16": "cpu-float16.json"}
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
COLUMNS = ("eager", "compiled", "cpp")
TITLES = {"eager": "eager", "compiled": "compiled", "cpp": "`cpp`"}


def read(dtype: str) -> dict[str, Any] | None:
    """The record of a floating type; None without one."""
    path = RESULTS / RECORDS[dtype]
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
    for dtype in RECORDS:
        record = read(dtype)
        if record is not None:
            parts += [caption(dtype, record), *tables(dtype, record), remarks(record)]
    auto = RESULTS / "auto.json"
    if auto.is_file():
        table = json.loads((ROOT / "fsdino" / "ops" / "measured.json").read_text("utf-8"))
        parts.append(
            f"Classes of sizes in which `auto` takes another backend than `cpp`, since that was "
            f"measured to be faster: {len(table)} ([recorded](../benchmarks/results/auto.json))."
        )
    if (DOCUMENT.parent / PICTURE).is_file():
        parts.append(f"![Seconds of the chain of W12 by grid side and floating type]({PICTURE})")
    return "\n\n".join([BEGIN, *parts, END])


def caption(dtype: str, record: dict[str, Any]) -> str:
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
        f"**{dtype}**: {processor} ({instructions}), {machine['cores']} cores, medians of {rounds} "
        f"rounds\n(`{record['command']}`,\n"
        f"[recorded](../benchmarks/results/{RECORDS[dtype]})):"
    )


def tables(dtype: str, record: dict[str, Any]) -> Iterator[str]:
    """Seconds, and the peak of memory."""
    found = rows(record)
    columns = [name for name in COLUMNS if any(name in row for row in found.values())]
    others = [name for name in columns if name != "cpp"]
    peak = dtype == "float32"  # the large product is in float32
    headers = ["", "threads", *(TITLES[name] for name in columns)]
    headers += [f"times {name}" for name in others] + ["share of the peak"] * peak
    lines = [headers]
    for title, workload, part, foreground in LINES:
        for threads in sorted({key[3] for key in found}):
            row = found.get((workload, part, foreground, threads))
            if row is None:
                continue
            above = next((line[0] for line in reversed(lines) if line[0]), "")
            cells = ["" if title == above else title, str(threads)]
            cells += [seconds(row.get(name)) for name in columns]
            cells += [times(row, name) for name in others]
            if peak:  # where weights are 0, products are left out
                cells.append(share(row["cpp"]) if foreground is None else "")
            lines.append(cells)
    yield table(lines)
    memory = [["peak memory beyond inputs and result", *(TITLES[name] for name in columns)]]
    for title, part in MEMORY:
        for key, row in found.items():
            if key[:2] == ("HR", part):
                memory.append([title, *(mebibytes(row.get(name)) for name in columns)])
    if len(memory) > 1:
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
