"""Compiles the extension into a cache: one folder for each PyTorch, Python, flags and sources."""

from __future__ import annotations

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
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fsdino import files
from fsdino.csrc import flags
from fsdino.errors import BackendError, FsdinoError
from fsdino.locks import Lock
from fsdino.ops import trust
from fsdino.progress import Report

logger = logging.getLogger("fsdino.ops")

LIBRARY = f"{flags.MODULE}.so"
KERNELS = f"{flags.KERNELS}.so"
RECORD = "build.json"

# A process of its own compiles: PyTorch's helper loads what it has built, and one process cannot
# hold two builds. A preloaded sanitizer runtime is for that process and not for the compilers.
_CHILD = """
import json, os, sys
os.environ.pop("LD_PRELOAD", None)
from torch.utils import cpp_extension
for options in json.loads(sys.argv[1]):
    module = cpp_extension.load(verbose=True, **options)
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
    """Start of the names of all folders with such a build, by any compiler."""
    found = ingredients()
    return f"torch{found['torch']}-{found['python']}-{_digest(json.dumps(found))}"


def folder_for(compiler: str) -> Path:
    """Folder of a build by this compiler. Compilers are identified by their files and are not run.

    Raises:
        BackendError: there is no safe folder to build in.
    """
    tools = [_identity(compiler)]
    if torch.version.cuda is not None and (nvcc := flags.nvcc()) is not None:
        tools += [_identity(nvcc), os.environ.get("TORCH_CUDA_ARCH_LIST", "")]
    place, _ = trust.place()
    return place / f"{key()}-{_digest(' '.join(tools))}"


def _identity(tool: str) -> str:
    path = os.path.realpath(tool)
    status = os.stat(path)
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def cached() -> list[Path]:
    """Builds with this key, usable or not; that of the current compiler comes first."""
    compiler = flags.compiler()
    try:
        own = folder_for(compiler) if compiler else None
    except BackendError:
        own = None
    names = f"{key()}-" + "[0-9a-f]" * 12
    folders = [folder for place in trust.places() for folder in sorted(place.glob(names))]
    return [folder / LIBRARY for folder in sorted(folders, key=lambda folder: folder != own)]


def kernels(library: Path) -> Path:
    """The library of the kernels that belongs to a Python module: it is beside it."""
    return library.with_name(KERNELS)


def mismatch(library: Path) -> str | None:
    """Why a build must not be loaded; None if it fits this PyTorch and these sources."""
    return _mismatch(library) or _mismatch(kernels(library))


def _mismatch(library: Path) -> str | None:
    try:
        found = _MARK.search(library.read_bytes())
    except OSError as error:
        return f"{library} cannot be read: {error.strerror}"
    if found is None:
        return f"{library} is damaged, or not an extension of fsdino"
    version, sources = (text.decode() for text in found.groups())
    if version != torch.__version__:
        return f"{library} was built for torch {version}, you have {torch.__version__}"
    if sources != flags.source_hash():
        return f"{library} was built from other sources than those in {flags.FOLDER}"
    return None


def damage(library: Path) -> str | None:
    """Why a build in the cache must not be loaded. A truncated library would crash the process."""
    try:
        if (reason := trust.distrust_build(library)) is not None:
            return f"{reason}: not used"
        whole = record(library).sha256 == _sha256(library)
    except (OSError, ValueError):
        whole = False
    return mismatch(library) if whole else f"{library} is damaged"


@dataclass(frozen=True)
class Record:
    """The record of a build in the cache.

    Attributes:
        sha256: of the Python module followed by the kernels.
        seconds: time that compiling took.
        build_info: description by the module itself.
        without_cuda: why there are no CUDA kernels in it, if there are none.
    """

    sha256: str
    seconds: float
    build_info: dict[str, Any]
    without_cuda: str | None

    def __post_init__(self) -> None:
        sound = {
            "sha256": isinstance(self.sha256, str),
            "seconds": isinstance(self.seconds, int | float),
            "build_info": isinstance(self.build_info, dict),
            "without_cuda": isinstance(self.without_cuda, str | None),
        }
        for name in (name for name, fits in sound.items() if not fits):
            raise ValueError(f"its {name} is {getattr(self, name)!r}")


def record(library: Path) -> Record:
    """The record of a build in the cache.

    Raises:
        OSError: there is none.
        ValueError: it is damaged.
    """
    found = files.read_json(library.with_name(RECORD))
    if not isinstance(found, dict):
        raise ValueError("it does not hold an object")
    return Record(*(found.get(field.name) for field in fields(Record)))  # type: ignore[arg-type]


def compile_extension(*, force: bool = False, report: Report | None = None) -> Path:
    """Compile into the cache, unless an intact build by this compiler is there.

    Processes that need the same build wait for the first one. The lock is the operating system's:
    a killed process does not block the others.

    Args:
        force: compile in any case.
        report: called at the start, after each file, and after linking.

    Returns:
        The path of the Python module; the kernels are beside it.

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
    place, reasons = trust.place()
    for reason in reasons:
        logger.warning("not building there: %s", reason)
    folder = folder_for(compiler)
    remedy = "set FSDINO_CACHE to a folder that can be written"
    try:
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
        if (unsafe := trust.distrust(place)) is not None:  # another process made it
            raise BackendError(f"{unsafe}: {remedy}")
        lock = Lock(
            folder.with_name(f"{folder.name}.lock"), "the build of the C++ kernels", remedy,
            wait=True,
        )  # fmt: skip
        with lock:
            library = folder / LIBRARY
            if force or damage(library) is not None:
                _compile(compiler, folder, report)
            return library
    except BackendError:
        raise
    except (OSError, FsdinoError) as error:
        cause = error.strerror if isinstance(error, OSError) else None
        raise BackendError(f"cannot build in {place}: {cause or error}; {remedy}") from error


