"""Networks with stages as encoders: timm's own maps on one grid, at every size."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino import ops
from fsdino.errors import UsageError
from fsdino.models import zoo
from fsdino.models.config import ModelConfig
from fsdino.models.encoders import PyramidEncoder, create
from fsdino.ops import backends
from pyramids import NETWORKS, pyramid, pyramid_config
from tiny_models import episode

FAMILIES = list(NETWORKS)
# Blocks at whose ends timm's own stages end, counted by hand from each network's table of blocks.
ENDS = {
    "EfficientNet": (1, 3, 5, 11, 16),
    "ResNet": (1, 3, 4, 5),
    "ConvNeXt": (1, 2, 4, 5),
    "Swin": (1, 2, 4, 5),
    "RegNet": (1, 2, 6, 13),
    "MobileNet": (1, 3, 8, 12),
}


def pixels(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def stages(encoder: PyramidEncoder, images: Tensor) -> list[Tensor]:
    """timm's own outputs of the stages [B, c, h, w], without that of a stem."""
    config = encoder.net.pretrained_cfg
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    maps = encoder.net.forward_intermediates(
        (images - mean) / std, intermediates_only=True, output_fmt="NCHW"
    )
    return maps[-len(encoder.correlation_layers) :]


def on_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Another formulation of the resampling: one side after the other, by matrices of weights."""
    for side, count in ((2, grid[0]), (3, grid[1])):
        size = maps.shape[side]
        weights = torch.zeros(count, size)
        for place in range(count):
            if count <= size:  # the mean of what the token touches
                first, last = place * size // count, -(-(place + 1) * size // count)
                weights[place, first:last] = 1 / (last - first)
            else:
                centre = max((place + 0.5) * size / count - 0.5, 0.0)
                low, share = int(centre), centre - int(centre)
                weights[place, low] += 1 - share
                weights[place, min(low + 1, size - 1)] += share
        maps = (maps.movedim(side, -1) @ weights.T).movedim(-1, side)
    return maps


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (75, 101)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_timms_own_stages(family: str, size: tuple[int, int]) -> None:
    """The blocks that end a stage equal timm's stages, on ceil(side / 16) tokens, padded by 0."""
    encoder = pyramid(family, correlation_layers=ENDS[family])
    images = pixels(2, 3, *size)
    with torch.no_grad():
        features = encoder(images)
        expected = stages(encoder, images)
    grid = (-(-size[0] // 16), -(-size[1] // 16))
    width = max(maps.shape[1] for maps in expected)
    assert encoder.channels == width and encoder.grid(*size) == grid
    assert features.correlation[0].shape == (2, len(expected), width, *grid)
    assert encoder.layer_widths == tuple(maps.shape[1] for maps in expected)
    for index, maps in enumerate(expected):
        tokens = features.correlation[0][:, index]
        torch.testing.assert_close(
            tokens[:, : maps.shape[1]], on_grid(maps, grid), rtol=1e-5, atol=1e-5
        )
        assert not tokens[:, maps.shape[1] :].any()
    assert torch.equal(features.last, features.correlation[0][:, -1])


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_what_the_network_is_made_of(family: str) -> None:
    """Every residual block counts, over all stages; the last of them ends the last stage."""
    depth = {"EfficientNet": 16, "RegNet": 13, "MobileNet": 12}.get(family, 5)
    encoder = pyramid(family)
    assert encoder.depth == depth
    assert encoder.correlation_layers == tuple(range(depth - depth // 2 + 1, depth + 1))
    assert encoder.read_layers == [2, *encoder.correlation_layers]


def test_a_block_within_a_stage() -> None:
    """By hand for a ResNet: stem, one block of the first stage, then those of the second."""
    encoder = pyramid("ResNet", adapter_layer=1, correlation_layers=(3, 2), token_stride=8)
    images = pixels(1, 3, 64, 80)
    net = encoder.net
    with torch.no_grad():
        features, shallow = encoder(images), encoder.shallow(images)
        x = F.max_pool2d(F.relu(net.bn1(net.conv1(encoder._normalise(images)))), 3, 2, 1)
        first = net.layer1[0](x)
        second = net.layer2[0](first)
        third = net.layer2[1](second)
    padded = F.pad(F.avg_pool2d(first, 2), (0, 0, 0, 0, 0, 4))
    torch.testing.assert_close(features.correlation[0], torch.stack([third, second], 1))
    torch.testing.assert_close(features.last, third)  # the highest one, not the last one named
    torch.testing.assert_close(features.shallow, padded)
    torch.testing.assert_close(shallow, padded)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_after_the_last_one_read_do_not_run(family: str) -> None:
    """Neither those of its own stage nor later ones."""
    encoder = pyramid(family, adapter_layer=1, correlation_layers=(2, ENDS[family][2] - 1))
    last = ENDS[family][2] - 1
    ran = []
    for number, paths in enumerate(encoder.plan.blocks, start=1):
        for path in paths:
            module = encoder.net.get_submodule(path)
            module.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    with torch.no_grad():
        encoder(pixels(1, 3, 64, 64))
        assert sorted({*ran}) == list(range(1, last + 1))
        ran.clear()
        encoder.shallow(pixels(1, 3, 64, 64))
    assert {*ran} == {1}


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("width", [5, 24, 80, 112])
def test_padded_channels_change_no_correlation(backend: str, width: int) -> None:
    """Channels of zeros leave cosines as they are: to the bit on cpp, to 1e-6 elsewhere."""
    if backends.why_not(backend, "correlation4d", torch.device("cpu"), torch.float32) is not None:
        pytest.skip("cpp is not built: run `fsdino build`")
    query, support = pixels(2, 2, width, 7, 9) - 0.5, pixels(2, 2, width, 5, 6, seed=1) - 0.5
    mask = pixels(2, 5, 6, seed=2)
    narrow = ops.correlation4d(query, support, mask, backend=backend)
    padded = (F.pad(tokens, (0, 0, 0, 0, 0, 320 - width)) for tokens in (query, support))
    wide = ops.correlation4d(*padded, mask, backend=backend)
    assert narrow.any()
    if backend == "cpp":
        assert torch.equal(narrow, wide)
    torch.testing.assert_close(narrow, wide, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 80), (5, 7), (1, 1), (33, 200)])
@pytest.mark.parametrize("family", FAMILIES)
def test_images_smaller_than_a_token_of_the_last_stage(family: str, size: tuple[int, int]) -> None:
    """A thin strip of an image has tokens, too, also where a network's strides leave nothing."""
    encoder = pyramid(family)
    with torch.no_grad():
        features = encoder(pixels(1, 3, *size))
    assert features.last.shape[-2:] == (-(-size[0] // 16), -(-size[1] // 16))
    assert features.correlation[0].isfinite().all() and features.correlation[0].any()


def test_the_rim_of_a_small_image_is_not_among_its_tokens() -> None:
    """A strip at the top of a larger image of the same rows has the tokens of that row."""
    encoder = pyramid("ConvNeXt", adapter_layer=1, correlation_layers=(1, 5), token_stride=4)
    strip = pixels(1, 3, 8, 64)
    with torch.no_grad():
        found = encoder(strip).shallow
        whole = encoder(torch.cat([strip, strip[:, :, -1:].expand(-1, -1, 24, -1)], 2)).shallow
    torch.testing.assert_close(found, whole[:, :, :2])


@pytest.mark.parametrize("family", ["EfficientNet", "ResNet", "RegNet", "MobileNet"])
def test_images_in_a_batch_do_not_see_each_other(family: str) -> None:
    """Batch normalisation uses what it has learned, also in an encoder that is being trained."""
    encoder = pyramid(family).train()
    before = copy.deepcopy(encoder.state_dict())
    images = pixels(3, 3, 64, 64)
    with torch.no_grad():
        together, alone = encoder(images).last, encoder(images[:1]).last
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)
    after = encoder.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("size", [(64, 96), (50, 70)], ids=str)
def test_the_guide_is_the_image_at_quarters_of_tokens(size: tuple[int, int]) -> None:
    """Means over areas, each pixel weighing the same where the sides divide."""
    encoder, images = pyramid("EfficientNet"), pixels(2, 3, *size)
    found = encoder(images)
    rows, columns = found.last.shape[-2:]
    assert found.guide.shape == (2, 3, 4 * rows, 4 * columns)
    torch.testing.assert_close(found.guide, on_grid(images, (4 * rows, 4 * columns)))
    if size == (64, 96):
        torch.testing.assert_close(found.guide, F.avg_pool2d(images, 4))


def test_mixed_sizes_equal_single_images() -> None:
    encoder = pyramid("EfficientNet")
    images = [pixels(3, 64, 64, seed=1), pixels(3, 40, 70, seed=2)]
    with torch.no_grad():
        found = encoder.forward_list(images)
        alone = [encoder(image[None]) for image in images]
    for one, other in zip(found, alone, strict=True):
        assert torch.equal(one.correlation[0], other.correlation[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16(family: str) -> None:
    """Under autocast, and cast, tokens come as near as bfloat16 can."""
    encoder = pyramid(family)
    images = pixels(1, 3, 64, 96)
    with torch.no_grad():
        expected = encoder(images).correlation[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = encoder(images).correlation[0]
        cast = encoder.to(torch.bfloat16)(images).correlation[0]
    assert cast.dtype == torch.bfloat16
    for found in (autocast, cast):
        error = torch.linalg.vector_norm(found.float() - expected)
        assert error / torch.linalg.vector_norm(expected) < 0.05


@pytest.mark.parametrize("family", ["ResNet", pytest.param("Swin", marks=pytest.mark.slow)])
def test_compiled(family: str) -> None:
    """As one graph: no block needs Python between its modules."""
    encoder = pyramid(family, correlation_layers=ENDS[family])
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    images = pixels(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = compiled(images), encoder(images)
    torch.testing.assert_close(found.correlation[0], expected.correlation[0])
    torch.testing.assert_close(found.shallow, expected.shallow)


def test_copies_and_pickles_run_by_themselves() -> None:
    """A copy reads its own weights, not those that it was copied from."""
    encoder = pyramid("ResNet")
    images = pixels(1, 3, 64, 64)
    with torch.no_grad():
        expected = encoder(images).correlation[0]
        copies = [copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))]
        for parameter in encoder.parameters():
            parameter.zero_()
        for copied in copies:
            assert torch.equal(copied(images).correlation[0], expected)


def test_normalises_with_the_models_own_or_the_given_statistics() -> None:
    """An image of the mean colour is zero for the network, whichever mean holds."""
    own = (127 / 255,) * 3
    for mean, std in (((0.485, 0.456, 0.406), None), (own, (128 / 255,) * 3)):
        encoder = pyramid("ResNet", mean=mean if std else None, std=std)
        seen: dict[str, Tensor] = {}
        encoder.net.conv1.register_forward_pre_hook(lambda _, x, seen=seen: seen.update(x=x[0]))
        with torch.no_grad():
            encoder(torch.tensor(mean)[:, None, None].expand(1, 3, 64, 64))
        assert seen["x"].abs().max() < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loads(family: str, tmp_path: Path) -> None:
    """Whatever the network is made of: the same fingerprint and the same tokens."""
    model = zoo.assemble(pyramid_config(family, variant="training_free"), pyramid(family)).eval()
    model.save_pretrained(tmp_path)
    loaded = zoo.load(tmp_path)
    assert loaded.fingerprint() == model.fingerprint()
    image = pixels(1, 3, 64, 64)
    assert torch.equal(loaded.encode(image).correlation[0], model.encode(image).correlation[0])


@pytest.mark.parametrize("variant", ["full", "comp", "training_free", "hsnet_head"])
def test_everything_above_takes_it(variant: str) -> None:
    """Adapter, prompts, 4D prior, decoder and baselines: as with a ViT, and it learns."""
    model = zoo.assemble(pyramid_config("ResNet", variant=variant, correlation_layers=(2, 4, 5)))
    supports, masks, queries = episode(2, 1, side=64)
    logits = model(supports, masks, queries)
    assert logits.shape == (2, 1, 64, 64)
    if variant != "training_free":
        logits.mean().backward()
        assert all(p.grad is None for p in model.encoder.parameters())
        assert any(p.grad is not None for p in model.parameters())


def test_an_image_of_another_shape_from_file_to_mask() -> None:
    """`keep_aspect` with sides that no stage divides, and a mask at the query's own size."""
    model = zoo.assemble(
        pyramid_config("ConvNeXt", variant="training_free", image_size=90, keep_aspect=True)
    ).eval()
    image = (255 * pixels(50, 131, 3)).to(torch.uint8).numpy()
    mask = torch.zeros(50, 131, dtype=torch.bool)
    mask[10:40, 30:90] = True
    support = model.encode_support(image, mask.numpy())
    assert model.segment(image, support).mask.shape == (50, 131)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter_layer": 6}, "resnet18 has blocks 1 to 5, got 6"),
        ({"correlation_layers": (0, 2)}, "resnet18 has blocks 1 to 5, got 0"),
        ({"conv_stem": True}, "conv_stem is for ViTs, not for resnet18"),
        ({"encoder": "resnet19"}, "unknown encoder 'resnet19'.*did you mean.*resnet"),
        ({"encoder": "hrnet_w18_small", "encoder_args": {}}, "'hrnet_w18_small' is neither"),
        ({"encoder": "mixer_s32_224", "encoder_args": {}}, "'mixer_s32_224' is neither"),
        ({"encoder_args": {"depth": 3}}, "cannot create encoder 'resnet18'.*depth"),
    ],
)
def test_impossible_encoders_are_usage_errors(changes: dict[str, Any], message: str) -> None:
    """One line that names the value and, where possible, what was meant."""
    with pytest.raises(UsageError, match=message) as caught:
        create(pyramid_config("ResNet", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": (1, 0, 1, 1)}, "layers in encoder_args must be at least 1, got 0"),
        ({"layers": (1, 10**9, 1, 1)}, "layers in encoder_args must be at most 128"),
        ({"channels": [8] * 17}, "channels in encoder_args must be a whole number, got"),
        ({"channels": "8"}, "channels in encoder_args must be a whole number, got '8'"),
        ({"stem_type": "folder/file"}, "unknown stem_type in encoder_args 'folder/file'"),
        ({"pretrained_cfg": {}}, "must not have 'pretrained_cfg', only what shapes a network"),
    ],
)
def test_encoder_args_are_bounded(arguments: dict[str, Any], message: str) -> None:
    """A configuration from anywhere names neither files nor networks that fill the memory."""
    with pytest.raises(UsageError, match=message):
        ModelConfig(encoder="resnet18", encoder_args=arguments)


@pytest.mark.parametrize("stride", [0, 257, 1.5])
def test_token_stride_is_bounded(stride: float) -> None:
    with pytest.raises(UsageError, match="token_stride must be"):
        ModelConfig(encoder="resnet18", token_stride=stride)  # type: ignore[arg-type]


def test_dinov2_weights_are_for_vits() -> None:
    with pytest.raises(UsageError, match=r"weights d\.pth: only a ViT takes DINOv2's"):
        zoo.load_dinov2(pyramid("ResNet"), "d.pth")
