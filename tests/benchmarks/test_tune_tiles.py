"""The tuner: what it looks for, how it searches, what it writes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import tune_tiles
from tune_tiles import Target, Tuner
from workers import Job, Outcome

from fsdino.bench.workloads import WORKLOADS, Workload
from fsdino.kernels import tiles
from fsdino.kernels.tiles import Tile

ROOT = Path(__file__).resolve().parents[2]
MINI = Workload("mini", batch=8, layers=3, grid=4, channels=16, block_channels=(16,), backward=True)
START = Tile(64, 64, 32, 4, 2)
BEST = Tile(128, 64, 64, 8, 3)


def target(kind: str = "forward") -> Target:
    return Target(kind, MINI, 3, 16, 4, "float32")


def distance(tile: Tile) -> float:
    """Seconds that grow with every step away from the best tile."""
    pairs = zip(vars(tile).values(), vars(BEST).values(), strict=True)
    return 1.0 + sum(abs(math.log2(a / b)) for a, b in pairs)


def test_targets() -> None:
    """By hand: the correlation, three convolutions, two transposes, three weights; once each."""
    found = tune_tiles.targets([WORKLOADS["T12x8"], WORKLOADS["T6"]], "bfloat16")
    bf16 = torch.bfloat16
    expected = {
        ("correlation", bf16), ("walk", 12, 16, bf16), ("walk", 16, 64, bf16),
        ("walk", 64, 128, bf16), ("walk", 64, 16, bf16), ("walk", 128, 64, bf16),
        ("weight_gradient", 12, 16, bf16), ("weight_gradient", 16, 64, bf16),
        ("weight_gradient", 64, 128, bf16), ("walk", 6, 16, bf16),
        ("weight_gradient", 6, 16, bf16),
    }  # fmt: skip
    assert {one.choice for one in found} == expected and len(found) == len(expected)
    sides = {one.inner: one.side for one in found if one.kind == "forward"}
    assert sides == {12: 37, 16: 19, 64: 10, 6: 37}


def test_neighbours_can_run() -> None:
    """One thing changes, within what tensor cores and Triton take."""
    for tile in (START, Tile(16, 16, 16, 1, 1), Tile(256, 256, 64, 16, 5)):
        found = tune_tiles.neighbours(tile)
        assert found and tile not in found
        for new in found:
            changed = [k for k in vars(tile) if getattr(tile, k) != getattr(new, k)]
            assert len(changed) == 1 and tune_tiles.can_run(new)


def test_the_search_walks_to_the_fastest() -> None:
    """Each target by itself; nothing is timed twice, and candidates that fail are passed by."""
    starts = {target(): START, target("weights"): BEST}
    asked: list[tuple[Target, Tile]] = []
    broken = Tile(128, 64, 32, 4, 2)

    def measure(wanted: list[tuple[Target, Tile]]) -> dict[tuple[Target, Tile], float]:
        asked.extend(wanted)
        return {pair: math.inf if pair[1] == broken else distance(pair[1]) for pair in wanted}

    times = tune_tiles.search(starts, measure, lambda: False)
    for tried in times.values():
        assert min(tried, key=lambda tile: tried[tile]) == BEST
    assert len(asked) == len(set(asked)) and len(times[target("weights")]) < 12
    found = tune_tiles.faster(times, starts, 90)
    assert found == {("walk", 3, 16, torch.float32, 90): BEST}
    text = tune_tiles.report(times, starts)
    gain = distance(START) / distance(BEST)
    assert f"({gain:.2f}x) with {BEST}" in text and "(1.00x)" in text


def test_noise_is_no_gain() -> None:
    """One percent faster: the search stops there, and the table stays empty."""
    starts = {target(): START}
    times = tune_tiles.search(
        starts,
        lambda wanted: {pair: 1.0 if pair[1] == START else 0.99 for pair in wanted},
        lambda: False,
    )
    assert len(times[target()]) == 1 + len(tune_tiles.neighbours(START))
    assert tune_tiles.faster(times, starts, 90) == {}


def test_the_search_ends_with_its_time() -> None:
    """Before the first round nothing is known; a start that fails leaves nothing to compare."""
    starts = {target(): START}
    times = tune_tiles.search(starts, lambda wanted: {}, lambda: True)
    assert times == {target(): {}} and tune_tiles.faster(times, starts, 90) == {}
    assert "was not timed" in tune_tiles.report(times, starts)
    failed = tune_tiles.search(
        starts, lambda wanted: dict.fromkeys(wanted, math.inf), lambda: False
    )
    assert failed == {target(): {START: math.inf}}
    assert tune_tiles.faster(failed, starts, 90) == {}


def test_only_right_candidates_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong ones and those that do not compile take forever."""
    wrong, broken = tune_tiles.neighbours(START)[:2]

    def run_all(
        jobs: Iterable[Job], count: int, deadline: float, done: Callable[[Job, Outcome], None]
    ) -> None:
        for job in jobs:
            tile = job.arguments[1]
            error = "out of shared memory" if tile == broken else None
            done(job, Outcome(7.0 if tile == wrong else 0.5, error, 0.1))

    class Worker:
        def call(self, function: Any, one: Target, candidates: Any, *_: Any, timeout: float) -> Any:
            assert candidates == [START]
            return Outcome({START: 2.0}, None, 0.1)

    monkeypatch.setattr(tune_tiles, "run_all", run_all)
    tuner = Tuner("cpu", "triton", 1, 0.0, Worker())  # type: ignore[arg-type]
    wanted = [(target(), tile) for tile in (START, wrong, broken)]
    assert list(tuner.measure(wanted).values()) == [2.0, math.inf, math.inf]


