"""Bad arguments are named before any kernel starts; unusual ones that have a meaning work."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fsdino import contract, ops
from fsdino.bench import cases, exactness, formulation
from fsdino.bench.cases import Case
from fsdino.errors import BackendError
from fsdino.ops import backends
from tiny_models import episode, tiny_model

CASE = Case("arguments", batch=1, layers=2, channels=3, query=(3, 2), support=(4, 3), groups=4)
TENSORS = {op: cases.tensors_of(op) for op in contract.OPS}
SETTINGS = {op: cases.settings_of(op) for op in contract.OPS}
OPTIONAL = ("support_weight", "bias")

each_op = pytest.mark.parametrize("op", TENSORS)
each_backend = pytest.mark.parametrize("backend", backends.names())


def tensors(op: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    found = cases.inputs(op, CASE, dtype).items()
    return {name: tensor for name, tensor in found if tensor is not None}


def call(op: str, arguments: dict[str, Any], **settings: Any) -> Tensor:
    result: Tensor = getattr(ops, op)(*arguments.values(), **settings)
    return result


def not_tensors(tensor: Tensor) -> dict[str, Any]:
    """What people pass in place of a tensor, and tensors that no kernel reads."""
    matrix = tensor.flatten(1) if tensor.ndim > 1 else tensor[None]
    return {
        "None": None,
        "list": tensor.tolist(),
        "NumPy array": tensor.numpy(),
        "str": "tensor",
        "number": 1.0,
        "bool": False,
        "module": torch.nn.Identity(),
        "COO": tensor.to_sparse(),
        "CSR": matrix.to_sparse_csr(),
        "MKLDNN": matrix.to_mkldnn(),
        "nested": torch.nested.nested_tensor([tensor, tensor]),
        "jagged": torch.nested.nested_tensor([matrix, matrix], layout=torch.jagged),
        "quantised": torch.quantize_per_tensor(tensor, 0.1, 0, torch.quint8),
        "uninitialised": torch.nn.UninitializedParameter(),
        "integer": tensor.long(),
        "boolean": tensor > 0,
        "complex": tensor.to(torch.complex64),
        "float8": tensor.to(torch.float8_e4m3fn),
    }


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:.*[Qq]uantiz")
@each_op
def test_what_is_not_a_dense_float_tensor_is_named(op: str) -> None:
    """Each tensor of each op, replaced by each thing that it cannot be."""
    good = tensors(op)
    for name, tensor in good.items():
        for kind, bad in not_tensors(tensor).items():
            if bad is None and name in OPTIONAL:
                continue
            with pytest.raises(TypeError, match=rf"^{op}: {name} (must be|is not)") as caught:
                call(op, {**good, name: bad})
            assert "\n" not in str(caught.value), kind


@each_op
def test_all_of_them_wrong(op: str) -> None:
    """The first argument is named, whatever the others are."""
    first = TENSORS[op][0]
    for bad in (None, [1.0], np.zeros(3), "x"):
        with pytest.raises(TypeError, match=rf"^{op}: {first} must be a tensor, got"):
            call(op, dict.fromkeys(TENSORS[op], bad))


@each_op
def test_other_devices_and_dtypes_are_named(op: str) -> None:
    """Each tensor in turn differs from the first."""
    good = tensors(op)
    first, *others = good
    for name in others:
        with pytest.raises(ValueError, match=rf"{op}: {name} is on meta but {first} is on cpu"):
            call(op, {**good, name: good[name].to("meta")})
        with pytest.raises(TypeError, match=rf"{name} is torch.float64 but {first} is .*float32"):
            call(op, {**good, name: good[name].double()})


NOT_NUMBERS = ("a", None, True, 1j, [1e-5], torch.tensor(1e-5), np.array([1e-5]))
INTEGERS_ONLY = (*NOT_NUMBERS, 1.5, 2.0, float("nan"), np.float32(1))
BAD_SETTINGS: dict[str, dict[type[Exception], tuple[Any, ...]]] = {
    "eps": {
        TypeError: NOT_NUMBERS,
        ValueError: (0, 0.0, -1e-5, torch.nan, torch.inf, -torch.inf, 1e-60, 1e60, 10**400),
    },
    "support_stride": {TypeError: INTEGERS_ONLY, ValueError: (0, -1, -(2**63), -(2**70))},
    "num_groups": {TypeError: INTEGERS_ONLY, ValueError: (0, -1, 3, 16, 2**63, 2**70)},
    "reduce_support": {TypeError: ("a", None, 1, 0, 1.0, [True], torch.tensor(True))},
    "backend": {
        TypeError: (None, 1, True, ["cpp"], torch.tensor(1), np.array(["cpp", "auto"])),
        ValueError: ("", "CPP", "reference "),
    },
}
BAD_SETTINGS["norm_eps"] = BAD_SETTINGS["eps"]


@each_op
def test_bad_settings_are_named(op: str) -> None:
    """Wrong types, wrong ranges, and what rounds to 0 or infinity in the type computed in."""
    good = tensors(op)
    for name in SETTINGS[op]:
        for error, values in BAD_SETTINGS[name].items():
            for bad in values:
                with pytest.raises(error, match=name) as caught:
                    call(op, good, **{name: bad})
                assert "\n" not in str(caught.value)
                assert op in str(caught.value) or name == "backend"


def test_settings_that_are_right() -> None:
    """Whole numbers and NumPy's are numbers; in float64 eps may be smaller."""
    good = tensors("correlation4d")
    expected = formulation.correlation4d(*good.values(), eps=1.0)
    for eps in (1, 1.0, np.float32(1), np.float64(1), np.int64(1)):
        exactness.assert_close(call("correlation4d", good, eps=eps), expected, 1e-6)
    wide = tensors("correlation4d", torch.float64)
    exactness.assert_close(
        call("correlation4d", wide, eps=1e-60),
        formulation.correlation4d(*wide.values(), eps=0),
        1e-12,
    )


