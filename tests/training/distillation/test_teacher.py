"""The teacher sees images as Segment Anything's own code shows them, and embeds them alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

import tiny_sam
from fsdino.errors import CheckpointError, UsageError
from fsdino.models.torch_files import TorchFile, View
from fsdino.training.distillation.teacher import Teacher, load_teacher
from tiny_models import picture

pytestmark = pytest.mark.usefixtures("one_thread")

# Portrait, landscape, square, enlarged, shrunk, a strip of which half a token is left.
SIZES = [(48, 64), (63, 47), (31, 31), (200, 133), (64, 64), (65, 64), (3, 100), (1, 700)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sam.write(tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="module")
def sam() -> Sam:
    return tiny_sam.build()


@pytest.fixture(scope="module")
def teacher(checkpoint: Path) -> Teacher:
    return load_teacher(checkpoint)


@pytest.mark.parametrize("size", SIZES[:-1], ids=str)
def test_input_is_that_of_segment_anything(teacher: Teacher, sam: Sam, size) -> None:
    """Scaling, normalisation, padding equal ResizeLongestSide and Sam.preprocess to the bit."""
    image = picture(*size, seed=sum(size))
    expected = ResizeLongestSide(tiny_sam.SIDE).apply_image(image)
    scaled = teacher.architecture.scale(image)
    assert np.array_equal(scaled, expected)
    expected = sam.preprocess(torch.as_tensor(expected).permute(2, 0, 1))
    assert torch.equal(teacher.pad(scaled), expected)


def test_embeddings_are_those_of_segment_anything(teacher: Teacher, sam: Sam) -> None:
    """Several sizes in a batch give what Sam's encoder gives for each, up to half precision."""
    images = [picture(*size, seed=size[0]) for size in SIZES[:-1]]
    found = teacher([teacher.architecture.scale(image) for image in images])
    for image, embedding in zip(images, found, strict=True):
        scaled = ResizeLongestSide(tiny_sam.SIDE).apply_image(image)
        tensor = sam.preprocess(torch.as_tensor(scaled).permute(2, 0, 1))
        with torch.no_grad():
            expected = sam.image_encoder(tensor[None])[0]
        height, width = embedding.shape[1:]
        assert (height, width) == teacher.architecture.grid(image.shape[:2])
        assert embedding.dtype == torch.float16
        torch.testing.assert_close(
            embedding.float(), expected[:, :height, :width], rtol=2e-3, atol=1e-3
        )
        # What was cut off saw no pixel: half a token of padding at least.
        token = tiny_sam.SIDE // tiny_sam.GRID
        for kept, pixels in zip((height, width), scaled.shape, strict=False):
            assert kept == tiny_sam.GRID or (kept + 0.5) * token >= pixels


def test_a_teacher_learns_nothing(teacher: Teacher) -> None:
    """Frozen, in eval mode, and its answers carry no graph."""
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher([teacher.architecture.scale(picture(20, 30))])[0].requires_grad


def test_fingerprints_tell_weights_apart(tmp_path: Path, teacher: Teacher) -> None:
    """The same file gives the same one, other weights another."""
    assert load_teacher(tiny_sam.write(tmp_path)).fingerprint() == teacher.fingerprint()
    assert load_teacher(tiny_sam.write(tmp_path, seed=9)).fingerprint() != teacher.fingerprint()


def test_files_that_are_no_teacher(tmp_path: Path, checkpoint: Path) -> None:
    """Each is named with what is wrong: missing, damaged, foreign, of another size, a bad name."""
    with pytest.raises(UsageError, match="no such file"):
        load_teacher(tmp_path / "sam.pth")
    with pytest.raises(UsageError, match="'vit_g': choose from auto, vit_b"):
        load_teacher(checkpoint, "vit_g")
    with pytest.raises(CheckpointError, match="no vit_h, their encoder is of another size"):
        load_teacher(checkpoint, "vit_h")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(checkpoint.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"cut\.pth are damaged"):
        load_teacher(cut)
    torch.save({"patch_embed.weight": torch.zeros(2)}, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match="no image encoder of Segment Anything"):
        load_teacher(tmp_path / "foreign.pth")
    state = torch.load(checkpoint, weights_only=True)
    del state["image_encoder.blocks.1.norm1.weight"]
    torch.save(state, tmp_path / "incomplete.pth")
    with pytest.raises(CheckpointError, match=r"missing: blocks\.1\.norm1\.weight"):
        load_teacher(tmp_path / "incomplete.pth")


def test_a_file_that_would_build_more_than_it_holds(tmp_path: Path, checkpoint: Path) -> None:
    """One wide tensor describes an encoder of 120 GB; many names one of a thousand blocks."""
    state = torch.load(checkpoint, weights_only=True)
    wide = {**state, "image_encoder.patch_embed.proj.weight": torch.zeros(100_000, 3, 1, 1)}
    torch.save(wide, tmp_path / "wide.pth")
    with pytest.raises(CheckpointError, match="do not fit this model: of another shape"):
        load_teacher(tmp_path / "wide.pth")
    row = torch.zeros(1, 4)
    deep = {f"image_encoder.blocks.{index}.attn.rel_pos_h": row for index in range(1000)}
    torch.save({**deep, **state}, tmp_path / "deep.pth")
    with pytest.raises(CheckpointError, match="no image encoder of Segment Anything"):
        load_teacher(tmp_path / "deep.pth")


def test_only_the_image_encoder_is_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What else a file has is neither needed nor bounded."""
    read, original = [], TorchFile.tensor

    def tensor(file: TorchFile, view: View) -> torch.Tensor:
        read.append(view.shape)
        return original(file, view)

    monkeypatch.setattr(TorchFile, "tensor", tensor)
    teacher = load_teacher(checkpoint)
    expected = [tuple(tensor.shape) for tensor in teacher.encoder.state_dict().values()]
    assert sorted(read) == sorted(expected)
