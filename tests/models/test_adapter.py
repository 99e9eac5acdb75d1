"""The bottleneck adapter: the published shapes and sizes, and its arithmetic written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.models.adapter import Adapter
from tiny_models import randomise

State = dict[str, Tensor]


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_sizes() -> None:
    """768 -> 256 (1x1), 256 (3x3), 128 (1x1), two attention blocks with 512 hidden, 256 (1x1)."""
    adapter = Adapter(768)
    kernels = [tuple(p.shape) for p in adapter.parameters() if p.ndim == 4]
    assert kernels == [(256, 768, 1, 1), (256, 256, 3, 3), (128, 256, 1, 1), (256, 128, 1, 1)]
    convolutions = 768 * 256 + 256 * 256 * 9 + 256 * 128 + 128 * 256
    conv_biases_and_norms = 256 + 256 + 128 + 256 + 2 * 2 * 256
    attention = 128 * 384 + 384 + 128 * 128 + 128
    feed_forward = 128 * 512 + 512 + 512 * 128 + 128
    block = attention + feed_forward + 2 * 2 * 128
    assert count(adapter) == convolutions + conv_biases_and_norms + 2 * block == 1_250_432


@pytest.mark.parametrize("grid", [(5, 5), (3, 7)])
def test_forward_written_out(grid: tuple[int, int]) -> None:
    """Every step from matrix products, in float64: an independent formulation."""
    adapter = Adapter(10, width=12, inner=8, heads=2)
    randomise(adapter, seed=0)
    tokens = torch.randn(2, 10, *grid, generator=torch.Generator().manual_seed(1))
    found = adapter(tokens)
    state = {name: tensor.double() for name, tensor in adapter.state_dict().items()}
    x = gelu(channel_norm(state, "reduce.1", mix(state, "reduce.0", tokens.double())))
    x = gelu(channel_norm(state, "reduce.4", three_by_three(state, "reduce.3", x)))
    x = mix(state, "reduce.6", x)
    for block in ("blocks.0", "blocks.1"):
        x = attend(state, block, x, heads=2)
    x = mix(state, "expand", x)
    assert found.shape == (2, 12, *grid)
    torch.testing.assert_close(found.double(), x, rtol=1e-5, atol=1e-5)


def test_no_batch_statistics() -> None:
    """Episodes come one or two at a time: training mode must not mix images of a batch."""
    adapter = Adapter(10, width=12, inner=8, heads=2).train()
    tokens = torch.randn(3, 10, 4, 4)
    torch.testing.assert_close(adapter(tokens)[1:2], adapter(tokens[1:2]))


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def mix(state: State, name: str, x: Tensor) -> Tensor:
    """A 1x1 convolution as a product over channels."""
    y = torch.einsum("oi,bihw->bohw", state[f"{name}.weight"][:, :, 0, 0], x)
    return y + state[f"{name}.bias"][:, None, None]


def three_by_three(state: State, name: str, x: Tensor) -> Tensor:
    """A 3x3 convolution with zero borders as nine shifted products."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1))
    y = state[f"{name}.bias"][:, None, None]
    for i in range(3):
        for j in range(3):
            shifted = padded[:, :, i : i + height, j : j + width]
            y = y + torch.einsum("oi,bihw->bohw", state[f"{name}.weight"][:, :, i, j], shifted)
    return y


def channel_norm(state: State, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer norm over the channels of a map [B, C, h, w]."""
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / (centred.square().mean(1, keepdim=True) + eps).sqrt()
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return scaled * weight[:, None, None] + bias[:, None, None]


def attend(state: State, name: str, x: Tensor, heads: int) -> Tensor:
    """A pre-norm block over all positions of a map."""
    normed = channel_norm(state, f"{name}.norm1", x, eps=1e-5).flatten(2)
    projected = torch.einsum("oi,bin->bon", state[f"{name}.attention.in_proj_weight"], normed)
    projected = projected + state[f"{name}.attention.in_proj_bias"][:, None]
    query, key, value = (part.unflatten(1, (heads, -1)) for part in projected.chunk(3, dim=1))
    scores = torch.einsum("bhdn,bhdm->bhnm", query, key) / math.sqrt(query.shape[2])
    mixed = torch.einsum("bhnm,bhdm->bhdn", scores.softmax(-1), value).flatten(1, 2)
    weight, bias = (state[f"{name}.attention.out_proj.{part}"] for part in ("weight", "bias"))
    x = x + (torch.einsum("oi,bin->bon", weight, mixed) + bias[:, None]).unflatten(2, x.shape[2:])
    hidden = channel_norm(state, f"{name}.norm2", x, eps=1e-5)
    inner = torch.einsum("oi,bihw->bohw", state[f"{name}.mlp.0.weight"], hidden)
    inner = gelu(inner + state[f"{name}.mlp.0.bias"][:, None, None])
    outer = torch.einsum("oi,bihw->bohw", state[f"{name}.mlp.2.weight"], inner)
    return x + outer + state[f"{name}.mlp.2.bias"][:, None, None]
