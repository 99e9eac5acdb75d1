"""What the GPU suite found, as a table for people."""

from __future__ import annotations

from collections import Counter
from typing import Any

import gpu_preflight
from gpu_preflight import last_line

BESIDE = ("eager", "compiled", "triton")  # what the table sets other times beside


def summary(part: str, found: dict[str, Any]) -> str:
    """One line about the checks."""
    if part == "sanitizer":
        return ", ".join(f"{tool}: {last_line(result['said'])}" for tool, result in found.items())
    failed = [entry["check"] for entry in found["failed"]]
    line = f"{found['passed']} cases right, {len(failed)} checks failed"
    line += f"; the backend has no {', '.join(found['lacking'])}" if found["lacking"] else ""
    reasons = Counter(last_line(why) for why in found["not_run"].values())
    line += "".join(f", {count} not run ({why})" for why, count in reasons.items())
    return line + "".join(f"\n  {check}" for check in failed[:20])


def table(record: dict[str, Any]) -> str:
    """What was measured, for people."""
    parts = record["parts"]
    machine = record["machine"].items()
    lines = [" ".join(f"{k}={v}" for k, v in machine if not isinstance(v, dict))]
    for name, found in parts.get("preflight", {}).items():
        lines.append(f"{name}: {gpu_preflight.line(found)}")
    ceilings = parts.get("ceilings", {})
    if "flop_per_second" in ceilings:
        rates = ", ".join(f"{k} {v / 1e12:.0f}" for k, v in ceilings["flop_per_second"].items())
        lines.append(f"TFLOP/s: {rates}; TB/s: {ceilings['bytes_per_second'] / 1e12:.2f}")
    for name in ("correctness", "sanitizer"):
        if name in parts:
            lines.append(f"{name}: {summary(name, parts[name])}")
    for name, behaviour in parts.get("correctness", {}).get("behaviour", {}).items():
        lines.append(f"  {name}: {behaviour}")
    for name, rows_of in (
        ("timing", _timing_lines),
        ("stages", _stage_lines),
        ("memory", _memory_lines),
        ("scaling", _scaling_lines),
    ):
        for row in parts.get(name, {}).get("rows", []):
            if "asked" in row:
                lines.append(f"{row['asked']}: {unmeasured(row)}")
            else:
                lines += rows_of(row)
    return "\n".join(lines)


def unmeasured(result: dict[str, Any]) -> str:
    """Why there is no number: not run, failed or wrong."""
    if "not_run" in result:
        return f"not run: {last_line(result['not_run'])}"
    if "failed" in result:
        return last_line(result["failed"])
    error = result.get("error", 0.0)
    return f"wrong, error {error:.3g} of the allowed" if not error <= 1 else "–"


def _timing_lines(row: dict[str, Any]) -> list[str]:
    """Each implementation's ms, times the same layout's eager and compiled calls, and the floor."""
    floor, everything = row.get("floor"), row["implementations"]
    head = f"{row['workload']} {row['dtype']}"
    if floor is not None:
        head += f", floor {1e3 * floor:.3f} ms"
    if "bound" in row:
        head += f", bound {1e3 * row['bound']:.3f} ms"
    lines = [head]
    for name, result in everything.items():
        if "seconds" not in result:
            lines.append(f"  {name:32} {unmeasured(result)}")
            continue
        seconds = result["seconds"]
        line = f"  {name:32}{1e3 * seconds:10.4f} ms  error {result['error']:.2f}"
        own, _, layout = name.partition(", ")
        for other in BESIDE:
            beside = everything.get(f"{other}, {layout}", {}).get("seconds")
            if beside and other != own:
                line += f"  {beside / seconds:6.2f}x {other}"
        lines.append(line + (f"  {floor / seconds:5.2f} of floor" if floor else ""))
    return lines


def _stage_lines(row: dict[str, Any]) -> list[str]:
    lines = [f"{row['workload']} {row['dtype']} by {'op' if 'stages' in row else 'kernel'}"]
    for name, result in row.get("stages", {}).items():
        lines.append(f"  {name:32}{1e3 * result['seconds']:10.4f} ms")
    totals: dict[str, tuple[float, int]] = {}
    for launch in row.get("kernels", []):
        used, count = totals.get(launch["kernel"], (0.0, 0))
        totals[launch["kernel"]] = (used + launch["seconds"], count + 1)
    for name, (used, count) in sorted(totals.items(), key=lambda item: -item[1][0])[:12]:
        lines.append(f"  {name[:60]:60}{count:4} x{1e3 * used:10.4f} ms")
    return lines


def _memory_lines(row: dict[str, Any]) -> list[str]:
    cells = []
    for name, result in row["peaks"].items():
        peak = result.get("bytes")
        cells.append(f"{name} {f'{peak / 1e6:.0f} MB' if peak else unmeasured(result)}")
    return [f"{row['workload']} {row['part']}, peak: {', '.join(cells)}"]


def _scaling_lines(row: dict[str, Any]) -> list[str]:
    cells = []
    for name, result in row["implementations"].items():
        seconds = result.get("seconds")
        said = unmeasured(result)
        if seconds:
            said = f"{1e3 * seconds:.3f} ms, {row['flop'] / seconds / 1e12:.1f} TFLOP/s"
        cells.append(f"{name} {said}")
    return [f"grid {row['grid']}: {'; '.join(cells)}"]