def test_use_backend_takes_a_name() -> None:
    """As the argument `backend`."""
    for bad in (None, 1, ["cpp"]):
        with (
            pytest.raises(TypeError, match="use_backend: name must be a string, got"),
            ops.use_backend(bad),
        ):
            pass


@each_op
def test_pairs_of_bad_arguments(op: str) -> None:
    """Whatever is wrong together, the error is one of ours and names one of the arguments."""
    good = tensors(op)
    bad: dict[str, tuple[Any, ...]] = {
        name: (None, 3, [t], t.double(), t.long(), t.to("meta"), t[..., :0], t[None], t[:0])
        for name, t in good.items()
    }
    bad |= {
        name: ("a", None, -1, 0.5, 2**64, torch.nan)
        for name in SETTINGS[op] if name != "backend"
    }  # fmt: skip
    names = "|".join(bad)
    for (a, first), (b, second) in itertools.combinations(
        [(name, value) for name, values in bad.items() for value in values], 2
    ):
        if a == b:
            continue
        changed: dict[str, Any] = {**good, **{n: v for n, v in ((a, first), (b, second))}}
        settings = {name: changed.pop(name) for name in (a, b) if name not in good}
        try:
            call(op, changed, **settings)
        except (TypeError, ValueError, BackendError) as error:
            assert re.match(rf"{op}: .*\b({names})\b", str(error)), error


@each_backend
@pytest.mark.parametrize("stride", [5, 100_000, 2**31, 2**62, 2**63 - 1, 2**63, 2**200])
@pytest.mark.parametrize("op", [op for op in SETTINGS if "support_stride" in SETTINGS[op]])
def test_a_stride_beyond_the_grid_keeps_position_0(op: str, stride: int, backend: str) -> None:
    """However large it is: values and gradients, and each kernel still sees its neighbours."""
    if backends.why_not(backend, op, torch.device("cpu"), torch.float32) is not None:
        pytest.skip(f"{backend} does not run here")
    leaves = {name: t.requires_grad_() for name, t in tensors(op).items()}
    twins = [t.detach().double().requires_grad_() for t in leaves.values()]
    expected = getattr(formulation, op)(*twins, support_stride=4)
    actual = call(op, leaves, support_stride=stride, backend=backend)
    assert actual.shape[-2:] == (1, 1)
    exactness.assert_close(actual.detach(), expected.detach(), 1e-5)
    grad = torch.linspace(-1, 2, expected.numel()).reshape(expected.shape)
    for a, e in zip(
        torch.autograd.grad(actual, list(leaves.values()), grad),
        torch.autograd.grad(expected, twins, grad.double()),
        strict=True,
    ):
        exactness.assert_close(a, e, 1e-4)


@pytest.mark.parametrize("backend", ["auto", *backends.names()])
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@each_op
def test_the_meta_device(op: str, autocast: bool, backend: str) -> None:
    """Shapes and dtypes of results and of second derivatives, on every backend."""
    good = tensors(op)
    expected = call(op, good, backend="reference")
    leaves = {name: t.to("meta").requires_grad_() for name, t in good.items()}
    with torch.autocast("cpu", enabled=autocast):
        actual = call(op, leaves, backend=backend)
    assert (actual.device.type, actual.shape, actual.dtype) == (
        "meta", expected.shape, expected.dtype,
    )  # fmt: skip
    first = torch.autograd.grad(actual.sum(), list(leaves.values()), create_graph=True)
    for gradient, leaf in zip(first, leaves.values(), strict=True):
        assert (gradient.device.type, gradient.shape) == ("meta", leaf.shape)
    first[1].square().sum().backward()
    second = next(iter(leaves.values())).grad
    assert second is not None
    assert (second.device.type, second.shape) == ("meta", leaves[TENSORS[op][0]].shape)


@each_op
def test_fake_tensors(op: str) -> None:
    """As on meta, on the device that they stand for; second derivatives, too."""
    expected = call(op, tensors(op))
    with FakeTensorMode() as mode:
        fake = {n: mode.from_tensor(t).requires_grad_() for n, t in tensors(op).items()}
        result = call(op, fake)
        leaf = next(iter(fake.values()))
        (first,) = torch.autograd.grad(result.square().sum(), leaf, create_graph=True)
        first.square().sum().backward()
    assert leaf.grad is not None
    assert (leaf.grad.device, leaf.grad.shape) == (leaf.device, leaf.shape)
    assert (result.device, result.shape, result.dtype) == (
        expected.device, expected.shape, expected.dtype,
    )  # fmt: skip


def test_a_model_on_the_meta_device() -> None:
    """FS-DINO's shapes and its gradients' shapes, without memory."""
    model = tiny_model().to("meta")
    logits = model(*(t.to("meta") for t in episode(2, 2)))
    assert (logits.device.type, logits.shape) == ("meta", (2, 1, 70, 70))
    logits.sum().backward()
    assert all(p.grad is not None for p in model.prior.parameters())
