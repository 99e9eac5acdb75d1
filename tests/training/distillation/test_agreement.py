"""The student is compared with the teacher where both look at the same place of the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fsdino.training.distillation.agreement import (
    agreement,
    on_students_grid,
    on_teachers_grid,
    stack_targets,
)


def test_whole_cells_are_plain_bilinear_resizing() -> None:
    """Where the image covers whole cells, PyTorch's own interpolation to them."""
    student = torch.randn(2, 3, 5, 5)
    found = on_teachers_grid(student, torch.tensor([[8.0, 8.0], [6.0, 8.0]]), 8)
    for index, size in enumerate([(8, 8), (6, 8)]):
        expected = F.interpolate(student[index : index + 1], size, mode="bilinear")[0]
        torch.testing.assert_close(found[index, :, : size[0], : size[1]], expected)


def test_places_match_where_the_image_ends_within_a_cell() -> None:
    """A map that says where it is: cell i of 42.6875 has its centre at (i + 1/2) / 42.6875."""
    side, extent = 64, (42.6875, 63.5)
    ramp = (torch.arange(37) + 0.5) / 37  # the place of each token, 0 to 1
    student = torch.stack([ramp[:, None].expand(37, 37), ramp[None].expand(37, 37)])[None]
    found = on_teachers_grid(student, torch.tensor([extent]), side)[0]
    rows, columns = ((torch.arange(side) + 0.5) / length for length in extent)
    inner = slice(1, 40)  # where a bilinear ramp has not met the border
    torch.testing.assert_close(found[0, inner, 5], rows[inner], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1, 5, 1:60], columns[1:60], rtol=0, atol=1e-5)


def test_embeddings_come_to_the_students_grid() -> None:
    """By hand: means of areas where it is coarser, PyTorch's bilinear where it is finer."""
    wide = torch.tensor([[[0.0, 2.0, 4.0, 6.0], [2.0, 4.0, 6.0, 8.0]]], dtype=torch.float16)
    fine = torch.randn(1, 2, 1)
    found = on_students_grid([wide, fine], (2, 2))
    assert found.dtype == torch.float32 and found.shape == (2, 1, 2, 2)
    assert found[0, 0].tolist() == [[1.0, 5.0], [3.0, 7.0]]
    torch.testing.assert_close(found[1], F.interpolate(fine[None], (2, 2), mode="bilinear")[0])


def test_only_cells_of_the_image_count() -> None:
    """By hand: 2 channels, one row of two cells, and nothing of what was padded."""
    target, inside = stack_targets([torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])], 3)
    student = torch.full((1, 2, 3, 3), 1e6)
    student[0, :, 0, :2] = torch.tensor([[1.0, 2.0], [1.0, 0.0]])
    mse, cosine = agreement(student, target, inside)
    assert inside.sum() == 2
    # Cell 1: (1, 1) for (1, 0); cell 2: (2, 0) for (0, 2).
    assert mse.tolist() == [(0.5 + 4) / 2]
    torch.testing.assert_close(cosine, torch.tensor([(0.5**0.5 + 0) / 2]))


def test_images_of_a_batch_are_apart() -> None:
    """Each gets the numbers that it has alone."""
    targets = [torch.randn(4, 3, 5).half(), torch.randn(4, 5, 2).half()]
    student = torch.randn(2, 4, 5, 5)
    together = agreement(student, *stack_targets(targets, 5))
    for index, target in enumerate(targets):
        height, width = target.shape[1:]
        part = student[index, :, :height, :width]
        torch.testing.assert_close(together[0][index], F.mse_loss(part, target.float()))
        cosine = F.cosine_similarity(part, target.float(), dim=0).mean()
        torch.testing.assert_close(together[1][index], cosine)
