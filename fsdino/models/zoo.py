"""Models by name, folder or hub id; loading official checkpoints into their parts."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn

from fsdino.devices import find_device, find_dtype
from fsdino.errors import CheckpointError, UsageError, first_line
from fsdino.models import hsnet_files, hub, registry
from fsdino.models.checkpoints import (
    PROVENANCE_FILE,
    WEIGHTS_FILE,
    compare_shapes,
    is_finite,
    load_exactly,
    read_config,
    read_provenance,
    read_shapes,
    read_weights,
)
from fsdino.models.config import CONFIG_FILE, ModelConfig
from fsdino.models.decoder import SAM_LEFTOVERS
from fsdino.models.encoders import BackboneEncoder, Encoder, ViTEncoder, create
from fsdino.models.fsdino import FSDINO
from fsdino.models.hsnet import HSNet
from fsdino.models.hsnet_head import HSNetHead
from fsdino.models.names import DEFAULT
from fsdino.models.registry import Registered
from fsdino.models.segmenter import Segmenter
from fsdino.models.weight_files import Stored, open_state_dict, read_metadata

logger = logging.getLogger("fsdino.models")

_KINDS: dict[str, Callable[[ModelConfig, Encoder], Segmenter]] = {
    "hsnet": HSNet,
    "hsnet_head": HSNetHead,
}  # the other variants are FSDINOs


def load(
    name: str | os.PathLike[str] = DEFAULT,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    weights: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
) -> Segmenter:
    """Load a model, ready to segment.

    Args:
        name: one of `fsdino.list_models`; a folder written by `save_pretrained`; a checkpoint of
            HSNet's own code, "best_model.pt"; or a repository on the Hugging Face hub,
            "hf:owner/name" or "hf:owner/name@revision". Models on DINOv2,
            "dinov2-b" and the like, have no trained part; their weights are taken from the hub's
            local cache, or downloaded, with progress on stderr.
        device: the model's device, also by name: "auto" (a GPU if there is one), "cpu", "cuda" or
            "cuda:N".
        dtype: floating type of the weights, also by name: "float32", "float16" or "bfloat16"; None
            keeps float32.
        weights: file for the encoder of a model on DINOv2, instead of a download:
            `dinov2_vit*14*_pretrain.pth` of Meta, or `model.safetensors` of timm.
        image_size: side in pixels that such a model resizes images to; None is 518.

    Raises:
        UsageError: there is no such model, device or type; the model is not here and cannot be
            downloaded; its weights exceed the range of `dtype`; an option is for other models.
        CheckpointError: its files are damaged or of another kind; the package that its encoder's
            weights are in is not installed or damaged.

    Example:
        >>> import fsdino
        >>> fsdino.load().config.encoder
        'tf_efficientnet_lite0'
    """
    place = find_device(device)
    kind = None if dtype is None else find_dtype(dtype)
    text = os.fspath(name)
    registry.check_options(text, weights, image_size)
    entry = registry.find(text)
    if entry is not None:
        model = _on_dinov2(entry, weights, image_size)
    else:
        path = _locate(text)
        model = _read(path) if path.is_dir() else load_hsnet(path)
    model = model.to(device=place, dtype=kind)
    if kind is not None:
        _check_range(model, name, kind)
    return model


def load_hsnet(path: str | os.PathLike[str]) -> HSNet:
    """Load a checkpoint that HSNet's own code wrote, with any of its backbones.

    Its names decide the backbone. What it was trained on the file does not say.

    Raises:
        UsageError: there is no such file.
        CheckpointError: the file is damaged, or not HSNet's.
    """
    with open_state_dict(path) as state:
        if not hsnet_files.is_published(state):
            raise CheckpointError(
                f"model {path} is a file, and not a checkpoint of HSNet's code: pass the folder "
                f"with {CONFIG_FILE} and {WEIGHTS_FILE}, or --weights for an encoder's file"
            )
        try:
            config = hsnet_files.config_of(state)
        except CheckpointError as error:
            raise CheckpointError(f"model {path}: {error}") from error
        model = HSNet(config, create(config))
        load_exactly(model, {hsnet_files.own_name(k): v for k, v in state.items()}, path)
    logger.info("HSNet's weights from %s, backbone %s", path, config.encoder)
    return model.eval()


def _on_dinov2(
    entry: Registered, weights: str | os.PathLike[str] | None, image_size: int | None
) -> Segmenter:
    """A registered model without trained parts, with weights from a file or the hub."""
    size: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
    config = ModelConfig(entry.encoder, variant="training_free", **size)
    path = entry.fetch() if weights is None else weights
    model = assemble(config).eval()
    load_dinov2(model.encoder, path)
    model.fingerprint()  # taken now, so that every dtype and device has the same
    return model


def _check_range(model: Segmenter, name: str | os.PathLike[str], dtype: torch.dtype) -> None:
    for key, tensor in model.state_dict().items():
        if not is_finite(tensor):
            raise UsageError(
                f"model {os.fspath(name)!r}: {key} has values beyond the range of {dtype}: use "
                "float32 or bfloat16"
            )


def names() -> tuple[str, ...]:
    """Models that ship with the package."""
    return registry.bundled()


def assemble(config: ModelConfig, encoder: Encoder | None = None) -> Segmenter:
    """Build the model that a configuration describes: its encoder, then the parts that read it.

    The parts' weights are random, and so are the encoder's unless the configuration names some.

    Args:
        config: what to build.
        encoder: share an existing encoder instead of creating one.

    Raises:
        UsageError, CheckpointError: the encoder cannot be created, see
            `fsdino.models.encoders.create`; or an `image_size` that is not a multiple of a token's
            side.
    """
    kind = _KINDS.get(config.variant, FSDINO)
    return kind(config, encoder or create(config))


def find_encoder(
    config: ModelConfig, source: str | None = None, weights: str | os.PathLike[str] | None = None
) -> Encoder:
    """The encoder that training starts from.

    Args:
        config: names the encoder where it is not another model's.
        source: name or folder of a model whose encoder is taken; see `load`.
        weights: file for `load_dinov2`; for HSNet's backbones for `load_backbone`.

    Raises:
        UsageError, CheckpointError: see `load`, `load_dinov2`, `load_backbone` and
            `fsdino.models.encoders.create`.
    """
    encoder = create(config) if source is None else load(source).encoder
    if weights is not None:
        if isinstance(encoder, BackboneEncoder):
            load_backbone(encoder, weights)
        else:
            load_dinov2(encoder, weights)
    return encoder


def training_free(
    model: Segmenter, matcher: str = "correspondence", *, cut: float | None = None
) -> FSDINO:
    """A baseline for a model: the same encoder, without the parts that were trained on top of it.

    Args:
        model: whose encoder is shared.
        matcher: "correspondence" or "prototype".
        cut: score from which a token is foreground; None keeps the configuration's `match_bias`.

    Raises:
        UsageError: there is no such matcher.
    """
    bias = model.config.match_bias if cut is None else cut
    config = dataclasses.replace(
        model.config, variant="training_free", matcher=matcher, match_bias=bias
    )
    free = assemble(config, model.encoder)
    assert isinstance(free, FSDINO)
    return free.eval()


def load_dinov2(encoder: Encoder, path: str | os.PathLike[str]) -> None:
    """Load Meta's `dinov2_vit{s,b,l,g}14[_reg4]_pretrain.pth` (Apache-2.0) into an encoder.

    Raises:
        UsageError: there is no such file.
        CheckpointError: the file is damaged, or its weights are not this encoder's.
    """
    if not isinstance(encoder, ViTEncoder):
        raise UsageError(
            f"weights {path}: only a ViT takes DINOv2's; name a DINOv2 as the encoder, such as "
            "vit_small_patch14_dinov2"
        )
    with open_state_dict(path) as state:
        state.pop("mask_token", None)
        if {"register_tokens", "pos_embed", "cls_token"} <= state.keys():
            state["reg_token"] = state.pop("register_tokens")
            _fold_first_position(state)
        renamed = {
            key.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): value
            for key, value in state.items()
        }
        load_exactly(encoder.vit, renamed, path)
    logger.info("encoder weights from %s (DINOv2, Apache-2.0)", path)


def load_backbone(encoder: BackboneEncoder, path: str | os.PathLike[str]) -> None:
    """Load weights that HSNet's backbone starts from.

    Args:
        encoder: of "resnet50", "resnet101" or "vgg16".
        path: torchvision's file of that network (`resnet50-19c8e357.pth` and others, BSD-3-Clause),
            or a checkpoint of HSNet's code, of which the backbone is taken.

    Raises:
        UsageError: there is no such file.
        CheckpointError: the file is damaged, or its weights are not this network's.
    """
    with open_state_dict(path) as state:
        if hsnet_files.is_published(state):
            state = hsnet_files.backbone_of(state)
        own = encoder.net.state_dict()
        # torchvision's older files were written before PyTorch counted batches; nothing reads that.
        counts = [k for k in own if k.endswith("num_batches_tracked") and k not in state]
        load_exactly(encoder.net, {**state, **{name: own[name] for name in counts}}, path)
    logger.info("backbone weights from %s", path)


def _fold_first_position(state: dict[str, Stored]) -> None:
    """Add the class token's position to it: timm adds none in the reg models."""
    token, positions = state["cls_token"], state["pos_embed"]
    if len(positions.shape) != 3 or positions.shape[1] < 1:
        return  # the error will name the shape
    batch, count, channels = positions.shape
    state["cls_token"] = Stored(
        token.shape, token.dtype, lambda: token.read() + positions.read()[:, :1]
    )
    state["pos_embed"] = Stored(
        (batch, count - 1, channels), positions.dtype, lambda: positions.read()[:, 1:]
    )


