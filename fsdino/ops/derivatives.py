"""Derivatives of the ops, and `torch.vmap` over them.

A backend's kernels compute the gradients that training needs. Every other derivative (of higher
order with `create_graph`, in forward mode, or under `torch.func`) is PyTorch's own, through the
reference in plain PyTorch, on every backend. All those of a composed op are its parts'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from fsdino.ops import calls, reference

_library = torch.library.Library("fsdino", "FRAGMENT")

# An op's result from its inputs and settings, by operations that PyTorch differentiates repeatedly.
Formulation = Callable[..., Tensor]
# (grad, saved tensors, the op's settings, which gradients are needed, backend) -> gradients
Gradients = Callable[[Tensor, Sequence[Any], Sequence[Any], list[bool], str], Sequence[Tensor]]


@dataclass(frozen=True)
class Derivatives:
    """How one op is differentiated.

    Attributes:
        op: its name in the namespace `fsdino`.
        inputs: how many tensors it takes, its first arguments.
        gradients: one for each input, by the backend's kernels; anything where none is needed.
        formulation: of the inputs and the settings, its arguments between inputs and backend.
        statistics: how many outputs follow the result. They are saved behind the inputs, where the
            last setting says so, and have no derivatives.
    """

    op: str
    inputs: int
    gradients: Gradients
    formulation: Formulation
    statistics: int = 0

    def setup(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what the backward pass needs."""
        *arguments, ctx.backend = inputs
        tensors, ctx.settings = arguments[: self.inputs], arguments[self.inputs :]
        if not self.statistics:
            ctx.save_for_backward(*tensors)
            return
        statistics = output[1:]
        ctx.mark_non_differentiable(*statistics)
        if ctx.settings[-1]:
            ctx.save_for_backward(*tensors, *statistics)

    def backward(self, ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Gradients to all arguments of the op."""
        saved = ctx.saved_tensors  # read once: activation checkpointing unpacks nothing twice
        if not saved:
            raise RuntimeError(
                f"fsdino::{self.op} was called with save=False: nothing was kept for the "
                f"backward pass. Call fsdino.ops.{self.op}, which decides this itself."
            )
        needs = list(ctx.needs_input_grad[: self.inputs])
        if torch.is_grad_enabled() or _has_tangent(grad, *saved):
            tensors = saved[: self.inputs]
            grads: Sequence[Any] = self._differentiable(grad, tensors, ctx.settings, needs)
        else:
            grads = self.gradients(grad, saved, ctx.settings, needs, ctx.backend)
        asked = [g if need else None for g, need in zip(grads, needs, strict=True)]
        return (*asked, *[None] * (len(ctx.settings) + 1))

    def _differentiable(
        self,
        grad: Tensor,
        tensors: Sequence[Tensor | None],
        settings: Sequence[Any],
        needs: Sequence[bool],
    ) -> list[Tensor | None]:
        """Gradients that depend on `grad` and on the inputs as PyTorch records it."""
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # Of one tensor given twice, or of one input computed from another, each has its own.
            own = [
                t.view_as(t) if t is not None and need else t
                for t, need in zip(tensors, needs, strict=True)
            ]
            result = self.formulate(*own, *settings)
            asked = [t for t, need in zip(own, needs, strict=True) if t is not None and need]
            found = torch.autograd.grad(result, asked, grad, create_graph=create_graph)
        grads = iter(found)
        return [next(grads) if need else None for need in needs]

    def formulate(self, *arguments: Any) -> Tensor:
        """The result by the formulation, rounded once, outside of autocast."""
        tensors, settings = arguments[: self.inputs], arguments[self.inputs :]
        wide = (t if t is None or t.dtype == torch.float64 else t.float() for t in tensors)
        with _outside_autocast(tensors[0]):
            return self.formulation(*wide, *settings).to(tensors[0].dtype)


def register(derivatives: Derivatives, kernel: calls.Kernel) -> type[torch.autograd.Function]:
    """Tell PyTorch how an op and its `_backward` are differentiated and mapped.

    Args:
        derivatives: of the op.
        kernel: the op.

    Returns:
        The op with its gradients, for calls that need neither other derivatives nor a mapping.
    """
    op = getattr(torch.ops.fsdino, derivatives.op).default
    by_kernels = make_autograd_impl(op, Info(derivatives.backward, derivatives.setup))

    def differentiate(keyset: Any, *arguments: Any) -> Any:
        if not _beyond_gradients(arguments):
            return by_kernels(keyset, *arguments)
        result = derivatives.formulate(*arguments[:-1])
        if not derivatives.statistics:
            return result
        # In place of what the gradient by kernels would read; it will not be used.
        return result, *(result.new_empty(0) for _ in range(derivatives.statistics))

    _library.impl(derivatives.op, differentiate, "Autograd", with_keyset=True)
    backward = getattr(torch.ops.fsdino, derivatives.op + "_backward").default

    def differentiate_backward(keyset: Any, *arguments: Any) -> Any:
        recorded = torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)
        if recorded or _has_tangent(*arguments):
            raise NotImplementedError(
                f"fsdino::{derivatives.op}_backward has no derivatives: differentiate "
                f"fsdino.ops.{derivatives.op} twice, with create_graph=True"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return backward.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    _library.impl(
        derivatives.op + "_backward", differentiate_backward, "Autograd", with_keyset=True
    )
    for overload in (op, backward):
        torch.library.register_vmap(overload._name, _slice_by_slice(overload), lib=_library)
    return _function(derivatives, kernel)


def _function(derivatives: Derivatives, kernel: calls.Kernel) -> type[torch.autograd.Function]:
    """What autograd records of a call that does not pass the dispatcher."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        result = kernel.function(*arguments)
        derivatives.setup(ctx, arguments, result)
        return result

    def backward(ctx: Any, *grads: Any) -> Any:  # compiled autograd reads no methods
        return derivatives.backward(ctx, *grads)

    functions = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(derivatives.op, (torch.autograd.Function,), functions)


def register_composition(op: str, composition: Formulation) -> None:
    """Tell PyTorch that an op is a composition wherever a derivative is asked for.

    Args:
        op: its name in the namespace `fsdino`; it returns one tensor.
        composition: of all its arguments, by ops that have derivatives.
    """
    overload = getattr(torch.ops.fsdino, op).default

    def differentiate(keyset: Any, *arguments: Any) -> Tensor:
        tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if recorded or _has_tangent(*tensors):
            with _outside_autocast(tensors[0]):
                return composition(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)  # type: ignore[no-any-return]

    _library.impl(op, differentiate, "Autograd", with_keyset=True)
    torch.library.register_vmap(overload._name, _slice_by_slice(overload), lib=_library)


def _outside_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Autocast off: the dtypes are already chosen. The device meta has none."""
    device = tensor.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def _beyond_gradients(arguments: Sequence[Any]) -> bool:
    """Whether a call needs derivatives that no backend's kernels have."""
    return _has_tangent(*arguments) or (
        torch._C._are_functorch_transforms_active()
        and torch.is_grad_enabled()
        and torch._C._any_requires_grad(*arguments)
    )


def _has_tangent(*arguments: Any) -> bool:
    """Whether an argument is a dual tensor of forward-mode differentiation."""
    # A compiled graph enters the level of its own torch.func.jvp without noting it there.
    if forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active():
        return False
    tensors = (a for a in arguments if isinstance(a, Tensor))
    return any(forward_ad.unpack_dual(t, level=0).tangent is not None for t in tensors)


def _slice_by_slice(op: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of `torch.vmap`: a call for each slice, on the call's own backend."""

    def rule(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
        def part(index: int, argument: Any, dim: Any) -> Any:
            if isinstance(argument, list | tuple) and dim is not None:
                return [part(index, *pair) for pair in zip(argument, dim, strict=True)]
            if dim is None or not isinstance(argument, Tensor):
                return argument
            # Of nothing at all zeros, for the shape of the result.
            return argument.select(dim, index) if info.batch_size else argument.sum(dim)

        results = [op(*part(index, arguments, in_dims)) for index in range(max(info.batch_size, 1))]
        if isinstance(results[0], Tensor):
            return torch.stack(results)[: info.batch_size], 0
        outputs = tuple(
            torch.stack(parts)[: info.batch_size] for parts in zip(*results, strict=True)
        )
        return outputs, (0,) * len(outputs)

    return rule


def correlation4d(
    query: Tensor, support: Tensor, support_weight: Tensor | None, eps: float
) -> Tensor:
    """`reference.correlation4d`, such that all of its derivatives hold.

    PyTorch's derivative of the length is NaN from the second order on at a zero vector; here it is
    0, as that of the first. The derivative to a weight of 0 is the correlation, but 0 where that
    is not finite, and so is that of what a weight of 0 silences.
    """
    if support_weight is None:
        cosine = _unit(query, eps).transpose(2, 3) @ _unit(support, eps)  # [B, L, N, M]
        correlation = cosine.relu()
    else:
        silent = support_weight == 0  # [B, Hs, Ws]
        support = support.masked_fill(silent[:, None, None] & ~support.isfinite(), 0)
        cosine = _unit(query, eps).transpose(2, 3) @ _unit(support, eps)
        silent = silent.flatten(1)[:, None, None] & ~cosine.isfinite()  # [B, L, N, M]
        weight = support_weight.flatten(1)[:, None, None]  # [B, 1, 1, M]
        correlation = cosine.masked_fill(silent, 0).relu() * weight
    return correlation.reshape(*query.shape[:2], *query.shape[3:], *support.shape[3:])


def _unit(tokens: Tensor, eps: float) -> Tensor:
    """Tokens over their length plus eps: [B, L, C, h, w] -> [B, L, C, h*w]."""
    flat = tokens.flatten(3)
    zero = flat.detach().norm(dim=2, keepdim=True) == 0
    length: Tensor = flat.masked_fill(zero, 1).norm(dim=2, keepdim=True)
    return flat / (length.masked_fill(zero, 0) + eps)


def correlation_center_pivot4d(
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    support_stride: int,
    eps: float,
) -> Tensor:
    """`reference.correlation_center_pivot4d` of a correlation that has all derivatives."""
    x = correlation4d(query, support, support_weight, eps)
    return reference.center_pivot_conv4d(x, weight_query, weight_support, bias, support_stride)
