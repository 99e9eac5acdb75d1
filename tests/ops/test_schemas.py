"""Schemas of the ops: what PyTorch knows of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fsdino.ops import schemas


def test_schema_of_a_signature() -> None:
    """Every kind of argument, and one tensor or several as the result."""

    def forward(x: Tensor, bias: Tensor | None, stride: int, eps: float, flag: bool) -> Tensor:
        raise NotImplementedError

    def backward(x: Tensor, needs: Sequence[bool]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    assert schemas.schema_of(forward) == (
        "(Tensor x, Tensor? bias, SymInt stride, float eps, bool flag, str backend) -> Tensor"
    )

    def chain(
        weights: Sequence[Tensor], biases: Sequence[Tensor | None], strides: Sequence[int]
    ) -> Tensor:
        raise NotImplementedError

    assert schemas.schema_of(backward) == (
        "(Tensor x, bool[] needs, str backend) -> (Tensor, Tensor)"
    )
    assert schemas.schema_of(chain) == (
        "(Tensor[] weights, Tensor?[] biases, SymInt[] strides, str backend) -> Tensor"
    )


def test_other_types_are_refused() -> None:
    """An argument that no kernel takes is found when the op is defined."""

    def listed(x: list[Tensor]) -> Tensor:
        raise NotImplementedError

    with pytest.raises(TypeError, match=r"listed: x must be annotated as one of .*, got list"):
        schemas.schema_of(listed)


def test_exported_graphs_find_the_same_schemas() -> None:
    """A graph that was saved names arguments and types: they must not change."""
    found = str(torch.ops.fsdino.correlation4d_backward.default._schema)
    assert found == (
        "fsdino::correlation4d_backward(Tensor grad, Tensor query, Tensor support, "
        "Tensor? support_weight, float eps, bool[] needs, str backend) -> (Tensor, Tensor, Tensor)"
    )
    found = str(torch.ops.fsdino.squeeze4d.default._schema)
    assert found == (
        "fsdino::squeeze4d(Tensor query, Tensor support, Tensor? support_weight, "
        "Tensor[] weights_query, Tensor[] weights_support, Tensor?[] biases, "
        "Tensor[] norm_weights, Tensor[] norm_biases, SymInt[] support_strides, "
        "SymInt num_groups, float norm_eps, float eps, str backend) -> Tensor"
    )
