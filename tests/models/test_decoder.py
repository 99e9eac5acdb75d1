"""SAM's mask decoder in batches: equal to segment_anything's own, image by image."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from segment_anything.modeling import PromptEncoder, TwoWayTransformer
from torch import Tensor

from fsdino.bench.exactness import norm_error
from fsdino.models.decoder import MaskDecoder
from tiny_models import randomise

MATRIX = "positional_encoding_gaussian_matrix"


def sams_and_ours(width: int, heads: int, mlp: int) -> tuple[SamMaskDecoder, MaskDecoder, Tensor]:
    """segment_anything's decoder and ours with its weights; and the matrix of its positions."""
    transformer = TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=mlp, num_heads=heads)
    sams = SamMaskDecoder(
        transformer_dim=width, transformer=transformer, iou_head_hidden_dim=width
    ).eval()
    randomise(sams, seed=0)
    matrix = torch.randn(2, width // 2, generator=torch.Generator().manual_seed(1))
    ours = MaskDecoder(width, heads, mlp).eval()
    ours.load_state_dict({**sams.state_dict(), f"positions.{MATRIX}": matrix})
    return sams, ours, matrix


def sams_positions(matrix: Tensor, grid: tuple[int, int], width: int) -> Tensor:
    """What SAM's own prompt encoder adds to an image embedding of this grid: [1, width, h, w]."""
    encoder = PromptEncoder(
        embed_dim=width, image_embedding_size=grid, input_image_size=grid, mask_in_chans=4
    )
    encoder.pe_layer.load_state_dict({MATRIX: matrix})
    return encoder.get_dense_pe()


@pytest.mark.parametrize("grid", [(6, 6), (4, 9), (7, 3)])
@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_batch_equals_sams_image_by_image(grid: tuple[int, int], tokens: int) -> None:
    """`predict_masks` with one image and its prompt, mask 0, is what a batch gives at once."""
    width, batch = 32, 3
    sams, ours, matrix = sams_and_ours(width, heads=4, mlp=64)
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(batch, width, *grid, generator=generator)
    sparse = torch.randn(batch, tokens, width, generator=generator)
    dense = torch.randn(batch, width, *grid, generator=generator)
    positions = sams_positions(matrix, grid, width)
    with torch.no_grad():
        found = ours(image, sparse, dense)
        masks = [
            sams.predict_masks(
                image_embeddings=image[i : i + 1],
                image_pe=positions,
                sparse_prompt_embeddings=sparse[i : i + 1],
                dense_prompt_embeddings=dense[i : i + 1],
            )[0][:, :1]
            for i in range(batch)
        ]
    assert found.shape == (batch, 1, 4 * grid[0], 4 * grid[1])
    expected = torch.cat(masks)
    assert norm_error(found, expected) < 1e-5


@pytest.mark.slow
def test_batch_equals_sams_at_full_size() -> None:
    """The published decoder (width 256, 8 heads, 2048 hidden) at the 37 x 37 grid of 518 px."""
    sams, ours, matrix = sams_and_ours(256, heads=8, mlp=2048)
    image, dense = torch.randn(2, 2, 256, 37, 37).unbind()
    sparse = torch.randn(2, 1, 256)
    positions = sams_positions(matrix, (37, 37), 256)
    with torch.no_grad():
        found = ours(image, sparse, dense)
        expected = torch.cat(
            [
                sams.predict_masks(
                    image[i : i + 1], positions, sparse[i : i + 1], dense[i : i + 1]
                )[0][:, :1]
                for i in range(2)
            ]
        )
    assert norm_error(found, expected) < 1e-5


def test_size_is_that_of_sams_decoder() -> None:
    """4,058,340 parameters, of which the IoU head and three mask heads are frozen."""
    decoder = MaskDecoder()
    attention = 4 * (256 * 256 + 256)
    narrow_attention = 3 * (256 * 128 + 128) + (128 * 256 + 256)  # cross attention halves the width
    feed_forward = (256 * 2048 + 2048) + (2048 * 256 + 256)
    layer = attention + 2 * narrow_attention + feed_forward + 4 * 2 * 256
    transformer = 2 * layer + narrow_attention + 2 * 256
    upscaling = (256 * 64 * 4 + 64) + 2 * 64 + (64 * 32 * 4 + 32)
    mask_head = 2 * (256 * 256 + 256) + (256 * 32 + 32)
    iou_head = 2 * (256 * 256 + 256) + (256 * 4 + 4)
    tokens = (1 + 4) * 256
    frozen = sum(p.numel() for p in decoder.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in decoder.parameters() if p.requires_grad)
    assert frozen == iou_head + 3 * mask_head == 552_036
    assert trained == transformer + upscaling + tokens + mask_head == 4_058_340 - 552_036


def test_everything_that_learns_gets_a_gradient() -> None:
    """DDP stops on a parameter without one; what the output does not use is frozen."""
    _, ours, _ = sams_and_ours(32, heads=4, mlp=64)
    image, dense = torch.randn(2, 1, 32, 5, 5).unbind()
    ours(image, torch.randn(1, 1, 32), dense).square().sum().backward()
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_keep_their_precision_when_the_model_is_cast(dtype: torch.dtype) -> None:
    """Fourier positions multiply by 2 pi: rounding their matrix would move them by whole tokens."""
    _, ours, matrix = sams_and_ours(32, heads=4, mlp=64)
    ours.to(dtype)
    assert torch.equal(ours.positions.positional_encoding_gaussian_matrix, matrix)
    assert ours.mask_tokens.weight.dtype == dtype
    ours.float()
    assert torch.equal(ours.positions.positional_encoding_gaussian_matrix, matrix)


def test_bfloat16_stays_near_float32() -> None:
    """The whole decoder runs in the type that it was cast to."""
    _, ours, _ = sams_and_ours(32, heads=4, mlp=64)
    image, dense = torch.randn(2, 2, 32, 5, 5, generator=torch.Generator().manual_seed(0)).unbind()
    sparse = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = ours(image, sparse, dense)
        ours.to(torch.bfloat16)
        found = ours(*(x.to(torch.bfloat16) for x in (image, sparse, dense)))
    assert found.dtype == torch.bfloat16
    assert norm_error(found, expected) < 0.05