def cuda() -> flags.Cuda | str:
    """The toolkit that compiles csrc/cuda here, or the reason why it is left out."""
    if flags.extra():
        return "FSDINO_CXXFLAGS is set, which nvcc would not understand"
    gpus = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    return flags.cuda(torch.version.cuda, gpus)


def _compile(compiler: str, folder: Path, report: Report | None) -> None:
    """Compile for GPUs as well, if possible."""
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
        report(0, flags.steps(toolkit is not None))
    prefix = f"{folder.name}.building-"
    for left in folder.parent.glob(f"{prefix}*"):  # by a build that was killed
        shutil.rmtree(left, ignore_errors=True)
    place = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        info = _run(
            _options(compiler, toolkit, place), place, toolkit,
            folder.with_name(f"{folder.name}.log"), report,
        )  # fmt: skip
        kept = place / "kept"
        kept.mkdir()
        kept.chmod(0o755)  # under any umask: a folder that others can write is not loaded from
        for name in (KERNELS, LIBRARY):
            library = (place / name).rename(kept / name)
            library.chmod(0o755)
        noted = {
            "sha256": _sha256(library),
            "seconds": round(time.monotonic() - began, 1),
            "build_info": info,
            "without_cuda": without,
            **ingredients(),
        }
        files.write_json(library.with_name(RECORD), noted)
        library.with_name(RECORD).chmod(0o644)
        if folder.exists():
            folder.rename(place / "old")
        kept.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _options(compiler: str, toolkit: flags.Cuda | None, place: Path) -> list[dict[str, Any]]:
    """Arguments of torch.utils.cpp_extension.load for each library, in the order of loading."""
    openmp, extra = flags.openmp(compiler), flags.extra()
    described = flags.defines(torch.__version__)
    if toolkit is not None:
        described += toolkit.defines()
    return [
        {
            "name": name,
            "sources": [str(path) for path in compiled],
            "extra_cflags": [*flags.COMPILE, *flags.WARNINGS, *openmp, *described, *extra],
            "extra_cuda_cflags": [*flags.CUDA_COMPILE, *flags.CUDA_WARNINGS],
            "extra_ldflags": [flags.LINK, *openmp, *extra],
            "with_cuda": toolkit is not None,
            "build_directory": str(place),
            "is_python_module": name == flags.MODULE,
        }
        for name, compiled in flags.sources(toolkit is not None).items()
    ]


def _run(
    options: list[dict[str, Any]], place: Path, toolkit: flags.Cuda | None, log: Path,
    report: Report | None,
) -> dict[str, Any]:  # fmt: skip
    """Run the compilers in a process of their own; returns the module's description of itself."""
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
    before = 0  # steps of the libraries that are finished
    total = flags.steps(toolkit is not None)
    with (
        log.open("w", encoding="utf-8") as copy,
        subprocess.Popen(
            [sys.executable, "-c", _CHILD, json.dumps(options)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=place,
            env=environment,
            start_new_session=True,
        ) as child,
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                copy.write(line)
                lines.append(line)
                if step := _STEP.match(line):
                    if report is not None:
                        report(before + int(step[1]), total)
                    before += int(step[2]) if step[1] == step[2] else 0
        except BaseException:  # Ctrl-C reaches this process alone
            os.killpg(child.pid, signal.SIGTERM)
            raise
    if child.returncode == 0 and lines and lines[-1].startswith(_BUILT):
        built: dict[str, Any] = json.loads(lines[-1].removeprefix(_BUILT))
        return built
    reason = next((line for line in lines if "error:" in line.lower()), "".join(lines[-1:]))
    raise BackendError(f"compiling failed: {reason.strip()[:300]}; the whole output is in {log}")


def _sha256(library: Path) -> str:
    digest = hashlib.sha256(library.read_bytes())
    digest.update(kernels(library).read_bytes())
    return digest.hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
