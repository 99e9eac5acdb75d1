"""The encoder: DINOv2's own features at every size, other ViTs, batches of mixed sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import Attention
from timm.models import vision_transformer
from torch import Tensor, nn

import plain_dinov2 as plain
from fsdino.bench.exactness import norm_error
from fsdino.errors import UsageError
from fsdino.models.config import ModelConfig
from fsdino.models.encoders import Encoder, Features, create
from fsdino.models.zoo import load_dinov2
from tiny_models import PATCH, SMALL, randomise, tiny_config

HEADS = 2
SHRUNK = {"embed_dim": 24, "depth": 4, "num_heads": HEADS}
SIZES = [
    (98, 98), (126, 126), (252, 252), (504, 504), (518, 518), (532, 532),
    (126, 210), (70, 518), (518, 252),
]  # fmt: skip
FAMILIES = {
    "plain": ("vit_small_patch14_dinov2", {}),
    "reg": ("vit_small_patch14_reg4_dinov2", {"registers": 4}),
    "plain giant": ("vit_giant_patch14_dinov2", {"swiglu": True}),
    "reg giant": ("vit_giant_patch14_reg4_dinov2", {"swiglu": True, "registers": 4}),
}


def pixels(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def official(family: str, tmp_path: Path, **arguments: Any) -> tuple[dict[str, Tensor], Encoder]:
    """Random weights in Meta's naming, and an encoder that read them from a file."""
    name, options = FAMILIES[family]
    dim, depth = arguments.get("embed_dim", 384), arguments.get("depth", 12)
    state = plain.random_state(dim=dim, depth=depth, **options)
    torch.save(state, tmp_path / "dinov2_pretrain.pth")
    encoder = create(ModelConfig(encoder=name, encoder_args=arguments)).eval()
    load_dinov2(encoder, tmp_path / "dinov2_pretrain.pth")
    return state, encoder


