"""The configuration of a model: defaults, refused values, and the way through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fsdino.errors import CheckpointError, UsageError
from fsdino.models.config import ModelConfig


def test_defaults_are_the_published_system() -> None:
    """DINOv2-B/14 at 518 px, third block to the adapter, all four prompts, nothing downloaded."""
    config = ModelConfig()
    assert config.encoder == "vit_base_patch14_dinov2.lvd142m"
    assert (config.image_size, config.adapter_layer, config.variant) == (518, 3, "full")
    assert config.correlation_channels == (16, 64, 128)
    assert (config.width, config.prompt_hidden, config.prompt_tokens) == (256, 64, 1)
    assert config.cosine_prompt and config.visual_prompt and config.contrastive
    assert config.uses_correlation
    assert not config.pretrained


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"variant": "full"}, True),
        ({"variant": "comp"}, False),
        ({"variant": "comp_frozen"}, False),
        ({"variant": "full", "correlation_prompt": False}, False),
        ({"variant": "comp", "correlation_prompt": True}, True),
    ],
)
def test_variant_decides_about_correlation_unless_told(
    settings: dict[str, Any], expected: bool
) -> None:
    """`comp` and `comp_frozen` have no 4D branch; the switch overrides."""
    assert ModelConfig(**settings).uses_correlation is expected


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"variant": "fulll"}, "variant 'fulll': choose from full, comp, comp_frozen"),
        ({"matcher": "magic"}, "matcher 'magic'"),
        ({"image_size": 0}, "image_size"),
        ({"width": -1}, "width"),
        ({"adapter_layer": 0}, "adapter_layer"),
        ({"prompt_tokens": 0}, "prompt_tokens"),
        ({"correlation_stride": 0}, "correlation_stride"),
        ({"adapter_heads": 0}, "adapter_heads"),
        ({"decoder_heads": 0}, "decoder_heads"),
        ({"decoder_heads": 3}, "width must be a multiple of 8 and of twice the decoder_heads"),
        ({"width": 20, "decoder_heads": 1}, "width must be a multiple of 8"),
        ({"adapter_width": 6}, "adapter_width must be a multiple of the adapter_heads"),
        ({"correlation_channels": (16, 30)}, "correlation_channels must be multiples of 4"),
        ({"correlation_channels": ()}, "correlation_channels"),
        ({"mean": (0.5, 0.5)}, "mean must have 3 values"),
        ({"std": (0.5,)}, "std must have 3 values"),
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": 1.0}, "threshold"),
        ({"match_temperature": 0.0}, "match_temperature"),
        ({"cosine_prompt": False, "correlation_prompt": False}, "cosine_prompt"),
        ({"cosine_prompt": False, "variant": "comp"}, "cosine_prompt"),
    ],
)
def test_refused_values_are_named(settings: dict[str, Any], named: str) -> None:
    """A configuration that cannot be meant is found before anything is built."""
    with pytest.raises(UsageError, match=named):
        ModelConfig(**settings)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(),
        ModelConfig(
            encoder="vit_tiny_patch16_224",
            encoder_args={"depth": 3, "img_size": 64},
            conv_stem=True,
            variant="comp",
            keep_aspect=True,
            mean=(0.5, 0.4, 0.3),
            std=(0.2, 0.2, 0.2),
            correlation_layers=(2, 3),
            correlation_channels=(4, 8),
            correlation_prompt=True,
        ),
    ],
    ids=["defaults", "everything else"],
)
def test_roundtrip_through_json(config: ModelConfig) -> None:
    """JSON knows no tuples: they come back as tuples, and the configuration is equal."""
    restored = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert restored == config
    assert isinstance(restored.correlation_channels, tuple)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"wings": 2}, "wings"),
        ({"variant": "other"}, "variant"),
        ({"image_size": "large"}, "not a usable"),
        ({"threshold": None}, "not a usable"),
        ({"correlation_channels": 5}, "not a usable"),
        ({"encoder": 7}, "not a usable"),
        ({"encoder_args": "depth=3"}, "not a usable"),
    ],
)
def test_foreign_config_is_a_checkpoint_error(changes: dict[str, Any], named: str) -> None:
    """A config.json of another program or a newer version is no traceback."""
    with pytest.raises(CheckpointError, match=named):
        ModelConfig.from_dict({**ModelConfig().to_dict(), **changes})


def test_config_of_an_older_version_loads() -> None:
    """A field that a later version adds has its default in files written before."""
    data = ModelConfig(image_size=126).to_dict()
    del data["matcher"], data["keep_aspect"]
    assert ModelConfig.from_dict(data) == ModelConfig(image_size=126)
