"""Backend `cpp`: what is loaded, what is refused and why, and who may build."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import stub_extension
from fsdino import contract, ops
from fsdino.csrc import flags
from fsdino.errors import BackendError
from fsdino.ops import backends, build, native

CPU = torch.device("cpu")
FEATURES = torch.ones(1, 1, 4, 2, 2)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stub_extension.use(monkeypatch, tmp_path)


@pytest.fixture
def new_process(monkeypatch: pytest.MonkeyPatch):
    """Forget what this process knows, as a new one would."""
    return lambda: monkeypatch.setattr(native, "_state", native._State())


def why_not() -> str | None:
    return native.why_not("correlation4d", CPU, torch.float32)


def write_ahead_of_time(torch_version: str, sources: str) -> Path:
    library = native.PACKAGE / "_C.so"
    mark = f"fsdino-extension torch={torch_version} sources={sources} end"
    for file in (library, build.kernels(library)):
        file.write_text(mark)
    return library


def test_the_real_extension_reports_itself() -> None:
    """What was built says with what, and was built from these sources for this PyTorch."""
    extension = native.extension()
    if extension is None:
        pytest.skip("cpp is not built: run `fsdino build`")
    info = extension.build_info
    assert info["torch"] == torch.__version__
    assert info["sources"] == flags.source_hash()
    assert info["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert info["compiler"].split()[0] in {"gcc", "clang"}
    assert info["cxx11_abi"] == torch.compiled_with_cxx11_abi() or sys.platform == "darwin"
    assert bool(info["cuda_archs"]) == (info["cuda"] is not None)
    for function in contract.FUNCTIONS:
        assert hasattr(torch.ops.fsdino_cpp, function)
        assert callable(getattr(native, function))


def fresh(code: str, *arguments: object) -> str:
    """What a new process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_kernels_need_no_python() -> None:
    """Their library can be linked and loaded where no symbol of Python's is."""
    if native.extension() is None:
        pytest.skip("cpp is not built: run `fsdino build`")
    if sys.platform != "linux" or shutil.which("nm") is None:
        pytest.skip("needs nm of binutils")
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", native.library()],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert " U " in undefined
    assert not re.findall(r"\b_?Py\w+", undefined)
    needed = subprocess.run(["ldd", native.library()], check=True, capture_output=True, text=True)
    assert "libtorch_cpu" in needed.stdout
    assert not re.findall(r"libpython|libtorch_python", needed.stdout)


def test_the_kernels_load_by_themselves() -> None:
    """A process that has nothing of fsdino runs an op; one that has fsdino may load them, too."""
    if native.extension() is None:
        pytest.skip("cpp is not built: run `fsdino build`")
    alone = (
        "import sys, torch; torch.ops.load_library(sys.argv[1]); ones = torch.ones(1, 1, 4, 1, 1);"
        "print(torch.ops.fsdino_cpp.correlation4d(ones, ones, None, 1e-9).item(),"
        " 'fsdino' in sys.modules)"
    )
    assert fresh(alone, native.library()) == "1.0 False\n"
    torch.ops.load_library(native.library())


def test_kernels_from_another_file_are_not_joined_by_ours(tmp_path: Path) -> None:
    """They may be of another version: they are a reason to do without."""
    if native.extension() is None:
        pytest.skip("cpp is not built: run `fsdino build`")
    copy = shutil.copy(native.library(), tmp_path)
    code = (
        "import sys, torch; torch.ops.load_library(sys.argv[1])\n"
        "from fsdino.ops import native; print(native.extension(), *native.problems())"
    )
    said = fresh(code, copy)
    assert said.startswith("None ") and "this process has its ops from another file" in said
    assert fresh(code, native.library()).startswith("Extension(")


