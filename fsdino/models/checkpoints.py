"""Checkpoint files in and out: never pickled code, never half a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fsdino.errors import CheckpointError, FsdinoError, UsageError
from fsdino.files import (
    atomic_write,
    make_folder,
    open_regular,
    parse_json,
    read_object,
    write_json,
)
from fsdino.models.config import CONFIG_FILE, ModelConfig
from fsdino.models.torch_files import NotTensorsError, TorchFile, View

logger = logging.getLogger("fsdino.models")

WEIGHTS_FILE, PROVENANCE_FILE = "model.safetensors", "provenance.json"
StateDict = dict[str, Tensor]

_SAID = "fsdino"  # in the metadata of the weights' file: JSON with a hash, and the identity
_MOST = 2**20  # bytes of a JSON file beside the weights
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


def write_folder(
    config: ModelConfig,
    state: StateDict,
    folder: str | os.PathLike[str],
    provenance: Mapping[str, Any] | None = None,
    identity: Mapping[str, str] | None = None,
) -> None:
    """Write config.json, model.safetensors and, if there is any, provenance.json.

    Each is written whole or not at all. The weights' file has a hash of its tensors and of
    `identity`, so that damage is found when it is read.

    Args:
        config, state, provenance: of the model.
        folder: where to; created, with those above it.
        identity: what the model's fingerprint is made of, by part; see `read_weights`.

    Raises:
        UsageError: the configuration has values that only Python knows.
        FsdinoError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        json.dumps(config.to_dict())
    except TypeError as error:
        raise UsageError(
            "encoder_args hold a class, which no file can: describe the model by names and numbers"
        ) from error
    make_folder(folder, "choose another folder")
    kept = dict(sorted((identity or {}).items()))
    said = {"sha256": tensors_sha256(state, json.dumps(kept)), "identity": kept}
    # One entry: safetensors writes several in an order of chance, and equal models as other bytes.
    write_tensors(folder / WEIGHTS_FILE, state, {_SAID: json.dumps(said)})
    write_json(folder / CONFIG_FILE, config.to_dict())
    if provenance is None:
        (folder / PROVENANCE_FILE).unlink(missing_ok=True)  # another model's
        return
    write_json(folder / PROVENANCE_FILE, dict(provenance))


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """What training wrote about itself in a model's folder; None where it wrote nothing.

    Raises:
        CheckpointError: it is damaged.
    """
    file = folder / PROVENANCE_FILE
    if not file.is_file():
        return None
    return read_object(file, "remove it, or fetch the model again", CheckpointError, most=_MOST)


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str]
) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        FsdinoError: the folder is missing, not writable or full.
    """
    contiguous = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        mode = temporary.stat().st_mode
        save_file(contiguous, temporary, metadata)
        temporary.chmod(mode)  # save_file narrows it to the owner


def read_config(folder: Path) -> ModelConfig:
    """The configuration in a folder that `write_folder` wrote.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise CheckpointError(
            f"model {folder} has no {CONFIG_FILE}: it is incomplete, or not a model"
        )
    data = read_object(file, "fetch the model again", CheckpointError, most=_MOST)
    try:
        return ModelConfig.from_dict({**data, "pretrained": False})
    except CheckpointError as error:
        raise CheckpointError(f"model {folder}: {error}") from error


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file; reads its header only.

    Raises:
        UsageError, CheckpointError: see `open_state_dict`.
    """
    with _open_safetensors(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in _names(file)}


def read_weights(path: Path) -> tuple[StateDict, dict[str, str]]:
    """Tensors of a file that `write_folder` wrote, and what it says of the model's identity.

    A file without a hash, as other programs and earlier versions write it, is taken as it is.

    Returns:
        The tensors by name, and the identity by part: nothing where the file has no hash.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it is damaged.
    """
    with _open_safetensors(path) as file:
        state = {name: file.get_tensor(name) for name in _names(file)}
        metadata = dict(file.metadata() or {})
    if _SAID not in metadata:
        return state, {}
    try:
        said = parse_json(metadata[_SAID])
        digest, identity = said["sha256"], {str(k): str(v) for k, v in said["identity"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from error
    # The identity is hashed together with the tensors: neither can be changed alone.
    if tensors_sha256(state, json.dumps(dict(sorted(identity.items())))) != digest:
        raise CheckpointError(
            f"weights {path} are damaged (their content is not what was written): fetch or save "
            "them again"
        )
    return state, identity


@contextlib.contextmanager
def open_state_dict(path: str | os.PathLike[str]) -> Iterator[dict[str, Stored]]:
    """Tensors of a `.safetensors` file or of a `.pth`, described; no pickled code is executed.

    The content decides what kind of file it is. Weights that a training checkpoint wraps in a dict
    (`model`, `teacher`, ...) or names with a prefix (`module.`, `backbone.`, ...) are unwrapped,
    and the log says what was taken. They can be read until the block ends: a file may claim any
    size, and costs nothing while its claims are compared with what is wanted.

    Raises:
        UsageError: there is no such file.
        CheckpointError: the file is damaged, holds something else than tensors, or several sets of
            weights.
    """
    path = Path(path)
    with _open(path) as file:
        if _kind(file, path) == "torch":
            with _open_torch(file, path) as state:
                yield state
            return
    with _open_safetensors(path) as tensors:
        yield unwrap({name: _stored(tensors, name, path) for name in _names(tensors)}, path)


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
        raise _damaged(path, error) from error


def _stored(tensors: Any, name: str, path: Path) -> Stored:
    described = tensors.get_slice(name)
    kind = described.get_dtype()
    if kind not in _DTYPES:
        raise CheckpointError(
            f"weights {path}: {_clean(name)} is of a kind that weights are not ({kind}): pass "
            "weights in floating point"
        )
    shape = tuple(described.get_shape())
    return Stored(shape, _DTYPES[kind], partial(tensors.get_tensor, name))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """What a safetensors file says of itself; nothing of files of another kind.

    Raises:
        UsageError, CheckpointError: see `open_state_dict`.
    """
    with _open(Path(path)) as file:
        if _kind(file, Path(path)) != "safetensors":
            return {}
    with _open_safetensors(Path(path)) as tensors:
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
    """ "torch" or "safetensors"; the file is then at its start again.

    Raises:
        CheckpointError: it is something else, which is named.
    """
    head = file.read(512)
    file.seek(0)
    # First: the length of a header may begin with the bytes of another format.
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
def _open_safetensors(path: Path) -> Iterator[Any]:
    """The open file. Its header is bounded before the library parses it.

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
        raise _damaged(path, error) from error


