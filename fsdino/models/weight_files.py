"""Read weights of any origin: no pickled code runs, and no stated size is trusted."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fsdino.errors import CheckpointError, FsdinoError, UsageError, first_line, listed, printable
from fsdino.files import open_regular
from fsdino.models.torch_files import NotTensorsError, TorchFile, View

logger = logging.getLogger("fsdino.models")

StateDict = dict[str, Tensor]

_MOST_HEADER = 2**24  # bytes of the names and shapes in a safetensors file
_MOST_WRAPPERS = 4
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_WRAPPERS = (
    *("model", "state_dict", "model_state_dict", "teacher", "student", "module", "backbone"),
    *("net", "network", "model_ema", "ema", "ema_state_dict", "weights", "params"),
)
_PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.", "teacher.", "student.")
_HEADS = ("head", "dino_head", "ibot_head", "fc", "classifier", "projector", "prototypes")
_WHOLE = ("hpn_learner.",)  # parts beside a backbone of models that are read whole: HSNet's
_FOUND = (
    (
        (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--"),
        "a web page, not weights: download them again, by the address of the file itself",
    ),
    (
        (b"version https://git-lfs",),
        "a pointer of Git LFS, not weights: fetch them with git lfs pull",
    ),
    ((b"\x89png", b"\xff\xd8\xff"), "an image, not weights: pass a file of weights"),
    ((b"{", b"["), "JSON, not weights (an answer of the server?): download them again"),
    ((b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"7z\xbc"), "packed: unpack them first"),
    ((b"\x89hdf",), "an HDF5 file of another framework: pass PyTorch's or safetensors"),
)


@dataclass(frozen=True)
class Stored:
    """A tensor as its file describes it; `read` takes the memory for it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


@contextlib.contextmanager
def open_state_dict(path: str | os.PathLike[str]) -> Iterator[dict[str, Stored]]:
    """Tensors of a `.safetensors` file or of a `.pth`, described; no pickled code is executed.

    The content decides what kind of file it is. Weights that a training checkpoint wraps in a dict
    (`model`, `teacher`, ...) or names with a prefix (`module.`, `backbone.`, ...) are unwrapped,
    and the log says what was taken. Until the block ends, tensors can be read; before that only
    their descriptions are, so that a file that claims a huge size takes no memory.

    Raises:
        UsageError: there is no such file.
        CheckpointError: the file is damaged, holds something other than tensors, or several sets of
            weights.
    """
    path = Path(path)
    with _open(path) as file:
        if _kind(file, path) == "torch":
            with _open_torch(file, path) as state:
                yield state
            return
    with open_safetensors(path) as tensors:
        yield unwrap({name: _stored(tensors, name, path) for name in tensor_names(tensors)}, path)


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """All tensors of `open_state_dict`.

    Raises:
        UsageError, CheckpointError: see there.
    """
    with open_state_dict(path) as state:
        return {name: stored.read() for name, stored in state.items()}


@contextlib.contextmanager
def _open_torch(file: BinaryIO, path: Path) -> Iterator[dict[str, Stored]]:
    try:
        source = TorchFile(file)
        views = unwrap(source.content, path)
        source.check(views.values())
        yield {
            name: Stored(view.shape, view.storage.dtype, partial(source.tensor, view))
            for name, view in views.items()
        }
    except NotTensorsError as error:
        raise CheckpointError(
            f"weights {path} cannot be read safely: {first_line(error)}; pass a file of named "
            "tensors, as torch.save(model.state_dict(), ...) writes it"
        ) from error
    except (ValueError, OSError) as error:
        raise damaged(path, error) from error


