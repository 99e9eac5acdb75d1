"""Compiling into the cache: keys, locks, damage, and the one line that says what went wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import fsdino
import stub_extension
from fsdino.csrc import flags
from fsdino.environment import cache
from fsdino.errors import BackendError
from fsdino.ops import build


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    stub_extension.use(monkeypatch, tmp_path)
    return tmp_path / "cache"


def edit_header(patch: pytest.MonkeyPatch, folder: Path) -> None:
    copy = shutil.copytree(flags.FOLDER, folder / "csrc")
    with (copy / "ops.h").open("a") as file:
        file.write("// changed\n")
    patch.setattr(flags, "FOLDER", copy)


def setting(owner: object, name: str, value: object) -> Callable[[pytest.MonkeyPatch, Path], None]:
    return lambda patch, folder: patch.setattr(owner, name, value)


CHANGES = {
    "torch": setting(torch, "__version__", "2.99.0"),
    "CUDA": setting(torch.version, "cuda", "99.9"),
    "C++ ABI": setting(torch, "compiled_with_cxx11_abi", lambda: "another"),
    "Python": setting(sysconfig, "get_config_var", lambda name: "cpython-399"),
    "platform": setting(sysconfig, "get_platform", lambda: "another"),
    "flags": setting(flags, "COMPILE", ("-O0",)),
    "extra flags": lambda patch, folder: patch.setenv("FSDINO_CXXFLAGS", "-g"),
    "sources": edit_header,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_every_ingredient_is_in_the_key(change, monkeypatch, tmp_path):
    """Whatever a build depends on, another value of it is another build."""
    before = build.key()
    assert build.key() == before
    change(monkeypatch, tmp_path)
    assert build.key() != before


def test_the_compiler_is_in_the_folder(tmp_path):
    """Another compiler, or an update of the same one, builds again."""
    compiler = tmp_path / "c++"
    compiler.write_text("old")
    old = build.folder_for(str(compiler))
    compiler.write_text("updated")
    assert build.folder_for(str(compiler)) != old
    assert build.folder_for(str(compiler)).name.startswith(build.key())


def test_the_source_hash_covers_what_is_compiled(monkeypatch, tmp_path):
    """Headers, the list of the ops, new files and flags count; what no compiler reads does not."""
    copy = shutil.copytree(flags.FOLDER, tmp_path / "csrc")
    monkeypatch.setattr(flags, "FOLDER", copy)
    seen = [flags.source_hash()]
    (copy / "README.md").write_text("another text")
    assert flags.source_hash() == seen[0]
    for name in ("ops.cpp", "python.cpp", "ops.inc", "cpu/new.h", "cpu/new.cpp", "flags.py"):
        (copy / name).write_text("another text")
        seen.append(flags.source_hash())
    assert len(set(seen)) == len(seen)


def test_everything_that_is_included_is_hashed(monkeypatch, tmp_path):
    """Whatever its suffix: an edit of it must not leave the old build in use."""
    copy = shutil.copytree(flags.FOLDER, tmp_path / "csrc")
    monkeypatch.setattr(flags, "FOLDER", copy)
    included = {
        (source.parent / name).resolve()
        for source in [*copy.rglob("*.cpp"), *copy.rglob("*.h"), *copy.rglob("*.cu")]
        for name in re.findall(r'^#include "(.+)"', source.read_text(), re.MULTILINE)
        if name != "emulator.h"  # of the tests
    }
    assert copy / "ops.inc" in included
    seen = {flags.source_hash()}
    for path in included:
        path.write_text(path.read_text() + "\n")
        seen.add(flags.source_hash())
    assert len(seen) == len(included) + 1


def test_sources_may_be_missing(monkeypatch, tmp_path):
    """Where Python files alone were bundled, the extension has no functions: nothing fails."""
    monkeypatch.setattr(flags, "FOLDER", tmp_path)
    assert flags.functions() == frozenset()


def test_jobs_fit_into_memory_and_cores(monkeypatch):
    """A compiler for each core, as far as memory goes; one at least."""
    monkeypatch.setattr(flags, "_memory", lambda: 1 << 50)
    cores = flags.jobs()
    assert cores >= 1
    monkeypatch.setattr(flags, "_memory", lambda: flags.BYTES_PER_JOB)
    assert flags.jobs() == 1
    monkeypatch.setattr(flags, "_memory", lambda: 0)
    assert flags.jobs() == 1


def test_goes_on_without_cuda(monkeypatch, caplog):
    """An nvcc that fails costs the CUDA kernels alone; why is said, and noted beside the build."""
    monkeypatch.setattr(build, "cuda", lambda: flags.Cuda("/nowhere", "9.0a"))
    with caplog.at_level("WARNING", logger="fsdino"):
        library = build.compile_extension()
    assert "the stub has no kernels for GPUs" in build.record(library).without_cuda
    assert "the CUDA kernels cannot be compiled" in caplog.text
    assert stub_extension.times_compiled() == 1


def test_compiles_once_and_again_by_force():
    """A second call finds the first one's build; nothing but it and its log is left."""
    steps = []
    library = build.compile_extension(report=lambda done, total: steps.append((done, total)))
    sources = flags.sources()
    total = sum(len(compiled) + 1 for compiled in sources.values())
    first = len(sources[flags.KERNELS]) + 1
    assert steps == [(0, total), (first, total), (total, total)]
    assert build.damage(library) is None
    assert build.record(library).build_info == {"compiler": "stub"}
    assert build.cached() == [library]
    assert build.compile_extension() == library
    assert stub_extension.times_compiled() == 1
    assert build.compile_extension(force=True) == library
    assert stub_extension.times_compiled() == 2
    name = library.parent.name
    assert {path.name for path in cache().iterdir()} == {name, f"{name}.log"}
    assert {path.name for path in library.parent.iterdir()} == {
        "_C.so", "libfsdino_ops.so", "build.json",
    }  # fmt: skip