def test_a_second_copy_leaves_the_kernels_in_place(tmp_path: Path) -> None:
    """Such as that of an exported folder. The same ops registered twice would end the process."""
    if native.extension() is None:
        pytest.skip("cpp is not built: run `fsdino build`")
    copy = shutil.copy(native.library(), tmp_path)
    code = (
        "import sys, torch; from fsdino.ops import native; assert native.extension()\n"
        "torch.ops.load_library(sys.argv[1]); ones = torch.ones(1, 1, 4, 1, 1)\n"
        "print(torch.ops.fsdino_cpp.correlation4d(ones, ones, None, 1e-9).item())"
    )
    assert fresh(code, copy) == "1.0\n"


def test_the_library_of_an_unbuilt_extension(stub: None) -> None:
    """There is none, and the error says how to get it; afterwards it is beside the module."""
    with pytest.raises(BackendError, match="it is not built: run `fsdino build`"):
        native.library()
    assert native.build().path.with_name("libfsdino_ops.so") == native.library()
    assert native.library().is_file()


def test_unbuilt_says_how_to_build(stub: None) -> None:
    """Nothing is compiled by a question."""
    assert why_not() == "it is not built: run `fsdino build`"
    assert native.extension() is None
    assert stub_extension.times_compiled() == 0


@pytest.mark.parametrize(
    "device, dtype, words",
    [
        ("meta", torch.float32, "runs on the CPU, not on meta"),
        ("cpu", torch.int64, "not torch.int64"),
    ],
)
def test_calls_that_it_never_runs(stub, device, dtype, words) -> None:
    """Other devices and dtypes are refused with their values, built or not."""
    assert words in native.why_not("correlation4d", torch.device(device), dtype)
    native.prepare(torch.device("meta"))
    assert stub_extension.times_compiled() == 0


def test_a_build_is_used_at_once_and_by_the_next_process(stub: None, new_process) -> None:
    """The process that builds loads the result; later ones find it."""
    assert why_not() is not None
    built = native.build()
    assert built.seconds is not None and not built.ahead_of_time
    assert built.build_info == {"compiler": "stub"}
    assert why_not() is None
    new_process()
    assert why_not() is None
    assert native.extension() == built
    assert native.build() == built
    assert stub_extension.times_compiled() == 1
    assert native.build(force=True).path == built.path
    assert stub_extension.times_compiled() == 2


def test_a_damaged_build_is_reported_and_mended(stub: None, new_process) -> None:
    """A truncated library would crash the process that loads it."""
    library = native.build().path
    content = library.read_bytes()
    library.unlink()  # the loaded file itself must not change
    library.write_bytes(content[:5000])
    new_process()
    assert why_not() == f"{library} is damaged: run `fsdino build`"
    assert native.build().path == library
    assert why_not() is None


@pytest.mark.parametrize("part", ["_C.so", "libfsdino_ops.so"])
def test_a_build_that_cannot_be_loaded_is_mended(stub: None, part: str) -> None:
    """Whole but useless, as a cache that came from another machine may be."""
    library = build.compile_extension()
    text = f"fsdino-extension torch={torch.__version__} sources={flags.source_hash()} end"
    spoilt = library if part == "_C.so" else build.kernels(library)
    spoilt.unlink()
    spoilt.write_text(text)
    record = {**asdict(build.record(library)), "sha256": build._sha256(library)}
    library.with_name("build.json").write_text(json.dumps(record))
    assert f"{library} cannot be loaded: " in why_not()
    assert native.build().path == library
    assert why_not() is None


def test_built_for_another_torch(stub: None) -> None:
    """What setup.py compiled for another PyTorch is not loaded; the reason has both versions."""
    library = write_ahead_of_time("2.14.0", flags.source_hash())
    problem = f"{library} was built for torch 2.14.0, you have {torch.__version__}"
    assert why_not() == f"{problem}: run `fsdino build`"
    assert not native.build().ahead_of_time
    assert why_not() is None
    assert native.problems() == (problem,)


