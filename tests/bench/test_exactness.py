"""Right is what the contract says: float64 on the same inputs, norm and largest element."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fsdino import ops
from fsdino.bench import baseline, exactness, workloads
from fsdino.bench.workloads import Block, Inputs, Workload
from fsdino.ops import eager

MINI = Workload("mini", batch=2, layers=2, grid=7, channels=16, block_channels=(8, 16))


def test_errors_are_measured_by_the_contract():
    """By hand: norm error, absolute for a zero reference, and 30 times that for one element."""
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert exactness.norm_error(torch.tensor([3.0, 4.5]), exact) == pytest.approx(0.1)
    zero = torch.zeros(2, dtype=torch.float64)
    assert exactness.norm_error(torch.tensor([0.0, 0.25]), zero) == pytest.approx(0.25)
    assert exactness.norm_error(torch.tensor([0.0, float("nan")]), zero) == float("inf")
    # The element is off by 0.5 / 4 of the largest: 0.125 / (30 * 0.01), less than the norm's 10.
    off = [torch.tensor([3.0, 4.5])]
    assert exactness.error(off, [exact], [0.01]) == pytest.approx(10)
    many = torch.ones(10000, dtype=torch.float64)
    spike = many.clone()
    spike[0] += 0.6  # norm error 0.006 of 0.01 allowed, but 0.6 of 0.3 for the element
    assert exactness.error([spike], [many], [0.01]) == pytest.approx(2)
    assert exactness.error([exact, spike], [exact, many], [0.01, 0.01]) == pytest.approx(2)
    assert exactness.error([torch.ones(3)], [exact], [0.01]) == float("inf")


def test_bounds():
    """One op has its own; a chain may err twice as much as eager does, or as much as one op."""
    exact = [torch.ones(4, dtype=torch.float64)] * 3
    by_eager = [exact[0] + 1e-5, exact[1] + 1e-7, exact[2] + 1e-4]
    chained = exactness.bounds(by_eager, exact, torch.float32, chained=True)
    assert chained == pytest.approx([2e-5, 1e-5, 2e-4])
    assert exactness.bounds(by_eager, exact, torch.float32, chained=False) == [1e-6, 1e-5, 1e-5]
    # 1e-5 of 100 times 1e-6, and 1e-4 of 100 times 1e-5: a tenth of what is allowed.
    overflowed = [torch.full((4,), float("inf"))] * 3
    assert exactness.bounds(overflowed, exact, torch.float16, chained=True) == [6e-4, 5e-3, 5e-3]
    assert exactness.yardstick_error(by_eager, exact, torch.float32) == pytest.approx(0.1)


@pytest.mark.parametrize("slab", [1, 3 * 2 * 2 * 7**3, 2**26], ids=["a row", "3 rows", "whole"])
@pytest.mark.parametrize("foreground", [None, 0.2])
def test_expected_results_hold_no_more_than_a_slab(monkeypatch, slab, foreground):
    """However few query rows are held at once, the results are those of the reference."""
    inputs = workloads.make_inputs(MINI, dtype=torch.float64, foreground=foreground)
    with ops.use_backend("reference"):
        x = ops.correlation4d(inputs.query, inputs.support, inputs.support_weight)
        first = Inputs(inputs.query, inputs.support, inputs.support_weight, inputs.blocks[:1])
        block = ops.center_pivot_block4d(x, *first.blocks[0].tensors(), support_stride=2)
        chain = workloads.run_blocks(x, inputs.blocks, ops.center_pivot_block4d)
    monkeypatch.setattr(exactness, "_SLAB", slab)
    for part, whole in (("correlation", x), ("fused-block", block), ("chain", chain)):
        [found] = exactness.expected(part, inputs)
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


def test_a_step_returns_output_and_gradients():
    """Each parameter has one; a part that stops early has fewer, without a backward pass none."""
    inputs = workloads.make_inputs(replace(MINI, backward=True))
    output, *gradients = exactness.step(lambda: baseline.chain(inputs), inputs)
    parameters = [tensor for block in inputs.blocks for tensor in block.tensors()]
    assert [g.shape for g in gradients] == [p.shape for p in parameters]
    assert not output.requires_grad
    x = eager.correlation4d(inputs.query, inputs.support)
    assert len(exactness.step(lambda: x, inputs)) == 1
    first = inputs.blocks[0].tensors()
    assert len(exactness.step(lambda: eager.center_pivot_block4d(x, *first), inputs)) == 6


def test_gradients_of_many_positions_are_float16():
    """A bias of as many outputs as W12's first convolution has, 494,209 a channel."""
    bias = torch.zeros(16, dtype=torch.float16, requires_grad=True)
    inputs = Inputs(bias, bias, bias, (Block(*(bias,) * 5),))
    volume = torch.zeros(1, 16, 37, 37, 19, 19, dtype=torch.float16)
    _, gradient, *_ = exactness.step(lambda: volume + bias.view(1, -1, 1, 1, 1, 1), inputs)
    assert gradient.isfinite().all() and gradient.abs().max() > 1000


def test_assertions_name_what_is_wrong():
    """By the same errors: shape, norm, one element, NaN; empty results are right."""
    exact = torch.ones(10000, dtype=torch.float64)
    spike = exact.clone()
    spike[0] += 0.6
    exactness.assert_close(exact + 0.009, exact, 0.01)
    exactness.assert_close(torch.ones(0, 3), torch.ones(0, 3), 0.01)
    for wrong, said in (
        (torch.ones(3), "y: torch.Size"),
        (exact + 0.02, "y: relative error 2.00e-02 > 1.0e-02"),
        (spike, "y: worst element off by 6.00e-01 of the largest"),
        (exact * float("nan"), "y: relative error inf"),
    ):
        with pytest.raises(AssertionError, match=said):
            exactness.assert_close(wrong, exact, 0.01, "y")
    exactness.assert_no_worse(exact + 0.019, exact + 0.01, exact, 0.001)
    exactness.assert_no_worse(exact + 0.0009, exact, exact, 0.001)
    with pytest.raises(AssertionError, match=r"gradient: relative error 2.10e-02 > 2.0e-02"):
        exactness.assert_no_worse(exact + 0.021, exact + 0.01, exact, 0.001, "gradient")
    with pytest.raises(AssertionError, match="output: relative error"):
        exactness.assert_no_worse(exact + 0.002, exact * float("nan"), exact, 0.001)
