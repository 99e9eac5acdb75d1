"""DINOv2 written out plainly, on a state dict with the names of Meta's files, in float64.

A second formulation of what `fsdino.models.encoders.vit` computes: it shares no code with timm, and
it resamples position embeddings in NumPy, tap by tap. The plain models resample with the scale
factors (h + 0.1) / 37 and no antialiasing, those with registers to the target size with
antialiasing.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 14
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as DINOv2 was trained


def random_state(
    *, dim: int, depth: int, side: int = 37, registers: int = 0, swiglu: bool = False, seed: int = 0
) -> dict[str, Tensor]:
    """Random weights as a `dinov2_vit*14[_reg4]_pretrain.pth` would hold them, float32.

    The magnitudes keep tokens of order 1, LayerScale included, so that no branch is negligible.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float = 1.0, mean: float = 0.0) -> Tensor:
        return torch.randn(shape, generator=generator) * std + mean

    def linear(name: str, inner: int, outer: int) -> None:
        state[f"{name}.weight"] = normal(outer, inner, std=inner**-0.5)
        state[f"{name}.bias"] = normal(outer, std=0.1)

    def layer_norm(name: str) -> None:
        state[f"{name}.weight"] = normal(dim, std=0.2, mean=1.0)
        state[f"{name}.bias"] = normal(dim, std=0.2)

    state = {
        "cls_token": normal(1, 1, dim),
        "pos_embed": normal(1, 1 + side**2, dim),
        "mask_token": normal(1, dim),
        "patch_embed.proj.weight": normal(dim, 3, PATCH, PATCH, std=(3 * PATCH**2) ** -0.5),
        "patch_embed.proj.bias": normal(dim, std=0.1),
    }
    if registers:
        state["register_tokens"] = normal(1, registers, dim)
    for block in (f"blocks.{i}" for i in range(depth)):
        layer_norm(f"{block}.norm1")
        linear(f"{block}.attn.qkv", dim, 3 * dim)
        linear(f"{block}.attn.proj", dim, dim)
        state[f"{block}.ls1.gamma"] = normal(dim, std=0.2, mean=0.7)
        layer_norm(f"{block}.norm2")
        if swiglu:
            hidden = (8 * dim // 3 + 7) // 8 * 8
            linear(f"{block}.mlp.w12", dim, 2 * hidden)
            linear(f"{block}.mlp.w3", hidden, dim)
        else:
            linear(f"{block}.mlp.fc1", dim, 4 * dim)
            linear(f"{block}.mlp.fc2", 4 * dim, dim)
        state[f"{block}.ls2.gamma"] = normal(dim, std=0.2, mean=0.7)
    layer_norm("norm")
    return state


def blocks(state: dict[str, Tensor], images: Tensor, heads: int) -> list[Tensor]:
    """Patch tokens after each block, raw: `depth` maps [B, C, h, w], from images in [0, 1]."""
    state = {name: tensor.double() for name, tensor in state.items()}
    grid = (images.shape[2] // PATCH, images.shape[3] // PATCH)
    tokens = embed(state, images.double())
    prefix = tokens.shape[1] - grid[0] * grid[1]
    outputs = []
    index = 0
    while f"blocks.{index}.norm1.weight" in state:
        tokens = _block(state, f"blocks.{index}", tokens, heads)
        outputs.append(tokens[:, prefix:].transpose(1, 2).unflatten(2, grid))
        index += 1
    return outputs


def final_norm(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """The last layer norm on a map [B, C, h, w]."""
    state = {name: tensor.double() for name, tensor in state.items() if name.startswith("norm.")}
    return _layer_norm(state, "norm", tokens.movedim(1, -1)).movedim(-1, 1)


def embed(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Class token, registers and patches with their positions: [B, 1 + registers + h*w, C]."""
    mean, std = (images.new_tensor(v)[:, None, None] for v in (MEAN, STD))
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    patches = F.conv2d((images - mean) / std, weight, bias, stride=PATCH)
    batch, height, width = len(images), *patches.shape[2:]
    registers = state.get("register_tokens")
    positions = resampled_positions(state["pos_embed"], height, width, registers is not None)
    class_token = (state["cls_token"] + state["pos_embed"][:, :1]).expand(batch, -1, -1)
    parts = [class_token, patches.flatten(2).transpose(1, 2) + positions]
    if registers is not None:
        parts.insert(1, registers.expand(batch, -1, -1))
    return torch.cat(parts, dim=1)


def resampled_positions(embedding: Tensor, height: int, width: int, antialias: bool) -> Tensor:
    """Position embeddings [1, 1 + side^2, C] of the patches at another grid: [1, h*w, C]."""
    side = math.isqrt(embedding.shape[1] - 1)
    square = embedding[0, 1:].reshape(side, side, -1).numpy()
    if (height, width) != (side, side):
        matrix = antialiased_matrix if antialias else scale_factor_matrix
        rows, columns = matrix(side, height), matrix(side, width)
        square = np.einsum("ij,kl,jlc->ikc", rows, columns, square, optimize=True)
    return torch.from_numpy(square.reshape(1, height * width, -1))


def scale_factor_matrix(size: int, target: int) -> np.ndarray:
    """Bicubic resampling [target, size] with scale (target + 0.1) / size and repeated borders."""
    matrix = np.zeros((target, size))
    for i in range(target):
        source = (i + 0.5) / ((target + 0.1) / size) - 0.5
        left = math.floor(source)
        for tap in range(left - 1, left + 3):
            matrix[i, min(max(tap, 0), size - 1)] += _cubic(source - tap, -0.75)
    return matrix


def antialiased_matrix(size: int, target: int) -> np.ndarray:
    """Bicubic resampling [target, size] whose kernel widens with the step, cut off at borders."""
    step = size / target
    stretch = max(step, 1.0)
    matrix = np.zeros((target, size))
    for i in range(target):
        centre = (i + 0.5) * step - 0.5
        for tap in range(size):
            matrix[i, tap] = _cubic((centre - tap) / stretch, -0.5)
    return matrix / matrix.sum(1, keepdims=True)


def _cubic(distance: float, a: float) -> float:
    """Keys' cubic convolution kernel (1981)."""
    x = abs(distance)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * (x**3 - 5 * x**2 + 8 * x - 4)
    return 0.0


def _block(state: dict[str, Tensor], name: str, tokens: Tensor, heads: int) -> Tensor:
    attended = _attention(state, f"{name}.attn", _layer_norm(state, f"{name}.norm1", tokens), heads)
    tokens = tokens + state[f"{name}.ls1.gamma"] * attended
    hidden = _layer_norm(state, f"{name}.norm2", tokens)
    if f"{name}.mlp.w12.weight" in state:
        gate, value = _linear(state, f"{name}.mlp.w12", hidden).chunk(2, dim=-1)
        hidden = _linear(state, f"{name}.mlp.w3", gate * torch.sigmoid(gate) * value)
    else:
        inner = _linear(state, f"{name}.mlp.fc1", hidden)
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        hidden = _linear(state, f"{name}.mlp.fc2", inner)
    return tokens + state[f"{name}.ls2.gamma"] * hidden


def _attention(state: dict[str, Tensor], name: str, tokens: Tensor, heads: int) -> Tensor:
    query, key, value = (
        part.unflatten(2, (heads, -1)).transpose(1, 2)
        for part in _linear(state, f"{name}.qkv", tokens).chunk(3, dim=2)
    )  # [B, heads, N, D]
    weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(-1)
    return _linear(state, f"{name}.proj", (weights @ value).transpose(1, 2).flatten(2))


def _linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _layer_norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]