def load_sam_decoder(model: Segmenter, path: str | os.PathLike[str]) -> None:
    """Load the decoder of an official `sam_vit_{b,l,h}_*.pth` (Apache-2.0).

    Raises:
        UsageError: there is no such file, or the model has no decoder.
        CheckpointError: the file is damaged, or its decoder is not this model's.
    """
    decoder = _part(model, "decoder")
    matrix = "positional_encoding_gaussian_matrix"
    kept = {}
    with open_state_dict(path) as state:
        for key, value in state.items():
            if key == f"prompt_encoder.pe_layer.{matrix}":
                kept[f"positions.{matrix}"] = value
            elif not key.startswith(SAM_LEFTOVERS):
                kept[key.removeprefix("mask_decoder.")] = value
        load_exactly(decoder, kept, path)
    logger.info("decoder weights from %s (Segment Anything, Apache-2.0)", path)


def load_adapter(model: Segmenter, path: str | os.PathLike[str]) -> None:
    """Load the adapter that distillation wrote, a safetensors file.

    Raises:
        UsageError: there is no such file, or the model has no adapter.
        CheckpointError: the file is damaged, is of another adapter, or was distilled on another
            encoder than the model's.
    """
    adapter = _part(model, "adapter")
    metadata = read_metadata(path)
    found = {
        "encoder": model.encoder.identity(),
        "adapter_layer": str(model.encoder.shallow_layer),
    }
    for key, value in found.items():
        if metadata.get(key, value) != value:
            raise CheckpointError(
                f"weights {path} were distilled on another {key} ({metadata[key]}, this model's is "
                f"{value}): load the encoder that they belong to first, or distil again"
            )
    with open_state_dict(path) as state:
        load_exactly(adapter, state, path)
    logger.info("adapter weights from %s", path)


