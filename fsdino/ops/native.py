"""Backends `cpp` and `cuda`: finds, builds and loads the extension in csrc/, or says why it cannot.

The extension was compiled ahead of time, when fsdino was installed beside its PyTorch, or by
`fsdino build` into the cache (`fsdino/ops/build.py`). Importing this module looks for neither.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fsdino import contract
from fsdino.contract import while_tracing
from fsdino.csrc import flags
from fsdino.errors import BackendError
from fsdino.ops import build as builder
from fsdino.progress import Report

logger = logging.getLogger("fsdino.ops")

DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
CUDA_DTYPES = DTYPES - {torch.float64}
FUNCTIONS = flags.functions()
CUDA_FUNCTIONS = flags.functions(cuda=True)
PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Extension:
    """A build of csrc/.

    Attributes:
        path: the Python module; the library of the kernels is beside it.
        ahead_of_time: compiled when fsdino was installed.
        build_info: compiler, torch, C++ ABI, CPU capability, OpenMP, sources, CUDA and its archs.
        seconds: that compiling took; None ahead of time.
        without_cuda: why there are no CUDA kernels in it; None if there are, or if it is not known.
    """

    path: Path
    ahead_of_time: bool
    build_info: dict[str, Any]
    seconds: float | None
    without_cuda: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "path": str(self.path)}


@dataclass
class _State:
    """State of this process. torch.compile must not guard on it: tracing may change it.

    Attributes:
        decided: whether the search is done.
        loaded: the extension in use.
        problems: why each file that was found cannot be used.
        reason: why none is in use.
        tried_to_build: whether a request by name has started a build.
    """

    decided: bool = False
    loaded: Extension | None = None
    problems: list[str] = field(default_factory=list)
    reason: str | None = None
    tried_to_build: bool = False


_state = _State()
_lock = threading.RLock()


def why_not(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why the extension cannot run such a call; None if it can. Never builds."""
    if op not in FUNCTIONS:
        return f"it has no {op}"
    if device.type != "cpu":
        return f"it runs on the CPU, not on {device.type}"
    if dtype not in DTYPES:
        return f"it runs float32, float64, float16 and bfloat16, not {dtype}"
    return _missing()


