"""A frozen encoder's features: each distinct image once, the same bits from disk."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fsdino.errors import FsdinoError
from fsdino.models.checkpoints import tensors_sha256
from fsdino.training.meta.features import FeatureStore, FrozenEncoder
from fsdino.training.store import FORMAT
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
    torch.testing.assert_close(found.correlation[0], expected.correlation[0][[0, 1, 0, 2, 1]])


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
    """From disk or computed again, in whatever company; a damaged file is computed again."""
    torch.set_deterministic_debug_mode("default")
    model, calls = tiny_model(), []
    encoded(model, calls)
    images = torch.rand(3, 3, SIDE, SIDE)
    store = store_in(tmp_path)
    encoder = FrozenEncoder(model, torch.float32, torch.float32, store)
    first = encoder(images, ["a", "b", "c"])
    for _ in range(2):
        again = encoder(images[[2, 0]], ["c", "a"])
        assert calls == [1, 1, 1]
        for kept, found in zip(first.tensors(), again.tensors(), strict=True):
            assert torch.equal(kept[[2, 0]], found)
        store.flush()  # from memory, then from disk
    for file in shards(tmp_path):
        file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(encoder(images, ["a", "b", "c"]).last, first.last)
    assert calls == [1] * 6 and "is damaged" in caplog.text


def test_images_are_known_by_their_pixels(tmp_path: Path) -> None:
    """Whatever they are called: one that has changed is encoded again, a copy is not."""
    model, calls = tiny_model(), []
    encoded(model, calls)
    encoder = FrozenEncoder(model, torch.float32, torch.float32, store_in(tmp_path))
    image = torch.rand(1, 3, SIDE, SIDE)
    changed = image.clone()
    changed[0, 0, 0, 0] += 1e-3
    for pixels, name in ((image, "a"), (image, "copy"), (changed, "a")):
        encoder(pixels, [name])
    assert len(calls) == 2


def test_other_encoders_and_sizes_keep_their_own(tmp_path: Path) -> None:
    """The key decides the folder, and the size an image's hash."""
    model, calls = tiny_model(), []
    encoded(model, calls)
    for key, side in (("a", SIDE), ("b", SIDE), ("a", SIDE + 14)):
        store = store_in(tmp_path, key)
        FrozenEncoder(model, torch.float32, torch.float32, store)(
            torch.zeros(1, 3, side, side), ["image"]
        )
        store.flush()
    assert len(calls) == 3


def test_the_disk_it_takes_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the size of one image's features; a warning where there is not so much."""
    caplog.set_level(logging.INFO)
    model = tiny_model()
    store = store_in(tmp_path)
    # 24 channels, 5 x 5 tokens, 4 bytes; shallow, last and two correlation layers; 20 x 20 pixels
    assert (24 * 25 * 4 + 3 * 20 * 20) * 4 == 14400
    store.announce(1000, model.encode(torch.rand(1, 3, SIDE, SIDE)))
    store.announce(10**12, model.encode(torch.rand(1, 3, SIDE, SIDE)))
    texts = [(r.levelname, r.getMessage()) for r in caplog.records]
    assert texts[0][0] == "INFO" and "1,000 images: at most 14.4 MB" in texts[0][1]
    assert texts[1][0] == "INFO" and "at most 14400.0 TB" in texts[1][1]
    assert texts[2][0] == "WARNING" and "may fill the disk" in texts[2][1] and len(texts) == 3


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FsdinoError, match=r"cannot create .*file.*pass another --feature-cache"):
        store_in(tmp_path / "file" / "cache")


PARTS = ("shallow", "last", "correlation", "guide")


def store_in(folder: Path, key: str = "key") -> FeatureStore:
    return FeatureStore(folder, key, torch.float32)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("shards/*.safetensors"))


@pytest.fixture
def kept(tmp_path: Path) -> tuple[FrozenEncoder, torch.Tensor, list[int], Path]:
    """An encoder whose features of an image are on disk, two images, and the file."""
    torch.set_deterministic_debug_mode("default")
    model, calls = tiny_model(), []
    encoded(model, calls)
    images = torch.rand(2, 3, SIDE, SIDE)
    encoder = FrozenEncoder(model, torch.float32, torch.float32, store_in(tmp_path))
    encoder(images[:1], ["a"])
    encoder.store.flush()
    (file,) = shards(tmp_path)
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
        for tokens, wanted in zip(found.tensors(), expected.tensors(), strict=True):
            assert torch.equal(tokens, wanted), place
        assert calls == [1] and "is damaged" in caplog.text, place
        encoder.store.flush()
        assert len(load_file(file)) == len(PARTS)  # written again


def test_a_file_of_another_image_or_cache_is_not_taken(kept, tmp_path: Path) -> None:
    """Whole, and in the place of the one that was asked for."""
    encoder, images, calls, file = kept
    own = encoder(images[1:], ["b"])
    encoder.store.flush()
    (other,) = set(shards(tmp_path)) - {file}
    other.write_bytes(file.read_bytes())
    assert torch.equal(encoder(images[1:], ["b"]).last, own.last)
    encoder.store.flush()
    store = store_in(tmp_path / "second", "another key")
    second = FrozenEncoder(encoder.model, torch.float32, torch.float32, store)
    second(images[1:], ["b"])
    store.flush()
    for part in ("shards", "index"):
        for path in store.folder.glob(f"{part}/*"):
            path.write_bytes((encoder.store.folder / part / path.name).read_bytes())
    store.refresh()
    assert torch.equal(second(images[1:], ["b"]).last, own.last)
    assert calls == [1, 1, 1, 1, 1]


def features_file(store: FeatureStore, file: Path, **changes: object) -> None:
    """Write a shard of one image with its own hash, so that only its content is wrong."""
    tensors = load_file(file)
    for name, change in changes.items():
        (full,) = [key for key in tensors if key.endswith(f".{name}")]
        tensors[full] = change(tensors[full]).contiguous()
    save_file(tensors, file, {"format": FORMAT})
    index = store.folder / "index" / f"{file.stem}.json"
    rows = json.loads(index.read_text())
    (row,) = rows["images"].values()
    row["sha256"] = tensors_sha256(tensors, store.kind)
    index.write_text(json.dumps(rows))
    store.refresh()


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
    features_file(encoder.store, file, **changes)
    assert torch.equal(encoder(images[:1], ["a"]).last, expected.last)
    assert "is damaged (its" in caplog.text and "content" not in caplog.text