def test_a_build_is_found_without_its_compiler(monkeypatch, tmp_path):
    """An image with the build and without a compiler, as multi-stage containers have, works."""
    library = build.compile_extension()
    stub_extension.without_compiler(monkeypatch, tmp_path)
    assert build.cached() == [library]


def truncate(library: Path) -> None:
    library.write_bytes(library.read_bytes()[:-1000])


def foreign(library: Path) -> None:
    library.write_bytes(b"\x7fELF of somebody else")


def spoilt_record(library: Path) -> None:
    library.with_name("build.json").write_text("[]")


def other_torch(library: Path, changed: Path | None = None) -> None:
    """As if the folder had been renamed by hand: whole, but for another PyTorch."""
    found, changed = torch.__version__.encode(), changed or library
    changed.write_bytes(changed.read_bytes().replace(b"torch=" + found, b"torch=9" + found[1:]))
    record = {**asdict(build.record(library)), "sha256": build._sha256(library)}
    library.with_name("build.json").write_text(json.dumps(record))


def write_record(library: Path, text: str) -> None:
    library.with_name("build.json").write_text(text)


def without_field(name: str) -> Callable[[Path], None]:
    """A record of which only this field is gone; its absence once failed every call."""

    def spoil(library: Path) -> None:
        record = asdict(build.record(library))
        del record[name]
        write_record(library, json.dumps(record))

    return spoil


SPOILT = {
    "truncated": (truncate, "is damaged"),
    "foreign": (foreign, "is damaged"),
    "no library": (Path.unlink, "is damaged"),
    "truncated kernels": (lambda library: truncate(build.kernels(library)), "is damaged"),
    "no kernels": (lambda library: build.kernels(library).unlink(), "is damaged"),
    "kernels for other torch": (
        lambda library: other_torch(library, build.kernels(library)),
        r"libfsdino_ops.so was built for torch 9\..*, you have ",
    ),
    "no record": (lambda library: library.with_name("build.json").unlink(), "is damaged"),
    "spoilt record": (spoilt_record, "is damaged"),
    "a record of nothing": (lambda library: write_record(library, "null"), "is damaged"),
    "a record nested deeply": (lambda library: write_record(library, "[" * 10**5), "is damaged"),
    **{
        f"a record without {name}": (without_field(name), "is damaged")
        for name in ("sha256", "seconds", "build_info")
    },
    "other torch": (other_torch, r"was built for torch 9\..*, you have "),
}


@pytest.mark.parametrize("spoil, words", SPOILT.values(), ids=list(SPOILT))
def test_a_spoilt_build_is_known_and_mended(spoil, words):
    """What must not be loaded is told apart without loading it, and is compiled again."""
    library = build.compile_extension()
    spoil(library)
    with pytest.raises(AssertionError, match=words):
        assert build.damage(library) is None, build.damage(library)
    assert build.compile_extension() == library
    assert build.damage(library) is None
    assert stub_extension.times_compiled() == 2


