"""encode_support and segment: sizes, shots, N-way, tiles, and which supports a model accepts."""

from __future__ import annotations

import copy
import logging
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fsdino.errors import DataError, UsageError
from fsdino.models import segmenting, zoo
from fsdino.models.fsdino import FSDINO
from fsdino.models.segmentation import Segmentation
from fsdino.models.shots import FittedShot
from fsdino.models.supports import Support
from fsdino.models.views import closer
from tiny_models import PATCH, SIDE, box_mask, picture, tiny_config, tiny_model


@pytest.fixture(scope="module")
def model() -> FSDINO:
    return tiny_model()


@pytest.fixture(scope="module")
def support(model: FSDINO) -> Support:
    return model.encode_support(picture(60, 80, seed=1), box_mask(60, 80))


def encoded_images(model: FSDINO) -> list[int]:
    """A list that fills with the number of images of each encoder pass."""
    sizes: list[int] = []
    model.encoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes


@pytest.mark.parametrize("variant", ["full", "training_free"])
def test_scores_stand_in_the_order_of_the_names_and_the_best_tile_decides(variant: str) -> None:
    model = tiny_model(variant=variant)
    query = picture(90, 120)
    names = ("cat", "dog")
    # Of one photograph: each class then gives what it gives alone.
    masks = (box_mask(60, 80), ~box_mask(60, 80))
    supports = {
        name: model.encode_support(picture(60, 80), mask)
        for name, mask in zip(names, masks, strict=True)
    }
    alone = [model.segment(query, supports[name]).score for name in names]
    assert model.segment(query, supports).scores == pytest.approx(alone, abs=1e-5)
    crops = [query[top : top + 60, left : left + 80] for top in (0, 30) for left in (0, 40)]
    found = [result.scores for result in model.segment(crops, supports)]
    tiles = model.segment(query, supports, tiles=True).scores
    assert tiles == pytest.approx(np.max(found, 0), abs=1e-5)
    assert alone[0] != alone[1] and all(0 <= score <= 1 for score in (*alone, *tiles))


# ------------------------------------------------------------------------- encoding supports


@pytest.mark.parametrize("size", [(60, 80), (SIDE, SIDE), (9, 200), (13, 5)])
def test_support_of_any_size(model: FSDINO, size: tuple[int, int]) -> None:
    """Stretched to the model's square; it remembers the size in pixels."""
    support = model.encode_support(picture(*size), box_mask(*size))
    assert support.shots == 1
    assert support.image_sizes == (size,)
    assert support.correlation[0][0].shape == (2, 24, 5, 5)
    assert support.masks[0][0].shape == (5, 5)
    assert support.foreground.shape == support.background.shape == (1, 24)
    assert support.model_fingerprint == model.fingerprint()


def test_shots_of_one_support_share_an_encoder_pass() -> None:
    """Five shots of different sizes are stretched to one size: one pass."""
    model = tiny_model()
    passes = encoded_images(model)
    sizes = [(60, 80), (40, 40), (90, 30), (70, 70), (20, 50)]
    support = model.encode_support(
        [picture(*size) for size in sizes], [box_mask(*size) for size in sizes]
    )
    assert passes == [5]
    assert support.shots == 5


def test_support_is_what_the_same_model_sees_as_tensors() -> None:
    """`segment` and `forward` are one model: the same logits from files and from tensors."""
    model = tiny_model()
    images, query = [picture(SIDE, SIDE, seed) for seed in (1, 2)], picture(SIDE, SIDE, seed=3)
    mask = box_mask(SIDE, SIDE)
    support = model.encode_support(images, [mask, mask])
    found = model.segment(query, support).probability
    batch = torch.from_numpy(np.stack([*images, query])).permute(0, 3, 1, 2).float() / 255
    masks = torch.from_numpy(mask).float().expand(1, 2, -1, -1)
    with torch.no_grad():
        logits = model(batch[None, :2], masks, batch[2:])
    np.testing.assert_allclose(found, logits[0, 0].sigmoid().numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["path", "PIL", "array", "tensor"])
