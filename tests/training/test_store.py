"""Tensors of images in shards: found by their key, verified, and never lost or wrong unseen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fsdino.training import store
from fsdino.training.distillation.embeddings import EmbeddingCache
from fsdino.training.store import Store

KEYS = [f"{number:064x}" for number in range(6)]


def store_in(folder: Path, kind: str = "kind") -> Store:
    return Store(folder, kind, torch.bfloat16, ("low", "high"), "choose another folder")


def tensors(key: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(int(key, 16))
    shapes = {"low": (1, 3, 2, 2), "high": (1, 2)}
    return {part: torch.randn(s, generator=generator).bfloat16() for part, s in shapes.items()}


def same(found: dict[str, torch.Tensor] | None, key: str) -> bool:
    expected = tensors(key)
    return found is not None and all(torch.equal(found[part], expected[part]) for part in expected)


def test_several_tensors_of_an_image_come_back(tmp_path: Path) -> None:
    """Before their shard is full and afterwards, here and in another process's store."""
    mine, other = store_in(tmp_path), store_in(tmp_path)
    for key in KEYS:
        mine.write(key, f"image {int(key, 16)}", tensors(key))
    assert all(same(mine.read(key), key) for key in KEYS) and len(mine) == 0
    assert KEYS[0] in mine and other.read(KEYS[0]) is None
    mine.flush()
    assert all(same(found.read(key), key) for found in (mine, other) for key in KEYS)
    assert len(other) == len(KEYS) and "image 3" in other.names()
    assert store_in(tmp_path, "another").read(KEYS[0]) is None


@pytest.mark.parametrize("limit", [{"SHARD_IMAGES": 2}, {"SHARD_BYTES": 2 * 14 * 2}])
def test_shards_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: dict[str, int]
) -> None:
    """By images and by bytes (14 numbers of two each): a kill costs no more than that."""
    for name, value in limit.items():
        monkeypatch.setattr(store, name, value)
    mine = store_in(tmp_path)
    for key in KEYS:
        mine.write(key, key, tensors(key))
    shards = sorted(tmp_path.rglob("shards/*.safetensors"))
    assert [len(load_file(shard)) for shard in shards] == [4, 4, 4]
    assert len(store_in(tmp_path)) == len(KEYS)


def test_shapes_are_compared_by_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What does not fit is not taken."""
    mine = store_in(tmp_path)
    mine.write(KEYS[0], "one", tensors(KEYS[0]))
    mine.flush()
    assert same(mine.read(KEYS[0], {"low": (1, 3, 2, 2), "high": (1, 2)}), KEYS[0])
    assert mine.read(KEYS[0], {"low": (1, 3, 2, 2), "high": (1, 3)}) is None
    assert "its shape is [1, 2], and not [1, 3]" in caplog.text


def test_only_new_indices_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of a thousand shards is asked for what is not there again and again."""
    monkeypatch.setattr(store, "SHARD_IMAGES", 1)
    early, late = store_in(tmp_path), store_in(tmp_path)
    read, original = [], store._read_index
    monkeypatch.setattr(store, "_read_index", lambda path: read.append(path) or original(path))
    for key in KEYS[:3]:
        late.write(key, key, tensors(key))
    assert early.read(KEYS[5]) is None and len(read) == 3
    late.drop_shard_of(KEYS[0])
    read.clear()
    late.write(KEYS[0], KEYS[0], tensors(KEYS[0]))
    assert early.read(KEYS[5]) is None and len(read) == 1
    assert all(same(early.read(key), key) for key in KEYS[:3])


def test_embeddings_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """Hundreds of gigabytes are not computed again: the files, written here by hand, are taken."""
    folder = tmp_path / "teacher-float32"
    for part in ("shards", "index"):
        (folder / part).mkdir(parents=True)
    embedding = torch.arange(24).reshape(2, 3, 4).half()
    content = "ab" * 32
    save_file(
        {content: embedding},
        folder / "shards" / "0123456789abcdef.safetensors",
        {"format": "fsdino-embeddings-2"},
    )
    described = f"teacher-float32{content} torch.float16 (2, 3, 4)".encode()
    sha256 = hashlib.sha256(described + embedding.numpy().tobytes()).hexdigest()
    index = {
        "format": "fsdino-embeddings-2",
        "images": {content: {"name": "a.jpg", "sha256": sha256}},
    }
    (folder / "index" / "0123456789abcdef.json").write_text(json.dumps(index))
    cache = EmbeddingCache(tmp_path, "teacher", "float32")
    found = cache.get(content, (2, 3, 4))
    assert found is not None and torch.equal(found, embedding) and cache.names() == {"a.jpg"}
