"""Which backend runs a call, and why.

A backend is a module with the functions in `fsdino/contract.py`, and a predicate that returns the
reason why it cannot run a call. `auto` calls the predicates in order of priority, but first that of
a backend that was measured to be faster (`fsdino/ops/measured.py`). A backend that is requested
by name is prepared first, which may include compiling, and raises the reason.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch.torch_version import TorchVersion

from fsdino import contract
from fsdino.contract import while_tracing
from fsdino.errors import BackendError, UsageError
from fsdino.kernels import backend as triton
from fsdino.ops import eager_backend, measured, native

logger = logging.getLogger("fsdino.ops")


def _nothing_to_prepare(device: torch.device) -> None:
    pass


@dataclass(frozen=True)
class Backend:
    """One implementation of the ops.

    Attributes:
        name: in `backend=`, `use_backend` and FSDINO_BACKEND.
        priority: `auto` tries the highest first.
        module: dotted path of the module with the functions, imported at the first call.
        why_not: (op, device, dtype) -> None where the backend has a function that can run the call,
            else the reason. Called before every op: it must be quick, and must not build.
        memory_order: of the volumes that the backend returns; one of those in `fsdino.contract`.
        mean_parts: floats whose sum is a group's mean as `center_pivot_block4d` saves it: [B, G] if
            one, else [parts, B, G].
        prepare: called with the device before `why_not` if the backend is requested by name; it may
            build. If it fails, `why_not` returns the reason.
    """

    name: str
    priority: int
    module: str
    why_not: Callable[[str, torch.device, torch.dtype], str | None]
    memory_order: tuple[int, ...] = contract.AS_WRITTEN
    mean_parts: int = 1
    prepare: Callable[[torch.device], None] = _nothing_to_prepare

    def load(self) -> ModuleType:
        """The implementation, imported at the first call."""
        return self._implementation

    @functools.cached_property
    def _implementation(self) -> ModuleType:
        return importlib.import_module(self.module)


_registry: dict[str, Backend] = {}
# FSDINO_BACKEND is read once: torch.compile does not guard on the environment.
_forced: contextvars.ContextVar[str] = contextvars.ContextVar(
    "fsdino_backend", default=os.environ.get("FSDINO_BACKEND", "auto")
)


def register(backend: Backend) -> None:
    """Add a backend. Callers need no change: `auto`, `use_backend` and `fsdino info` see it."""
    _registry[backend.name] = backend


def names() -> tuple[str, ...]:
    """Registered backends, in the order in which `auto` tries them."""
    ranked = sorted(_registry.values(), key=lambda backend: -backend.priority)
    return tuple(backend.name for backend in ranked)


def why_not(name: str, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why backend `name` cannot run `op` for this device and dtype; None if it can.

    A composed op runs where all of its parts do.
    """
    backend = _find(name)
    for part in contract.PARTS.get(op, (op,)):
        reason = backend.why_not(part, device, dtype)
        if reason is not None:
            return reason
    return None


def fuses(name: str, op: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether backend `name` has a function of its own for a composed op, and can run it here."""
    return _find(name).why_not(op, device, dtype) is None and _has(name, op)


@while_tracing
def _has(name: str, function: str) -> bool:
    return hasattr(_registry[name].load(), function)


def _choice() -> str:
    """What `use_backend` or else FSDINO_BACKEND names."""
    return _forced.get()


# Before that, torch.compile may not be able to follow a context variable.
if TorchVersion(torch.__version__) < "2.14":
    _choice = while_tracing(_choice)


def select(op: str, tensor: torch.Tensor, requested: str = "auto") -> str:
    """Name of the backend that runs `op` on tensors like `tensor`.

    An explicit `requested` wins over `use_backend`, which wins over FSDINO_BACKEND.

    Raises:
        TypeError: `requested` is not a string.
        UsageError: no backend has that name.
        BackendError: the requested backend cannot run this call.
    """
    if not isinstance(requested, str):
        raise TypeError(f"{op}: backend must be a string, got {type(requested).__name__}")
    if requested == "auto":
        requested = _choice()
    if requested != "auto":
        backend, device = _find(requested), tensor.device
        if device.type == "meta":  # only shapes are needed: nothing will run
            return requested
        backend.prepare(device)
        reason = why_not(requested, op, device, tensor.dtype)
        if reason is not None:
            raise BackendError(f"backend {requested!r} cannot run {op} here: {reason}")
        return requested
    fastest = measured.fastest(op, tensor)
    for name in names() if fastest not in _registry else (fastest, *names()):
        if why_not(name, op, tensor.device, tensor.dtype) is None:
            return name
    raise BackendError(f"no backend can run {op} for {tensor.dtype} on {tensor.device}")


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the `with` block on backend `name` ("auto" lifts an outer choice).

    Applies to the current thread or task; enter it outside of a compiled function. Before PyTorch
    2.14, a compiled function keeps the backend that it was traced with.

    Raises:
        TypeError: it is not a string.
        UsageError: no backend has that name.

    Example:
        >>> import torch
        >>> from fsdino import ops
        >>> features = torch.rand(1, 2, 16, 4, 4)
        >>> with ops.use_backend("reference"):
        ...     ops.correlation4d(features, features).shape
        torch.Size([1, 2, 4, 4, 4, 4])
    """
    if not isinstance(name, str):
        raise TypeError(f"use_backend: name must be a string, got {type(name).__name__}")
    if name != "auto":
        _find(name)
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def run(backend: str, function: str, tensor: torch.Tensor, *args: object) -> torch.Tensor:
    """Call a function of a backend, outside of autocast: the dtypes are already chosen."""
    implementation = getattr(_registry[backend]._implementation, function)
    logger.debug("%s runs on %s", function, backend)
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(tensor.device.type):
        with torch.autocast(tensor.device.type, enabled=False):
            return implementation(tensor, *args)  # type: ignore[no-any-return]
    return implementation(tensor, *args)  # type: ignore[no-any-return]


def empty_volume(backend: str, like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """An uninitialised volume [B, C, Hq, Wq, Hs, Ws] in the memory order of a backend."""
    return contract.empty_volume(like, shape, _registry[backend].memory_order)


def mean_shape(backend: str, batch: int, groups: int) -> tuple[int, ...]:
    """Of the means that a backend saves for its own backward pass."""
    parts = _registry[backend].mean_parts
    return (batch, groups) if parts == 1 else (parts, batch, groups)


def _find(name: str) -> Backend:
    if name not in _registry:
        raise UsageError(f"unknown backend {name!r}: choose from auto, {', '.join(names())}")
    return _registry[name]


def _reference_why_not(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    return None


register(
    Backend(
        "triton", 20, "fsdino.kernels.backend", triton.why_not, contract.CHANNELS_INNERMOST,
        mean_parts=2,
    )
)  # fmt: skip
register(
    Backend(
        "cuda", 15, "fsdino.ops.native", native.why_not_cuda, contract.CHANNELS_INNERMOST,
        prepare=native.prepare_cuda,
    )
)  # fmt: skip
register(
    Backend(
        "cpp", 10, "fsdino.ops.native", native.why_not, contract.QUERY_INNERMOST,
        prepare=native.prepare,
    )
)  # fmt: skip
register(Backend("reference", 0, "fsdino.ops.reference", _reference_why_not))
# Below the reference: `auto` takes it where it was measured to be the fastest, and nowhere else.
register(Backend("eager", -10, "fsdino.ops.eager_backend", eager_backend.why_not))