def test_kinds_of_images_and_masks(model: FSDINO, kind: str, tmp_path: Path) -> None:
    """Whatever a picture comes as, the support is the same."""
    image, mask = picture(30, 40), box_mask(30, 40)
    expected = model.encode_support(image, mask)
    white = mask.astype(np.uint8) * 255
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(white).save(tmp_path / "mask.png")
    given: Any = {
        "path": (tmp_path / "image.png", str(tmp_path / "mask.png")),
        "PIL": (Image.fromarray(image), Image.fromarray(white)),
        "array": ([image], [white]),
        "tensor": (torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)),
    }[kind]
    torch.testing.assert_close(model.encode_support(*given).foreground, expected.foreground)


def test_a_mask_of_a_turned_photograph_is_warned_of(
    model: FSDINO, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Turned by 180 degrees, a photograph keeps its size: which way up is its mask?"""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(picture(30, 40)).save(tmp_path / "image.jpg", exif=exif)
    Image.fromarray(box_mask(30, 40)).save(tmp_path / "mask.png")
    model.encode_support(tmp_path / "image.jpg", tmp_path / "mask.png")
    assert caplog.text.count("orientation of its photograph is 3") == 1
    other = tmp_path / "other.png"
    Image.fromarray(box_mask(30, 40)).save(other, exif=Image.Exif())
    model.encode_objects(np.asarray(Image.open(tmp_path / "image.jpg")), {"box": other})
    assert caplog.text.count("orientation of its photograph") == 1


def test_no_support_and_unequal_numbers_are_usage_errors(model: FSDINO) -> None:
    """Each with what to do."""
    with pytest.raises(UsageError, match="no support"):
        model.encode_support([], [])
    with pytest.raises(UsageError, match="2 support images but 1 masks"):
        model.encode_support([picture(9, 9), picture(9, 9)], [box_mask(9, 9)])


def test_mask_of_another_size_is_a_usage_error(model: FSDINO) -> None:
    """Never resized in silence; the error names which shot."""
    images, masks = [picture(20, 30), picture(20, 30)], [box_mask(20, 30), box_mask(30, 20)]
    with pytest.raises(UsageError, match="mask 2"):
        model.encode_support(images, masks)


def test_empty_mask_is_a_data_error(model: FSDINO, tmp_path: Path) -> None:
    """There is nothing to look for; the error names the file."""
    path = tmp_path / "black.png"
    Image.new("L", (30, 20)).save(path)
    for mask in (str(path), path):
        with pytest.raises(DataError, match=r"mask 1.*black\.png.*no foreground"):
            model.encode_support(picture(20, 30), mask)
    with pytest.raises(DataError, match="mask 2"):
        model.encode_support(
            [picture(20, 30)] * 2, [box_mask(20, 30), np.zeros((20, 30), dtype=bool)]
        )


def test_fully_foreground_support(model: FSDINO) -> None:
    """A crop of the object is a valid support: no background, and no NaN."""
    for variant in ("full", "training_free"):
        model = tiny_model(variant=variant)
        support = model.encode_support(picture(40, 40), np.ones((40, 40), dtype=bool))
        assert support.background.abs().max() == 0
        assert np.isfinite(model.segment(picture(30, 30, 1), support).probability).all()


def test_object_of_one_pixel(model: FSDINO) -> None:
    """Smaller than a token, it is still found in its own image by the training-free matcher."""
    free = tiny_model(variant="training_free", match_temperature=1.0)
    image, mask = picture(700, 700), np.zeros((700, 700), dtype=bool)
    mask[310, 450] = True
    probability = free.segment(image, free.encode_support(image, mask)).probability
    row, column = np.unravel_index(probability.argmax(), probability.shape)
    assert (row // 140, column // 140) == (310 // 140, 450 // 140)


# ---------------------------------------------------------------------------------- queries


@pytest.mark.parametrize("size", [(50, 83), (SIDE, SIDE), (300, 20), (7, 11)])
def test_masks_at_the_querys_own_size(
    model: FSDINO, support: Support, size: tuple[int, int]
) -> None:
    """However the model resizes in between."""
    result = model.segment(picture(*size), support)
    assert result.mask.shape == result.probability.shape == result.labels.shape == size
    assert result.image.shape == (*size, 3)
    assert 0 <= result.probability.min() <= result.probability.max() <= 1
    np.testing.assert_array_equal(result.mask, result.probability >= 0.5)
    assert result.names == ("foreground",)


def test_a_list_gives_a_list(model: FSDINO, support: Support) -> None:
    """More queries than fit in a pass, of different sizes; each answer is the one it gets alone."""
    queries = [picture(20 + k, 40 - k, seed=k) for k in range(10)]
    results = model.segment(queries, support)
    assert [r.mask.shape for r in results] == [q.shape[:2] for q in queries]
    for query, result in zip(queries, results, strict=True):
        alone = model.segment(query, support)
        assert isinstance(alone, Segmentation)
        np.testing.assert_allclose(result.probability, alone.probability, atol=1e-5)
    assert model.segment([], support) == []
    assert len(model.segment([queries[0]], support)) == 1


def test_queries_share_encoder_passes(support: Support) -> None:
    """Ten queries are two passes (of eight and two), and not ten."""
    model = tiny_model()
    passes = encoded_images(model)
    model.segment([picture(20, 20, seed) for seed in range(10)], support)
    assert passes == [8, 2]


@pytest.mark.parametrize(("size", "expected"), [(980, [1, 1, 1]), (700, [2, 1])])
def test_passes_on_a_cpu_are_small(size: int, expected: list[int]) -> None:
    """A million pixels at once, or one image: more takes memory and no less time."""
    model = tiny_model(image_size=size)
    support = model.encode_support(picture(40, 60), box_mask(40, 60))
    passes = encoded_images(model)
    model.segment([picture(40, 60)] * 3, support)
    assert passes == expected


def test_n_way_shares_one_encoder_pass() -> None:
    """Three classes cost one pass over the query; each map is the one its support gives alone."""
    model = tiny_model()
    supports = {
        name: model.encode_support(picture(50, 60, seed), box_mask(50, 60))
        for seed, name in enumerate(("cat", "dog", "bird"))
    }
    query = picture(40, 70, seed=7)
    alone = [model.segment(query, support).probability for support in supports.values()]
    passes = encoded_images(model)
    result = model.segment(query, supports)
    assert passes == [1]
    assert result.names == ("cat", "dog", "bird")
    np.testing.assert_allclose(result.probabilities, np.stack(alone), atol=1e-6)
    best = np.stack(alone).argmax(0) + 1
    expected = np.where(np.stack(alone).max(0) >= 0.5, best, 0)
    assert (result.labels == expected).mean() > 0.999
    assert result.labels.shape == (40, 70)


@pytest.mark.parametrize("threshold", [0.2, 0.9])
def test_threshold(model: FSDINO, support: Support, threshold: float) -> None:
    """Moves the mask and leaves the probability."""
    query = picture(30, 40, seed=5)
    result = model.segment(query, support, threshold=threshold)
    expected = model.segment(query, support).probability
    np.testing.assert_array_equal(result.probability, expected)
    np.testing.assert_array_equal(result.mask, expected >= threshold)


def test_threshold_of_the_configuration_is_the_default() -> None:
    """A model that was calibrated keeps its threshold."""
    model = tiny_model(threshold=0.3)
    support = model.encode_support(picture(30, 30), box_mask(30, 30))
    assert model.segment(picture(30, 30), support).threshold == 0.3


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, float("nan")])
def test_impossible_thresholds_are_usage_errors(
    model: FSDINO, support: Support, threshold: float
) -> None:
    """0 and 1 would make everything or nothing foreground."""
    with pytest.raises(UsageError, match="threshold"):
        model.segment(picture(9, 9), support, threshold=threshold)


@pytest.mark.parametrize("nothing", [None, {}, {"cat": None}])
def test_no_support_is_a_usage_error(model: FSDINO, nothing: Any) -> None:
    """A forgotten support is named, and not an AttributeError."""
    with pytest.raises(UsageError, match="no support given"):
        model.segment(picture(9, 9), nothing)


def test_a_picture_in_a_supports_place_is_named(model: FSDINO, support: Support) -> None:
    """The two arguments are easily swapped, and a support is easily not encoded."""
    for wrong, word in ((picture(9, 9), "ndarray"), ("cat.jpg", "str"), ([support], "list")):
        with pytest.raises(UsageError, match=f"support is a {word}, not a Support: encode_support"):
            model.segment(picture(9, 9), wrong)


def test_a_generator_of_images_is_for_segment_iter(model: FSDINO, support: Support) -> None:
    with pytest.raises(UsageError, match="query is a generator: pass a list, or use segment_iter"):
        model.segment((image for image in [picture(9, 9)]), support)


def test_unreadable_query_is_named(model: FSDINO, support: Support, tmp_path: Path) -> None:
    """Which of the list, and its path."""
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(DataError, match=r"query 2.*broken\.jpg"):
        model.segment([picture(9, 9), tmp_path / "broken.jpg"], support)


# ------------------------------------------------------------------------- aspect and tiles


def test_keep_aspect_rounds_both_sides_to_whole_tokens() -> None:
    """The longer side becomes image_size, the other the nearest multiple, at least one token."""
    model = tiny_model(keep_aspect=True)
    sizes: list[tuple[int, ...]] = []
    model.encoder.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[2:])))
    for height, width in ((100, 100), (100, 55), (30, 90), (4, 400)):
        model.encode_support(picture(height, width), np.ones((height, width), dtype=bool))
    assert sizes == [(70, 70), (70, 42), (28, 70), (14, 70)]


@pytest.mark.parametrize("variant", ["full", "training_free"])
def test_keep_aspect_with_supports_of_different_sizes(variant: str) -> None:
    """Grids differ from shot to shot and from the query's; every shot counts as it would alone."""
    model = tiny_model(variant=variant, keep_aspect=True)
    shapes = [(100, 50), (60, 90), (80, 80)]
    images = [picture(*shape, seed) for seed, shape in enumerate(shapes)]
    masks = [box_mask(*shape) for shape in shapes]
    support = model.encode_support(images, masks)
    singles = [model.encode_support(i, m) for i, m in zip(images, masks, strict=True)]
    assert [tuple(m.shape) for (m,) in support.masks] == [
        tuple(s.masks[0][0].shape) for s in singles
    ]
    for k, single in enumerate(singles):
        torch.testing.assert_close(support.foreground[k], single.foreground[0])
        torch.testing.assert_close(support.correlation[k][0], single.correlation[0][0])
    result = model.segment(picture(40, 120, seed=9), support)
    assert result.mask.shape == (40, 120)


def test_tiles_cut_an_image_at_the_supports_scale() -> None:
    """A large query becomes tiles of the support's size, each stretched to the model's square."""
    model = tiny_model()
    support = model.encode_support(picture(40, 60), box_mask(40, 60))
    query = picture(100, 150, seed=3)
    crops: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, args: crops.extend(args[0]))
    result = model.segment(query, support, tiles=True)
    assert result.mask.shape == (100, 150)
    assert len(crops) == 4 * 4  # rows at 0, 20, 40, 60; columns at 0, 30, 60, 90
    assert {tuple(crop.shape) for crop in crops} == {(3, SIDE, SIDE)}
    corner = model.segment(query[:20, :30], support)  # seen by one tile only
    tile = model.segment(query[:40, :60], support)
    np.testing.assert_allclose(result.probability[:20, :30], tile.probability[:20, :30], atol=1e-5)
    assert corner.mask.shape == (20, 30)


