"""The backend contract: every op and every registered backend has all that belongs to it."""

from __future__ import annotations

import inspect
import itertools
import re
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import gpu_checks
import pytest
import torch
from torch import Tensor

from fsdino import contract, ops
from fsdino.bench import cases, formulation
from fsdino.bench.cases import CALLS, Case
from fsdino.commands import info
from fsdino.csrc import flags
from fsdino.kernels import backend as triton
from fsdino.ops import backends, build, eager, native, reference

ROOT = Path(__file__).resolve().parents[1]
# Channels, query and support differ, so that strides tell the memory order.
CASE = Case("strides", batch=2, layers=3, query=(4, 5), support=(7, 6), out=8, stride=2)

each_op = pytest.mark.parametrize("op", contract.OPS)
each_call = pytest.mark.parametrize("call", CALLS)
each_backend = pytest.mark.parametrize("backend", backends.names())
# By another name, since tests of a `backend` are left out where it cannot run.
each_name = pytest.mark.parametrize("name", backends.names())


@pytest.mark.parametrize("op", [*contract.OPS, *contract.COMPOSED])
def test_one_name_everywhere(op: str) -> None:
    """What somebody knows of one place of an op tells the others."""
    composed = op in contract.COMPOSED
    file = contract.COMPOSED[op] if composed else contract.OPS[op]
    places = [f"fsdino/ops/{file}.py", f"tests/ops/test_{file}.py"]
    places += [] if composed else [f"benchmarks/test_{file}.py"]
    if op in triton.OPS:
        places.append(f"kernels/{file}.py")
    if op in native.FUNCTIONS:
        places.append(f"csrc/cpu/{file}.cpp")
    if op in native.CUDA_FUNCTIONS:
        places.append(f"csrc/cuda/{file}_op.cpp")  # it may use others' kernels
    for place in places:
        assert (ROOT / place).is_file(), f"{op}: {place} is missing"
    assert op in ops.__all__
    assert f"ops.{op}(" in (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    assert hasattr(reference, op) and hasattr(reference, f"{op}_backward") != composed
    assert inspect.getsourcefile(getattr(ops, op)) == str(Path(ops.__file__).parent / f"{file}.py")


@each_op
def test_public_signatures(op: str) -> None:
    """Tensors come first, settings by keyword, `backend` last; formulations take the same."""
    *public, last = inspect.signature(getattr(ops, op)).parameters.values()
    assert (last.name, last.kind, last.default) == ("backend", last.KEYWORD_ONLY, "auto")
    tensors = [p for p in public if p.kind is not p.KEYWORD_ONLY]
    assert all(p.annotation in {"Tensor", "Tensor | None"} for p in tensors)
    definition = inspect.signature(getattr(reference, op)).parameters
    assert [p.name for p in public] == [name for name in definition if name != "save"]
    for module in (eager, formulation):
        found = inspect.signature(getattr(module, op)).parameters.values()
        assert [(p.name, p.kind, p.default) for p in found] == [
            (p.name, p.kind, p.default) for p in public
        ]


@pytest.mark.parametrize("op", contract.COMPOSED)
def test_public_signatures_of_composed_ops(op: str) -> None:
    """`backend` last, formulations take the same, and the parts are ops that backends must have."""
    *public, last = inspect.signature(getattr(ops, op)).parameters.values()
    assert (last.name, last.kind, last.default) == ("backend", last.KEYWORD_ONLY, "auto")
    for module in (eager, formulation):
        found = inspect.signature(getattr(module, op)).parameters.values()
        assert [(p.name, p.kind, p.default) for p in found] == [
            (p.name, p.kind, p.default) for p in public
        ]
    assert set(contract.PARTS[op]) <= set(contract.OPS)


TYPES = {
    "const Tensor&": "Tensor", "const MaybeTensor&": "Tensor | None", "int64_t": "int",
    "double": "float", "bool": "bool", "Needs": "Sequence[bool]",
    "at::TensorList": "Sequence[Tensor]", "const MaybeTensors&": "Sequence[Tensor | None]",
    "at::IntArrayRef": "Sequence[int]",
}  # fmt: skip


def test_the_list_in_cpp() -> None:
    """Whole ops, with the reference's signatures."""
    text = (flags.FOLDER / "ops.inc").read_text()
    pattern = r"^FSDINO(_CPU)?_OP\((\w+),\s*\((.*?)\),\s*(\S.*?)\)\n\n"
    lines = re.findall(pattern, text, re.DOTALL | re.M)
    found = [line[1:] for line in lines]
    known = {*contract.FUNCTIONS, *contract.OPTIONAL}
    assert {name for name, _, _ in found} == flags.functions() <= known
    assert {name for kind, name, *_ in lines if not kind} == flags.functions(cuda=True)
    for op, cuda in itertools.product(contract.OPS, (False, True)):
        functions = flags.functions(cuda=cuda)
        assert (op in functions) == (f"{op}_backward" in functions)
    for name, arguments, result in found:
        pairs = (argument.rsplit(maxsplit=1) for argument in re.split(r",\s*", arguments))
        signature = inspect.signature(getattr(reference, name))
        assert [(TYPES[type_], argument) for type_, argument in pairs] == [
            (p.annotation, p.name) for p in signature.parameters.values()
        ]
        python = result.replace("std::tuple<", "tuple[").replace(">", "]")
        assert python == signature.return_annotation


@each_name
@pytest.mark.parametrize("function", contract.FUNCTIONS)
def test_a_backend_has_every_function(name: str, function: str) -> None:
    """With the reference's signature; or it says which op it has not."""
    op = function.removesuffix("_backward")
    if not gpu_checks.has(name, op, "cpu") or not gpu_checks.has(name, op, "cuda"):
        return
    if name == "triton" and find_spec("triton") is None:
        pytest.skip("needs Triton")
    found = inspect.signature(getattr(backends._registry[name].load(), function)).parameters
    if [p.kind for p in found.values()] == [inspect.Parameter.VAR_POSITIONAL]:
        assert function in native.FUNCTIONS  # its signature stands in ops.inc
        return
    assert list(found) == list(inspect.signature(getattr(reference, function)).parameters)


def test_nothing_but_functions() -> None:
    """A misspelt function is an AttributeError, as of any module."""
    for module in (native, triton):
        with pytest.raises(AttributeError, match="has no attribute 'correlation5d'"):
            getattr(module, "correlation5d")  # noqa: B009


@each_name
@each_op
def test_why_not_answers_without_building(
    name: str, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each device and dtype None or a line; no process is started, and nothing raised."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a question must not build")

    monkeypatch.setattr(build, "compile_extension", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    for device in ("cpu", "cuda", "cuda:0", "meta", "mps"):
        for dtype in (*cases.DTYPES, torch.int32, torch.bool):
            reason = backends.why_not(name, op, torch.device(device), dtype)
            assert reason is None or (reason and "\n" not in reason)


@each_name
def test_info_shows_every_backend(name: str) -> None:
    """In the table of every op."""
    for op, row in info.choices(torch.device("cpu"), torch.float32).items():
        assert name in row, op


def order_of(volume: Tensor) -> tuple[int, ...]:
    """Its dims, outermost first."""
    return tuple(sorted(range(volume.ndim), key=volume.stride, reverse=True))


def volumes(call: str, backend: str, device: str) -> Sequence[Tensor]:
    """The result, and the gradients to what is a volume."""
    op, _ = CALLS[call]
    given = cases.inputs(call, CASE, torch.float32).values()
    leaves = [None if t is None else t.to(device).requires_grad_() for t in given]
    y = getattr(ops, op)(*leaves, backend=backend, **cases.settings(call, CASE))
    asked = [t for t in leaves if t is not None and t.ndim == 6]
    cotangent = y.detach().clone()
    return [y.detach(), *(torch.autograd.grad(y, asked, cotangent) if asked else ())]


@each_backend
@each_call
def test_memory_order(call: str, backend: str) -> None:
    """Volumes lie as the backend is registered to leave them, and as fake tensors promise."""
    order = backends._registry[backend].memory_order
    found, promised = volumes(call, backend, "cpu"), volumes(call, backend, "meta")
    for volume, fake in zip(found, promised, strict=True):
        if volume.ndim == 6:
            assert order_of(volume) == order
        assert volume.shape == fake.shape and volume.stride() == fake.stride()


@each_backend
@each_call
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_whole_table(dtype: str, call: str, backend: str) -> None:
    """Output and every gradient of every case, within the bounds."""
    for case in cases.distinct(call):
        found = gpu_checks.check_case(call, case.name, dtype, "cpu", backend)
        assert found["passed"], (case.name, found)