def _stored(tensors: Any, name: str, path: Path) -> Stored:
    described = tensors.get_slice(name)
    kind = described.get_dtype()
    if kind not in _DTYPES:
        raise CheckpointError(
            f"weights {path}: {printable(name)} is of a kind that weights are not ({kind}): pass "
            "weights in floating point"
        )
    shape = tuple(described.get_shape())
    return Stored(shape, _DTYPES[kind], partial(tensors.get_tensor, name))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a safetensors file; empty for files of another kind.

    Raises:
        UsageError, CheckpointError: see `open_state_dict`.
    """
    with _open(Path(path)) as file:
        if _kind(file, Path(path)) != "safetensors":
            return {}
    with open_safetensors(Path(path)) as tensors:
        return dict(tensors.metadata() or {})


def _open(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except FileNotFoundError as error:
        raise UsageError(f"weights {path}: no such file; download it and pass its path") from error
    except IsADirectoryError as error:
        raise UsageError(f"weights {path}: a file is needed, this is a folder") from error
    except ValueError as error:
        raise UsageError(f"weights {path}: {error}; pass a file of weights") from error
    except OSError as error:
        raise UsageError(f"weights {path}: {error.strerror}; pass another path") from error


def _kind(file: BinaryIO, path: Path) -> str:
    """The kind of file, "torch" or "safetensors"; leaves the file at its start.

    Raises:
        CheckpointError: it is something else; the message names it.
    """
    head = file.read(512)
    file.seek(0)
    # This comes first, as the length of a header may begin with the bytes of another format.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MOST_HEADER:
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "torch"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for starts, found in _FOUND:
        if text.startswith(starts):
            raise CheckpointError(f"weights {path} are {found}")
    if not text:
        raise CheckpointError(f"weights {path} are empty: download them again")
    if head[257:262] == b"ustar":
        raise CheckpointError(f"weights {path} are a tar archive: extract it and pass the weights")
    raise CheckpointError(
        f"weights {path} are damaged, or neither a safetensors file nor one of torch.save's: "
        "download them again"
    )


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file; the size of its header is checked before the library parses it.

    Raises:
        UsageError, CheckpointError: see `open_state_dict`.
    """
    with _open(path) as file:
        if _kind(file, path) != "safetensors":
            raise CheckpointError(f"weights {path} are not a safetensors file: fetch them again")
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        if isinstance(error, FsdinoError):
            raise
        raise damaged(path, error) from error


def tensor_names(file: Any) -> list[str]:
    """Names of the tensors in an open safetensors file."""
    return list(file.keys())


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that cannot be read."""
    return CheckpointError(f"weights {path} are damaged ({first_line(error)}): fetch them again")


def unwrap(content: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The named tensors in what a file holds; the log says what was taken from what.

    Args:
        content: a mapping of tensors, or mappings of such.
        path: of the file, for messages.

    Raises:
        CheckpointError: there are none, or several sets of them.
    """
    state, where = content, ""
    for _ in range(_MOST_WRAPPERS):
        if not isinstance(state, Mapping) or _is_state(state):
            break
        inner = {k: v for k, v in state.items() if isinstance(k, str) and _holds_weights(v)}
        known = {k: v for k, v in inner.items() if k in _WRAPPERS}
        chosen = known or inner
        if len(chosen) > 1:
            raise CheckpointError(
                f"weights {path} hold several sets of weights ({listed(chosen)}): save the one "
                "that is meant, as torch.save(checkpoint[NAME], ...) does"
            )
        if not chosen:
            break
        ((name, state),) = chosen.items()
        where += f"[{name}]"
    if not isinstance(state, Mapping) or not _is_state(state):
        raise CheckpointError(
            f"weights {path} hold something other than named tensors ({_content(state)}): pass a "
            "file of a state_dict"
        )
    if where:
        logger.warning("weights %s: taken from %s of it", path, printable(where))
    return _without_prefix(dict(state), path)


def _without_prefix(state: dict[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Drop the prefix that a wrapper put before every name; a backbone's heads are left out."""
    for _ in range(_MOST_WRAPPERS):
        found = [p for p in _PREFIXES if any(key.startswith(p) for key in state)]
        prefix = next((p for p in found if all(key.startswith(p) for key in state)), None)
        rest: list[str] = []
        if prefix is None and "backbone." in found and not any(k.startswith(_WHOLE) for k in state):
            prefix = "backbone."
            rest = [key for key in state if not key.startswith(prefix)]
            if not all(key.split(".")[0] in _HEADS for key in rest):
                raise CheckpointError(
                    f"weights {path} hold a backbone and other parts ("
                    f"{listed({key.split('.')[0] for key in rest})}): save the part that is meant"
                )
        if prefix is None:
            return state
        # HSNet's published files have it: nothing that its users would wonder about.
        usual = any(key.removeprefix(prefix).startswith(_WHOLE) for key in state)
        left = f"; left out: {listed({key.split('.')[0] for key in rest})}" if rest else ""
        level = logging.DEBUG if usual else logging.WARNING
        logger.log(level, "weights %s: taken without the prefix %r%s", path, prefix, left)
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return state


def _is_state(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(
        isinstance(key, str) and isinstance(item, View | Stored) for key, item in value.items()
    )


def _holds_weights(value: Any, depth: int = 0) -> bool:
    """Whether a value is a set of named tensors, or wraps one."""
    if not isinstance(value, Mapping) or depth == _MOST_WRAPPERS:
        return False
    return _is_state(value) or any(
        key in _WRAPPERS and _holds_weights(item, depth + 1)
        for key, item in value.items()
        if isinstance(key, str)
    )


def _content(value: Any) -> str:
    """What a file holds, in a few words."""
    if isinstance(value, Mapping):
        if not value:
            return "nothing"
        return listed({f"{key}: {_kind_of(item)}" for key, item in list(value.items())[:20]})
    return _kind_of(value)


def _kind_of(value: Any) -> str:
    return "tensor" if isinstance(value, View | Stored) else type(value).__name__