def assert_same_features(
    state: dict[str, Tensor], encoder: Encoder, images: Tensor, heads: int
) -> None:
    with torch.no_grad():
        features = encoder(images)
        expected = plain.blocks(state, images, heads)
        normed = [plain.final_norm(state, tokens) for tokens in expected]
    depth = len(expected)
    assert norm_error(features.shallow, expected[2]) < 1e-5  # the third block, raw
    assert norm_error(features.last, normed[-1]) < 1e-5
    last_half = torch.stack(normed[depth // 2 :], dim=1)
    assert norm_error(features.correlation[0], last_half) < 1e-5


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("family", ["plain", "reg"])
def test_features_are_those_of_metas_weights(
    family: str, size: tuple[int, int], tmp_path: Path
) -> None:
    """Official weights give official features, at the trained size, off it, and non-square."""
    state, encoder = official(family, tmp_path, **SHRUNK)
    assert_same_features(state, encoder, pixels(1, 3, *size), HEADS)


@pytest.mark.parametrize("family", ["plain giant", "reg giant"])
def test_features_of_giant_models(family: str, tmp_path: Path) -> None:
    """The giant's SwiGLU weights (w12, w3) reach timm's packed layers the right way round."""
    state, encoder = official(family, tmp_path, **SHRUNK)
    assert_same_features(state, encoder, pixels(2, 3, 98, 126), HEADS)


@pytest.mark.slow
@pytest.mark.parametrize("size", [98, 518])
@pytest.mark.parametrize("family", ["plain", "reg"])
def test_features_of_a_whole_vit_small(family: str, size: int, tmp_path: Path) -> None:
    """The published architecture, unshrunk, stays within 1e-5 over its twelve blocks."""
    state, encoder = official(family, tmp_path)
    assert_same_features(state, encoder, pixels(1, 3, size, size), heads=6)


@pytest.mark.parametrize("grid", [(7, 7), (9, 15), (36, 36), (37, 37), (38, 37), (5, 40)])
@pytest.mark.parametrize("family", ["plain", "reg"])
def test_positions_are_resampled_as_metas_are(
    family: str, grid: tuple[int, int], tmp_path: Path
) -> None:
    """The position embeddings alone, isolated by a patch embedding that is zero."""
    arguments = {"embed_dim": 8, "depth": 4, "num_heads": 2}
    name, options = FAMILIES[family]
    state = plain.random_state(dim=8, depth=4, **options)
    state["patch_embed.proj.weight"].zero_()
    state["patch_embed.proj.bias"].zero_()
    torch.save(state, tmp_path / "weights.pth")
    encoder = create(ModelConfig(encoder=name, encoder_args=arguments)).eval()
    load_dinov2(encoder, tmp_path / "weights.pth")
    seen = {}
    encoder.vit.blocks[0].register_forward_pre_hook(lambda _, args: seen.update(tokens=args[0]))
    with torch.no_grad():
        encoder(torch.zeros(1, 3, grid[0] * PATCH, grid[1] * PATCH))
    antialias = family == "reg"
    positions = plain.resampled_positions(state["pos_embed"].double(), *grid, antialias)
    prefix = 1 + options.get("registers", 0)
    assert norm_error(seen["tokens"][:, prefix:], positions) < 1e-5
    class_token = state["cls_token"] + state["pos_embed"][:, :1]
    torch.testing.assert_close(seen["tokens"][:, :1], class_token)


def test_bicubic_weights_of_the_plain_formulation() -> None:
    """The tests' own resampling, by hand: rows sum to 1, and one row's taps written out."""
    matrix = plain.scale_factor_matrix(4, 2)  # scale 2.1 / 4, so output 0 lies at 0.452381
    assert matrix.sum(1) == pytest.approx([1, 1])
    t = 0.5 / (2.1 / 4) - 0.5  # Keys' kernel with a = -0.75 at distances 1 + t, t, 1 - t, 2 - t
    near = [1.25 * d**3 - 2.25 * d**2 + 1 for d in (t, 1 - t)]
    far = [-0.75 * (d**3 - 5 * d**2 + 8 * d - 4) for d in (1 + t, 2 - t)]
    assert matrix[0] == pytest.approx([far[0] + near[0], near[1], far[1], 0])
    assert plain.antialiased_matrix(4, 4) == pytest.approx(torch.eye(4).numpy())


def test_mixed_sizes_one_by_one_equal_single_images() -> None:
    """Without a variable-length attention each image is encoded as if it were alone."""
    encoder = tiny_encoder()
    images = [pixels(3, 70, 70, seed=1), pixels(3, 42, 98, seed=2), pixels(3, 70, 70, seed=3)]
    with torch.no_grad():
        features = encoder.forward_list(images)
        alone = [encoder(image[None]) for image in images]
    assert [tuple(f.last.shape) for f in features] == [
        (1, 24, 5, 5), (1, 24, 3, 7), (1, 24, 5, 5),
    ]  # fmt: skip
    for found, expected in zip(features, alone, strict=True):
        assert norm_error(found.last, expected.last) < 1e-6


def test_the_guide_is_the_image_at_quarters_of_tokens() -> None:
    """Means of all pixels that each touches: 3.5 along each side, so 4."""
    images = pixels(2, 3, 70, 42)
    found = tiny_encoder()(images)
    assert found.guide.shape == (2, 3, 20, 12)
    torch.testing.assert_close(found.guide[..., 0, 0], images[..., :4, :4].mean((2, 3)))
    torch.testing.assert_close(found.guide[..., 1, 0], images[..., 3:7, :4].mean((2, 3)))
    torch.testing.assert_close(found.guide[..., 19, 11], images[..., 66:, 38:].mean((2, 3)))


def tiny_encoder(**changes: Any) -> Encoder:
    encoder = create(tiny_config(**changes)).eval()
    randomise(encoder, seed=0)
    return encoder


def block_diagonal(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    """A packed attention in plain PyTorch: one softmax over a mask of one block per image."""
    image = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    scores = torch.einsum("nhd,mhd->hnm", query, key) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(image[:, None] != image, -torch.inf)
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), value)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_small_patch14_dinov2", {}),
        ("vit_small_patch14_reg4_dinov2", {}),
        ("vit_giant_patch14_dinov2", {}),
        ("vit_small_patch14_dinov2", {"qk_norm": True}),
        ("vit_small_patch14_dinov2", {"scale_attn_norm": True}),
        ("vit_small_patch14_dinov2", {"pre_norm": True, "init_values": None}),
    ],
    ids=["plain", "reg", "giant", "qk_norm", "scale_attn_norm", "pre_norm"],
)
def test_mixed_sizes_in_one_pass_equal_one_by_one(name: str, arguments: dict[str, Any]) -> None:
    """A packed sequence attends within each image only, and runs every part of timm's blocks."""
    encoder = tiny_encoder(encoder=name, encoder_args={**SMALL, **arguments})
    images = [pixels(3, 70, 70, seed=1), pixels(3, 42, 98, seed=2), pixels(3, 14, 28, seed=3)]
    calls = []

    def packed(*args: Any) -> Tensor:
        calls.append(args[3])
        return block_diagonal(*args)

    with torch.no_grad():
        features = encoder.forward_list(images, packed=packed)
        alone = [encoder(image[None]) for image in images]
    prefix = 5 if "reg" in name else 1
    assert calls == [[25 + prefix, 21 + prefix, 2 + prefix]] * 4  # once a block, all images
    for found, expected in zip(features, alone, strict=True):
        for tokens, wanted in zip(found.tensors(), expected.tensors(), strict=True):
            assert norm_error(tokens, wanted) < 1e-5
        assert torch.equal(found.guide, expected.guide)