@pytest.mark.parametrize("size", [(40, 60), (10, 20), (39, 12)])
def test_tiles_larger_than_the_image_change_nothing(size: tuple[int, int]) -> None:
    """An image within one tile is segmented whole."""
    model = tiny_model()
    support = model.encode_support(picture(40, 60), box_mask(40, 60))
    query = picture(*size, seed=3)
    whole = model.segment(query, support)
    np.testing.assert_allclose(
        model.segment(query, support, tiles=True).probability, whole.probability, atol=1e-6
    )


def test_tiles_with_several_supports_take_their_median_size() -> None:
    """N-way shares the tiles, too: one pass over each, for all classes."""
    model = tiny_model()
    supports = {
        str(side): model.encode_support(picture(side, side), box_mask(side, side))
        for side in (20, 30, 90)
    }
    passes = encoded_images(model)
    result = model.segment([picture(45, 30)], supports, tiles=True)[0]
    assert passes == [2]  # two tiles of 30 x 30
    assert result.probabilities.shape == (3, 45, 30)


# ------------------------------------------------------------------ whose support is it


def test_a_support_of_another_model_is_refused(model: FSDINO, support: Support) -> None:
    """Other weights or another configuration; the error names the support."""
    for other in (tiny_model(seed=1), tiny_model(correlation_layers=(3,))):
        with pytest.raises(UsageError, match="'dog' was made by another model"):
            other.segment(picture(9, 9), {"dog": support})


