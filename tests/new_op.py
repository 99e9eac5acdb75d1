"""What the steps of CONTRIBUTING.md ask for: an op, `channel_gain4d`, and a backend, `mirror`.

`NEW_OP` and `NEW_BACKEND` list the insertions into each file: the text before which a part is
inserted ("" for the end of the file, None for a new file), and the part.
"""

from __future__ import annotations

REFERENCE = '''
def channel_gain4d(x: Tensor, gain: Tensor) -> Tensor:
    """x [B, C, Hq, Wq, Hs, Ws] times the gain [C] of each channel."""
    return (_wide(x) * _wide(gain)[:, None, None, None, None]).to(x.dtype).contiguous()


def channel_gain4d_backward(
    grad: Tensor, x: Tensor, gain: Tensor, needs: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients to x and gain; empty where nobody asks."""
    grad_x, grad_gain = _nothing(grad, 2)
    if needs[0]:
        grad_x = channel_gain4d(grad, gain)
    if needs[1]:
        grad_gain = (_wide(grad) * _wide(x)).sum((0, 2, 3, 4, 5)).to(gain.dtype)
    return grad_x, grad_gain


'''

OP = '''"""channel_gain4d: argument checks, fake and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fsdino.ops import arguments, backends, calls, derivatives, reference, schemas
from fsdino.ops.correlation import asked_for

_NAME = "channel_gain4d"

schemas.define(_NAME)


def channel_gain4d(x: Tensor, gain: Tensor, *, backend: str = "auto") -> Tensor:
    """x [B, C, Hq, Wq, Hs, Ws] times the gain [C] of each channel."""
    return _OP((x, gain), (), backend)  # type: ignore[no-any-return]


def _check(x: Tensor, gain: Tensor) -> Any:
    x, gain = arguments.check_tensors(_NAME, x=x, gain=gain)  # type: ignore[assignment]
    arguments.check_volume(_NAME, x)
    arguments.check_vector(_NAME, "gain", gain, x.shape[1])
    return (x, gain), ()


@calls.implements(_NAME)
def _forward(x: Tensor, gain: Tensor, backend: str) -> Tensor:
    return backends.run(backend, _NAME, x, gain)


@calls.implements(_NAME + "_backward")
def _backward_kernel(grad: Tensor, *args: Any) -> Any:
    *rest, backend = args
    return backends.run(backend, _NAME + "_backward", grad, *rest)


@torch.library.register_fake("fsdino::channel_gain4d")
def _fake(x: Tensor, gain: Tensor, backend: str) -> Tensor:
    return backends.empty_volume(backend, x, x.shape)


@torch.library.register_fake("fsdino::channel_gain4d_backward")
def _backward_fake(
    grad: Tensor, x: Tensor, gain: Tensor, needs: Sequence[bool], backend: str
) -> tuple[Tensor, ...]:
    return asked_for(grad, (backends.empty_volume(backend, x, x.shape), gain), needs)


def _gradients(
    grad: Tensor, saved: Sequence[Any], settings: Sequence[Any], needs: list[bool], backend: str
) -> Any:
    return _backward_kernel(grad, *saved, needs, backend)


_DERIVATIVES = derivatives.Derivatives(_NAME, 2, _gradients, reference.channel_gain4d)
_OP = calls.Op(_NAME, _check, _forward, derivatives.register(_DERIVATIVES, _forward))
'''

FORMULATION = '''
def channel_gain4d(x: Tensor, gain: Tensor) -> Tensor:
    """Channel by channel."""
    channels = zip(x.double().unbind(1), gain.double(), strict=True)
    return torch.stack([channel * factor for channel, factor in channels], 1)
'''

EAGER = '''
def channel_gain4d(x: Tensor, gain: Tensor) -> Tensor:
    """Eager `fsdino.ops.channel_gain4d`."""
    return x * gain.view(-1, 1, 1, 1, 1)
'''

