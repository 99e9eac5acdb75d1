"""The whole model: what reaches which part, shots, variants, what learns, and its cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fsdino
from fsdino.bench.exactness import norm_error
from fsdino.errors import UsageError
from fsdino.models import zoo
from fsdino.models.encoders import Encoder, create
from fsdino.models.refinement import refine
from fsdino.models.zoo import parameter_table
from tiny_models import SIDE, SMALL, episode, randomise, tiny_config, tiny_model

GIB = 2**30


def inputs_of(module: nn.Module) -> list[tuple[Any, ...]]:
    """A list that fills with the arguments of each call of a module."""
    calls: list[tuple[Any, ...]] = []
    module.register_forward_pre_hook(lambda _, args: calls.append(args))
    return calls


def outputs_of(module: nn.Module) -> list[Tensor]:
    calls: list[Tensor] = []
    module.register_forward_hook(lambda _, _args, output: calls.append(output))
    return calls


def prototypes(last: Tensor, masks: Tensor) -> Tensor:
    """Mean of the tokens [N, C, 5, 5] under masks [N, 70, 70] whose edges cut through tokens."""
    shares = masks.unflatten(1, (5, 14)).unflatten(3, (5, 14)).mean((2, 4))
    weights = shares / shares.amax((1, 2), keepdim=True)
    weighted = (last * weights[:, None]).sum((2, 3))
    return weighted / weights.sum((1, 2))[:, None]


@pytest.mark.parametrize("variant", ["full", "comp", "comp_frozen", "training_free"])
@pytest.mark.parametrize(("batch", "shots"), [(1, 1), (2, 3)])
def test_forward_shapes(variant: str, batch: int, shots: int) -> None:
    """[B, K, 3, H, W], [B, K, H, W] and [B, 3, H, W] give logits [B, 1, H, W]."""
    model = tiny_model(variant=variant)
    with torch.no_grad():
        logits = model(*episode(batch, shots))
    assert logits.shape == (batch, 1, SIDE, SIDE)
    assert logits.dtype == torch.float32
    assert bool(logits.isfinite().all())
    assert logits.std() > 0


@pytest.mark.parametrize("variant", ["full", "training_free"])
def test_queries_and_supports_of_different_sizes(variant: str) -> None:
    """Supports at one size, queries at another and not square: logits at the queries' size."""
    model = tiny_model(variant=variant)
    supports, masks, _ = episode(2, 2)
    with torch.no_grad():
        logits = model(supports, masks, torch.rand(2, 3, 42, 98))
    assert logits.shape == (2, 1, 42, 98)


def test_prototype_and_similarity_reach_the_prompts() -> None:
    """SVP gets the shots' mean prototype; PCS is its cosine with each query token."""
    model = tiny_model()
    supports, masks, queries = episode(2, 3)
    sparse_inputs, dense_inputs = inputs_of(model.visual_prompt), inputs_of(model.dense_prompt)
    with torch.no_grad():
        model(supports, masks, queries)
        support = model.encoder(supports.flatten(0, 1)).last
        query = model.encoder(queries).last
    per_shot = prototypes(support, masks.flatten(0, 1))
    expected = per_shot.unflatten(0, (2, 3)).mean(1)
    torch.testing.assert_close(sparse_inputs[0][0], expected, rtol=1e-4, atol=1e-5)
    for b in range(2):
        tokens = query[b].flatten(1).T
        cosine = F.cosine_similarity(tokens, expected[b][None], dim=1).unflatten(0, (5, 5))
        torch.testing.assert_close(dense_inputs[0][0][b, 0], cosine, rtol=1e-4, atol=1e-5)