@pytest.mark.parametrize("positions", ["learn", "none"])
def test_vit_without_class_token_or_positions(positions: str) -> None:
    """timm's ViTs may lack either; mixed sizes work for them, too."""
    lacking = {"class_token": False, "global_pool": "avg", "pos_embed": positions}
    encoder = tiny_encoder(encoder="vit_tiny_patch16_224", encoder_args=small(lacking))
    with torch.no_grad():
        features = encoder.forward_list([pixels(3, 64, 64), pixels(3, 32, 96)])
    assert [tuple(f.last.shape[2:]) for f in features] == [(4, 4), (2, 6)]
    assert all(bool(f.last.isfinite().all()) for f in features)


def small(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"img_size": 64, "embed_dim": 24, "depth": 4, "num_heads": 2, **arguments}


@pytest.mark.parametrize("block", ["ResPostBlock", "ParallelScalingBlock", "own attention"])
def test_blocks_of_another_build_are_not_packed(block: str) -> None:
    """Only the plain pre-norm block with timm's own attention runs packed; others one by one."""
    changes = {} if block == "own attention" else {"block_fn": getattr(vision_transformer, block)}
    encoder = tiny_encoder(encoder="vit_tiny_patch16_224", encoder_args=small(changes))
    if block == "own attention":
        encoder.vit.blocks[1].attn = DoubledAttention(24, num_heads=2)
    images = [pixels(3, 64, 64), pixels(3, 32, 96)]
    with torch.no_grad():
        features = encoder.forward_list(images, packed=block_diagonal)
        alone = [encoder(image[None]) for image in images]
    for found, expected in zip(features, alone, strict=True):
        assert norm_error(found.last, expected.last) < 1e-5


class DoubledAttention(Attention):
    """An attention layer of which timm's blocks are built, but with a forward of its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return 2 * super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", (224, 224)),
        ("vit_tiny_patch16_224", (96, 160)),
        ("eva02_tiny_patch14_224", (224, 224)),
        ("eva02_tiny_patch14_224", (98, 140)),
        ("vit_small_patch16_dinov3", (256, 256)),
        ("vit_small_patch16_dinov3", (64, 96)),
    ],
)
def test_other_vits_give_timms_own_features(name: str, size: tuple[int, int]) -> None:
    """Models that are not DINOv2 (RoPE, no position embeddings) equal timm's own forward."""
    arguments = {"depth": 4, "embed_dim": 48, "num_heads": 3}
    encoder = create(ModelConfig(encoder=name, encoder_args=arguments)).eval()
    randomise(encoder, seed=0)
    reference = timm.create_model(name, num_classes=0, dynamic_img_size=True, **arguments).eval()
    reference.load_state_dict(encoder.vit.state_dict())
    images = pixels(2, 3, *size)
    config = reference.pretrained_cfg
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        features, shallow = encoder(images), encoder.shallow(images)
        maps = reference.forward_intermediates(
            (images - mean) / std, indices=[2, 3], norm=False, intermediates_only=True
        )
        whole = reference.forward_features((images - mean) / std)
    prefix = whole.shape[1] - maps[-1][0, 0].numel()
    last = whole[:, prefix:].transpose(1, 2).unflatten(2, maps[-1].shape[2:])
    assert norm_error(features.shallow, maps[0]) < 1e-5
    assert norm_error(shallow, maps[0]) < 1e-5
    assert norm_error(features.last, last) < 1e-5
    assert norm_error(features.correlation[0][:, -1], last) < 1e-5