def why_not_cuda(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why the extension's CUDA kernels cannot run such a call. Never builds."""
    if device.type != "cuda":
        return f"it runs on NVIDIA GPUs, not on {device.type}"
    if op not in CUDA_FUNCTIONS:
        return f"it has no {op}: use triton, which takes fewer instructions for it"
    if dtype not in CUDA_DTYPES:
        return f"it runs float32, float16 and bfloat16, not {dtype}"
    return _why_not_on(device.index)


def why_not_run_on(
    capability: tuple[int, int], driver: int, toolkit: int, architectures: Sequence[str]
) -> str | None:
    """The reason why kernels cannot run on a GPU; None if they can.

    Args:
        capability: of the GPU.
        driver: the newest CUDA that the driver supports, as in 13000 for 13.0.
        toolkit: the CUDA that compiled the kernels, likewise.
        architectures: that they were compiled for, as in TORCH_CUDA_ARCH_LIST.
    """
    if capability < flags.OLDEST_ARCHITECTURE:
        return "it needs compute capability 8.0 (sm_80), this GPU has {}.{}".format(*capability)
    wanted = " ".join(architectures)
    for name in architectures:
        major, minor = _capability(name)
        if "a" in name:
            if (major, minor) == capability:
                return None
        elif major == capability[0] and minor <= capability[1]:
            return None
    portable = [name for name in architectures if name.endswith("+PTX") and "a" not in name]
    if not any(_capability(name) <= capability for name in portable):
        return (
            f"it was built for {wanted}, this GPU has {capability[0]}.{capability[1]}: "
            "run `fsdino build --force`"
        )
    if driver < toolkit:
        return (
            f"the driver supports CUDA up to {driver // 1000}.{driver % 1000 // 10}, too old to "
            f"compile what CUDA {toolkit // 1000}.{toolkit % 1000 // 10} built for {wanted} for "
            "this GPU: update the driver, or run `fsdino build --force`"
        )
    return None


def _capability(name: str) -> tuple[int, int]:
    """(9, 0) of "9.0a+PTX"."""
    major, minor = name.removesuffix("+PTX").rstrip("af").split(".")
    return int(major), int(minor)


def prepare(device: torch.device) -> None:
    """Build the extension if it is not built: the backend was requested by name.

    There is one attempt per process; if it fails, `why_not` returns the reason.
    """
    if device.type == "cpu":
        _build_once()


def prepare_cuda(device: torch.device) -> None:
    """As `prepare`, for the backend `cuda`."""
    if device.type == "cuda":
        _build_once()


def build(*, force: bool = False, report: Report | None = None) -> Extension:
    """Build the extension into the cache, unless it is built, and load it.

    A process that has already loaded an extension keeps it; a new one takes the new build.

    Args:
        force: build in any case.
        report: called with (finished, all) compiler calls.

    Raises:
        BackendError: it cannot be built or loaded, with the reason.
    """
    with _lock:
        _decide()
        if _state.loaded is not None and not force:
            return _state.loaded
        library = builder.compile_extension(force=force, report=report)
        if _state.loaded is not None:
            return _from_cache(library, builder.record(library).build_info)
        try:
            return _load(library, ahead_of_time=False)
        except BackendError:
            if force:
                raise
        # A whole file that cannot be loaded here: it came from another machine.
        library = builder.compile_extension(force=True, report=report)
        return _load(library, ahead_of_time=False)


def extension() -> Extension | None:
    """The extension that this process uses, found and loaded if need be; None without one."""
    _decide()
    return _state.loaded


def library() -> Path:
    """The library of the kernels, which registers the ops of `fsdino_cpp` and needs no Python.

    A process without fsdino loads it before a graph with these ops: with
    `torch.ops.load_library` in Python, with `dlopen` in C++. It must be of the PyTorch that
    runs the graph. This process has already loaded it.

    Raises:
        BackendError: nothing is built that this process can use.
    """
    if (reason := _missing()) is not None:
        raise BackendError(f"there is no library of the C++ kernels: {reason}")
    assert _state.loaded is not None
    return builder.kernels(_state.loaded.path)


def problems() -> tuple[str, ...]:
    """Why each file that was found cannot be used, and why building failed."""
    _decide()
    return tuple(_state.problems)


@while_tracing
def _missing() -> str | None:
    """Why there is no extension; the first time also in the log."""
    if not _state.decided:
        _decide()
        if _state.reason is not None:
            logger.info("the C++ kernels are not used: %s", _state.reason)
    return _state.reason


@while_tracing
def _why_not_on(index: int | None) -> str | None:
    """As `why_not_cuda`, for the GPU that a tensor is on."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return "it runs on NVIDIA GPUs, and PyTorch finds none"
    if (reason := _missing()) is not None:
        return reason
    assert _state.loaded is not None
    info = _state.loaded.build_info
    if not info.get("cuda_archs"):
        why = _state.loaded.without_cuda or "nvcc was missing or of another CUDA"
        return f"the extension was built without CUDA: {why}; then run `fsdino build --force`"
    driver = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    capability = torch.cuda.get_device_capability(index)
    return why_not_run_on(capability, driver, info["cuda"], info["cuda_archs"])


@while_tracing
def _build_once() -> None:
    if _state.loaded is not None or _state.tried_to_build:
        return
    with _lock:
        try:
            build()
        except BackendError as error:
            _state.problems.append(str(error))
            _state.reason = "; ".join(_state.problems)
        _state.tried_to_build = True


def _decide() -> None:
    """Load the first extension that can be used; once per process."""
    with _lock:
        if _state.decided:
            return
        _search()
        if _state.loaded is None:
            found = "; ".join(_state.problems) or "it is not built"
            _state.reason = f"{found}: run `fsdino build`"
        _state.decided = True


def _search() -> None:
    found = [(library, True) for library in _ahead_of_time()]
    for library, ahead_of_time in [*found, *((path, False) for path in builder.cached())]:
        check = builder.mismatch if ahead_of_time else builder.damage
        problem = check(library)
        if problem is None:
            try:
                _load(library, ahead_of_time=ahead_of_time)
                return
            except BackendError as error:
                problem = str(error)
        _state.problems.append(problem)


def _ahead_of_time() -> list[Path]:
    """Modules that setup.py has compiled for this Python; none if other flags are set."""
    if flags.extra():
        return []
    names = [flags.MODULE + suffix for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    return [PACKAGE / name for name in names if (PACKAGE / name).is_file()]


def _load(library: Path, *, ahead_of_time: bool) -> Extension:
    """Load a build that fits: the kernels, and then the module that describes them.

    Raises:
        BackendError: it cannot be loaded on this machine, or not in this process.
    """
    name = f"fsdino.{flags.MODULE}"
    kernels = builder.kernels(library)
    if _registered_by_another(kernels):
        raise BackendError(
            f"{kernels} cannot be loaded: this process has its ops from another file; import "
            "fsdino and call fsdino.ops.native.library() instead of loading that"
        )
    try:
        torch.ops.load_library(kernels)
        spec = importlib.util.spec_from_file_location(name, library)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        build_info = module.build_info()
    except (ImportError, OSError, AttributeError) as error:
        reason = error.__cause__ or error  # PyTorch wraps the system's own
        raise BackendError(f"{library} cannot be loaded: {reason}") from error
    if ahead_of_time:
        _state.loaded = Extension(library, True, build_info, None)
    else:
        _state.loaded = _from_cache(library, build_info)
    _state.reason = None
    return _state.loaded


def _registered_by_another(kernels: Path) -> bool:
    """Whether the ops are another file's, which may be of another version; they would stay."""
    registered = torch._C._dispatch_has_kernel("fsdino_cpp::correlation4d")
    return registered and str(kernels.resolve()) not in torch.ops.loaded_libraries


def _from_cache(library: Path, build_info: dict[str, Any]) -> Extension:
    record = builder.record(library)
    return Extension(library, False, build_info, record.seconds, record.without_cuda)


def __getattr__(name: str) -> Callable[..., Any]:
    """A function of the contract, for both backends; looked up once."""
    if name not in contract.FUNCTIONS and name not in FUNCTIONS.intersection(contract.OPTIONAL):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = globals()[name] = _kernel(name)
    return function


def _kernel(name: str) -> Callable[..., Any]:
    """`torch.ops.fsdino_cpp.NAME`, found at the first call."""
    overload: Callable[..., Any] | None = None

    def call(*arguments: Any) -> Any:
        nonlocal overload
        if overload is None:
            if (reason := _missing()) is not None:
                which = "cpp" if arguments[0].device.type == "cpu" else "cuda"
                raise BackendError(f"backend {which!r} cannot run {name} here: {reason}")
            overload = getattr(torch.ops.fsdino_cpp, name).default
        return overload(*arguments)

    return call