def test_prior_is_averaged_over_shots_after_the_squeeze() -> None:
    """One prior per shot from that shot's own features and mask; their mean is fused."""
    model = tiny_model()
    supports, masks, queries = episode(2, 3)
    masks[:, 1] = masks[:, 1].flip(-1)
    prior_inputs, priors = inputs_of(model.prior), outputs_of(model.prior)
    dense_inputs = inputs_of(model.dense_prompt)
    with torch.no_grad():
        model(supports, masks, queries)
        features = model.encoder(supports.flatten(0, 1)).correlation[0].unflatten(0, (2, 3))
    assert len(priors) == 3
    for k, (_, support, mask) in enumerate(prior_inputs):
        torch.testing.assert_close(support, features[:, k], rtol=1e-4, atol=1e-5)
        shares = masks[:, k].unflatten(1, (5, 14)).unflatten(3, (5, 14)).mean((2, 4))
        torch.testing.assert_close(mask, shares / shares.amax((1, 2), keepdim=True))
    expected = (priors[0] + priors[1] + priors[2]) / 3
    torch.testing.assert_close(dense_inputs[0][0][:, 1:], expected)


@pytest.mark.parametrize("variant", ["full", "comp", "training_free"])
def test_the_same_weights_serve_any_number_of_shots(variant: str) -> None:
    """Reordering shots changes nothing, another shot does; nor does repeating them.

    But for the training-free score, whose threshold comes from leaving images out: a repeated one
    is never left out.
    """
    model = tiny_model(variant=variant)
    supports, masks, queries = episode(2, 3)
    masks[:, 1] = masks[:, 1].flip(-2)
    one = supports[:, :1], masks[:, :1]
    with torch.no_grad():
        single = model(*one, queries)
        repeated = model(*(x.repeat_interleave(5, dim=1) for x in one), queries)
        forward = model(supports, masks, queries)
        backward = model(supports.flip(1), masks.flip(1), queries)
    if variant != "training_free":
        torch.testing.assert_close(repeated, single, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(backward, forward, rtol=1e-4, atol=1e-4)
    assert (forward - single).abs().max() > 1e-3


def test_episodes_of_a_batch_do_not_mix() -> None:
    """Each episode's logits are those it gets alone."""
    model = tiny_model()
    batch = episode(3, 2)
    with torch.no_grad():
        together = model(*batch)
        alone = torch.cat([model(*(x[i : i + 1] for x in batch)) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_one_encoder_pass_for_an_episode() -> None:
    """Queries and supports of one size share a pass; other sizes take two."""
    model = tiny_model()
    supports, masks, queries = episode(2, 3)
    calls = inputs_of(model.encoder)
    with torch.no_grad():
        model(supports, masks, queries)
        assert [len(images) for (images,) in calls] == [2 + 2 * 3]
        model(supports, masks, queries[..., :42])
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("switches", "parts"),
    [
        ({}, {"visual_prompt", "prior"}),
        ({"visual_prompt": False}, {"prior"}),
        ({"correlation_prompt": False}, {"visual_prompt"}),
        ({"cosine_prompt": False}, {"visual_prompt", "prior"}),
        ({"contrastive": False}, {"visual_prompt", "prior"}),
        ({"prompt_tokens": 3}, {"visual_prompt", "prior"}),
        ({"variant": "comp", "visual_prompt": False}, set()),
    ],
)
def test_each_part_is_a_switch(switches: dict[str, Any], parts: set[str]) -> None:
    """Users ablate them: every combination runs, and has the parameters of its parts only."""
    model = tiny_model(**switches)
    names = {name for name, _ in model.named_children()}
    assert names == {"encoder", "adapter", "dense_prompt", "decoder"} | parts
    with torch.no_grad():
        assert bool(model(*episode(1, 2)).isfinite().all())


def test_contrast_uses_the_background() -> None:
    """With CE the prior changes when the support's background does; without it, it does not."""
    supports, masks, queries = episode(1, 1)
    changed = {}
    for contrastive in (True, False):
        model = tiny_model(contrastive=contrastive)
        priors, inputs = outputs_of(model.prior), inputs_of(model.prior)
        with torch.no_grad():
            model(supports, masks, queries)
            query, support, mask = inputs[0]
            model.prior(
                query, torch.where(mask[:, None, None] == 0, support.flip(-1), support), mask
            )
        changed[contrastive] = bool((priors[0] - priors[1]).abs().max() > 1e-3)
    assert changed == {True: True, False: False}


def test_encoder_is_frozen_and_stays_in_eval_mode() -> None:
    """No gradient, no autograd graph, no dropout, whatever mode the model is in."""
    model = tiny_model(encoder_args={**SMALL, "proj_drop_rate": 0.5}).train()
    assert not model.encoder.training
    assert model.decoder.training
    features = outputs_of(model.encoder)
    first = model(*episode(1, 1))
    assert not features[0].last.requires_grad
    torch.testing.assert_close(model(*episode(1, 1)), first)
    assert not any(p.requires_grad for p in model.encoder.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"variant": "comp"},
        {"variant": "comp_frozen"},
        {"visual_prompt": False},
        {"cosine_prompt": False},
        {"prompt_tokens": 2},
    ],
)
@pytest.mark.parametrize("adapter", [False, True])
def test_everything_that_learns_gets_a_gradient(settings: dict[str, Any], adapter: bool) -> None:
    """DDP stops on a trained parameter without a gradient; nothing frozen gets one."""
    model = tiny_model(**settings).train()
    model.set_trainable(adapter=adapter)
    model(*episode(2, 2)).square().mean().backward()
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    got = {name for name, p in model.named_parameters() if p.grad is not None}
    assert got == learns
    parts = {name.partition(".")[0] for name in learns}
    assert ("adapter" in parts) == adapter
    assert ("decoder" in parts) == (settings.get("variant") != "comp_frozen")
    assert "encoder" not in parts


