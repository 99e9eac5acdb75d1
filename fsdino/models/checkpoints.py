"""Read and write a model's folder: its configuration, its weights, a record of its training."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fsdino.errors import CheckpointError, UsageError, listed, printable
from fsdino.files import atomic_write, make_folder, parse_json, read_object, write_json
from fsdino.models.config import CONFIG_FILE, ModelConfig
from fsdino.models.weight_files import StateDict, Stored, damaged, open_safetensors, tensor_names

WEIGHTS_FILE, PROVENANCE_FILE = "model.safetensors", "provenance.json"

_RECORD = "fsdino"  # in the metadata of the weights' file: JSON with a hash, and the identity
_HASH = "sha256"  # in the metadata of files of `write_hashed`
_MOST = 2**20  # bytes of a JSON file beside the weights


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
    record = {"sha256": tensors_sha256(state, json.dumps(kept)), "identity": kept}
    # One entry: safetensors writes several in random order, so equal models would differ in bytes.
    write_tensors(folder / WEIGHTS_FILE, state, {_RECORD: json.dumps(record)})
    write_json(folder / CONFIG_FILE, config.to_dict())
    if provenance is None:
        (folder / PROVENANCE_FILE).unlink(missing_ok=True)  # another model's
        return
    write_json(folder / PROVENANCE_FILE, dict(provenance))


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """The record that training left in a model's folder; None where there is none.

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


def write_hashed(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """`write_tensors`, with a hash of tensors and metadata that `check_hash` verifies."""
    write_tensors(path, tensors, {**metadata, _HASH: _content_hash(tensors, metadata)})


def check_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Compare what a file of `write_hashed` holds with its hash.

    Raises:
        ValueError: the file has another hash, or none.
    """
    if metadata.get(_HASH) != _content_hash(tensors, metadata):
        raise ValueError("its content is not what was written")


def _content_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    hashed = {key: value for key, value in metadata.items() if key != _HASH}
    return tensors_sha256(tensors, json.dumps(hashed, sort_keys=True))


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
    with open_safetensors(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in tensor_names(file)}


def read_weights(path: Path) -> tuple[StateDict, dict[str, str]]:
    """Tensors of a file that `write_folder` wrote, and the model's identity.

    A file without a hash, as other programs and earlier versions write it, is not verified.

    Returns:
        The tensors by name, and the identity by part, empty where the file has no hash.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it is damaged.
    """
    with open_safetensors(path) as file:
        state = {name: file.get_tensor(name) for name in tensor_names(file)}
        metadata = dict(file.metadata() or {})
    if _RECORD not in metadata:
        return state, {}
    try:
        record = parse_json(metadata[_RECORD])
        digest, identity = record["sha256"], {str(k): str(v) for k, v in record["identity"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, error) from error
    # The identity is hashed together with the tensors: neither can be changed alone.
    if tensors_sha256(state, json.dumps(dict(sorted(identity.items())))) != digest:
        raise CheckpointError(
            f"weights {path} are damaged (their content is not what was written): fetch or save "
            "them again"
        )
    return state, identity


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
        without: prefix of names that are not in the file; those tensors stay as they are.

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
                f"weights {path}: {printable(name)} is {given.dtype}, this model's is "
                f"{own[name].dtype}: pass weights in floating point"
            )
    read: StateDict = {}
    for name, given in state.items():
        read[name] = given.read() if isinstance(given, Stored) else given
        if not is_finite(read[name].to(own[name].dtype)):
            raise CheckpointError(
                f"weights {path}: {printable(name)} has NaN or infinite values: the file is "
                "damaged or its training failed; fetch it again or take an earlier checkpoint"
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
    told = "; ".join(f"{kind}: {listed(keys)}" for kind, keys in problems.items() if keys)
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
