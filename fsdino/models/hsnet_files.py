"""Checkpoints as HSNet's own code reads and writes them (github.com/juhongm999/hsnet)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from fsdino.errors import CheckpointError, listed
from fsdino.files import atomic_write
from fsdino.models.config import ModelConfig

T = TypeVar("T")

IMAGE_SIZE = 400  # pixels of a side, of the published models
_HEAD = "hpn_learner."
_LEVELS = {"4": "squeeze.2", "3": "squeeze.1", "2": "squeeze.0", "4to3": "mix.1", "3to2": "mix.0"}
_DECODERS = {"1": "before", "2": "after"}
_BLOCK = re.compile(_HEAD.replace(".", r"\.") + r"encoder_layer(\w+)\.(\d+)\.(.+)", re.ASCII)
_DECODER = re.compile(_HEAD.replace(".", r"\.") + r"decoder(\d)\.(.+)", re.ASCII)
_PER_BLOCK = 3  # modules: convolution, normalisation, ReLU


def is_published(names: Iterable[str]) -> bool:
    """Whether tensors of these names are HSNet's, as its own code saves them."""
    return any(name.startswith(_HEAD) for name in names)


def config_of(names: Iterable[str]) -> ModelConfig:
    """The configuration of a published model, whose backbone its tensors' names tell.

    Raises:
        CheckpointError: they tell of none.
    """
    found = set(names)
    for encoder, name in (
        ("vgg16", "backbone.features.28.weight"),
        ("resnet101", "backbone.layer3.22.conv3.weight"),
        ("resnet50", "backbone.layer3.5.conv3.weight"),
    ):
        if name in found:
            return ModelConfig(encoder, variant="hsnet", image_size=IMAGE_SIZE)
    backbone = listed({name for name in found if not name.startswith(_HEAD)}) or "none"
    raise CheckpointError(
        f"HSNet's backbone is ResNet-50, ResNet-101 or VGG-16, and this one has other layers "
        f"({backbone}): save the whole model, as HSNet's code does"
    )


def backbone_of(state: Mapping[str, T]) -> dict[str, T]:
    """The tensors of a published file's backbone, by the network's own names."""
    start = "backbone."
    return {name.removeprefix(start): t for name, t in state.items() if name.startswith(start)}


def own_name(name: str) -> str:
    """The name here of a tensor in a published file; an unknown one stays as it is."""
    if name.startswith("backbone."):
        return name.replace("backbone.", "encoder.net.", 1)
    block = _BLOCK.fullmatch(name)
    if block is not None and block[1] in _LEVELS:
        number, module = divmod(int(block[2]), _PER_BLOCK)
        return f"{_LEVELS[block[1]]}.{number}.{('conv', 'norm', 'relu')[module]}.{block[3]}"
    decoder = _DECODER.fullmatch(name)
    if decoder is not None and decoder[1] in _DECODERS:
        return f"{_DECODERS[decoder[1]]}.{decoder[2]}"
    return name


def published_name(name: str) -> str:
    """The inverse of `own_name`."""
    if name.startswith("encoder.net."):
        return name.replace("encoder.net.", "backbone.", 1)
    part, number, rest = name.split(".", 2)
    for published, own in _DECODERS.items():
        if part == own:
            return f"{_HEAD}decoder{published}.{number}.{rest}"
    block, module, rest = rest.split(".", 2)
    level = next(key for key, own in _LEVELS.items() if own == f"{part}.{number}")
    place = _PER_BLOCK * int(block) + ("conv", "norm").index(module)
    return f"{_HEAD}encoder_layer{level}.{place}.{rest}"


def _place(name: str) -> int:
    """Where a published file has the part that a tensor belongs to: the backbone, then the head."""
    starts = [f"{_HEAD}encoder_layer{level}." for level in _LEVELS]
    starts += [f"{_HEAD}decoder{number}." for number in _DECODERS]
    return next((place for place, start in enumerate(starts) if name.startswith(start)), -1)


def write(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a model's tensors as HSNet's code does: `module.` before every name, by torch.save.

    Raises:
        FsdinoError: the folder is missing, not writable or full.
    """
    named = {published_name(name): tensor.detach().cpu() for name, tensor in state.items()}
    ordered = {f"module.{name}": named[name] for name in sorted(named, key=_place)}
    with atomic_write(path) as temporary:
        torch.save(ordered, temporary)