def _part(model: Segmenter, name: str) -> nn.Module:
    part: nn.Module | None = getattr(model, name, None)
    if part is None:
        raise UsageError(
            f"variant {model.config.variant!r} has no {name}: choose full, comp or comp_frozen"
        )
    return part


def parameter_table(model: Segmenter) -> dict[str, tuple[int, int]]:
    """Per part: (trained, frozen) parameters."""
    return {
        name: (_count(part, lambda p: p.requires_grad), _count(part, lambda p: not p.requires_grad))
        for name, part in model.named_children()
    }


def _count(module: nn.Module, wanted: Callable[[nn.Parameter], bool]) -> int:
    return sum(p.numel() for p in module.parameters() if wanted(p))


def _locate(name: str | os.PathLike[str]) -> Path:
    text = os.fspath(name)
    online = registry.hub_file(text)
    if online is not None:
        return _fetch(text, online)
    return registry.find_path(text)


def _fetch(text: str, file: hub.HubFile) -> Path:
    """Download a model from the hub, or find it in the local cache.

    Args:
        text: the model as the user named it.
        file: its configuration on the hub.
    """
    try:
        hub.reach(file)
    except hub.UnavailableError as error:
        config, weights = (
            hub.cached(file),
            hub.cached(hub.HubFile(file.repository, WEIGHTS_FILE, file.revision)),
        )
        if config is None or weights is None:
            raise registry.unavailable(text, file, error) from error
        return config.parent
    files = [CONFIG_FILE, WEIGHTS_FILE, PROVENANCE_FILE]
    try:
        with hub.quiet():
            return Path(
                snapshot_download(file.repository, revision=file.revision, allow_patterns=files)
            )
    except Exception as error:  # the hub's own errors, and those of the library it connects by
        raise UsageError(
            f"model {text!r} cannot be fetched from the hub ({type(error).__name__}: "
            f"{first_line(error)}): download it and pass the folder"
        ) from error