def _names(file: Any) -> list[str]:
    return list(file.keys())


def _damaged(path: Path, error: Exception) -> CheckpointError:
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
                f"weights {path} hold several sets of weights ({_listed(chosen)}): save the one "
                "that is meant, as torch.save(checkpoint[NAME], ...) does"
            )
        if not chosen:
            break
        ((name, state),) = chosen.items()
        where += f"[{name}]"
    if not isinstance(state, Mapping) or not _is_state(state):
        raise CheckpointError(
            f"weights {path} hold something else than named tensors ({_content(state)}): pass a "
            "file of a state_dict"
        )
    if where:
        logger.warning("weights %s: taken from %s of it", path, _clean(where))
    return _without_prefix(dict(state), path)


def _without_prefix(state: dict[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Drop what a wrapper put before every name; a backbone's heads are left out."""
    for _ in range(_MOST_WRAPPERS):
        found = [p for p in _PREFIXES if any(key.startswith(p) for key in state)]
        prefix = next((p for p in found if all(key.startswith(p) for key in state)), None)
        rest: list[str] = []
        if prefix is None and "backbone." in found:
            prefix = "backbone."
            rest = [key for key in state if not key.startswith(prefix)]
            if not all(key.split(".")[0] in _HEADS for key in rest):
                raise CheckpointError(
                    f"weights {path} hold a backbone and other parts ("
                    f"{_listed({key.split('.')[0] for key in rest})}): save the part that is meant"
                )
        if prefix is None:
            return state
        left = f"; left out: {_listed({key.split('.')[0] for key in rest})}" if rest else ""
        logger.warning("weights %s: taken without the prefix %r%s", path, prefix, left)
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return state


def _is_state(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(
        isinstance(key, str) and isinstance(item, View | Stored) for key, item in value.items()
    )


def _holds_weights(value: Any, depth: int = 0) -> bool:
    """Whether it is named tensors, or wraps some."""
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
        return _listed({f"{key}: {_kind_of(item)}" for key, item in list(value.items())[:20]})
    return _kind_of(value)


def _kind_of(value: Any) -> str:
    return "tensor" if isinstance(value, View | Stored) else type(value).__name__


def load_exactly(
    module: nn.Module,
    state: Mapping[str, Tensor | Stored],
    path: str | os.PathLike[str],
    without: str | None = None,
) -> None:
    """Load a state dict whose names and shapes are exactly the module's.

    What a file describes is read only if all of it fits.

    Args:
        module: what to load into.
        state: tensors by name.
        path: of the file, for messages.
        without: prefix of the names that a file does not have, and which stay as they are.

    Raises:
        CheckpointError: lists what is missing, unexpected or of another shape; or names the first
            tensor that is of another kind, or has NaN or infinite values.
    """
    own = module.state_dict()
    if without is not None:
        own = {name: tensor for name, tensor in own.items() if not name.startswith(without)}
    compare_shapes(
        {name: tuple(tensor.shape) for name, tensor in own.items()},
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        path,
    )
    for name, given in state.items():
        if given.dtype.is_floating_point != own[name].is_floating_point() or given.dtype.is_complex:
            raise CheckpointError(
                f"weights {path}: {_clean(name)} is {given.dtype}, this model's is "
                f"{own[name].dtype}: pass weights in floating point"
            )
    read: StateDict = {}
    for name, given in state.items():
        read[name] = given.read() if isinstance(given, Stored) else given
        if not is_finite(read[name].to(own[name].dtype)):
            raise CheckpointError(
                f"weights {path}: {_clean(name)} has NaN or infinite values: the file is damaged "
                "or its training failed; fetch it again or take an earlier checkpoint"
            )
    module.load_state_dict(read, strict=without is None)


def compare_shapes(
    own: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    path: str | os.PathLike[str],
) -> None:
    """Compare a module's tensors with those of a file, by name and shape.

    Raises:
        CheckpointError: lists what is missing, unexpected or of another shape.
    """
    problems = {
        "missing": set(own) - set(found),
        "unexpected": set(found) - set(own),
        "of another shape": {
            f"{key} {list(found[key])} instead of {list(own[key])}"
            for key in set(own) & set(found)
            if own[key] != found[key]
        },
    }
    told = "; ".join(f"{kind}: {_listed(keys)}" for kind, keys in problems.items() if keys)
    if told:
        raise CheckpointError(f"weights {path} do not fit this model: {told}")


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = tensor.aminmax()  # NaN if any is; unlike isfinite, without a copy
    return bool(torch.isfinite(low) & torch.isfinite(high))


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits that tell tensors apart by name and content."""
    return tensors_sha256(state)[:16]


def tensors_sha256(tensors: Mapping[str, Tensor], preamble: str = "") -> str:
    """SHA-256 of tensors, with their names, and of a text, in hexadecimal digits."""
    digest = hashlib.sha256(preamble.encode())
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    """What a one-line message can quote of an error: a line without control characters."""
    return _clean((str(error).splitlines() or [type(error).__name__])[0])


def _clean(text: str) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in text[:200])
    return shown if len(text) <= 200 else f"{shown}..."


def _listed(names: Iterable[str]) -> str:
    """Names in a message: the first hundred, and how many more."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 100:,} more" if len(ordered) > 100 else ""
    return ", ".join(_clean(name) for name in ordered[:100]) + more
