"""4D correlation mining: HSNet's convolution as a layer, and the prior from one shot."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fsdino
from fsdino import ops
from fsdino.bench.exactness import norm_error
from fsdino.models.hypercorrelation import CorrelationPrior, correlate
from tiny_models import randomise


def center_pivot(x: Tensor, state: dict[str, Tensor], stride: int) -> Tensor:
    """A 4D convolution whose kernel is zero but on the two planes through its centre.

    Every tap of the dense kernel [Co, Ci, k, k, k, k] is a shifted product; the centre is on both
    planes, so that its weights add up.
    """
    first, second = state["conv1.weight"], state["conv2.weight"]
    side, half = first.shape[-1], first.shape[-1] // 2
    kernel = x.new_zeros(*first.shape[:2], side, side, side, side)
    kernel[:, :, :, :, half, half] += first
    kernel[:, :, half, half, :, :] += second
    padded = F.pad(x, (half, half) * 4)
    sizes = x.shape[2:]
    y = torch.zeros(())
    for taps in torch.cartesian_prod(*[torch.arange(side)] * 4).tolist():
        window = [slice(t, t + n) for t, n in zip(taps, sizes, strict=True)]
        shifted = padded[(slice(None), slice(None), *window)]
        y = y + torch.einsum("oi,nihwuv->nohwuv", kernel[(..., *taps)], shifted)
    y = y + (state["conv1.bias"] + state["conv2.bias"])[:, None, None, None, None]
    return y[..., ::stride, ::stride]


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (5, 2), (1, 3)], ids=str)
def test_layer_with_hsnets_weights(kernel_size: int, stride: int) -> None:
    """A state dict with HSNet's names loads strictly and means the dense 4D convolution."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (4, 3, kernel_size, kernel_size), "bias": (4,)}
    state = {
        f"{conv}.{part}": torch.randn(shape, generator=generator)
        for conv in ("conv1", "conv2")
        for part, shape in shapes.items()
    }
    layer = fsdino.CenterPivotConv4d(3, 4, kernel_size=kernel_size, support_stride=stride)
    layer.load_state_dict(state)
    x = torch.randn(2, 3, 4, 5, 6, 3, generator=generator)
    expected = center_pivot(x, state, stride)
    assert layer(x).shape == (2, 4, 4, 5, -(-6 // stride), -(-3 // stride))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_layer_learns() -> None:
    """Both convolutions and both biases get a gradient; the biases' are equal, since they add."""
    layer = fsdino.CenterPivotConv4d(2, 3)
    layer(torch.randn(1, 2, 3, 3, 3, 3)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    torch.testing.assert_close(layer.conv1.bias.grad, layer.conv2.bias.grad)


@pytest.mark.parametrize("contrastive", [True, False])
def test_prior_written_out(contrastive: bool) -> None:
    """Foreground minus background correlation (or foreground alone) through blocks, then a mean."""
    prior = CorrelationPrior(3, (4, 8), support_stride=2, contrastive=contrastive)
    randomise(prior, seed=0)
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(2, 3, 6, 3, 4, generator=generator)
    support = torch.randn(2, 3, 6, 5, 3, generator=generator)
    mask = torch.rand(2, 5, 3, generator=generator)
    found = prior(query, support, mask)

    similarity = torch.einsum(
        "blchw,blcij->blhwij",
        F.normalize(query.double(), dim=2),
        F.normalize(support.double(), dim=2),
    ).clamp_min(0)
    weights = mask.double()[:, None, None, None]
    x = similarity * weights - (similarity * (1 - weights) if contrastive else 0)
    for block in prior.blocks:
        state = {name: tensor.double() for name, tensor in block.conv.state_dict().items()}
        x = center_pivot(x, state, stride=2)
        x = F.group_norm(x, 4, block.norm.weight.double(), block.norm.bias.double()).clamp_min(0)
    expected = x.mean((4, 5))
    assert found.shape == (2, 8, 3, 4)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_published_sizes() -> None:
    """6 -> 16 -> 64 -> 128 with two 3x3 kernels and biases each, GroupNorm; 37 -> 19 -> 10 -> 5."""
    prior = CorrelationPrior(6)
    convolutions = sum(2 * (9 * i * o + o) for i, o in ((6, 16), (16, 64), (64, 128)))
    norms = 2 * (16 + 64 + 128)
    assert sum(p.numel() for p in prior.parameters()) == convolutions + norms == 168_448
    shapes = []
    for block in prior.blocks:
        block.reduce_support = False
        block.register_forward_hook(lambda _m, _a, y: shapes.append(tuple(y.shape)))
    with torch.no_grad():
        prior.blocks(torch.randn(1, 6, 2, 2, 37, 37))
    assert shapes == [(1, 16, 2, 2, 19, 19), (1, 64, 2, 2, 10, 10), (1, 128, 2, 2, 5, 5)]


def test_prior_in_bfloat16_stays_near_float32() -> None:
    """A cast model takes the float32 masks that it is given."""
    prior = CorrelationPrior(2, (4, 4))
    query, support, mask = (
        torch.randn(1, 2, 8, 5, 5),
        torch.randn(1, 2, 8, 5, 5),
        torch.rand(1, 5, 5),
    )
    with torch.no_grad():
        expected = prior(query, support, mask)
        found = prior.to(torch.bfloat16)(query.to(torch.bfloat16), support.to(torch.bfloat16), mask)
    assert found.dtype == torch.bfloat16
    assert norm_error(found, expected) < 0.05


def test_even_kernels_are_refused() -> None:
    """A center pivot needs a centre."""
    layer = fsdino.CenterPivotConv4d(1, 1, kernel_size=2)
    with pytest.raises(ValueError, match="odd k"):
        layer(torch.zeros(1, 1, 3, 3, 3, 3))


@pytest.mark.parametrize("widths", [(3, 3, 5, 8, 8), (8, 3, 8, 3, 3), (4,) * 5, (8,) * 5])
def test_layers_of_one_width_share_a_call_without_their_padding(
    widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same correlations and gradients, from products over the channels that are not padding."""
    generator = torch.Generator().manual_seed(0)
    query, support = torch.zeros(2, 5, 8, 4, 3), torch.zeros(2, 5, 8, 3, 2)
    for layer, width in enumerate(widths):
        query[:, layer, :width] = torch.randn(2, width, 4, 3, generator=generator)
        support[:, layer, :width] = torch.randn(2, width, 3, 2, generator=generator)
    weight = torch.rand(2, 3, 2, generator=generator)
    query.requires_grad_()
    expected = ops.correlation4d(query, support, weight)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), query)

    calls: list[tuple[int, int]] = []
    op = ops.correlation4d

    def counted(query: Tensor, *rest: Tensor) -> Tensor:
        calls.append((query.shape[1], query.shape[2]))
        return op(query, *rest)

    monkeypatch.setattr(ops, "correlation4d", counted)
    found = correlate(query, support, weight, widths)
    (gradient,) = torch.autograd.grad(found.square().sum(), query)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.stride() == expected.stride()  # the order that the blocks after it are fast in
    for layer, width in enumerate(widths):
        kept = (slice(None), layer, slice(width))
        torch.testing.assert_close(gradient[kept], expected_gradient[kept], rtol=1e-4, atol=1e-5)
    runs = {
        (3, 3, 5, 8, 8): [(2, 3), (1, 5), (2, 8)],
        (8, 3, 8, 3, 3): [(1, 8), (1, 3), (1, 8), (2, 3)],
        (4,) * 5: [(5, 4)],
        (8,) * 5: [(5, 8)],
    }
    assert calls == runs[widths]
