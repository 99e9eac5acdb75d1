"""What Triton launches for the 4D chain, counted by its own launcher without a GPU."""

from __future__ import annotations

import functools
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from fsdino.bench.workloads import WORKLOADS, make_inputs

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

# Of W12 in bfloat16, on every architecture: launches, variants among them, and PyTorch's own small
# kernels. Whoever changes the kernels changes these.
FORWARD = (6, 6, 0)
TRAINING = (32, 32, 0)


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_launches_of_the_chain(architecture: int) -> None:
    """Forward, and forward and backward with frozen features; no call synchronises."""
    from fsdino.bench import inspect_triton, launches

    for name, expected in (("W12", FORWARD), ("T12", TRAINING)):
        chain = functools.partial(inspect_triton.chain, WORKLOADS[name], torch.bfloat16)
        small = inspect_triton.recorded(chain, architecture).others
        with launches.recorded(architecture) as seen:
            chain()
        assert (len(seen), variants(seen), len(small)) == expected
        assert not {"item", "_local_scalar_dense", "nonzero"} & set(small)


def test_python_of_a_call(capsys: pytest.CaptureFixture[str]) -> None:
    """Microseconds of Python, for people: no launch takes a millisecond."""
    from fsdino.bench import launches

    small = replace(WORKLOADS["W12"], grid=5, channels=16)  # what PyTorch computes costs nothing
    inputs = make_inputs(small, dtype=torch.bfloat16)
    for name, call in (("forward", launches.forward), ("training", launches.train)):
        with launches.recorded(90) as seen:
            call(inputs)
            count = len(seen)
            seconds = launches.python_seconds(lambda call=call: call(inputs), calls=20)
        expected = FORWARD if name == "forward" else TRAINING
        assert count == expected[0] and len(seen) == 21 * count
        with capsys.disabled():
            print(f"\n{name}: {1e6 * seconds:.0f} us of Python, {count} launches", end="")
        assert seconds < 1e-3 * count


def variants(seen: list) -> int:
    return len({(launch.kernel, launch.variant) for launch in seen})


def test_the_driver() -> None:
    """By hand: two launches share a variant, another data type has its own, and each GPU too."""
    import gpu_probe

    from fsdino.bench import launches

    half, out = torch.ones(32, 32, dtype=torch.float16), torch.zeros(32, 32)
    with launches.recorded(80) as seen:
        for tensor in (half, half, half.bfloat16()):
            gpu_probe.product_kernel[(2, 3)](tensor, tensor, out, 32)
    assert [launch.kernel for launch in seen] == ["product_kernel"] * 3
    assert {launch.grid for launch in seen} == {(2, 3, 1)}
    assert seen[0].variant == seen[1].variant != seen[2].variant
    with launches.recorded(90) as other:
        gpu_probe.product_kernel[(1,)](half, half, out, 32)
    assert len(seen) == 3 and len(other) == 1


def test_kernels_may_be_compiled() -> None:
    """To the machine code of a GPU that is not here."""
    import gpu_preflight
    import gpu_probe

    from fsdino.bench import launches

    half, out = torch.ones(32, 32, dtype=torch.float16), torch.zeros(32, 32)
    with launches.recorded(90, compiles=True) as seen:
        compiled = gpu_probe.product_kernel[(1,)](half, half, out, 32)
        gpu_probe.product_kernel[(1,)](half, half, out, 32)
    assert gpu_preflight.code_of(compiled) == "compiled for sm_90a"
    assert compiled.asm["cubin"] and len(seen) == 2 and seen[0] == seen[1]
