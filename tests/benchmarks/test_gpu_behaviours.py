"""How ops behave, checked on the CPU: right ones pass, and each kind of wrong one is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpu_behaviours
import pytest
import torch
from torch import Tensor

from changed_backend import add_backend
from fsdino.bench.cases import Case
from fsdino.ops import native, reference

CPU = "cpu"


@pytest.mark.parametrize(
    "name", ["stream", "autocast", "NaN", "NaN tokens", "permuted strides", "views"]
)
def test_behaviours(name: str) -> None:
    """Those that need a GPU say so, the others pass."""
    found = gpu_behaviours.check_behaviour(name, CPU, "reference")
    assert found["passed"] and found["said"].startswith(("passed", "skipped: needs"))


def test_behaviours_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that swallows NaN."""

    def silent(*arguments: Any) -> Tensor:
        return reference.correlation4d(*arguments).nan_to_num()

    backend = add_backend(monkeypatch, correlation4d=silent)
    with pytest.raises(AssertionError, match="nan in the correlation"):
        gpu_behaviours.check_behaviour("NaN", CPU, backend)


def test_streams_and_graphs(monkeypatch: pytest.MonkeyPatch, fake_gpu: str) -> None:
    """On a GPU that replays nothing, a graph's results are stale, and that is found."""
    assert gpu_behaviours.check_behaviour("stream", fake_gpu, "reference")["said"] == "passed"
    said = gpu_behaviours.check_behaviour("other device", fake_gpu, "reference")["said"]
    assert said == "skipped: needs two GPUs"
    with pytest.raises(AssertionError, match=r"graph in torch.float32: off by"):
        gpu_behaviours.check_behaviour("CUDA graph", fake_gpu, "reference")

    class Replay:
        def __init__(self, step: Callable[[], list[Tensor]], outputs: list[Tensor]) -> None:
            self.step, self.outputs = step, outputs

        def replay(self) -> None:
            for output, fresh in zip(self.outputs, self.step(), strict=True):
                output.copy_(fresh)

    def capture(step: Callable[[], list[Tensor]], pool: Any = None) -> Any:
        outputs = step()
        return Replay(step, outputs), outputs

    monkeypatch.setattr(gpu_behaviours, "capture", capture)
    assert gpu_behaviours.check_behaviour("CUDA graph", fake_gpu, "reference")["said"] == "passed"


def test_tf32_follows_the_switch(monkeypatch: pytest.MonkeyPatch, fake_gpu: str) -> None:
    """A backend that ignores the switch is found."""
    with pytest.raises(AssertionError, match="tf32"):
        gpu_behaviours.check_behaviour("TF32", fake_gpu, "reference")

    def rounded(query: Tensor, support: Tensor, *rest: Any) -> Tensor:
        if torch.backends.cuda.matmul.fp32_precision == "tf32":  # 10 bits, as float16
            query, support = query.half().float(), support.half().float()
        return reference.correlation4d(query, support, *rest)

    backend = add_backend(monkeypatch, correlation4d=rounded)
    before = torch.backends.cuda.matmul.fp32_precision
    assert gpu_behaviours.check_behaviour("TF32", fake_gpu, backend)["passed"]
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_tokens_that_are_not_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that loses a NaN is found, in the first data type that is checked."""

    def silent(*arguments: Any) -> tuple[Tensor | None, ...]:
        grads = reference.center_pivot_conv4d_backward(*arguments)
        return tuple(None if grad is None else grad.nan_to_num() for grad in grads)

    backend = add_backend(monkeypatch, center_pivot_conv4d_backward=silent)
    with pytest.raises(AssertionError, match=r"NaN in the x of center_pivot_conv4d, torch.float32"):
        gpu_behaviours.check_behaviour("NaN tokens", CPU, backend)


@pytest.mark.parametrize("function", ["correlation4d", "correlation4d_backward"])
def test_permuted_strides(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    """A backend that reads memory in the order of a contiguous tensor is found."""

    def careless(tensor: Tensor, *rest: Any) -> Any:
        strides = torch.empty(tensor.shape).stride()
        return getattr(reference, function)(tensor.as_strided(tensor.shape, strides), *rest)

    backend = add_backend(monkeypatch, **{function: careless})
    with pytest.raises(AssertionError, match="not close"):
        gpu_behaviours.check_behaviour("permuted strides", CPU, backend)


def test_orders_in_memory() -> None:
    """By hand: the same values, another dimension innermost each time."""
    x = torch.arange(24.0).view(2, 3, 4)
    for innermost in range(3):
        y = gpu_behaviours.permuted(x, innermost)
        assert torch.equal(x, y) and y.stride(innermost) == 1
    assert gpu_behaviours.permuted(x, 0).stride() == (1, 2, 6)


class Replay:
    """A graph that computes when it is replayed, as a GPU's does."""

    def __init__(self, step: Callable[[], list[Tensor]], outputs: list[Tensor]) -> None:
        self.step, self.outputs = step, outputs

    def replay(self) -> None:
        for output, fresh in zip(self.outputs, self.step(), strict=True):
            output.copy_(fresh)