@pytest.mark.parametrize("kind", ["correlation", "forward", "transposed", "weights"])
def test_products_are_checked_and_timed(kind: str) -> None:
    """With the reference in the kernels' place: it is right, and the choices are as before."""
    one = target(kind)
    assert tune_tiles.check(one, START, "cpu", "reference") <= 1
    assert tune_tiles.seconds_of(one, [START, BEST], "cpu", "reference").keys() == {START, BEST}
    assert one.default(90) != START and tiles.walk.__module__ == tiles.__name__


def test_a_tile_is_taken_for_its_product_alone() -> None:
    """For exactly these channels, data type and architecture, and only inside the block."""
    choices = [(3, 16, torch.float16, 90), (3, 16, torch.float32, 80), (16, 3, torch.float32, 90)]
    before = [tiles.walk(*choice) for choice in choices]
    with tune_tiles.taking(target(), START, 90):
        assert tiles.walk(3, 16, torch.float32, 90) == START
        assert [tiles.walk(*choice) for choice in choices] == before
    assert tiles.walk(3, 16, torch.float32, 90) != START


@pytest.mark.parametrize("sizes", [(48, 64, 32, 4, 2), (64, 8, 32, 4, 2), (64, 64, 32, 3, 2)])
def test_sizes_that_cannot_run(sizes: tuple[int, ...]) -> None:
    """Neither sizes that are not powers of 2 or too small, nor three warps."""
    assert tune_tiles.can_run(START) and not tune_tiles.can_run(Tile(*sizes))


def test_a_wrong_product_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the reference."""
    run = tune_tiles.run

    def wrong(*arguments: Any) -> list[torch.Tensor]:
        return [result * (1.1 if arguments[1] else 1.0) for result in run(*arguments)]

    monkeypatch.setattr(tune_tiles, "run", wrong)
    assert tune_tiles.check(target("weights"), START, "cpu", "reference") > 1


INTERPRETED = """
import sys
sys.path[:0] = {paths!r}
import tune_tiles
from fsdino.kernels import tiles
from fsdino.bench.workloads import Workload

mini = Workload("mini", 2, 3, grid=3, channels=16, block_channels=(16, 32), backward=True)
for target in tune_tiles.targets([mini], "float16"):
    tile = target.default(tiles.INTERPRETER)
    other = tune_tiles.replace(tile, rows=tile.rows // 2 if tile.rows > 16 else 32)
    print(tune_tiles.check(target, other, "cpu", "triton") <= 1)
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_the_kernels_take_the_tiles() -> None:
    """In the interpreter: each product with another tile than its own is right."""
    code = INTERPRETED.format(paths=[str(ROOT), str(ROOT / "benchmarks")])
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["True"] * 6, run.stderr


def test_the_command_writes_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an injected timer: what gains is written, by function and arguments."""

    def measure(self: Tuner, wanted: list[tuple[Target, Tile]]) -> dict[tuple[Target, Tile], float]:
        return {(one, tile): float(tile.rows) for one, tile in wanted}

    monkeypatch.setattr(Tuner, "measure", measure)
    path = tmp_path / "tables" / "tiles.json"
    tune_tiles.main(["--out", str(path), "--device", "cpu", "--workloads", "W4"])
    written = json.loads(path.read_text())
    assert written["architecture"] == tiles.INTERPRETER
    [walk] = [e for e in written["tiles"] if e["arguments"] == [4, 16, "bfloat16"]]
    assert (walk["function"], walk["rows"]) == ("walk", 16)
    assert f"{len(written['tiles'])} of" in capsys.readouterr().out
