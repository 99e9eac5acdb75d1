"""Block sizes: what tensor cores and Triton ask of them."""

from __future__ import annotations

import itertools

import pytest
import torch

from fsdino.kernels import tiles

ARCHITECTURES = (tiles.INTERPRETER, 80, 86, 90, 100, 120)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CHANNELS = (1, 3, 12, 16, 40, 64, 128, 200)
# 8.6, 8.9 and 12.0 have the least, and share their tiles with 8.0 and 10.0; 9.0 is by itself.
SHARED_BYTES = dict.fromkeys(ARCHITECTURES, 99 * 1024) | {90: 227 * 1024}


def chosen(architecture: int, dtype: torch.dtype) -> list[tiles.Tile]:
    pairs = list(itertools.product(CHANNELS, CHANNELS))
    return [
        tiles.correlation(dtype, architecture),
        *(tiles.walk(*pair, dtype, architecture) for pair in pairs),
        *(tiles.walk(*pair, dtype, architecture, normalises=True) for pair in pairs),
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
        assert architecture == tiles.INTERPRETER or held <= SHARED_BYTES[architecture]


@pytest.mark.parametrize("size, expected", [(1, 16), (16, 16), (17, 32), (33, 64), (500, 64)])
def test_power_of_2(size: int, expected: int) -> None:
    """Small and odd channel counts are padded inside the tile."""
    assert tiles.power_of_2(size, 16, 64) == expected


def test_weight_splits_fill_the_gpu_and_no_more() -> None:
    """Never more shares than steps, never none; small programs leave room for more of them."""
    small, large = (tiles.Tile(64, 64, 64, warps, 3) for warps in (1, 4))
    assert tiles.weight_splits(large, 18, 10_000) == 2 * tiles.MULTIPROCESSORS // 18
    assert tiles.weight_splits(small, 18, 10_000) > tiles.weight_splits(large, 18, 10_000)
    assert tiles.weight_splits(large, 18, 3) == 3
    assert tiles.weight_splits(large, 10**6, 100) == 1
    assert tiles.weight_splits(large, 18, 0) == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layers, expected", [(1, 1), (2, 2), (4, 2), (6, 2), (7, 2), (12, 4)])
def test_layers_of_a_program(layers: int, expected: int, architecture: int) -> None:
    """Four where they divide all layers, two otherwise; one in float32, which is not packed."""
    for dtype in DTYPES:
        found = tiles.correlation_layers(layers, 768, True, dtype, architecture)
        assert found == (1 if dtype == torch.float32 else expected)
