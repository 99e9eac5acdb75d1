"""Checkpoint files in and out: never pickled code, never half a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fsdino.errors import CheckpointError, FsdinoError, UsageError
from fsdino.files import atomic_write
from fsdino.models.config import ModelConfig

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
PROVENANCE_FILE = "provenance.json"
StateDict = dict[str, Tensor]


def write_folder(
    config: ModelConfig,
    state: StateDict,
    folder: str | os.PathLike[str],
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json, model.safetensors and, if there is any, provenance.json.

    Each is written whole or not at all.

    Raises:
        FsdinoError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FsdinoError(f"cannot create {folder}: {error.strerror}") from error
    write_tensors(folder / WEIGHTS_FILE, state, {"format": "pt"})
    with atomic_write(folder / CONFIG_FILE) as temporary:
        Path(temporary).write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    if provenance is None:
        (folder / PROVENANCE_FILE).unlink(missing_ok=True)  # another model's
        return
    with atomic_write(folder / PROVENANCE_FILE) as temporary:
        Path(temporary).write_text(json.dumps(dict(provenance), indent=2) + "\n")


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """What training wrote about itself in a model's folder; None where it wrote nothing.

    Raises:
        CheckpointError: it is damaged.
    """
    file = folder / PROVENANCE_FILE
    if not file.is_file():
        return None
    return _read_object(file)


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
        raise CheckpointError(f"model {folder} has no {CONFIG_FILE}: it is incomplete or no model")
    return ModelConfig.from_dict({**_read_object(file), "pretrained": False})


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Tensors of a `.safetensors` file or of a `.pth`, read without executing pickled code.

    Raises:
        UsageError: there is no such file.
        CheckpointError: the file is damaged or holds something else than tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"weights {path}: a file is needed, this is a folder")
    if not path.is_file():
        raise UsageError(f"weights {path}: no such file; download it and pass its path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"weights {path} are damaged ({first_line(error)}): fetch them again"
        ) from error
    except Exception as error:  # pickle.UnpicklingError and whatever a foreign file provokes
        raise CheckpointError(
            f"weights {path} cannot be read safely: {first_line(error)}"
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise CheckpointError(f"weights {path} hold something else than named tensors")
    return dict(state)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """What a safetensors file says of itself; nothing of files of another kind.

    Raises:
        CheckpointError: the file is damaged.
    """
    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"weights {path} are damaged ({first_line(error)}): fetch them again"
        ) from error


def load_exactly(module: nn.Module, state: StateDict, path: str | os.PathLike[str]) -> None:
    """Load a state dict whose names and shapes are exactly the module's.

    Raises:
        CheckpointError: lists what is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    problems = {
        "missing": sorted(set(own) - set(state)),
        "unexpected": sorted(set(state) - set(own)),
        "of another shape": sorted(
            f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
            for key in set(own) & set(state)
            if own[key].shape != state[key].shape
        ),
    }
    found = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys)
    if found:
        raise CheckpointError(f"weights {path} do not fit this model: {found}")
    module.load_state_dict(state)


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
    """What a one-line message can quote of an error."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read_object(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged: {first_line(error)}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} is damaged: it holds no object")
    return data
