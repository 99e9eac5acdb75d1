"""HSNet's published form: weights that anyone can draw by name, and what HSNet's code answers.

`models/hsnet_answers.npz` holds inputs and the answers of HSNet's own code for them, computed in
float64 and rounded to float32, for its three backbones:

    query         [1, 3, 160, 160]      as it enters the network, already normalised
    supports      [1, 2, 3, 160, 160]
    masks         [1, 2, 160, 160]      0 or 1
    NAME_logits   [1, 2, 160, 160]      answer to the first support alone: background, foreground
    NAME_vote2    [1, 160, 160]         its vote of both supports
    NAME_keys                           the names of its state dict, in order
"""

from __future__ import annotations

import functools
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsdino.models import hsnet_files, zoo
from fsdino.models.config import ModelConfig
from fsdino.models.encoders import Features
from fsdino.models.hsnet import HSNet

ANSWERS = Path(__file__).parent / "models" / "hsnet_answers.npz"
SIDE = 160


def answers(*names: str) -> list[Tensor]:
    """Arrays of the file."""
    with np.load(ANSWERS) as file:
        return [torch.from_numpy(file[name]) for name in names]


def keys(backbone: str) -> list[str]:
    """The names of HSNet's state dict, in order."""
    with np.load(ANSWERS) as file:
        return [str(key) for key in file[f"{backbone}_keys"]]


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight that the answers were computed with, by its name in HSNet's state dict."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        values = 1 + 0.1 * np.abs(values)
    elif len(shape) >= 2:
        values *= np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        values = 0.6 + 0.1 * values
    else:
        values *= 0.1
    return torch.from_numpy(values).float()


def hsnet(backbone: str = "resnet50", **changes: Any) -> HSNet:
    model = zoo.assemble(ModelConfig(backbone, variant="hsnet", image_size=SIDE, **changes))
    assert isinstance(model, HSNet)
    return model.eval()


@functools.lru_cache(maxsize=1)
def published(backbone: str) -> HSNet:
    """A model with the weights that HSNet's code was asked with."""
    model = hsnet(backbone)
    names = {hsnet_files.own_name(name): name for name in keys(backbone)}
    state = model.state_dict()
    assert names.keys() == state.keys()
    model.load_state_dict({k: drawn(names[k], tuple(t.shape)) for k, t in state.items()})
    return model


def asked(model: HSNet) -> tuple[Features, list[Any], Tensor]:
    """The answers' query and both supports, encoded; and the masks of these."""
    query, supports, masks = answers("query", "supports", "masks")
    mean, std = model.encoder.mean, model.encoder.std  # the inputs are normalised already
    features = model.encode(torch.cat([query, supports[0]]) * std + mean)
    shots = [model.pool(features[1 + k : 2 + k], masks[:, k], 1) for k in (0, 1)]
    return features[:1], shots, masks
