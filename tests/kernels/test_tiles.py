"""Block sizes: what tensor cores and Triton ask of them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fsdino.errors import UsageError
from fsdino.kernels import tiles

ARCHITECTURES = (tiles.INTERPRETER, 80, 86, 90, 100, 120)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CHANNELS = (1, 3, 12, 16, 40, 64, 128, 200)
# 8.6, 8.9 and 12.0 have the least: 99 KB.
SHARED_BYTES = 99 * 1024


def chosen(architecture: int, dtype: torch.dtype) -> list[tiles.Tile]:
    pairs = list(itertools.product(CHANNELS, CHANNELS))
    return [
        tiles.correlation(dtype, architecture),
        *(tiles.walk(*pair, dtype, architecture) for pair in pairs),
        *(tiles.weight_gradient(*pair, dtype, architecture) for pair in pairs),
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tile_can_be_multiplied_and_held(architecture: int, dtype: torch.dtype) -> None:
    """Powers of 2, at least 16 each way, and operands in flight that fit into shared memory."""
    for tile in chosen(architecture, dtype):
        for size in (tile.rows, tile.columns, tile.depth):
            assert size >= 16 and size & (size - 1) == 0
        held = tile.stages * tile.depth * (tile.rows + tile.columns) * dtype.itemsize
        assert architecture == tiles.INTERPRETER or held <= SHARED_BYTES


@pytest.mark.parametrize("size, expected", [(1, 16), (16, 16), (17, 32), (33, 64), (500, 64)])
def test_power_of_2(size: int, expected: int) -> None:
    """Small and odd channel counts are padded inside the tile."""
    assert tiles.power_of_2(size, 16, 64) == expected


def test_weight_splits_fill_the_gpu_and_no_more() -> None:
    """Never more shares than steps, never none; small tiles leave room for more programs."""
    small, large = (tiles.Tile(size, size, 64, 4, 3) for size in (16, 64))
    assert tiles.weight_splits(large, 18, 10_000) == 4 * tiles.MULTIPROCESSORS // 18
    assert tiles.weight_splits(small, 18, 10_000) > tiles.weight_splits(large, 18, 10_000)
    assert tiles.weight_splits(large, 18, 3) == 3
    assert tiles.weight_splits(large, 10**6, 100) == 1
    assert tiles.weight_splits(large, 18, 0) == 1


TABLE = {("walk", 12, 16, torch.bfloat16, 90): tiles.Tile(64, 16, 32, 2, 5)}


def test_a_table_speaks_for_the_calls_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written, read, and taken for exactly these channels, data type and architecture."""
    path = tmp_path / "tiles.json"
    tiles.write_table(path, TABLE, 90)
    assert tiles.read_table(path) == TABLE
    chosen = tiles.walk(12, 16, torch.float16, 90)
    monkeypatch.setattr(tiles, "table", tiles.read_table(path))
    assert tiles.walk(12, 16, torch.bfloat16, 90) == tiles.Tile(64, 16, 32, 2, 5)
    assert tiles.walk(12, 16, torch.float16, 90) == chosen


def test_a_table_of_another_architecture_is_left_aside(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With one line that says so."""
    before = tiles.walk(12, 16, torch.bfloat16, 80)
    monkeypatch.setattr(tiles, "table", TABLE)
    tiles._note_foreign.cache_clear()
    assert [tiles.walk(12, 16, torch.bfloat16, 80) for _ in range(2)] == [before] * 2
    assert caplog.messages == ["FSDINO_TILES is for sm_90 and is not used on sm_80"]


GOOD = {
    "function": "walk", "arguments": [12, 16, "bfloat16"],
    "rows": 64, "columns": 16, "depth": 32, "warps": 2, "stages": 5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 48}, "holds sizes that cannot run, for walk"),
        ({"warps": 3}, "holds sizes that cannot run, for walk"),
        ({"function": "elementwise"}, "holds sizes that cannot run, for elementwise"),
        ({"depth": "deep"}, "is no table of benchmarks/tune_tiles.py"),
        ({"arguments": [12, 16, "bfloat17"]}, "is no table of benchmarks/tune_tiles.py"),
        ({"arguments": []}, "is no table of benchmarks/tune_tiles.py"),
    ],
)
def test_a_table_that_cannot_be_meant_is_an_error(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    """It names the file and the remedy."""
    path = tmp_path / "tiles.json"
    path.write_text(json.dumps({"architecture": 90, "tiles": [GOOD | changes]}))
    with pytest.raises(UsageError, match=f"tiles.json {message}"):
        tiles.read_table(path)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"architecture": 90, "tiles": 3}'])
def test_a_file_that_is_no_table_is_an_error(tmp_path: Path, content: str | None) -> None:
    """Also when it is missing; importing the kernels says so at once."""
    path = tmp_path / "tiles.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"FSDINO_TILES: .* is no table"):
        tiles.read_table(path)


def test_the_variable_is_read_once(tmp_path: Path) -> None:
    """When the module is imported."""
    path = tmp_path / "tiles.json"
    tiles.write_table(path, TABLE, 90)
    code = "from fsdino.kernels import tiles; print(len(tiles.table))"
    root = str(Path(tiles.__file__).resolve().parents[1])
    environment = {**os.environ, "FSDINO_TILES": str(path), "PYTHONPATH": root}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "1", run.stderr
