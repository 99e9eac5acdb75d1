"""`torch.library` schemas of the ops, from the signatures in `fsdino/ops/reference.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from fsdino import contract
from fsdino.ops import reference

_TYPES = {
    "Tensor": "Tensor",
    "Tensor | None": "Tensor?",
    "int": "SymInt",
    "float": "float",
    "bool": "bool",
    "Sequence[bool]": "bool[]",
    "Sequence[int]": "SymInt[]",
    "Sequence[Tensor]": "Tensor[]",
    "Sequence[Tensor | None]": "Tensor?[]",
}


def define(op: str) -> None:
    """Define an op of the namespace `fsdino` and, unless it is composed, its `_backward`.

    Their arguments are those of the reference, followed by the name of the backend.
    """
    for name in (op,) if op in contract.COMPOSED else (op, f"{op}_backward"):
        schema = schema_of(getattr(reference, name))
        tag = torch.Tag.pt2_compliant_tag
        torch.library.define(f"fsdino::{name}", schema, tags=tag)


def schema_of(function: Callable[..., Any]) -> str:
    """The schema of a function that returns a tensor or a tuple of tensors.

    Raises:
        TypeError: the annotation of an argument is not one of `_TYPES`.
    """
    signature, arguments = inspect.signature(function), []
    for name, parameter in signature.parameters.items():
        if parameter.annotation not in _TYPES:
            raise TypeError(
                f"{function.__name__}: {name} must be annotated as one of {', '.join(_TYPES)}, "
                f"got {parameter.annotation}"
            )
        arguments.append(f"{_TYPES[parameter.annotation]} {name}")
    result = signature.return_annotation.replace("tuple[", "(").replace("]", ")")
    return f"({', '.join([*arguments, 'str backend'])}) -> {result}"
