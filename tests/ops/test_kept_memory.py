"""Memory that the C++ kernels keep: of freed volumes, for later ones, and not too much of it."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from fsdino import ops
from fsdino.ops import native

MB = 2**20


@pytest.fixture(autouse=True)
def extension() -> None:
    if native.extension() is None:
        pytest.skip("cpp is not built: run `fsdino build`")


def correlation(layers: int, seed: int = 0, side: int = 32) -> Tensor:
    """Of one channel: 4 MB for each layer."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 1, layers, 1, side, side, generator=generator)
    return ops.correlation4d(*features, backend="cpp")


def test_a_freed_volume_serves_the_next_one() -> None:
    """One that still lives keeps its own place."""
    first = correlation(3)
    values, place = first.clone(), first.data_ptr()
    second = correlation(3, seed=1)
    assert second.data_ptr() != place and torch.equal(first, values)
    del first
    assert correlation(3, seed=2).data_ptr() == place


def test_results_do_not_depend_on_what_was_kept() -> None:
    """Neither on a larger block, nor on values in it that are not numbers."""
    small = correlation(1)
    large = correlation(2, seed=1)
    large.fill_(float("nan"))
    del large
    assert torch.equal(correlation(1), small)


def test_a_result_can_be_resized() -> None:
    """Its memory is PyTorch's to manage, like that of any tensor."""
    result = correlation(2)
    result.resize_(1, 3, 32, 32, 32, 32).zero_()
    assert result.numel() * 4 == 3 * 4 * MB and not result.any()


def test_threads_have_blocks_of_their_own() -> None:
    expected = [correlation(2, seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = [*pool.map(lambda seed: correlation(2, seed), range(4))]
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


RESIDENT = """
import sys
import torch
from fsdino import ops
from pathlib import Path

def resident():
    [line] = [l for l in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in l]
    return int(line.split()[1]) >> 10

def volumes(count, layers):
    features = torch.rand(2, 1, layers, 1, 32, 32)
    return [ops.correlation4d(*features, backend="cpp") for _ in range(count)]

volumes(1, 1)
before = resident()
for step in sys.argv[1:]:
    held = volumes(*map(int, step.split("x")))
    most = resident()
    del held
print(most - before, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("steps", "least", "kept"),
    [(["6x20"], 480, 240), (["2x30"], 240, 0), (["6x20", "1x30"], 120, 0)],
    ids=["many blocks", "large blocks", "a large one after others"],
)
def test_what_is_kept_is_bounded(steps: list[str], least: int, kept: int) -> None:
    """In MB: of six blocks of 80 three are kept; of blocks of 120 none, and nothing beside one."""
    command = [sys.executable, "-c", RESIDENT, *steps]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    most, left = map(int, done.stdout.split())
    assert abs(most - least) <= 20
    assert abs(left - kept) <= 20