def test_reads_the_blocks_asked_for() -> None:
    """`adapter_layer` is raw, `correlation_layers` are normalised and keep their order."""
    state = plain.random_state(dim=24, depth=4)
    encoder = create(
        tiny_config(
            encoder_args={**SMALL, "img_size": 518}, adapter_layer=1, correlation_layers=(4, 2)
        )
    ).eval()
    state.pop("mask_token")
    encoder.vit.load_state_dict(state)
    images = pixels(1, 3, 56, 56)
    with torch.no_grad():
        features = encoder(images)
        encoder.vit.blocks[1] = nn.Identity()  # no block after the adapter's matters to it
        shallow = encoder.shallow(images)
    raw = plain.blocks(state, images, heads=2)
    assert norm_error(shallow, raw[0]) < 1e-5
    normed = [plain.final_norm(state, tokens) for tokens in raw]
    assert norm_error(features.shallow, raw[0]) < 1e-5
    assert norm_error(features.correlation[0], torch.stack([normed[3], normed[1]], 1)) < 1e-5


@pytest.mark.parametrize(
    ("name", "layers"),
    [("small", tuple(range(7, 13))), ("base", tuple(range(7, 13))), ("large", tuple(range(13, 25))),
     ("giant", tuple(range(21, 41)))],
)  # fmt: skip
def test_default_correlation_layers_are_the_last_half(name: str, layers: tuple[int, ...]) -> None:
    """L = 6 for S and B, 12 for L, 20 for g."""
    arguments = {"embed_dim": 8, "num_heads": 2}
    encoder = create(ModelConfig(encoder=f"vit_{name}_patch14_dinov2", encoder_args=arguments))
    assert encoder.correlation_layers == layers


def test_normalises_with_the_models_own_or_the_given_statistics() -> None:
    """An image of the mean colour is zero at the patch embedding, whichever mean holds."""
    for mean, std in ((None, None), ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))):
        encoder = tiny_encoder(mean=mean, std=std)
        seen = {}
        encoder.vit.patch_embed.register_forward_pre_hook(
            lambda _, args, s=seen: s.update(x=args[0])
        )
        colour, unit = torch.tensor(mean or plain.MEAN), torch.tensor(std or plain.STD)
        with torch.no_grad():
            encoder(colour[:, None, None].expand(1, 3, 70, 70))
            assert seen["x"].abs().max() == 0
            encoder((colour + unit)[:, None, None].expand(1, 3, 70, 70))
            torch.testing.assert_close(seen["x"], torch.ones(1, 3, 70, 70))


def test_bfloat16_weights() -> None:
    """A cast encoder takes float32 images, and comes as near as bfloat16 can."""
    encoder = tiny_encoder()
    images = pixels(1, 3, 56, 70)
    with torch.no_grad():
        expected = encoder(images)
        features = encoder.to(torch.bfloat16)(images)
    assert features.last.dtype == torch.bfloat16
    assert norm_error(features.last, expected.last) < 0.05