def test_equal_models_share_supports(support: Support) -> None:
    """The fingerprint is of configuration and weights, not of the object."""
    assert tiny_model().segment(picture(9, 9), support).mask.shape == (9, 9)


def change_by_loading(model: FSDINO) -> None:
    model.load_state_dict(tiny_model(seed=1).state_dict())


def change_by_loading_a_part(model: FSDINO) -> None:
    model.decoder.load_state_dict(tiny_model(seed=1).decoder.state_dict())


def change_by_loading_the_encoder(model: FSDINO) -> None:
    model.encoder.vit.load_state_dict(tiny_model(seed=1).encoder.vit.state_dict())


def change_by_a_step(model: FSDINO) -> None:
    model.train()
    model.fingerprint()  # asked for between steps, as a log would
    step(model, torch.optim.SGD)
    model.eval()


def change_by_a_step_in_eval_mode(model: FSDINO) -> None:
    step(model, torch.optim.AdamW)


def change_by_a_fused_step(model: FSDINO) -> None:
    model.train()
    model.fingerprint()
    step(model, torch.optim.AdamW, fused=True)
    model.eval()


def change_by_hand(model: FSDINO) -> None:
    with torch.no_grad():
        model.decoder.mask_tokens.weight[0, 0] += 1


def step(model: FSDINO, optimizer: Any, **options: Any) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer(trained, lr=0.1, **options).step()


