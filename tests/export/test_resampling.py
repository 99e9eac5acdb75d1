"""Weights of exported graphs against PyTorch's own resizing."""

from __future__ import annotations

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from fsdino import resizing
from fsdino.export import resampling

SIZES = [((100, 80), (56, 56)), ((37, 300), (56, 28)), ((1, 1), (14, 28)), ((56, 56), (56, 56))]
EDGE = (5, 7)  # rows and columns of a canvas beside its image


def canvas(values: Tensor) -> Tensor:
    """[1, H + 5, W + 7, ...] with the values at the top left and something else around them."""
    height, width, *rest = values.shape
    whole = torch.full((1, height + EDGE[0], width + EDGE[1], *rest), 77, dtype=values.dtype)
    whole[0, :height, :width] = values
    return whole


@pytest.mark.parametrize(("size", "target"), SIZES)
def test_images_are_resized_as_for_the_model(
    size: tuple[int, int], target: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = resampling.image(canvas(torch.from_numpy(image)), target, torch.tensor([size]))[0]
    assert torch.allclose(found, resizing.to_tensor(image, target), atol=5e-5)


def test_images_of_several_sizes_share_a_canvas() -> None:
    images = [np.random.default_rng(k).integers(0, 256, (*size, 3), np.uint8)
              for k, (size, _) in enumerate(SIZES[:2])]  # fmt: skip
    whole = torch.zeros(2, 100, 300, 3, dtype=torch.uint8)
    for k, image in enumerate(images):
        whole[k, : image.shape[0], : image.shape[1]] = torch.from_numpy(image)
    found = resampling.image(whole, (28, 42), torch.tensor([size for size, _ in SIZES[:2]]))
    for k, image in enumerate(images):
        assert torch.allclose(found[k], resizing.to_tensor(image, (28, 42)), atol=5e-5)


@pytest.mark.parametrize(("size", "target"), SIZES)
@pytest.mark.parametrize(
    ("lines", "rule"),
    [(resampling.areas, resizing.area_share), (resampling.nearest, resizing.nearest_mask)],
)
def test_masks_are_resized_by_the_two_rules(
    lines: object, rule: object, size: tuple[int, int], target: tuple[int, int]
) -> None:
    mask = np.random.default_rng(0).random(size) > 0.5
    flags = (canvas(torch.from_numpy(mask)) == 1).float()
    flags[0, size[0] :] = flags[0, :, size[1] :] = 1
    weights = [
        lines(cells, pixels, torch.tensor([length]))  # type: ignore[operator]
        for cells, pixels, length in zip(target, flags.shape[1:], size, strict=True)
    ]
    found = resampling.resize(flags, *weights)[0]
    assert torch.allclose(found, rule(mask, target), atol=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize("size", [(100, 300), (9, 40), (1, 1)])
def test_logits_are_resized_as_for_the_image(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 20, 24, generator=torch.Generator().manual_seed(0))
    found = resampling.logits(maps, *size)
    assert torch.allclose(found, resizing.resize_logits(maps[None], size)[0], atol=2e-5)


@pytest.mark.parametrize("size", [(100, 300), (9, 40), (1, 1), (20, 24)])
def test_aligned_corners(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 20, 24, generator=torch.Generator().manual_seed(0))
    lines = [resampling.aligned(*side) for side in zip(size, maps.shape[1:], strict=True)]
    expected = F.interpolate(maps[None], size, mode="bilinear", align_corners=True)[0]
    assert torch.allclose(resampling.resize(maps, *lines), expected, atol=2e-5)


@pytest.mark.parametrize("cells", [50, 25, 13])
def test_what_rounding_adds_at_aligned_corners(cells: int) -> None:
    """HSNet's masks: to it, 3e-5 is as good as 1, and PyTorch gives it where 0 is due."""
    lines = torch.eye(400)[:, None, None]
    expected = F.interpolate(lines, (1, cells), mode="bilinear", align_corners=True)[:, 0, 0].T
    assert torch.equal(resampling.aligned(cells, 400) > 0, expected > 0)


@pytest.mark.parametrize("size", [(20, 24), (7, 5), (1, 3)])
def test_windows_of_adaptive_pooling(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 20, 24, generator=torch.Generator().manual_seed(0))
    lines = [resampling.windows(*side) for side in zip(size, maps.shape[1:], strict=True)]
    expected = F.adaptive_avg_pool2d(maps, size)
    assert torch.allclose(resampling.resize(maps, *lines), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 10), (37, 60), (14, 14)])
def test_bicubic_resizing_of_positions(size: tuple[int, int]) -> None:
    maps = torch.randn(1, 2, 37, 37, generator=torch.Generator().manual_seed(0))
    factors = tuple((side + 0.1) / 37 for side in size)
    lines = [
        resampling.bicubic(side, 37, 1 / factor) for side, factor in zip(size, factors, strict=True)
    ]
    expected = F.interpolate(maps, scale_factor=factors, mode="bicubic")
    assert torch.allclose(resampling.resize(maps, *lines), expected, atol=2e-5)
    lines = [resampling.bicubic_antialiased(side, 37) for side in size]
    expected = F.interpolate(maps, size, mode="bicubic", antialias=True)
    assert torch.allclose(resampling.resize(maps, *lines), expected, atol=1e-5)


class Nearest(nn.Module):
    """Lines resized to 400 values, as masks for HSNet."""

    def forward(self, lines: Tensor) -> Tensor:
        length = torch.full((1,), lines.shape[1])
        return lines @ resampling.nearest(400, lines.shape[1], length)[0].mT


def test_single_pixels_are_those_of_pytorch_in_each_runtime(tmp_path) -> None:
    """Where the lengths are in a simple ratio, many pixels begin exactly where a cell does."""
    path = str(tmp_path / "nearest.onnx")
    dims = ({1: Dim("pixels", min=2, max=9999)},)
    torch.onnx.export(
        Nearest().eval(),
        (torch.zeros(1, 77),),
        path,
        dynamic_shapes=dims,
        opset_version=20,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for length in (200, 333, 400, 420, 472, 600, 1000):  # 420: PyTorch's rounding takes ten others
        lines = np.arange(length, dtype=np.float32)[None]
        expected = F.interpolate(torch.from_numpy(lines)[None], 400, mode="nearest")[0].numpy()
        assert np.array_equal(session.run(None, {"lines": lines})[0], expected)
        assert np.array_equal(compiled(lines)[0], expected)
