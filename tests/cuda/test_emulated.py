"""Whole CUDA kernels on a CPU, in an emulator that runs the threads of a block as fibers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from torch.utils import cpp_extension

import fsdino
from fsdino.contract import OPS
from fsdino.csrc import flags
from fsdino.ops.native import CUDA_FUNCTIONS

HERE = Path(__file__).resolve().parent
# Where another process finds the package, the plugin and what tests share.
PLACES = os.pathsep.join(
    [str(HERE), str(HERE.parent), str(Path(fsdino.__file__).parent.parent), *sys.path]
)
TABLE = sorted({*(OPS[op] for op in OPS if op in CUDA_FUNCTIONS), "numerics", "nonfinite"})
# The emulator jumps between stacks, which glibc takes for an attack where it is fortified.
FLAGS = (
    "-std=c++20", "-O1", "-fPIC", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror",
    "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE", "-DFSDINO_EMULATED",
    "-DTORCH_EXTENSION_NAME=emulated",
)  # fmt: skip


def build(compiler: str, folder: Path) -> Path:
    """The backend's host side and its kernels, compiled for the CPU."""
    cuda = flags.FOLDER / "cuda"
    own = [f"-I{cuda}", f"-I{HERE}"]
    system = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    include = own + [word for path in system for word in ("-isystem", path)]
    # Together, since most of the time goes into PyTorch's headers.
    contents = {"emulated": [*sorted(cuda.glob("*.cpp")), HERE / "emulated.cpp"]}
    contents |= {kernels.stem: [kernels] for kernels in cuda.glob("*.cu")}
    sources = [folder / f"{name}.cpp" for name in contents]
    for source in sources:
        source.write_text("".join(f'#include "{path}"\n' for path in contents[source.stem]))
        target = folder / f"{source.stem}.o"
        subprocess.run([compiler, *FLAGS, *include, "-c", source, "-o", target], check=True)
    library = folder / "emulated.so"
    links = [f"-L{path}" for path in cpp_extension.library_paths()]
    links += ["-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10"]
    objects = [folder / f"{source.stem}.o" for source in sources]
    subprocess.run([compiler, "-shared", *objects, *links, "-o", library], check=True)
    return library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = flags.compiler()
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C++ compiler")
    return build(compiler, tmp_path_factory.mktemp("emulated"))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_the_case_table(library: Path, architecture: str) -> None:
    """The backend `cuda` agrees with the reference wherever the others do, forward and backward."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "CI"},
        "PYTHONPATH": PLACES,
        "EMULATED_CUDA": str(library),
        "EMULATED_ARCHITECTURE": architecture,
    }
    table = [str(HERE.parent / "ops" / f"test_{name}.py") for name in TABLE]
    table.append(f"{HERE.parent / 'test_contract.py'}::test_memory_order")
    # torch.compile would start its compiler, and what measures memory a process without the plugin;
    # float64 is for other backends.
    chosen = "cuda and not compile and not shots and not gradcheck and not float64"
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "emulated_backend"]
    done = subprocess.run(
        [sys.executable, *command, "-k", chosen, *table],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=HERE.parent.parent,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


# Begins every script that asks the library, which another process loads.
LOAD = """
import importlib.util, json, sys, torch
spec = importlib.util.spec_from_file_location("emulated", sys.argv[1])
emulated = importlib.util.module_from_spec(spec)
spec.loader.exec_module(emulated)
"""


def ask(library: Path, script: str, *arguments: str) -> str:
    """What a script prints that finds the library as `emulated`."""
    return subprocess.run(
        [sys.executable, "-c", LOAD + script, str(library), *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": PLACES},
    ).stdout


TILES = """
from fsdino.bench.cases import TOLERANCE
from fsdino.bench.exactness import assert_close
from fsdino.ops import reference
emulated.set_hopper(True)
emulated.set_shared_limit(227 << 10)
generator = torch.Generator().manual_seed(0)

def random(batch, layers, grid, channels, dtype):
    shape = (batch, layers, channels, *grid)
    return torch.randn(shape, generator=generator).to(dtype)

def innermost(features):
    return features.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)

checked = 0
for layers, channels, dtype in [(1, 8, torch.half), (2, 264, torch.bfloat16), (3, 72, torch.half),
                                (5, 200, torch.bfloat16), (4, 64, torch.half)]:
    query = random(2, layers, (11, 13), channels, dtype)
    support = random(2, layers, (13, 20), channels, dtype)
    weight = torch.rand(2, 13, 20, generator=generator).sub(0.2).to(dtype)
    weight[0, :10] = 0  # a whole tile
    weight[1, 2::3] = 0
    views = [
        (query, support), (innermost(query), support.transpose(3, 4).contiguous().transpose(3, 4)),
        (query[:1].expand(2, -1, -1, -1, -1), innermost(support)),
        (innermost(query)[:, :1].expand(-1, layers, -1, -1, -1), support),
    ]
    for q, s in views:
        for w in (weight, None):
            found = torch.ops.fsdino_emulated.correlation4d(q, s, w, 1e-5)
            exact = reference.correlation4d(
                q.double(), s.double(), None if w is None else w.double(), 1e-5)
            assert_close(found, exact, TOLERANCE[dtype].forward)
            checked += 1