@pytest.mark.parametrize(
    "change",
    [
        change_by_loading,
        change_by_loading_a_part,
        change_by_loading_the_encoder,
        change_by_a_step,
        change_by_a_step_in_eval_mode,
        change_by_a_fused_step,
        change_by_hand,
    ],
)
def test_a_changed_model_refuses_its_old_supports(change: Any) -> None:
    """Whichever way the weights changed, features would no longer fit."""
    model = tiny_model()
    support = model.encode_support(picture(30, 30), box_mask(30, 30))
    change(model)
    with pytest.raises(UsageError, match="another model"):
        model.segment(picture(9, 9), support)


def test_changing_a_copy_leaves_the_original() -> None:
    """Copies are models of their own."""
    model = tiny_model()
    support = model.encode_support(picture(30, 30), box_mask(30, 30))
    twin = copy.deepcopy(model)
    assert twin.segment(picture(9, 9), support).mask.shape == (9, 9)
    change_by_loading(twin)
    assert twin.fingerprint() != model.fingerprint()
    assert model.segment(picture(9, 9), support).mask.shape == (9, 9)


def test_a_model_can_be_pickled() -> None:
    """As data-parallel training and process pools do."""
    model = tiny_model()
    assert pickle.loads(pickle.dumps(model)).fingerprint() == model.fingerprint()