def test_graphs_of_squeeze4d(
    monkeypatch: pytest.MonkeyPatch, fake_gpu: str, correlates_only: str
) -> None:
    """Stale results are found, of a graph that replays nothing; without the op it is skipped."""
    name = "CUDA graph of squeeze4d"
    with pytest.raises(AssertionError, match=r"graph in torch.float32: off by"):
        gpu_behaviours.check_behaviour(name, fake_gpu, "reference")

    def capture(step: Callable[[], list[Tensor]]) -> Any:
        outputs = step()
        return Replay(step, outputs), outputs

    monkeypatch.setattr(gpu_behaviours, "capture", capture)
    assert gpu_behaviours.check_behaviour(name, fake_gpu, "reference")["said"] == "passed"
    said = gpu_behaviours.check_behaviour(name, fake_gpu, correlates_only)["said"]
    assert said == "skipped: one has no squeeze4d"


def test_the_code_of_sm_90a(monkeypatch: pytest.MonkeyPatch, fake_gpu: str) -> None:
    """The two codes are told by their kernels' names and the channels; a wrong one is named."""
    small = Case("small", channels=8, weight="soft")
    monkeypatch.setattr(gpu_behaviours, "HOPPER", (small,))
    assert "skipped: it runs on NVIDIA GPUs" in said_of_hopper(fake_gpu)
    monkeypatch.setattr(native, "why_not_cuda", lambda *where: None)

    def launched(run: Any) -> tuple[Tensor, list[str]]:
        hopper = run.args[0].shape[2] % 8 == 0
        return run(), [f"void correlation_{'hopper_' if hopper else ''}kernel<__half>"]

    monkeypatch.setattr(gpu_behaviours, "launched", launched)
    add_backend(monkeypatch, "cuda")
    assert said_of_hopper(fake_gpu) == (
        "passed: the code of sm_90a and the code for every architecture"
    )

    def wrong(query: Tensor, *rest: Any) -> Tensor:
        corr = reference.correlation4d(query, *rest)
        return corr * 1.01 if query.shape[2] % 8 == 0 else corr

    add_backend(monkeypatch, "cuda", correlation4d=wrong)
    with pytest.raises(AssertionError, match=r"the code of sm_90a, small, torch.float16"):
        said_of_hopper(fake_gpu)
    monkeypatch.setattr(gpu_behaviours, "launched", lambda run: (run(), ["correlation_kernel"]))
    assert said_of_hopper(fake_gpu) == "skipped: both ran the code for every architecture"


def said_of_hopper(device: str) -> str:
    return str(gpu_behaviours.check_behaviour("code of sm_90a", device, "triton")["said"])


@pytest.mark.parametrize(
    "name", ["stream", "autocast", "NaN", "NaN tokens", "permuted strides", "views"]
)
def test_behaviours_of_a_backend_with_one_op(name: str, correlates_only: str) -> None:
    """What a chain has beside is run by others, or left out."""
    found = gpu_behaviours.check_behaviour(name, CPU, correlates_only)
    assert found["said"].startswith(("passed", "skipped: needs"))