def test_autocast() -> None:
    """Under autocast the encoder comes as near as bfloat16 can."""
    encoder = tiny_encoder()
    images = pixels(1, 3, 56, 70)
    with torch.no_grad():
        expected = encoder(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = encoder(images)
    assert norm_error(features.last, expected.last) < 0.05


@pytest.mark.parametrize("side", [32, 48])
def test_conv_stem(side: int) -> None:
    """Strided convolutions in place of the patch embedding give the same token grid."""
    encoder = conv_stem_encoder()
    with torch.no_grad():
        features = encoder(pixels(1, 3, side, 32))
    assert features.last.shape == (1, 32, side // 8, 4)
    convolutions = [m for m in encoder.vit.patch_embed.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.stride == (2, 2) for m in convolutions) == 3  # 8 = 2 * 2 * 2
    assert convolutions[-1].weight.shape == (32, 32, 1, 1)


def test_a_conv_stem_in_use_ignores_neighbours_in_the_batch() -> None:
    """Once trained, an image's features depend on no batch statistics."""
    encoder = conv_stem_encoder()
    images = pixels(3, 3, 32, 32)
    with torch.no_grad():
        together, alone = encoder(images).last, encoder(images[:1]).last
    torch.testing.assert_close(together[:1], alone)


def conv_stem_encoder() -> Encoder:
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    config = ModelConfig(
        encoder="vit_tiny_patch16_224", encoder_args=arguments, conv_stem=True, adapter_layer=1
    )
    return create(config).eval()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "vit_smal_patch14_dinov2"}, "did you mean vit_small_patch14_dinov2"),
        ({"encoder": "nonsense"}, "unknown encoder 'nonsense'"),
        ({"encoder": "vit_small_patch14_dinov2.nonsense"}, r"choose vit_small_patch14_dinov2\.lvd"),
        ({"encoder": "beit_base_patch16_224", "encoder_args": {}}, "'beit_base_.* plain ViT"),
        ({"encoder": "vit_small_patch14_dinov2.nonsense"}, "vit_small_patch14_dinov2.nonsense"),
        ({"encoder_args": {"wings": 2}}, "wings"),
        ({"encoder_args": {**SMALL, "num_heads": 5}}, "encoder_args"),
        ({"adapter_layer": 5}, "blocks 1 to 4, got 5"),
        ({"correlation_layers": (0, 1)}, "blocks 1 to 4, got 0"),
        ({"conv_stem": True}, "power of 2, got 14"),
    ],
)
def test_impossible_encoders_are_usage_errors(changes: dict[str, Any], message: str) -> None:
    """One line that names the value and, where possible, what was meant."""
    with pytest.raises(UsageError, match=message) as caught:
        create(tiny_config(**changes))
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_downloaded_are_a_usage_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line that names the file, its address, and what to do instead; timm asks nobody."""

    def create_model(*_args: Any, **_options: Any) -> Any:
        raise AssertionError("timm is asked for weights")

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    address = "https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m/resolve/main/"
    words = rf"\(HF_HUB_OFFLINE is set\): get model\.safetensors from {address}model\.safetensors"
    with pytest.raises(UsageError, match=rf"{words} .*pretrained to false and load") as caught:
        create(tiny_config(pretrained=True))
    assert str(caught.value).isprintable()


def test_downloaded_weights_are_timms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pretrained` takes the file that timm would, from the hub's cache, without a network."""
    expected = timm.create_model("vit_small_patch14_dinov2", num_classes=0, **SMALL)
    folder = tmp_path / "models--timm--vit_small_patch14_dinov2.lvd142m" / "snapshots" / "main"
    folder.mkdir(parents=True)
    save_file(expected.state_dict(), folder / "model.safetensors")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = create(tiny_config(pretrained=True)).network.state_dict()
    assert found.keys() == expected.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in expected.state_dict().items())


def test_size_off_the_patch_grid_is_a_usage_error() -> None:
    """Not silently cropped or padded."""
    with pytest.raises(UsageError, match="multiples of the patch size 14, got 70 x 71"):
        tiny_encoder()(torch.zeros(1, 3, 70, 71))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_memory_order_of_what_is_correlated(device: str) -> None:
    """Kernels read features where they are: on the CPU maps, elsewhere vectors of channels.

    Of images encoded together, one by one, chosen, and in another type.
    """
    encoder = tiny_encoder().to(device)
    two = encoder(torch.zeros(2, 3, 28, 42, device=device))
    index = torch.tensor([1, 0, 1], device=device)
    for features in (two, two[index], Features.cat([two[:1], two[1:]]), two.to(torch.bfloat16)):
        corr = features.correlation[0]
        assert corr.shape[2:] == (24, 2, 3)
        dense = corr if device == "cpu" else corr.movedim(2, 4)
        assert dense.is_contiguous()