@pytest.mark.parametrize("variant", ["full", "training_free"])
@pytest.mark.parametrize("cast", ["support", "model"])
def test_supports_are_exchanged_between_dtypes(variant: str, cast: str) -> None:
    """A cast keeps the fingerprint: float32 supports serve the bfloat16 model, and the reverse."""
    model = tiny_model(variant=variant)
    image, mask, query = picture(40, 40), box_mask(40, 40), picture(30, 30, 1)
    expected = model.segment(query, model.encode_support(image, mask)).probability
    if cast == "support":
        support = model.to(torch.bfloat16).encode_support(image, mask)
        model = tiny_model(variant=variant)
    else:
        support = model.encode_support(image, mask)
        model.to(torch.bfloat16)
    found = model.segment(query, support)
    assert found.probability.dtype == np.float32
    assert np.abs(found.probability - expected).mean() < 0.05


@pytest.mark.parametrize("variant", ["full", "comp", "training_free"])
def test_bfloat16_end_to_end(variant: str) -> None:
    """encode_support, save, load and segment with a cast model."""
    model = tiny_model(variant=variant, keep_aspect=True).to(torch.bfloat16)
    support = model.encode_support(
        [picture(40, 30), picture(30, 60)], [box_mask(40, 30), box_mask(30, 60)]
    )
    result = model.segment(picture(30, 20, 1), {"a": support, "b": support})
    assert result.probabilities.shape == (2, 30, 20)
    assert np.isfinite(result.probabilities).all()


def test_nothing_is_tracked_or_changed_by_using_a_model(model: FSDINO) -> None:
    """No autograd graph is kept alive, no gradient appears, the mode stays."""
    support = model.encode_support(picture(30, 30), box_mask(30, 30))
    assert not support.foreground.requires_grad
    assert not any(t.requires_grad for (t,) in support.correlation)
    model.segment(picture(30, 30), support)
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


def test_grid_of_the_model_is_image_size_over_patch() -> None:
    """The patch size is the encoder's."""
    model = zoo.assemble(tiny_config(image_size=6 * PATCH))
    assert model.patch_size == PATCH
    support = model.encode_support(picture(20, 20), box_mask(20, 20))
    assert support.masks[0][0].shape == (6, 6)


