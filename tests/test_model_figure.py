"""docs/model.svg: what docs/draw_model.py draws, of modules and shapes that the package has."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from fsdino.models.config import ModelConfig
from fsdino.ops import correlation4d
from tiny_models import SIDE, tiny_model

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("draw_model", ROOT / "docs" / "draw_model.py")
draw_model = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = draw_model  # which its dataclasses look up
SPEC.loader.exec_module(draw_model)

CODE = {name: box for name, box in draw_model.BOXES.items() if box.code}


def test_the_file_is_what_the_script_draws():
    """A change of either without the other: run `python docs/draw_model.py`."""
    drawn = draw_model.draw()
    assert draw_model.FILE.read_text(encoding="utf-8") == drawn
    ElementTree.fromstring(drawn)


@pytest.mark.parametrize("name", CODE)
def test_a_box_names_code_that_exists(name):
    """By its dotted name, in the file that is drawn."""
    box = CODE[name]
    module, _, last = box.code.rpartition(".")
    thing = getattr(importlib.import_module(module), last)
    file = Path(inspect.getsourcefile(thing)).relative_to(ROOT).as_posix()
    words = " ".join(box.named())
    assert last in words
    drawn = re.search(r"\S+\.py", words).group()
    assert file in {folder + drawn for folder in draw_model.FOLDERS}
    assert words.split()[0] in draw_model.draw()


def shape(name: str) -> tuple[str, ...]:
    """The letters and numbers of an arrow's shape."""
    return tuple(draw_model.ARROWS[name].label[-1].rpartition("[")[2].rstrip("]").split(", "))


def test_the_arrows_carry_tensors_of_these_shapes():
    """Those that a small model's modules take and give, on a grid that is not square."""
    model = tiny_model(keep_aspect=True)
    seen = {}

    def remember(name):
        return lambda _, taken, given: seen.update({f"{name} in": taken, f"{name} out": given})

    parts = {
        "adapter": model.adapter,
        "prior": model.prior,
        "svp": model.visual_prompt,
        "dense": model.dense_prompt,
        "decoder": model.decoder,
    }
    for name, part in parts.items():
        part.register_forward_hook(remember(name))
    support, query = torch.rand(1, 3, SIDE, SIDE), torch.rand(1, 3, SIDE, SIDE + 14)
    model.segment(query[0], model.encode_support([support[0]], [torch.ones(SIDE, SIDE) > 0]))
    config, (h, w) = model.config, seen["adapter in"][0].shape[-2:]
    letters = {
        "B": 1,
        "L": len(model.encoder.correlation_layers),
        "C": model.encoder.channels,
        **{"h": h, "w": w, "4h": 4 * h, "4w": 4 * w, "1": 1},
        # Where the figure has the defaults, the small model has its own.
        str(ModelConfig(encoder=config.encoder).width): config.width,
        str(ModelConfig(encoder=config.encoder).correlation_channels[-1]): (
            config.correlation_channels[-1]
        ),
    }

    def sizes(name):
        return tuple(letters[letter] for letter in shape(name))

    grids = correlation4d(*seen["prior in"]).shape
    assert (*sizes("correlation")[:4], *grids[4:]) == grids
    assert seen["prior out"].shape == sizes("prior")
    assert seen["adapter in"][0].shape == sizes("shallow") == sizes("query_last")
    assert seen["adapter out"].shape == seen["decoder in"][0].shape == sizes("image")
    assert seen["svp in"][0].shape == sizes("to_prompt") == sizes("to_cosine")
    assert seen["svp out"].shape == seen["decoder in"][1].shape == sizes("sparse")
    assert seen["dense in"][0].shape[1] == sizes("prior")[1] + sizes("cosine")[1]
    assert seen["dense out"].shape == seen["decoder in"][2].shape == sizes("dense")
    assert seen["decoder out"].shape == sizes("logits")


def test_its_numbers_are_the_defaults():
    """Of a configuration that names DINOv2 ViT-B/14 and nothing else."""
    config = ModelConfig(encoder="vit_base_patch14_dinov2.lvd142m")
    side = config.image_size // 14
    sides = [side]
    for _ in config.correlation_channels:
        sides.append(-(-sides[-1] // config.correlation_stride))
    text = draw_model.draw()
    for words in (
        f"at {config.image_size} pixels h × w = {side} × {side} tokens",
        "channels L → " + " → ".join(map(str, config.correlation_channels)),
        "support " + " → ".join(map(str, sides)),
        f"MLP C → {config.prompt_hidden} → {config.width}",
        f"block {config.adapter_layer}<",
        f"[B, {config.prompt_tokens}, {config.width}]",
        f"1 × 1 conv to {config.width}",
    ):
        assert words in text
