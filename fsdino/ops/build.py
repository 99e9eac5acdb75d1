"""Compiles the extension into a cache: one folder for each PyTorch, Python, flags and sources."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fsdino.csrc import flags
from fsdino.environment import cache
from fsdino.errors import BackendError

logger = logging.getLogger("fsdino.ops")

NAME = "_C"
LIBRARY = f"{NAME}.so"
RECORD = "build.json"

# (compiler calls that have finished, all of them)
Report = Callable[[int, int], None]

# A process of its own compiles: PyTorch's helper loads what it has built, and one process cannot
# hold two builds. A preloaded sanitizer runtime is for that process and not for the compilers.
_CHILD = """
import json, os, sys
os.environ.pop("LD_PRELOAD", None)
from torch.utils import cpp_extension
module = cpp_extension.load(verbose=True, **json.loads(sys.argv[1]))
print("fsdino-built", json.dumps(module.build_info()), flush=True)
"""
_STEP = re.compile(r"\[(\d+)/(\d+)\] ")
_BUILT = "fsdino-built "
_MARK = re.compile(rb"fsdino-extension torch=(\S+) sources=(\S+) end")


def ingredients() -> dict[str, str]:
    """What a build depends on, the compiler aside; another value of any is another build."""
    return {
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cxx11_abi": str(torch.compiled_with_cxx11_abi()),
        "python": str(sysconfig.get_config_var("SOABI")),
        "platform": sysconfig.get_platform(),
        "flags": " ".join([*flags.COMPILE, flags.OPENMP, *flags.CUDA_COMPILE, *flags.extra()]),
        "sources": flags.source_hash(),
    }


def key() -> str:
    """Start of the names of all folders that hold such a build, by whatever compiler."""
    found = ingredients()
    return f"torch{found['torch']}-{found['python']}-{_digest(json.dumps(found))}"


def folder_for(compiler: str) -> Path:
    """Where a build by this compiler lies. Compilers are told by their files and are not run."""
    tools = [_identity(compiler)]
    if torch.version.cuda is not None and (nvcc := flags.nvcc()) is not None:
        tools += [_identity(nvcc), os.environ.get("TORCH_CUDA_ARCH_LIST", "")]
    return cache() / f"{key()}-{_digest(' '.join(tools))}"


def _identity(tool: str) -> str:
    path = os.path.realpath(tool)
    status = os.stat(path)
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def cached() -> list[Path]:
    """Builds in the cache that fit, whole or not; that of the present compiler comes first."""
    compiler = flags.compiler()
    own = folder_for(compiler) if compiler else None
    names = f"{key()}-" + "[0-9a-f]" * 12
    folders = sorted(cache().glob(names), key=lambda folder: folder != own)
    return [folder / LIBRARY for folder in folders]


def mismatch(library: Path) -> str | None:
    """Why this file must not be loaded; None where it was built for this PyTorch and sources."""
    try:
        found = _MARK.search(library.read_bytes())
    except OSError as error:
        return f"{library} cannot be read: {error.strerror}"
    if found is None:
        return f"{library} is damaged, or no extension of fsdino"
    version, sources = (text.decode() for text in found.groups())
    if version != torch.__version__:
        return f"{library} was built for torch {version}, you have {torch.__version__}"
    if sources != flags.source_hash():
        return f"{library} was built from other sources than those in {flags.FOLDER}"
    return None


def damage(library: Path) -> str | None:
    """Why a build in the cache must not be loaded. A truncated library would crash the process."""
    try:
        whole = record(library)["sha256"] == _sha256(library)
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    return mismatch(library) if whole else f"{library} is damaged"


def record(library: Path) -> dict[str, Any]:
    """What was noted about a build in the cache: sha256, seconds, build_info."""
    found: dict[str, Any] = json.loads(library.with_name(RECORD).read_text(encoding="utf-8"))
    return found


def compile_extension(*, force: bool = False, report: Report | None = None) -> Path:
    """Compile into the cache, unless a whole build by this compiler is there; the library's path.

    Processes that ask for the same build wait for the first one's. The lock is the operating
    system's, so that a killed process holds up nobody.

    Args:
        force: compile in any case.
        report: called at the start, after each file, and after linking.

    Raises:
        BackendError: no compiler, no ninja, an error of the compiler, a cache that cannot be
            written.
    """
    compiler = flags.compiler()
    if compiler is None:
        wanted = os.environ.get("CXX", "c++")
        raise BackendError(
            f"no C++ compiler found ({wanted} is not on PATH): install one such as g++, or set CXX"
        )
    folder = folder_for(compiler)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f"{folder.name}.lock")):
            library = folder / LIBRARY
            if force or damage(library) is not None:
                _compile(compiler, folder, report)
            return library
    except OSError as error:
        raise BackendError(
            f"cannot build in {folder.parent}: {error.strerror or error}; "
            "set FSDINO_CACHE to a folder that can be written"
        ) from error


def cuda() -> flags.Cuda | str:
    """What csrc/cuda is compiled with here, or the reason why it is left out."""
    if flags.extra():
        return "FSDINO_CXXFLAGS is set, which nvcc would not understand"
    gpus = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    return flags.cuda(torch.version.cuda, gpus)


def _compile(compiler: str, folder: Path, report: Report | None) -> None:
    """Compile for the GPUs, too, where that is possible."""
    toolkit = cuda()
    if isinstance(toolkit, str):
        _compile_with(compiler, None, toolkit, folder, report)
        return
    try:
        _compile_with(compiler, toolkit, None, folder, report)
    except BackendError as error:
        logger.warning("the CUDA kernels cannot be compiled, those for the CPU can: %s", error)
        _compile_with(compiler, None, str(error), folder, report)


def _compile_with(
    compiler: str, toolkit: flags.Cuda | None, without: str | None, folder: Path,
    report: Report | None,
) -> None:  # fmt: skip
    """Compile beside `folder`, then put the result in its place.

    `without` says why there is no toolkit.
    """
    logger.info("compiling the C++ kernels into %s", folder)
    began = time.monotonic()
    if report is not None:
        report(0, len(flags.sources(toolkit is not None)) + 1)
    prefix = f"{folder.name}.building-"
    for left in folder.parent.glob(f"{prefix}*"):  # by a build that was killed
        shutil.rmtree(left, ignore_errors=True)
    place = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        info = _run(
            _options(compiler, toolkit, place), toolkit,
            folder.with_name(f"{folder.name}.log"), report,
        )  # fmt: skip
        kept = place / "kept"
        kept.mkdir()
        library = (place / LIBRARY).rename(kept / LIBRARY)
        noted = {
            "sha256": _sha256(library),
            "seconds": round(time.monotonic() - began, 1),
            "build_info": info,
            "without_cuda": without,
            **ingredients(),
        }
        library.with_name(RECORD).write_text(json.dumps(noted, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(place / "old")
        kept.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _options(compiler: str, toolkit: flags.Cuda | None, place: Path) -> dict[str, Any]:
    """Arguments of torch.utils.cpp_extension.load."""
    openmp, extra = flags.openmp(compiler), flags.extra()
    described = flags.defines(torch.__version__)
    if toolkit is not None:
        described += toolkit.defines()
    return {
        "name": NAME,
        "sources": [str(path) for path in flags.sources(toolkit is not None)],
        "extra_cflags": [*flags.COMPILE, *flags.WARNINGS, *openmp, *described, *extra],
        "extra_cuda_cflags": [*flags.CUDA_COMPILE, *flags.CUDA_WARNINGS],
        "extra_ldflags": [*openmp, *extra],
        "with_cuda": toolkit is not None,
        "build_directory": str(place),
    }


def _run(
    options: dict[str, Any], toolkit: flags.Cuda | None, log: Path, report: Report | None
) -> dict[str, Any]:
    """Run the compilers in a process of their own; what the build says about itself."""
    environment = {
        **os.environ,
        **({} if toolkit is None else toolkit.environment()),
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "MAX_JOBS": os.environ.get("MAX_JOBS") or str(flags.jobs()),
    }
    if shutil.which("ninja", path=environment["PATH"]) is None:
        raise BackendError("ninja, which the build needs, is missing: pip install ninja")
    lines = []
    with (
        log.open("w", encoding="utf-8") as copy,
        subprocess.Popen(
            [sys.executable, "-c", _CHILD, json.dumps(options)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=options["build_directory"],
            env=environment,
            start_new_session=True,
        ) as child,
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                copy.write(line)
                lines.append(line)
                if report is not None and (step := _STEP.match(line)):
                    report(int(step[1]), int(step[2]))
        except BaseException:  # Ctrl-C reaches this process alone
            os.killpg(child.pid, signal.SIGTERM)
            raise
    if child.returncode == 0 and lines and lines[-1].startswith(_BUILT):
        built: dict[str, Any] = json.loads(lines[-1].removeprefix(_BUILT))
        return built
    reason = next((line for line in lines if "error:" in line.lower()), "".join(lines[-1:]))
    raise BackendError(f"compiling failed: {reason.strip()[:300]}; the whole output is in {log}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process compiles the C++ kernels: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
