"""A frozen encoder's features: each distinct image once, the same bits from disk."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from fsdino.errors import FsdinoError
from fsdino.training.features import FeatureStore, FrozenEncoder
from tiny_models import SIDE, tiny_model


def encoded(model: object, calls: list[int]) -> None:
    """Count the images that reach the encoder."""
    encode = model.encode
    model.encode = lambda images: calls.append(len(images)) or encode(images)


def test_each_distinct_image_is_encoded_once() -> None:
    """An image that three episodes share has one pass, no graph, and its features thrice."""
    model, calls = tiny_model(), []
    images = torch.rand(3, 3, SIDE, SIDE)
    expected = model.encode(images)
    encoded(model, calls)
    names = ["a", "b", "a", "c", "b"]
    found = FrozenEncoder(model, torch.float32, torch.float32)(images[[0, 1, 0, 2, 1]], names)
    assert calls == [3]
    assert not found.last.requires_grad
    torch.testing.assert_close(found.last, expected.last[[0, 1, 0, 2, 1]])
    torch.testing.assert_close(found.correlation, expected.correlation[[0, 1, 0, 2, 1]])


def test_half_precision_of_the_encoder_alone() -> None:
    """bfloat16 inside, the trained part's type outside, and within bfloat16's rounding."""
    model = tiny_model()
    images = torch.rand(2, 3, SIDE, SIDE)
    found = FrozenEncoder(model, torch.bfloat16, torch.float32)(images, ["a", "b"])
    exact = model.encode(images)
    assert found.last.dtype == torch.float32
    error = (found.last - exact.last).norm() / exact.last.norm()
    assert 1e-5 < error < 0.05


def test_kept_features_are_the_same_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From disk or computed anew, in whatever company; a damaged file is computed again."""
    torch.set_deterministic_debug_mode("default")
    model, calls = tiny_model(), []
    encoded(model, calls)
    images = torch.rand(3, 3, SIDE, SIDE)
    store = FeatureStore(tmp_path / "cache", "key")
    encoder = FrozenEncoder(model, torch.float32, torch.float32, store)
    first = encoder(images, ["a", "b", "c"])
    again = encoder(images[[2, 0]], ["c", "a"])
    assert calls == [1, 1, 1]
    for part in ("shallow", "last", "correlation"):
        assert torch.equal(getattr(first, part)[[2, 0]], getattr(again, part))
    for file in (tmp_path / "cache").glob("*/*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(encoder(images, ["a", "b", "c"]).last, first.last)
    assert calls == [1] * 6 and "is damaged" in caplog.text


def test_other_encoders_and_sizes_keep_their_own(tmp_path: Path) -> None:
    """The key and the size are part of an image's file."""
    model, calls = tiny_model(), []
    encoded(model, calls)
    for key, side in (("a", SIDE), ("b", SIDE), ("a", SIDE + 14)):
        store = FeatureStore(tmp_path, key)
        FrozenEncoder(model, torch.float32, torch.float32, store)(
            torch.rand(1, 3, side, side), ["image"]
        )
    assert len(calls) == 3


def test_the_disk_it_takes_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the size of one image's features; a warning where there is not so much."""
    caplog.set_level(logging.INFO)
    model = tiny_model()
    store = FeatureStore(tmp_path, "key")
    # 24 channels, 5 x 5 tokens, 4 bytes; shallow, last and two correlation layers
    assert (24 * 25 * 4) * 4 == 9600
    store.announce(1000, model.encode(torch.rand(1, 3, SIDE, SIDE)))
    store.announce(10**12, model.encode(torch.rand(1, 3, SIDE, SIDE)))
    texts = [(r.levelname, r.getMessage()) for r in caplog.records]
    assert texts[0][0] == "INFO" and "1000 images take up to 0.0 GB" in texts[0][1]
    assert texts[1][0] == "WARNING" and "up to 9600000.0 GB" in texts[1][1]


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FsdinoError, match=r"cannot create .*file"):
        FeatureStore(tmp_path / "file" / "cache", "key")