def _read(folder: Path) -> Segmenter:
    """Load the model in a folder, in eval mode, with the identity that its files record."""
    config = read_config(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise CheckpointError(
            f"model {folder} has no {WEIGHTS_FILE}: it is incomplete, or not a model"
        )
    _check_fit(config, folder)
    state, identity = read_weights(weights)
    try:
        model = assemble(config)
    except (ValueError, AssertionError, RuntimeError, TypeError) as error:
        raise _no_model(folder, error) from error
    load_exactly(model, state, weights, without=_left_out(config))
    model.provenance = read_provenance(folder)
    model.eval()
    if identity.keys() == {"encoder", "rest"}:
        if config.encoder_weights is not None and model.encoder.identity() != identity["encoder"]:
            raise CheckpointError(
                f"model {folder}: the encoder's weights are not those that it was saved with: "
                "fetch the model again"
            )
        model.encoder.set_identity(identity["encoder"])
        model.set_identity(identity["rest"])
    return model


def _check_fit(config: ModelConfig, folder: Path) -> None:
    """Compare a configuration with the header of the weights before any memory is taken.

    Raises:
        CheckpointError: it does not describe a model, or not that of the weights.
    """
    weights = folder / WEIGHTS_FILE
    shapes = read_shapes(weights)
    try:
        with torch.device("meta"):
            sketch = assemble(config)
    except (ValueError, ArithmeticError, AssertionError, RuntimeError, TypeError) as error:
        raise _no_model(folder, error) from error
    state = sketch.own_state() if _left_out(config) else sketch.state_dict()
    compare_shapes({k: tuple(t.shape) for k, t in state.items()}, shapes, weights)


def _left_out(config: ModelConfig) -> str | None:
    """Prefix of the tensors that a configuration leaves out of a model's file; None if none."""
    return None if config.encoder_weights is None else "encoder."


def _no_model(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"model {folder}: its {CONFIG_FILE} describes no model ({first_line(error)}): fetch the "
        "model again"
    )
