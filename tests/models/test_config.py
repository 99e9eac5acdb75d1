"""The configuration of a model: defaults, refused values, and the way through JSON."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
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
        ({"correlation_channels": (4,) * 300}, "correlation_channels must have 1 to 256 values"),
        ({"correlation_channels": (10**9,)}, "correlation_channels must be at most"),
        ({"correlation_channels": 8}, "correlation_channels must be a list of numbers, got 8"),
        ({"correlation_channels": "16"}, "correlation_channels must be a list"),
        ({"correlation_channels": (16.0,)}, "correlation_channels must be a whole number"),
        ({"correlation_channels": None}, "correlation_channels must be a list"),
        ({"correlation_layers": ()}, "correlation_layers must have 1 to 256 values, got none"),
        ({"correlation_layers": (True,)}, "correlation_layers must be a whole number, got True"),
        ({"correlation_layers": (-1,)}, "correlation_layers must be at least 0"),
        ({"image_size": 10**9}, "image_size must be at most"),
        ({"image_size": 518.0}, "image_size must be a whole number, got 518.0"),
        ({"image_size": True}, "image_size must be a whole number, got True"),
        ({"image_size": "518"}, "image_size must be a whole number, got '518'"),
        ({"image_size": None}, "image_size must be a whole number"),
        ({"image_size": 10**5000}, "image_size must be at most 16384, got a value of type int"),
        ({"width": 2**40}, "width must be at most"),
        ({"prompt_tokens": 10**9}, "prompt_tokens must be at most"),
        ({"keep_aspect": 1}, "keep_aspect must be true or false, got 1"),
        ({"pretrained": "no"}, "pretrained must be true or false"),
        ({"contrastive": None}, "contrastive must be true or false"),
        ({"correlation_prompt": "yes"}, "correlation_prompt must be true or false"),
        ({"std": (0, 0, 0)}, "std must lie between"),
        ({"std": (1, 1, -1)}, "std must lie between"),
        ({"std": (1, 1, math.nan)}, "std must lie between"),
        ({"std": (1e-30, 1, 1)}, "std must lie between"),
        ({"mean": (math.nan, 0, 0)}, "mean must lie between"),
        ({"mean": (math.inf, 0, 0)}, "mean must lie between"),
        ({"mean": ("a", 0, 0)}, "mean must be a number, got 'a'"),
        ({"mean": ((0.5,), 0, 0)}, "mean must be a number"),
        ({"mean": {"r": 1, "g": 1, "b": 1}}, "mean must be a list of numbers"),
        ({"threshold": math.nan}, "threshold"),
        ({"threshold": "0.5"}, "threshold must be a number"),
        ({"threshold": True}, "threshold must be a number"),
        ({"match_temperature": math.nan}, "match_temperature"),
        ({"match_temperature": math.inf}, "match_temperature"),
        ({"match_temperature": 1e-300}, "match_temperature"),
        ({"match_bias": math.inf}, "match_bias"),
        ({"variant": ["full"]}, "variant"),
        ({"matcher": None}, "matcher"),
        ({"encoder": None}, "encoder must be the name of a timm model"),
        ({"encoder": "hf-hub:someone/model"}, "encoder must be the name of a timm model"),
        ({"encoder": "hf_hub:someone/model"}, "encoder must be the name of a timm model"),
        ({"encoder": "timm/vit_small_patch14_dinov2"}, "encoder must be the name"),
        ({"encoder": "local-dir:/home"}, "encoder must be the name of a timm model"),
        ({"encoder": "../model"}, "encoder must be the name of a timm model"),
        ({"encoder": "vit_small_patch14_dinov2\n"}, "encoder must be the name of a timm model"),
        ({"encoder": ""}, "encoder must be the name of a timm model"),
        ({"encoder_args": None}, "encoder_args must be a mapping"),
        ({"encoder_args": [["depth", 3]]}, "encoder_args must be a mapping"),
        ({"encoder_args": {3: 4}}, "encoder_args must not have 3"),
        ({"encoder_args": {"dept": 4}}, "did you mean depth"),
        ({"encoder_args": {"depth": 20000}}, "depth in encoder_args must be at most 128"),
        ({"encoder_args": {"depth": 3.0}}, "depth in encoder_args must be a whole number"),
        ({"encoder_args": {"num_heads": 0}}, "num_heads in encoder_args must be at least 1"),
        ({"encoder_args": {"embed_dim": 10**9}}, "embed_dim in encoder_args must be at most"),
        ({"encoder_args": {"img_size": (10**9, 4)}}, "img_size in encoder_args must be at most"),
        ({"encoder_args": {"img_size": [1, 2, 3]}}, "img_size in encoder_args must be a whole"),
        ({"encoder_args": {"mlp_ratio": math.nan}}, "mlp_ratio in encoder_args must lie"),
        ({"encoder_args": {"init_values": math.inf}}, "init_values in encoder_args must lie"),
        ({"encoder_args": {"qk_norm": "true"}}, "qk_norm in encoder_args must be true or false"),
        ({"encoder_args": {"global_pool": "sum"}}, "unknown global_pool in encoder_args 'sum'"),
        ({"encoder_args": {"block_fn": "os.system"}}, "block_fn in encoder_args must be a class"),
        ({"encoder_args": {"norm_layer": "a.b"}}, "norm_layer in encoder_args must be a class"),
        *(
            ({"encoder_args": {name: value}}, f"encoder_args must not have '{name}'")
            for name, value in {
                "pretrained": True,
                "pretrained_cfg": {"file": "weights.pth"},
                "pretrained_cfg_overlay": {"url": "http://example.org"},
                "checkpoint_path": "weights.pth",
                "cache_dir": "/tmp",
                "pretrained_strict": False,
                "pruned": True,
                "features_only": True,
                "num_classes": 5,
                "in_chans": 4,
                "device": "cuda",
                "scriptable": True,
            }.items()
        ),
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
    """An invalid configuration is found before anything is built, wherever it comes from."""
    with pytest.raises(UsageError, match=re.escape(named)) as caught:
        ModelConfig(**settings)
    assert str(caught.value).isprintable()
    with pytest.raises(CheckpointError, match=re.escape(named)):
        ModelConfig.from_dict({**ModelConfig().to_dict(), **settings})


def test_numbers_of_numpy_are_plain_ones_afterwards() -> None:
    """Sizes are often computed; JSON knows no NumPy."""
    config = ModelConfig(
        image_size=np.int64(126), threshold=np.float32(0.25), std=np.array([1, 2, 3]),
        encoder_args={"depth": np.int32(3), "img_size": [98, 70]},
    )  # fmt: skip
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict() | {
        "encoder_args": {"depth": 3, "img_size": [98, 70]}
    }
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("data", [None, 5, "model", ["encoder"]], ids=str)
def test_what_is_not_a_mapping_is_not_a_configuration(data: Any) -> None:
    """A recipe's `model` section of another kind."""
    with pytest.raises(CheckpointError, match="is not a mapping"):
        ModelConfig.from_dict(data)


def test_unknown_fields_of_any_kind_are_listed() -> None:
    """YAML has numbers as names."""
    with pytest.raises(CheckpointError, match="unknown fields 3, wings"):
        ModelConfig.from_dict({"wings": 1, 3: 4})


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
    """A config.json of another program or a newer version gives an error, not a traceback."""
    with pytest.raises(CheckpointError, match=named):
        ModelConfig.from_dict({**ModelConfig().to_dict(), **changes})


def test_config_of_an_older_version_loads() -> None:
    """A field that a later version adds has its default in files written before."""
    data = ModelConfig(image_size=126).to_dict()
    del data["matcher"], data["keep_aspect"]
    assert ModelConfig.from_dict(data) == ModelConfig(image_size=126)
