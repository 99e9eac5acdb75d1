"""`torch.library` schemas of the ops, from the signatures in `fsdino/ops/reference.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from fsdino.ops import reference

_TYPES = {
    "Tensor": "Tensor",
    "Tensor | None": "Tensor?",
    "int": "SymInt",
    "float": "float",
    "bool": "bool",
    "Sequence[bool]": "bool[]",
}


def define(op: str) -> None:
    """Define an op of the namespace `fsdino` and its `_backward`.

    They take what the functions of the reference take, and behind that the name of the backend.
    """
    for name in (op, f"{op}_backward"):
        schema = schema_of(getattr(reference, name))
        tag = torch.Tag.pt2_compliant_tag
        torch.library.define(f"fsdino::{name}", schema, tags=tag)


def schema_of(function: Callable[..., Any]) -> str:
    """A signature whose annotations are of `_TYPES`, and that returns one tensor or a tuple."""
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    arguments = [f"{_TYPES[parameter.annotation]} {parameter.name}" for parameter in parameters]
    result = signature.return_annotation.replace("tuple[", "(").replace("]", ")")
    return f"({', '.join([*arguments, 'str backend'])}) -> {result}"
