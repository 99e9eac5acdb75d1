"""The eager formulation is the same computation as the reference, and a backend."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fsdino import ops
from fsdino.bench import baseline, cases, exactness, workloads
from fsdino.bench.cases import CASES, Case
from fsdino.bench.workloads import WORKLOADS
from fsdino.errors import BackendError
from fsdino.ops import backends, eager


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_equals_the_reference(case: Case) -> None:
    """A speed-up over the baseline means something: both compute the same numbers."""
    query, support, weight = cases.features(case, torch.float32)
    corr = eager.correlation4d(query, support, weight)
    exactness.assert_close(
        corr, ops.correlation4d(query, support, weight, backend="reference"), 1e-6
    )
    x, parameters = cases.volume(case, torch.float32), cases.parameters(case, torch.float32)
    conv = (x, *list(parameters.values())[:3])
    exactness.assert_close(
        eager.center_pivot_conv4d(*conv, support_stride=case.stride),
        ops.center_pivot_conv4d(*conv, support_stride=case.stride, backend="reference"),
        1e-6,
    )
    settings = {"num_groups": case.groups, "support_stride": case.stride, "reduce_support": True}
    if case.batch:  # F.group_norm refuses empty batches
        exactness.assert_close(
            eager.center_pivot_block4d(x, *parameters.values(), **settings),
            ops.center_pivot_block4d(x, *parameters.values(), backend="reference", **settings),
            2e-6,
        )


@pytest.mark.parametrize("foreground", [None, 0.2])
def test_chain_equals_the_reference(foreground: float | None) -> None:
    """The whole chain, too, with and without contrastive weights, on a small workload."""
    small = replace(WORKLOADS["W4"], grid=9, channels=24)
    inputs = workloads.make_inputs(small, foreground=foreground)
    corr = ops.correlation4d(inputs.query, inputs.support, inputs.support_weight)
    expected = workloads.run_blocks(corr, inputs.blocks, ops.center_pivot_block4d)
    assert expected.shape == (1, 128, 9, 9)
    exactness.assert_close(baseline.chain(inputs), expected, 1e-5)


def test_auto_never_takes_it() -> None:
    """It is the last in order, behind the reference, which runs everything."""
    assert backends.names()[-2:] == ("reference", "eager")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    """With the reason; the plain functions run it all the same."""
    query = torch.ones(1, 2, 4, 3, 3, dtype=dtype)
    with pytest.raises(BackendError, match=r"eager.* not torch.*rounds intermediate results"):
        ops.correlation4d(query, query, backend="eager")
    assert eager.correlation4d(query, query).dtype == dtype


def test_frozen_inputs_cost_no_gradient() -> None:
    """Only what is asked for is computed; the rest is empty."""
    query, weight = torch.randn(1, 2, 4, 3, 3), torch.randn(5, 2, 3, 3)
    x = ops.correlation4d(query, query, backend="eager")
    grads = torch.ops.fsdino.center_pivot_conv4d_backward(
        torch.ones(1, 5, 3, 3, 3, 3), x, weight, weight, 1, [False, True, False, False], "eager"
    )
    assert [grad.numel() for grad in grads] == [0, weight.numel(), 0, 0]