def test_the_encoder_can_be_trained_when_asked() -> None:
    """For small encoders from scratch: gradients reach it, and train mode, too."""
    model = tiny_model().train()
    model.set_trainable(encoder=True, adapter=True)
    assert model.encoder.training
    model(*episode(1, 1)).square().mean().backward()
    learns = {name for name, p in model.encoder.named_parameters() if p.requires_grad}
    got = {name for name, p in model.encoder.named_parameters() if p.grad is not None}
    assert learns == got == {name for name, _ in model.encoder.named_parameters()}
    assert not model.eval().encoder.training


def test_training_free_has_nothing_but_the_encoder() -> None:
    """No trained part; the score around the bias, refined by the image, over the temperature."""
    model = tiny_model(variant="training_free", match_temperature=0.25, match_bias=0.1)
    assert {name for name, _ in model.named_children()} == {"encoder"}
    assert not any(p.requires_grad for p in model.parameters())
    assert model.score is not None
    with torch.no_grad():
        query, support = model.encode_episodes(*episode(1, 2))
        score, _ = model.score.score(query, support)
        logits = model.answer(query, [support]).logits
    rows, columns = query.last.shape[-2:]
    assert logits.shape == (1, 1, 4 * rows, 4 * columns)
    torch.testing.assert_close(logits, refine(score - 0.1, query.guide) / 0.25)


def test_matcher_prototype_uses_last_tokens_only() -> None:
    """The simplest baseline does not read the correlation layers."""
    model = tiny_model(variant="training_free", matcher="prototype")
    other = tiny_model(variant="training_free", matcher="prototype", correlation_layers=(1,))
    with torch.no_grad():
        torch.testing.assert_close(model(*episode(1, 1)), other(*episode(1, 1)))