def start(code: str) -> subprocess.Popen[str]:
    """Another process that builds with the stub, `code` before it."""
    root = str(Path(fsdino.__file__).parent.parent)
    path = os.pathsep.join([root, str(Path(__file__).parent.parent), *sys.path])
    program = (
        "import logging, os, stub_extension\nfrom fsdino.ops import build\n"
        f"build._CHILD = stub_extension.CHILD\n{code}\n"
        "print(build.compile_extension(report=lambda done, total: print(done, flush=True)))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_build_once(tmp_path):
    """The second one waits for the first and takes its build.

    The first one's compiler goes on only once the second one says that it waits.
    """
    waits = tmp_path / "waits"
    os.mkfifo(waits)
    code = f"""
build._CHILD = "open({str(waits)!r}).read()\\n" + build._CHILD
class Tell(logging.Handler):
    def emit(self, record):
        if "waiting for it" in record.getMessage():
            open({str(waits)!r}, "w").close()
logging.getLogger("fsdino.locks").setLevel(logging.INFO)
logging.getLogger("fsdino.locks").addHandler(Tell())
"""
    both = [start(code), start(code)]
    [first, second] = [process.communicate(timeout=120)[0] for process in both]
    assert first.splitlines()[-1] == second.splitlines()[-1]
    assert [process.returncode for process in both] == [0, 0]
    assert stub_extension.times_compiled() == 1


ENDLESS = "import os, signal; print(f'[{os.getpid()}/1] ', flush=True); signal.pause()"


def test_a_killed_builder_blocks_nobody():
    """Its lock is gone with it, and the next build removes what it left."""
    builder = start(f"build._CHILD = {ENDLESS!r}")
    assert builder.stdout.readline() == "0\n"
    compiler = int(builder.stdout.readline())
    builder.kill()
    builder.communicate(timeout=60)
    os.kill(compiler, signal.SIGKILL)
    assert list(cache().glob("*.building-*"))
    library = build.compile_extension()
    assert build.damage(library) is None
    assert not list(cache().glob("*.building-*"))


def test_an_interrupted_build_leaves_nothing(monkeypatch):
    """Ctrl-C ends the compilers, too, and the next build starts from the beginning."""
    compilers = []

    def interrupt(pid: int, total: int) -> None:
        if pid:
            compilers.append(pid)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "_CHILD", ENDLESS)
        with pytest.raises(KeyboardInterrupt):
            build.compile_extension(report=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(compilers[0], 0)
    assert build.cached() == []
    assert not list(cache().glob("*.building-*"))
    assert build.damage(build.compile_extension()) is None


def test_no_compiler_is_one_line(monkeypatch, tmp_path):
    """It says what was looked for, and how to go on."""
    stub_extension.without_compiler(monkeypatch, tmp_path)
    with pytest.raises(BackendError, match=r"no C\+\+ compiler found \(c\+\+ .*\): install one"):
        build.compile_extension()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BackendError, match=r"\(no-such-compiler is not on PATH\)"):
        build.compile_extension()


def test_no_ninja_is_one_line(monkeypatch, tmp_path):
    """A missing dependency is named with its remedy."""
    monkeypatch.setenv("CXX", flags.compiler())
    monkeypatch.setattr(flags, "openmp", lambda compiler: [])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(BackendError, match=r"ninja, .* is missing: pip install ninja"):
        build.compile_extension()


def test_a_failed_build_names_its_log(monkeypatch):
    """One line with the compiler's first error; the rest is in a file."""
    failing = "print('warning: w\\nops.cpp:1: error: boom\\nnote: n'); raise SystemExit(1)"
    monkeypatch.setattr(build, "_CHILD", failing)
    with pytest.raises(BackendError) as caught:
        build.compile_extension()
    message = str(caught.value)
    assert message.startswith("compiling failed: ops.cpp:1: error: boom; the whole output is in ")
    log = Path(message.rpartition(" ")[2])
    assert log.read_text().splitlines() == ["warning: w", "ops.cpp:1: error: boom", "note: n"]
    assert build.cached() == []


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch):
    """A read-only file system, a full disk, a file in the way: the same line, with the remedy."""
    monkeypatch.setenv("FSDINO_CACHE", os.devnull + "/cache")
    with pytest.raises(
        BackendError, match=r"cannot build in /dev/null/cache: .*; set FSDINO_CACHE"
    ):
        build.compile_extension()


@pytest.mark.parametrize("compiler, expected", [("true", ["-fopenmp"]), ("false", [])])
def test_openmp_is_left_out_where_the_compiler_has_none(compiler, expected):
    """Apple's compiler refuses -fopenmp, and the extension then runs on one thread."""
    assert flags.openmp(shutil.which(compiler)) == expected
