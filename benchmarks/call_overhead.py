"""What a call of an op costs beyond its kernel: `python benchmarks/call_overhead.py`.

On the workload `tiny`, in float32, on one thread, with the backend `cpp`. Without gradients: the
median of the public function, less that of the same kernel called through `torch.ops.fsdino_cpp`.
With gradients, forward and backward: less the two kernels, and less the same two kernels in a
`torch.autograd.Function` that does nothing else, whose time holds what PyTorch's own engine takes.
All take turns in one process. Prints a table and writes a JSON file.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from record import command
from torch import Tensor

from fsdino import ops
from fsdino.bench.record import write_record
from fsdino.bench.workloads import GROUPS, NORM_EPS, STRIDE, TINY, make_inputs

EPS = 1e-5  # of the correlation, as by default
BACKEND = "cpp"

Call = Callable[[], Any]


class Op:
    """One op on the workload: the public function, and its two kernels.

    Attributes:
        public: of the tensors.
        forward: the kernel of the tensors -> results, the op's first; with `save` also those that
            the backward pass needs.
        backward: the kernel of the result's gradient, the tensors and the other results.
        tensors: that the op takes.
    """

    def __init__(self, public: Any, forward: Any, backward: Any, tensors: Sequence[Tensor]) -> None:
        self.public, self.forward, self.backward = public, forward, backward
        self.tensors = tuple(tensors)

    def bare(self) -> Callable[..., Tensor]:
        """The two kernels in a function of autograd."""
        forward_kernel, backward_kernel = self.forward, self.backward

        class Bare(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *tensors: Tensor) -> Tensor:
                result, *statistics = forward_kernel(*tensors, save=True)
                ctx.save_for_backward(*tensors, *statistics)
                return result

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> Any:
                return backward_kernel(grad, *ctx.saved_tensors)

        return Bare.apply

    def without_gradients(self) -> tuple[Call, Call]:
        """The public call, and the kernel."""
        return (lambda: self.public(*self.tensors)), (
            lambda: self.forward(*self.tensors, save=False)
        )

    def with_gradients(self) -> tuple[Call, Call, Call]:
        """Forward and backward: the public call, the bare function of autograd, the kernels."""
        leaves = [t.detach().clone().requires_grad_() for t in self.tensors]
        ones = torch.ones_like(self.forward(*self.tensors, save=True)[0])
        bare = self.bare()

        def kernels() -> None:
            _, *statistics = self.forward(*self.tensors, save=True)
            self.backward(ones, *self.tensors, *statistics)

        return (
            lambda: torch.autograd.grad(self.public(*leaves), leaves, ones),
            lambda: torch.autograd.grad(bare(*leaves), leaves, ones),
            kernels,
        )


def make_ops() -> dict[str, Op]:
    """The four ops by name; the block as within a chain."""
    inputs = make_inputs(TINY)
    features = (inputs.query, inputs.support, inputs.support_weight)
    x = ops.correlation4d(*features, backend=BACKEND)
    block = inputs.blocks[0].tensors()
    kernels = torch.ops.fsdino_cpp
    stride, norm = {"support_stride": STRIDE}, {"num_groups": GROUPS, "norm_eps": NORM_EPS}
    every = [True] * 6

    return {
        "correlation4d": Op(
            lambda *t: ops.correlation4d(*t, backend=BACKEND),
            lambda *t, save: (kernels.correlation4d(*t, EPS),),
            lambda g, *t: kernels.correlation4d_backward(g, *t, EPS, every[:3]),
            features,
        ),
        "center_pivot_conv4d": Op(
            lambda *t: ops.center_pivot_conv4d(*t, **stride, backend=BACKEND),
            lambda *t, save: (kernels.center_pivot_conv4d(*t, STRIDE),),
            lambda g, *t: kernels.center_pivot_conv4d_backward(g, *t[:3], STRIDE, every[:4]),
            (x, *block[:3]),
        ),
        "center_pivot_block4d": Op(
            lambda *t: ops.center_pivot_block4d(*t, **norm, **stride, backend=BACKEND),
            lambda *t, save: kernels.center_pivot_block4d(
                *t, GROUPS, NORM_EPS, STRIDE, False, save
            ),
            lambda g, *t: kernels.center_pivot_block4d_backward(
                g, *t[:3], *t[4:], STRIDE, False, every
            ),
            (x, *block),
        ),
        "correlation_center_pivot4d": Op(
            lambda *t: ops.correlation_center_pivot4d(*t, **stride, backend=BACKEND),
            lambda *t, save: (kernels.correlation_center_pivot4d(*t, STRIDE, EPS),),
            lambda g, *t: kernels.correlation_center_pivot4d_backward(
                g, *t[:5], STRIDE, EPS, every
            ),
            (*features, *block[:3]),
        ),
    }


def medians(calls: Sequence[Call], repeats: int) -> list[float]:
    """Microseconds a call takes, the calls taking turns; a tenth as many more are not counted."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats // 10):
        for call in calls:
            call()
    for _ in range(repeats):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            own.append(time.perf_counter() - start)
    return [statistics.median(own) * 1e6 for own in times]


def measure(op: Op, repeats: int) -> dict[str, float]:
    """Medians of an op in microseconds, without and with gradients."""
    with torch.no_grad():
        public, kernel = medians(op.without_gradients(), repeats)
    trained, bare, kernels = medians(op.with_gradients(), repeats)
    return {
        "call": public,
        "kernel": kernel,
        "call_with_gradients": trained,
        "function_with_gradients": bare,
        "kernels_with_gradients": kernels,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000, help="of each call")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/call_overhead.json"), metavar="FILE"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = [{"op": name} | measure(op, arguments.repeats) for name, op in make_ops().items()]
    print("beyond the kernel, in µs | a call | with gradients | of that PyTorch's own")
    for row in results:
        beyond = row["call_with_gradients"] - row["kernels_with_gradients"]
        own = row["function_with_gradients"] - row["kernels_with_gradients"]
        print(f"{row['op']} | {row['call'] - row['kernel']:.0f} | {beyond:.0f} | {own:.0f}")
    write_record(arguments.out, command(), repeats=arguments.repeats, results=results)


if __name__ == "__main__":
    main()