def test_the_library_prints_nothing(
    model: FSDINO,
    support: Support,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Standard logging only."""
    caplog.set_level(logging.WARNING, "fsdino")
    model.segment(picture(20, 20), support)
    assert capfd.readouterr() == ("", "")


def test_device_is_where_the_weights_are() -> None:
    """Also for a model without any trained part."""
    assert tiny_model(variant="training_free").device == torch.device("cpu")
    assert nn.Module.to(tiny_model(), "meta").device == torch.device("meta")


def test_tiles_without_end_are_refused(model: FSDINO) -> None:
    """A tiny support beside a large query would mean thousands of encoder passes."""
    support = model.encode_support(picture(4, 4), box_mask(4, 4))
    with pytest.raises(UsageError, match=r"cuts a query of 300 x 300 into \d+ tiles"):
        model.segment(picture(300, 300), support, tiles=True)


def poison(model: FSDINO, name: str, value: float) -> None:
    """One value among the weights or buffers of a part."""
    with torch.no_grad():
        model.state_dict(keep_vars=True)[name].view(-1)[0] = value


WEIGHTS = (
    "encoder.vit.blocks.1.mlp.fc1.bias",
    "encoder.vit.norm.weight",
    "prior.blocks.0.norm.bias",
)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_not_finite_are_named(name: str, value: float) -> None:
    """Not an empty mask; before and after a support was encoded, in every way to ask."""
    model = tiny_model()
    support = model.encode_support([picture(40, 60)], [box_mask(40, 60)])
    poison(model, name, value)
    damaged = replace(support, model_fingerprint=model.fingerprint())
    words = rf"weights hold NaN or infinity \({name}\)"
    with pytest.raises(DataError, match=words):
        model.encode_support([picture(40, 60)], [box_mask(40, 60)])
    with pytest.raises(DataError, match=words):
        model.encode_objects(picture(40, 60), {"a": box_mask(40, 60)})
    for supports in (damaged, {"a": damaged, "b": damaged}):
        for tiles in (False, True):
            with pytest.raises(DataError, match=words):
                model.segment(picture(90, 130), supports, tiles=tiles)


def test_images_that_a_model_cannot_normalise_are_named() -> None:
    """A standard deviation of 0 gives infinite pixels: no support, and no mask."""
    model = tiny_model()
    support = model.encode_support([picture(40, 60)], [box_mask(40, 60)])
    model.encoder.std.zero_()
    with pytest.raises(DataError, match="support image 1: the encoder's output is not finite"):
        model.encode_support([picture(40, 60)], [box_mask(40, 60)])
    with pytest.raises(DataError, match="query: the encoder's output is not finite"):
        model.segment(picture(40, 60), replace(support, model_fingerprint=model.fingerprint()))


def damage(support: Support, part: str, change: Any) -> Support:
    value = getattr(support, part)
    if isinstance(value, tuple):
        ((first,), *rest) = value
        return replace(support, **{part: ((change(first.clone()),), *rest)})
    return replace(support, **{part: change(value.clone())})


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[0] = torch.nan
    return tensor


@pytest.mark.parametrize("variant", ["full", "training_free"])
@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("foreground", with_nan, "NaN or infinity"),
        ("background", with_nan, "NaN or infinity"),
        ("correlation", with_nan, "NaN or infinity"),
        ("masks", with_nan, "NaN or infinity"),
        ("masks", lambda t: t / 0, "NaN or infinity"),
        ("masks", torch.zeros_like, "a mask is empty"),
        ("masks", lambda t: 2 * t, r"a mask leaves \[0, 1\]"),
        ("masks", lambda t: t[:0], "do not fit"),
        ("masks", lambda t: t[0], "do not fit"),
        ("correlation", lambda t: t[:, :, :3], "do not fit"),
        ("correlation", lambda t: t[:1], "1 layers of 24 channels, this model has 2 layers of 24"),
        (
            "correlation",
            lambda t: t[:, :5],
            "2 layers of 5 channels, this model has 2 layers of 24",
        ),
        ("foreground", lambda t: t[:, :5], "background has the shape"),
        ("foreground", lambda t: t[:0], "background has the shape"),
        ("foreground", lambda t: t.int(), "not all floating"),
    ],
)
def test_a_damaged_support_is_named(part: str, change: Any, words: str, variant: str) -> None:
    """By its name, whatever reads it: NaN in a mask, for one, counted as background."""
    model = tiny_model(variant=variant)
    support = model.encode_support([picture(40, 60)], [box_mask(40, 60)])
    supports = {"good": support, "bad": damage(support, part, change)}
    for tiles in (False, True):
        with pytest.raises(DataError, match=rf"support 'bad' cannot be used: .*{words}"):
            model.segment(picture(90, 130), supports, tiles=tiles)


def test_a_support_without_shots_is_named(model: FSDINO, support: Support) -> None:
    """And one whose parts disagree about their number."""
    empty = replace(support, correlation=(), masks=(), image_sizes=())
    with pytest.raises(DataError, match="'foreground' cannot be used: it has no shots"):
        model.segment(picture(40, 60), empty)
    uneven = replace(support, image_sizes=support.image_sizes * 2)
    with pytest.raises(DataError, match="different numbers of shots"):
        model.segment(picture(40, 60), uneven)


def test_logits_that_are_not_finite_name_the_support(model: FSDINO, support: Support) -> None:
    """Below `segment`, too, where evaluation asks; finite ones are those of `decode`."""
    query = model.encode_list([model._prepare(picture(50, 50))])[0]
    features = support.features(1)
    logits = model.answer(query, [features], names=["cat"]).logits
    assert torch.equal(logits, model.decode(query, features)[0])
    broken = damage(support, "correlation", with_nan).features(1)
    with pytest.raises(DataError, match="support 'cat' holds NaN or infinity"):
        model.answer(query, [features, broken], names=["dog", "cat"])


def test_overflow_is_neither_support_nor_weights(
    model: FSDINO, support: Support, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query for which half precision overflows says which type it was."""
    monkeypatch.setattr(FSDINO, "decode", lambda *_: (torch.full((1, 1, 5, 5), torch.inf), None))
    with pytest.raises(DataError, match=r"output for support 'foreground' .* torch\.float32"):
        model.segment(picture(50, 50), support)


def test_quality_of_a_single_support_is_the_iou_of_its_second_view() -> None:
    """A crop of 60 % around the object, mirrored, segmented by the whole image."""
    model = tiny_model(variant="training_free", matcher="prototype")
    image, mask = picture(40, 60), box_mask(40, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        support = model.encode_support(image, mask, quality=True)
    view = closer(image, mask, 0.6)
    assert view is not None
    found = model.segment(view.image, model.encode_support(image, mask)).mask
    expected = (found & view.mask).sum() / (found | view.mask).sum()
    assert support.quality == pytest.approx(expected, abs=1e-6)


def test_quality_of_several_leaves_each_out_in_turn() -> None:
    model = tiny_model(variant="training_free")
    images = [picture(40, 60), picture(40, 60)[::-1].copy(), picture(60, 40)]
    masks = [box_mask(40, 60), box_mask(40, 60), box_mask(60, 40)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        support = model.encode_support(images, masks, quality=True)
    ious = []
    for k in range(3):
        others = [n for n in range(3) if n != k]
        rest = model._support(
            model.encode_list([model._prepare(images[n]) for n in others]),
            [masks[n] for n in others],
        )
        found = model.segment(images[k], rest).mask
        ious.append((found & masks[k]).sum() / (found | masks[k]).sum())
    assert support.quality == pytest.approx(np.mean(ious), abs=1e-6)


def test_a_support_that_does_not_find_itself_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the limit, with the number and what may help; above it, or unasked, not at all."""
    model = tiny_model()
    monkeypatch.setattr(segmenting, "LEAST_QUALITY", 1.01)
    with pytest.warns(
        UserWarning, match=r"finds itself with an IoU of 0\.\d\d only: .*help"
    ) as found:
        support = model.encode_support(picture(40, 60), box_mask(40, 60), quality=True)
    assert len(found) == 1 and support.quality is not None
    assert model.encode_support(picture(40, 60), box_mask(40, 60)).quality is None
    model.encode_support(picture(40, 60), box_mask(40, 60), quality=True, warn=False)
    monkeypatch.setattr(segmenting, "LEAST_QUALITY", support.quality)
    model.encode_support(picture(40, 60), box_mask(40, 60), quality=True)


def test_a_small_object_is_looked_at_from_nearer() -> None:
    """Below 2 % of its image the tokens of a second view are fitted and matched, too."""
    model = tiny_model(variant="training_free")
    small = np.zeros((60, 80), bool)
    small[20:28, 30:40] = True  # 1.7 %
    support = model.encode_support(picture(60, 80), small)
    assert len(seen(support)) == 2 and support.shots == 1
    assert len(seen(model.encode_support(picture(60, 80), box_mask(60, 80)))) == 1
    assert len(seen(model.encode_support([picture(60, 80)] * 2, [small] * 2))) == 2
    assert tiny_model().encode_support(picture(60, 80), small).fit is None
    assert support.fit is not None
    alone = replace(support, fit=replace(support.fit, shots=seen(support)[:1]))
    query = picture(60, 80)[::-1].copy()
    both = model.segment(query, support).probability - model.segment(query, alone).probability
    assert np.abs(both).max() > 1e-3


def seen(support: Support) -> tuple[FittedShot, ...]:
    """What queries are matched with."""
    assert support.fit is not None
    return support.fit.shots


def test_a_support_without_a_fit_says_to_encode_again() -> None:
    """As an earlier version saved it for a training-free model."""
    model = tiny_model(variant="training_free")
    support = model.encode_support(picture(40, 60), box_mask(40, 60))
    with pytest.raises(DataError, match=r"earlier version.*encode it again with encode_support"):
        model.segment(picture(40, 60), replace(support, fit=None))
