"""The C++ kernels in exported graphs: without fsdino, and without Python."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch._inductor
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram

import stub_extension
from fsdino import contract, ops
from fsdino.errors import BackendError, FsdinoError, UsageError
from fsdino.export import kernels
from fsdino.models import hsnet
from fsdino.models.hypercorrelation import CenterPivotBlock4d, CenterPivotConv4d, CorrelationPrior
from fsdino.ops import native
from tiny_models import randomise

PROGRAM = Path(__file__).with_name("run_package.cpp")


@pytest.fixture(autouse=True)
def built(request: pytest.FixtureRequest) -> None:
    if "unbuilt" not in request.node.name and native.extension() is None:
        pytest.skip("cpp is not built: run `fsdino build`")


class EveryOp(nn.Module):
    """Each op once; the last stride is beyond the grid."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = CorrelationPrior(3, (4, 8))
        self.block = CenterPivotBlock4d(3, 4)
        self.last = CenterPivotBlock4d(4, 8, support_stride=9, reduce_support=True)
        self.conv = CenterPivotConv4d(3, 8, support_stride=2)

    def forward(self, query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
        conv = self.conv
        weights = (conv.conv1.weight, conv.conv2.weight, conv.bias)
        volume = ops.correlation4d(query, support, mask)
        fused = ops.correlation_center_pivot4d(query, support, mask, *weights, support_stride=2)
        both = torch.cat([conv(volume).mean((4, 5)), fused.amax((4, 5))])
        prior = self.prior(query, support, mask)
        return torch.cat([both, prior, self.last(self.block(volume))]).sin()


class HSNetPieces(nn.Module):
    """Two of HSNet's levels, the coarse one brought to the fine one's query grid."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = hsnet._blocks((3, 4, 8), (5, 3), (4, 2))
        self.coarse = hsnet._blocks((2, 4, 8), (3, 3), (2, 2))
        self.mix = hsnet._blocks((8, 8), (3,), (1,))
        self.after = nn.Sequential(hsnet._conv(8, 4), nn.ReLU(), hsnet._conv(4, 2))

    def forward(self, query: Tensor, support: Tensor, mask: Tensor, *coarse: Tensor) -> Tensor:
        mixed = hsnet._upsample_query(hsnet._squeeze(self.coarse, *coarse), (8, 10))
        squeezed = hsnet._squeeze(self.fine, query, support, mask)
        return self.after(self.mix(squeezed + mixed).mean((4, 5)))


def level(
    batch: int, layers: int, query: tuple[int, int], support: tuple[int, int]
) -> list[Tensor]:
    """Query and support features, and a mask of the support with some background."""
    torch.manual_seed(batch)
    mask = torch.rand(batch, *support) * (torch.rand(batch, *support) > 0.3)
    return [torch.randn(batch, layers, 16, *query), torch.randn(batch, layers, 16, *support), mask]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], list[Tensor]]]] = {
    "every op": (EveryOp, lambda batch: level(batch, 3, (5, 6), (7, 6))),
    "prior of unequal layers": (
        lambda: CorrelationPrior(3, (4, 8, 8), widths=(16, 16, 8)),
        lambda batch: level(batch, 3, (6, 5), (9, 9)),
    ),
    "pieces of HSNet": (
        HSNetPieces,
        lambda batch: [*level(batch, 3, (8, 10), (16, 16)), *level(batch, 2, (4, 5), (8, 8))],
    ),
}


def model(name: str) -> nn.Module:
    made = MODELS[name][0]().eval()
    randomise(made, seed=1)
    return made


def exported(name: str) -> ExportedProgram:
    """With a dynamic batch, decomposed."""
    inputs = MODELS[name][1](2)
    batch = Dim("batch", min=1)
    arguments = (tuple({0: batch} for _ in inputs),) if name == "pieces of HSNet" else ()
    shapes = (*({0: batch} for _ in inputs[:3]), *(({0: batch},) * 3 for _ in arguments))
    with torch.no_grad(), ops.use_backend("cpp"):
        program = torch.export.export(model(name), tuple(inputs), dynamic_shapes=shapes)
    return program.run_decompositions(kernels.decompositions())


def expected(name: str, batch: int) -> Tensor:
    with torch.no_grad(), ops.use_backend("reference"):
        return model(name)(*MODELS[name][1](batch))


def assert_equal(found: Tensor, name: str, batch: int) -> None:
    torch.testing.assert_close(found, expected(name, batch), rtol=1e-5, atol=1e-5)


ALONE = """
import pathlib, sys, torch
torch.ops.load_library(sys.argv[1])
for path in sorted(pathlib.Path(sys.argv[2]).glob("*.pt2")):
    program = torch.export.load(path).module()
    for batch in (1, 3):
        inputs = torch.load(path.with_suffix(f".{batch}.pt"))
        torch.save(program(*inputs), path.with_suffix(f".{batch}.out"))
assert "fsdino" not in sys.modules
"""


def test_programs_run_without_fsdino(tmp_path: Path) -> None:
    """PyTorch and the library of the kernels run them, for batches other than the exported one."""
    for name, (_, inputs) in MODELS.items():
        program = exported(name)
        kernels.check(program)
        torch.export.save(program, tmp_path / f"{name}.pt2")
        for batch in (1, 3):
            torch.save(inputs(batch), tmp_path / f"{name}.{batch}.pt")
    subprocess.run(
        [sys.executable, "-c", ALONE, native.library(), tmp_path],
        check=True, env={**os.environ, "PYTHONPATH": ""}, cwd=tmp_path,
    )  # fmt: skip
    for name in MODELS:
        for batch in (1, 3):
            found = torch.load(tmp_path / f"{name}.{batch}.out")
            assert_equal(found, name, batch)


def called(program: ExportedProgram) -> list[torch.fx.Node]:
    return [node for node in program.graph.nodes if "fsdino" in str(node.target)]


def test_every_op_is_replaced() -> None:
    """What the table does not name would be left in the graph."""
    program = exported("every op")
    names = {f"fsdino_cpp.{op}.default" for op in (*contract.OPS, *contract.COMPOSED)}
    assert {str(node.target) for node in called(program)} == names


def test_nothing_is_saved_for_a_backward_pass() -> None:
    """Exported with trainable parameters, a graph holds what gradients need; not afterwards."""
    block = CenterPivotBlock4d(3, 4)
    with ops.use_backend("cpp"):
        program = torch.export.export(block, (torch.randn(1, 3, 4, 4, 4, 4),))
    [before] = called(program)
    assert before.args[-2:] == (True, "cpp")
    [after] = called(program.run_decompositions(kernels.decompositions()))
    assert after.args[-1] is False
    assert [tensor.numel() for tensor in after.meta["val"][1:]] == [0, 0, 0]


X, SIDES = torch.randn(2, 3, 4, 5, 6, 7), (torch.randn(8, 3, 3, 3), torch.randn(8, 3, 5, 5))
BIAS, ONES = torch.randn(8), torch.ones(8)
ASKED, SHOWN, MASK = level(2, 3, (4, 5), (6, 7))
BLOCK = (X, *SIDES, BIAS, ONES, BIAS, 4, 1e-5, 2)
CALLS = {
    "correlation4d": ("correlation4d", (ASKED, SHOWN, MASK, 1e-5)),
    "correlation4d without a mask": ("correlation4d", (ASKED, SHOWN, None, 1e-5)),
    "center_pivot_conv4d": ("center_pivot_conv4d", (X, *SIDES, None, 2)),
    "center_pivot_block4d": ("center_pivot_block4d", (*BLOCK, False, False)),
    "center_pivot_block4d, saved": ("center_pivot_block4d", (*BLOCK, False, True)),
    "center_pivot_block4d, reduced": ("center_pivot_block4d", (*BLOCK, True, False)),
    "correlation_center_pivot4d": (
        "correlation_center_pivot4d", (ASKED, SHOWN, MASK, *SIDES, BIAS, 2, 1e-5),
    ),
    "squeeze4d": (
        "squeeze4d",
        (ASKED, SHOWN, MASK, [SIDES[0]], [SIDES[1]], [None], [ONES], [BIAS], [2], 4, 1e-5, 1e-5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("op, arguments", CALLS.values(), ids=list(CALLS))
def test_a_fake_is_like_the_result(op: str, arguments: tuple, dtype: torch.dtype) -> None:
    """Shapes, types and memory order, which the rest of a compiled graph relies on."""
    kernels.decompositions()
    call = getattr(torch.ops.fsdino_cpp, op).default
    arguments = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(dtype), arguments)
    with FakeTensorMode() as mode:
        fake = call(*torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, arguments))
    found = call(*arguments)
    pairs = [(fake, found)] if isinstance(found, Tensor) else zip(fake, found, strict=True)
    for one, other in pairs:
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


def test_a_check_names_what_needs_python() -> None:
    """Ops of fsdino, and of any other package; in branches, too."""

    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda x: ops.correlation4d(x, x).sum(), torch.sum, (x,))

    with torch.no_grad(), ops.use_backend("cpp"):
        program = torch.export.export(Branch(), (torch.randn(1, 1, 4, 2, 2),))
    with pytest.raises(FsdinoError, match=r"needs Python for fsdino\.correlation4d\.default: run"):
        kernels.check(program)


def test_another_backend_is_refused() -> None:
    """The rest of the graph was traced for its memory order."""
    with torch.no_grad(), ops.use_backend("reference"):
        program = torch.export.export(CenterPivotConv4d(3, 4), (torch.randn(1, 3, 4, 4, 4, 4),))
    with pytest.raises(UsageError, match="conv4d on the backend 'reference': export it within"):
        program.run_decompositions(kernels.decompositions())


def test_unbuilt_kernels_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It says how to build them."""
    stub_extension.use(monkeypatch, tmp_path)
    with pytest.raises(BackendError, match="run `fsdino build`"):
        kernels.decompositions()


def test_without_a_choice_of_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older PyTorch compiles for the processor that it runs on, and nothing else."""
    monkeypatch.setattr(torch._inductor, "config", SimpleNamespace(cpp=object()))
    with pytest.raises(UsageError, match="for this machine's processor only: update PyTorch"):
        kernels.portable_options()


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, compiled with the command at its head, but for optimisation."""
    if shutil.which("g++") is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux")
    program = tmp_path_factory.mktemp("program") / "run_package"
    command = re.search(r"g\+\+ (.+)\n//  (.+)\n", PROGRAM.read_text(encoding="utf-8"))
    assert command is not None
    flags = " ".join(command.groups()).replace("$TORCH", torch.__path__[0]).replace("-O2", "-O0")
    flags = flags.replace("run_package.cpp", str(PROGRAM)).replace(
        "-o run_package", f"-o {program}"
    )
    subprocess.run(["g++", *flags.split()], check=True)
    return program


@pytest.mark.slow
@pytest.mark.usefixtures("compiles_packages")
def test_a_package_runs_without_python(runner: Path, tmp_path: Path) -> None:
    """A C++ program runs other batches; it holds nothing of Python and of this processor."""
    name, package = "every op", tmp_path / "model.pt2"
    options = {**kernels.portable_options(), "cpp.threads": 7}
    torch._inductor.aoti_compile_and_package(
        exported(name), package_path=str(package), inductor_configs=options
    )
    for batch in (1, 3):
        torch.save(MODELS[name][1](batch), tmp_path / "inputs.pt")
        done = subprocess.run(
            [runner, package, native.library(), "inputs.pt", "outputs.pt"],
            check=False, capture_output=True, text=True, cwd=tmp_path,
            env={"LD_DEBUG": "files", "LD_DEBUG_OUTPUT": str(tmp_path / "loaded")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        [found] = torch.load(tmp_path / "outputs.pt")
        assert_equal(found, name, batch)
    loaded = "".join(path.read_text() for path in tmp_path.glob("loaded.*"))
    assert "libfsdino_ops.so" in loaded and "libtorch_cpu.so" in loaded
    assert not re.findall(r"file=\S*(?:libpython|libtorch_python)", loaded)
    zipfile.ZipFile(package).extractall(tmp_path / "package")
    sources = [*(tmp_path / "package").rglob("*.cpp")]
    assert "#pragma omp parallel" in "".join(source.read_text() for source in sources)
    assert not any("num_threads(7)" in source.read_text() for source in sources)
    if platform.machine() == "x86_64" and shutil.which("objdump"):
        [code] = (tmp_path / "package").rglob("*.so")
        listing = subprocess.run(["objdump", "-d", code], check=True, capture_output=True).stdout
        assert b"%ymm" in listing and b"%zmm" not in listing


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        (["none.pt2"], 2, "usage: "),
        (["none.pt2", "none.so", "none.pt", "out.pt"], 1, "none.so: cannot open shared object"),
        (["none.pt2", None, "none.pt", "out.pt"], 1, "zip archive"),
    ],
)
@pytest.mark.slow
def test_mistakes_of_its_caller(runner: Path, arguments: list, status: int, words: str) -> None:
    """One message, and no result."""
    arguments = [native.library() if each is None else each for each in arguments]
    done = subprocess.run([runner, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == status and words in done.stderr
