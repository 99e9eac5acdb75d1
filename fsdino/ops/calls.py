"""Calls of the ops: checked once a signature, and straight to the kernel where nothing looks on.

A call goes through PyTorch's dispatcher where anything there could see or change it: compilation,
tracing, `torch.func`, forward-mode differentiation, the profiler, the modes that intercept
operations, and every tensor that is not an ordinary one. Otherwise it takes the same kernel and the
same derivatives directly, which saves the time of the way through it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fsdino.ops import backends

# Signatures that are remembered. A service that sees more shapes than these checks some again.
LARGEST = 512

_PLAIN = (Tensor, torch.nn.Parameter)
_NUMBERS = frozenset({int, float, bool})

# Looked up once: these are asked in every call.
_dispatch_keys = torch._C._dispatch_keys
_function_modes = torch._C._len_torch_function_stack
_profiled = torch._C._autograd._profiler_enabled
_included = torch._C._dispatch_tls_local_include_set
_compiled = torch.compiler.is_dynamo_compiling

# (op, shape, dtype and device of each tensor, type and value of each setting) -> settings to run
# with. Only what the checks read is in a signature, and nothing that can change: which backend
# runs, and whether it can, is decided in every call.
_checked: dict[tuple[Any, ...], tuple[Any, ...]] = {}


# All arguments of an op -> (tensors, settings) to run with.
Check = Callable[..., tuple[tuple[Any, ...], tuple[Any, ...]]]


def _bits(*names: str) -> int:
    keys = [torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)) for name in names]
    return functools.reduce(operator.or_, (key.raw_repr() for key in keys))


# The dispatcher's keys of an ordinary tensor, and those that it adds outside of all modes.
_ORDINARY = _bits(
    "CPU", "AutogradCPU", "AutocastCPU", "CUDA", "AutogradCUDA", "AutocastCUDA", "ADInplaceOrView"
)  # fmt: skip
_OUTSIDE = _bits("BackendSelect", "ADInplaceOrView")
_AUTOGRAD = torch._C.DispatchKey.AutogradOther


def unobserved() -> bool:
    """Whether nothing in this thread sees or changes what passes PyTorch's dispatcher."""
    return not (
        _compiled()
        or _function_modes()
        or _profiled()
        or forward_ad._current_level >= 0
        or _included().raw_repr() | _OUTSIDE != _OUTSIDE
    )


def _ordinary(arguments: tuple[Any, ...]) -> bool:
    """Whether all tensors are dense, and stand for nothing but their own elements."""
    for argument in arguments:
        if type(argument) in _PLAIN:
            if _dispatch_keys(argument).raw_repr() | _ORDINARY != _ORDINARY:
                return False
        elif isinstance(argument, Tensor):
            return False
    return True


class Kernel:
    """An op of the namespace `fsdino`, and the function that runs it below autograd."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.overload = getattr(torch.ops.fsdino, name).default
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        """Run it in a backward pass that autograd does not record."""
        if unobserved() and _ordinary(arguments):
            return self.function(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*arguments)


# The kernel of each op and of each `_backward`, by its name.
KERNELS: dict[str, Kernel] = {}


def implements(name: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Register a function as the op `fsdino::name`, which has been defined, on every device."""

    def register(function: Callable[..., Any]) -> Kernel:
        torch.library.impl(f"fsdino::{name}", "CompositeExplicitAutograd", function)
        kernel = KERNELS[name] = Kernel(name, function)
        return kernel

    return register


@dataclass(frozen=True, eq=False)
class Op:
    """How the public function of an op runs a call.

    Attributes:
        name: in the namespace `fsdino`.
        check: must read nothing but the shape, dtype and device of tensors, and numbers; autocast
            may cast the tensors.
        kernel: runs it.
        differentiable: the same with gradients, as a function of autograd.
        saves: whether the last setting of the kernel says that a backward pass will follow.
    """

    name: str
    check: Check
    kernel: Kernel
    differentiable: type[torch.autograd.Function]
    saves: bool = False

    def __call__(self, tensors: tuple[Any, ...], settings: tuple[Any, ...], backend: str) -> Any:
        """Check the arguments, choose the backend, and run.

        Raises:
            TypeError, ValueError: an argument that does not fit.
            BackendError, UsageError: as `backends.select`.
        """
        direct, tensors, settings = checked(self.name, self.check, tensors, settings)
        name = backends.select(self.name, tensors[0], backend)
        if direct:
            recorded = torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors)
            run = self.kernel.function
            if recorded:  # below autograd, in the body of another op, nothing is
                below = torch._C._dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD)
                run = self.kernel.overload if below else self.differentiable.apply
        else:
            recorded = torch.is_grad_enabled() and any(
                t is not None and t.requires_grad for t in tensors
            )
            run = self.kernel.overload
        if self.saves:
            settings = (*settings, recorded)
        return run(*tensors, *settings, name)


def checked(
    op: str, check: Check, tensors: tuple[Any, ...], settings: tuple[Any, ...]
) -> tuple[bool, tuple[Any, ...], tuple[Any, ...]]:
    """Check the arguments of a call unless its signature has passed before.

    Args:
        op: its name.
        check: as in `Op`.
        tensors, settings: all arguments.

    Returns:
        Whether the kernel may be called directly, and the tensors and settings to run with.

    Raises:
        TypeError, ValueError: an argument that does not fit.
    """
    signature = _signature(op, tensors, settings) if unobserved() else None
    known = None if signature is None else _checked.get(signature)
    if known is not None and not _casts(tensors[0]):
        return True, tensors, known
    tensors, settings = check(*tensors, *settings)
    if signature is not None and not _casts(tensors[0]):
        _remember(signature, settings)
    return signature is not None, tensors, settings


def _casts(tensor: Tensor) -> bool:
    """Whether autocast is on for the device of a tensor."""
    if not torch._C._is_any_autocast_enabled():
        return False
    return torch.is_autocast_enabled(tensor.device.type)


def _signature(
    name: str, tensors: tuple[Any, ...], settings: tuple[Any, ...]
) -> tuple[Any, ...] | None:
    """What the checks of a call read; None where it has to go through the dispatcher."""
    kinds = tuple([type(setting) for setting in settings])  # True, 1 and 1.0 are equal
    if not _NUMBERS.issuperset(kinds):
        return None
    parts: list[Any] = [name, settings, kinds]
    for tensor in tensors:
        if tensor is None:
            parts.append(None)
        elif type(tensor) in _PLAIN and _dispatch_keys(tensor).raw_repr() | _ORDINARY == _ORDINARY:
            parts += (tensor.shape, tensor.dtype, tensor.device)
        else:
            return None
    return tuple(parts)


def _remember(signature: tuple[Any, ...], settings: tuple[Any, ...]) -> None:
    if len(_checked) >= LARGEST:
        _checked.clear()
    _checked[signature] = settings