print(json.dumps(checked))
"""


@pytest.mark.slow
def test_tiles_of_sm_90a(library: Path) -> None:
    """More tokens than a tile has, more channels than the stages; odd layers, and any strides.

    The shared table has one tile of support tokens, and fewer channels.
    """
    assert json.loads(ask(library, TILES)) == 40


TF32 = """
from fsdino.bench import exactness
from fsdino.ops import reference
generator = torch.Generator().manual_seed(0)
normal = torch.randn(2, 1, 1, 768, 3, 3, generator=generator)
spread = normal * 2 ** torch.empty(normal.shape).uniform_(-12, 12, generator=generator)
errors = {}
for name, features in dict(normal=normal, positive=normal.abs(), spread=spread).items():
    query, support = features
    expected = reference.correlation4d(query.double(), support.double(), None, 1e-5)
    for precision in ("ieee", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = precision
        result = torch.ops.fsdino_emulated.correlation4d(query, support, None, 1e-5)
        errors[f"{name} {precision}"] = exactness.norm_error(result, expected)
print(json.dumps(errors))
"""


@pytest.mark.slow
def test_tf32_follows_the_switch(library: Path) -> None:
    """Floats keep their digits unless PyTorch's switch, as one sets it today, lets them go.

    Also where all products have one sign, so that what truncation loses adds up, and where they
    differ by many powers of 2.
    """
    for name, error in json.loads(ask(library, TF32)).items():
        assert error < 1e-6 if name.endswith("ieee") else 1e-5 < error < 1e-3, (name, error)


def test_index_arithmetic(tmp_path: Path) -> None:
    """Swizzles, descriptors and boxes are the PTX manual's, at every place they can have."""
    compiler = flags.compiler()
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    program = tmp_path / "test_index"
    command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
    include = f"-I{flags.FOLDER / 'cuda'}"
    subprocess.run([*command, include, HERE / "test_index.cpp", "-o", program], check=True)
    done = subprocess.run([program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith(" 0 wrong\n") and int(done.stdout.split()[0]) > 250_000


UNFENCED = "a product reads what ordinary stores wrote, without fence.proxy.async"
MAP = "the driver takes no map of "
# Cases of test_emulator.cpp, and the message that the emulator must print; "" for none.
NOTICED = {
    "sums": "",
    "product": "",
    "product without fence": UNFENCED,
    "product of background copies": UNFENCED,
    "store during a product": "ordinary stores change what a product may still read",
    "copy": "",
    "copy without fence": "a copy writes over ordinary stores, without fence.proxy.async",
    "copy with an unpublished barrier": "a copy's barrier was started without fence.mbarrier_init",
    "store during a copy": "ordinary stores write where a copy is on its way",
    "map": "",
    "address": MAP + "an address between 16 bytes",
    "no size": MAP + "sizes beyond 1 to 2^32",
    "size": MAP + "sizes beyond 1 to 2^32",
    "stride": MAP + "strides between 16 bytes",
    "long stride": MAP + "strides from 2^40 bytes on",
    "box": MAP + "boxes beyond 1 to 256 elements a side",
    "box rows": MAP + "boxes whose rows end between 16 bytes",
    "swizzle": MAP + "boxes whose rows are longer than the swizzle",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/cuda/test_emulator.cpp, compiled."""
    compiler = flags.compiler()
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C++ compiler")
    path = tmp_path_factory.mktemp("emulator") / "test_emulator"
    include = [
        f"-I{flags.FOLDER / 'cuda'}",
        f"-I{HERE}",
        "-isystem",
        cpp_extension.include_paths()[0],
    ]
    command = [compiler, *FLAGS, *include, HERE / "test_emulator.cpp", "-o", path]
    subprocess.run(command, check=True)
    return path


@pytest.mark.parametrize("case", NOTICED)
def test_what_the_emulator_notices(program: Path, case: str) -> None:
    """Each fault ends the run with its own words; what is like it and right does not."""
    done = subprocess.run([program, case], check=False, capture_output=True, text=True)
    said = NOTICED[case]
    assert (done.returncode != 0) == bool(said), done.stdout + done.stderr
    assert f"emulator: {said}" in done.stderr if said else not done.stderr