def test_parameter_counts_of_the_published_model(dinov2_base: Encoder) -> None:
    """FS-DINO-B by arithmetic: SVP 65,856; SAM's decoder; 168,448 in the 4D blocks; no more."""
    model = zoo.assemble(fsdino.ModelConfig(), dinov2_base)
    block = (768 * 2304 + 2304) + (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 6 * 768
    tokens = (1 + 1 + 37 * 37) * 768  # class token, its position, the patches' positions
    encoder = 3 * 14 * 14 * 768 + 768 + tokens + 12 * block + 2 * 768
    iou_head, mask_head = 2 * 65_792 + 1_028, 2 * 65_792 + 8_224
    frozen_decoder = iou_head + 3 * mask_head
    assert parameter_table(model) == {
        "encoder": (0, encoder),
        "adapter": (0, 1_250_432),
        "visual_prompt": (65_856, 0),
        "prior": (168_448, 0),
        "dense_prompt": (129 * 9 * 128 + 128 + 2 * 128 + 128 * 256 + 256, 0),
        "decoder": (4_058_340 - frozen_decoder, frozen_decoder),
    }


def test_comp_frozen_trains_as_few_parameters_as_published(dinov2_base: Encoder) -> None:
    """0.07 M: the sparse prompt and one 1x1 convolution; decoder and adapter are frozen."""
    table = parameter_table(zoo.assemble(fsdino.ModelConfig(variant="comp_frozen"), dinov2_base))
    trained = {part: count for part, (count, _) in table.items() if count}
    assert trained == {"visual_prompt": 65_856, "dense_prompt": 2 * 256}
    assert round(sum(trained.values()) / 1e6, 2) == 0.07


@pytest.fixture(scope="module")
def dinov2_base() -> Encoder:
    return create(fsdino.ModelConfig(encoder_args={"weight_init": "skip"}))


def test_bfloat16_end_to_end() -> None:
    """A cast model takes float32 images and masks, and stays near its float32 answer."""
    for variant in ("full", "comp", "training_free"):
        model = tiny_model(variant=variant)
        with torch.no_grad():
            expected = model(*episode(1, 2))
            found = model.to(torch.bfloat16)(*episode(1, 2))
        assert norm_error(found, expected) < 0.1, variant


def test_autocast() -> None:
    """bfloat16 autocast, as in training on a GPU: gradients flow, and the answer stays near."""
    model = tiny_model()
    with torch.no_grad():
        expected = model(*episode(1, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(*episode(1, 2))
    found.float().square().mean().backward()
    assert norm_error(found, expected) < 0.1
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_an_encoder_can_be_shared() -> None:
    """Two heads on one frozen encoder: the weights exist once."""
    encoder = create(tiny_config())
    randomise(encoder, seed=0)
    first, second = (zoo.assemble(tiny_config(), encoder) for _ in range(2))
    assert first.encoder is second.encoder is encoder


def test_other_encoders_serve_the_whole_model() -> None:
    """A ViT of another family and patch size runs end to end."""
    arguments = {"depth": 3, "embed_dim": 24, "num_heads": 2}
    for name, patch in (("vit_tiny_patch16_224", 16), ("vit_small_patch16_dinov3", 16)):
        model = tiny_model(encoder=name, encoder_args=arguments, image_size=5 * patch)
        with torch.no_grad():
            logits = model(*episode(1, 1, side=5 * patch))
        assert model.patch_size == patch
        assert bool(logits.isfinite().all())


def test_conv_stem_serves_the_whole_model() -> None:
    """The small encoder for training from scratch, all of it learning."""
    arguments = {"img_size": 40, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = zoo.assemble(
        tiny_config(encoder="vit_tiny_patch16_224", encoder_args=arguments, conv_stem=True,
                    image_size=40)
    ).train()  # fmt: skip
    model.set_trainable(encoder=True, adapter=True)
    model(*episode(1, 1, side=40)).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_size_off_the_patch_grid_is_a_usage_error() -> None:
    """The one mistake that every user of tensors makes once."""
    with pytest.raises(UsageError, match="multiples of the patch size 14, got 71 x 71"):
        tiny_model()(*episode(1, 1, side=71))


def test_image_size_off_the_patch_grid_is_found_at_once() -> None:
    """A configuration that no image can pass is refused when the model is built."""
    with pytest.raises(UsageError, match="image_size"):
        zoo.assemble(tiny_config(image_size=100))


PASS = """
import json, resource, torch, fsdino
from fsdino.models import zoo
torch.set_num_threads(2)
model = zoo.assemble(fsdino.ModelConfig()).eval()
with torch.no_grad():
    images = torch.rand(2, 3, 518, 518)
    logits = model(images[None, :1], torch.ones(1, 1, 518, 518), images[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"shape": list(logits.shape), "peak": peak}))
"""


@pytest.mark.slow
def test_a_pass_at_518_pixels_fits_in_8_gb() -> None:
    """DINOv2-B, `full`, random weights, on two CPU cores: the peak of a process of its own."""
    root = str(Path(fsdino.__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", PASS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, else in KiB
    assert answer["shape"] == [1, 1, 518, 518]
    assert answer["peak"] * unit < 8 * GIB
