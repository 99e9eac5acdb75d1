"""A frozen encoder's features: each distinct image once, the same bits from disk."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fsdino.errors import FsdinoError
from fsdino.models.checkpoints import tensors_sha256
from fsdino.training.meta import features
from fsdino.training.meta.features import FeatureStore, FrozenEncoder
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
    for part in PARTS:
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
    # 24 channels, 5 x 5 tokens, 4 bytes; shallow, last and two correlation layers; 20 x 20 pixels
    assert (24 * 25 * 4 + 3 * 20 * 20) * 4 == 14400
    store.announce(1000, model.encode(torch.rand(1, 3, SIDE, SIDE)))
    store.announce(10**12, model.encode(torch.rand(1, 3, SIDE, SIDE)))
    texts = [(r.levelname, r.getMessage()) for r in caplog.records]
    assert texts[0][0] == "INFO" and "1000 images take up to 0.0 GB" in texts[0][1]
    assert texts[1][0] == "WARNING" and "up to 14400000.0 GB" in texts[1][1]


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FsdinoError, match=r"cannot create .*file"):
        FeatureStore(tmp_path / "file" / "cache", "key")


PARTS = ("shallow", "last", "correlation", "guide")


@pytest.fixture
def kept(tmp_path: Path) -> tuple[FrozenEncoder, torch.Tensor, list[int], Path]:
    """An encoder whose features of two images are on disk, and one of the files."""
    torch.set_deterministic_debug_mode("default")
    model, calls = tiny_model(), []
    encoded(model, calls)
    images = torch.rand(2, 3, SIDE, SIDE)
    encoder = FrozenEncoder(model, torch.float32, torch.float32, FeatureStore(tmp_path, "key"))
    encoder(images[:1], ["a"])
    (file,) = tmp_path.glob("*/*.safetensors")
    return encoder, images, calls, file


def test_no_flipped_bit_is_believed(kept, caplog: pytest.LogCaptureFixture) -> None:
    """Anywhere in the file, in names, sizes, metadata and numbers: said, and computed again."""
    encoder, images, calls, file = kept
    expected, whole = encoder(images[:1], ["a"]), file.read_bytes()
    rng = np.random.default_rng(0)
    for place in (*range(0, 600, 23), *rng.integers(600, len(whole), 15)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        calls.clear()
        caplog.clear()
        found = encoder(images[:1], ["a"])
        for part in PARTS:
            assert torch.equal(getattr(found, part), getattr(expected, part)), place
        assert calls == [1] and "is damaged" in caplog.text, place
        assert load_file(file).keys() == set(PARTS)  # written again


def test_files_of_another_format_are_not_damaged(
    kept, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not found: features are computed again, and nothing is said of each file."""
    encoder, images, calls, _ = kept
    calls.clear()
    monkeypatch.setattr(features, "FORMAT", "fsdino-features-2")
    encoder(images[:1], ["a"])
    assert calls == [1] and not caplog.text


def test_a_file_of_another_image_or_cache_is_not_taken(kept, tmp_path: Path) -> None:
    """Whole, and in the place of the one that was asked for."""
    encoder, images, calls, file = kept
    own = encoder(images[1:], ["b"])
    (other,) = set(tmp_path.glob("*/*.safetensors")) - {file}
    other.write_bytes(file.read_bytes())
    assert torch.equal(encoder(images[1:], ["b"]).last, own.last)
    store = FeatureStore(tmp_path / "second", "another key")
    second = FrozenEncoder(encoder.model, torch.float32, torch.float32, store)
    second(images[1:], ["b"])
    (there,) = (tmp_path / "second").glob("*/*.safetensors")
    there.write_bytes(other.read_bytes())
    assert torch.equal(second(images[1:], ["b"]).last, own.last)
    assert calls == [1, 1, 1, 1, 1]


def features_file(file: Path, **changes: object) -> None:
    """Write a file of the store with its own hash, so that only its content is wrong."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    tensors |= {name: change(tensors[name]) for name, change in changes.items()}
    said = {name: value for name, value in metadata.items() if name != "sha256"}
    sha256 = tensors_sha256(tensors, json.dumps(said, sort_keys=True))
    save_file({n: t.contiguous() for n, t in tensors.items()}, file, {**said, "sha256": sha256})


@pytest.mark.parametrize(
    "changes",
    [
        {"last": lambda t: t[..., :-1]},
        {"correlation": lambda t: t[:, :1]},
        {"shallow": lambda t: t.half()},
        {"last": lambda t: t * torch.nan},
    ],
    ids=["shape", "layers", "dtype", "nan"],
)
def test_what_another_program_wrote(kept, changes, caplog: pytest.LogCaptureFixture) -> None:
    """A valid hash does not make features of another shape or type this encoder's."""
    encoder, images, _, file = kept
    expected = encoder(images[:1], ["a"])
    features_file(file, **changes)
    assert torch.equal(encoder(images[:1], ["a"]).last, expected.last)
    assert "is damaged" in caplog.text


def test_files_of_older_versions_are_computed_again(kept, caplog) -> None:
    """They have no hash, so nobody knows what is in them."""
    encoder, images, calls, file = kept
    save_file(load_file(file), file, {"name": "a"})
    encoder(images[:1], ["a"])
    assert calls == [1, 1] and "its format is not the one that was written" in caplog.text
    encoder(images[:1], ["a"])
    assert calls == [1, 1]