TESTS = '''"""channel_gain4d: values by hand, opcheck, compilation, errors."""

import pytest
import torch

from fsdino import ops
from fsdino.ops import backends

X = torch.arange(2.0).view(1, 2, 1, 1, 1, 1) + 1
GAIN = torch.tensor([3.0, -5.0])


@pytest.mark.parametrize("op", ["channel_gain4d"])
@pytest.mark.parametrize("backend", backends.names())
def test_values_and_gradients(backend, op):
    x, gain = X.double().requires_grad_(), GAIN.double().requires_grad_()
    assert ops.channel_gain4d(x, gain, backend=backend).flatten().tolist() == [3, -10]
    assert torch.autograd.gradcheck(lambda *a: ops.channel_gain4d(*a, backend=backend), (x, gain))
    torch.library.opcheck(torch.ops.fsdino.channel_gain4d, (x, gain, backend))
    run = torch.compile(ops.channel_gain4d, fullgraph=True, backend="aot_eager")
    assert torch.equal(run(X, GAIN, backend=backend), ops.channel_gain4d(X, GAIN))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="gain must be"):
        ops.channel_gain4d(X, GAIN[:1])
'''

BENCHMARKS = '''"""Time of `channel_gain4d`: it is in no standard workload."""


def parts(workload: str, weights: str) -> tuple[str, ...]:
    return ()


def test_channel_gain4d(measure, case, implementation):
    measure(case, implementation)
'''

MIRROR = '''"""Backend `mirror`: the reference, with the query dims innermost."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fsdino import contract
from fsdino.ops import reference


def why_not(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why it cannot run such a call; None if it can."""
    return None if device.type == "cpu" else f"it runs on the CPU, not on {device.type}"


def __getattr__(name: str) -> Callable[..., Any]:
    if name not in (*contract.FUNCTIONS, *contract.OPTIONAL):
        raise AttributeError(name)
    function = getattr(reference, name)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        results = function(*arguments)
        return _laid(results) if isinstance(results, Tensor) else tuple(map(_laid, results))

    return call


def _laid(result: Tensor) -> Tensor:
    if result.ndim != 6:
        return result
    return contract.empty_volume(result, result.shape, contract.QUERY_INNERMOST).copy_(result)
'''

Edits = dict[str, list[tuple[str | None, str]]]

NEW_OP: Edits = {
    "fsdino/ops/reference.py": [("def _nothing(", REFERENCE.lstrip())],
    "fsdino/contract.py": [("}\nFUNCTIONS = ", '    "channel_gain4d": "channel_gain",\n')],
    "fsdino/ops/channel_gain.py": [(None, OP)],
    "fsdino/ops/__init__.py": [
        ("\n__all__ = [", "from fsdino.ops.channel_gain import channel_gain4d\n"),
        ('    "correlation4d",', '    "channel_gain4d",\n'),
    ],
    "docs/operations.md": [
        (
            "ops.center_pivot_conv4d(",
            "ops.channel_gain4d(...)  # x times a gain per channel\n",
        )
    ],
    "fsdino/bench/formulation.py": [("", "\n" + FORMULATION)],
    "fsdino/ops/eager.py": [("", "\n" + EAGER)],
    "fsdino/bench/cases.py": [
        (
            "    op, _ = CALLS[call]\n    return {name: every",
            '    every |= {"gain": torch.linspace(-1, 2, case.layers).to(dtype)}\n',
        )
    ],
    "tests/ops/test_channel_gain.py": [(None, TESTS)],
    "benchmarks/test_channel_gain.py": [(None, BENCHMARKS)],
}

NEW_BACKEND: Edits = {
    "fsdino/ops/mirror.py": [(None, MIRROR)],
    "fsdino/ops/backends.py": [
        ("from fsdino.ops import eager_backend", "from fsdino.ops import mirror\n"),
        (
            "",
            "register(Backend(\n"
            '    "mirror", -1, "fsdino.ops.mirror", mirror.why_not, contract.QUERY_INNERMOST\n'
            "))\n",
        ),
    ],
}