def test_built_from_other_sources(stub: None) -> None:
    """After an edit of csrc/, the library of an editable installation is out of date."""
    write_ahead_of_time(torch.__version__, "0123456789abcdef")
    assert "was built from other sources than those in " in why_not()
    (native.PACKAGE / "_C.so").write_bytes(b"no mark")
    native._state.__init__()
    assert "is damaged, or not an extension of fsdino" in why_not()


def test_ahead_of_time_comes_first(stub: None, new_process, monkeypatch) -> None:
    """What was compiled with the package is used where it fits, but not with other flags."""
    library = native.build().path
    ahead = native.PACKAGE / "_C.so"
    ahead.write_bytes(library.read_bytes())
    new_process()
    kernels = build.kernels(ahead)
    assert f"{kernels} cannot be read: No such file" in native.problems()[0]
    kernels.write_bytes(build.kernels(library).read_bytes())
    new_process()
    assert why_not() is None
    assert native.extension() == native.Extension(ahead, True, {"compiler": "stub"}, None)
    new_process()
    monkeypatch.setenv("FSDINO_CXXFLAGS", "-g")
    assert why_not() == "it is not built: run `fsdino build`"


def test_auto_runs_the_reference_and_says_so_once(stub: None, caplog) -> None:
    """Unbuilt kernels cost a line in the log and never a build inside a call."""
    caplog.set_level(logging.INFO, "fsdino.ops")
    for _ in range(2):
        assert backends.select("correlation4d", FEATURES) == "reference"
        ops.correlation4d(FEATURES, FEATURES)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    assert lines == ["the C++ kernels are not used: it is not built: run `fsdino build`"]
    assert stub_extension.times_compiled() == 0


@pytest.mark.parametrize("how", ["argument", "use_backend"])
def test_asked_for_by_name_it_builds(stub: None, how: str) -> None:
    """An explicit request is worth the wait."""
    if how == "argument":
        assert backends.select("correlation4d", FEATURES, "cpp") == "cpp"
    else:
        with ops.use_backend("cpp"):
            assert backends.select("correlation4d", FEATURES) == "cpp"
    assert stub_extension.times_compiled() == 1
    assert backends.select("correlation4d", FEATURES) == "cpp"


def test_asked_for_by_name_it_raises_the_reason(stub: None, monkeypatch) -> None:
    """One attempt; the reason of its failure is the error, then and later."""
    monkeypatch.setattr(build, "_CHILD", "print('x.cpp:1: error: boom'); raise SystemExit(1)")
    for _ in range(2):
        with pytest.raises(BackendError, match=r"'cpp' cannot run correlation4d .*: error: boom; "):
            ops.correlation4d(FEATURES, FEATURES, backend="cpp")
        monkeypatch.setattr(build, "_CHILD", "raise SystemExit(2)")
    assert backends.select("correlation4d", FEATURES) == "reference"


def test_an_exported_call_says_what_is_missing(stub: None, monkeypatch) -> None:
    """A graph names its backend, and may run where nothing was built."""
    never_called = native._kernel("correlation4d")
    monkeypatch.setattr(native, "correlation4d", never_called)
    with pytest.raises(BackendError, match="'cpp' cannot run correlation4d here: it is not built"):
        torch.ops.fsdino.correlation4d(FEATURES, FEATURES, None, 1e-5, "cpp")


@pytest.mark.parametrize("built", [False, True], ids=["unbuilt", "built"])
def test_the_first_call_may_be_compiled(stub: None, new_process, built: bool) -> None:
    """torch.compile traces the choice of the backend, and with it the search for the extension."""
    torch.compiler.reset()  # an answer once traced is kept
    if built:
        native.build()
        new_process()

    @torch.compile(backend="eager", fullgraph=True)
    def choice(x: torch.Tensor) -> torch.Tensor:
        return x + (backends.select("correlation4d", x) == "cpp")

    assert choice(torch.zeros(1)).item() == built
    assert choice(torch.zeros(1)).item() == built
