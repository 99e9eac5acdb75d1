"""Embeddings are computed once, found by their images' content, and never lost or wrong unseen."""

from __future__ import annotations

import errno
import io
import json
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tiny_sam
from fsdino.errors import FsdinoError
from fsdino.training import store
from fsdino.training.distillation.corpus import ImageFile
from fsdino.training.distillation.embeddings import EmbeddingCache, content_hash, fill
from fsdino.training.distillation.teacher import Teacher, load_teacher
from tiny_models import picture

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = 7


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return load_teacher(tiny_sam.write(tmp_path_factory.mktemp("sam")))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ImageFile]:
    """Seven images, and shards of two."""
    monkeypatch.setattr(store, "SHARD_IMAGES", 2)
    (tmp_path / "images").mkdir()
    found = []
    for seed in range(IMAGES):
        path = tmp_path / "images" / f"{seed}.png"
        Image.fromarray(picture(20 + seed, 30, seed)).save(path)
        found.append(ImageFile(path.name, path))
    return found


def cache_in(folder: Path) -> EmbeddingCache:
    return EmbeddingCache(folder / "cache", "teacher", "float32")


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("shards/[0-9a-f]*.safetensors"))


def expected(teacher: Teacher, file: ImageFile) -> torch.Tensor:
    return teacher([teacher.architecture.scale(file.decode(file.read()))])[0]


def test_embeddings_come_back(tmp_path: Path, files, teacher) -> None:
    """What is read is what the teacher says, in half precision, whoever opens the cache."""
    inventory = fill(cache_in(tmp_path), teacher, files, batch_size=3)
    cache = cache_in(tmp_path)
    assert len(cache) == IMAGES and len(shards(tmp_path)) == 4
    for file in files:
        content = content_hash(file.path.read_bytes())
        assert inventory.contents[file.name] == content
        found = cache.get(content)
        assert found.dtype == torch.float16
        torch.testing.assert_close(found, expected(teacher, file), rtol=2e-3, atol=2e-3)
    assert cache.get("0" * 64) is None


def test_shards_are_plain_safetensors(tmp_path: Path, files, teacher) -> None:
    """Any program can read them: float16, named by the content's hash; the index names images."""
    fill(cache_in(tmp_path), teacher, files[:2])
    (shard,) = shards(tmp_path)
    tensors = load_file(shard)
    assert set(tensors) == {content_hash(file.path.read_bytes()) for file in files[:2]}
    assert cache_in(tmp_path).names() == {file.name for file in files[:2]}


def test_files_of_another_teacher_are_not_taken(tmp_path: Path, files, teacher, caplog) -> None:
    """Whole, with valid hashes, in the folder of this one's."""
    fill(cache_in(tmp_path), teacher, files[:2])
    other = EmbeddingCache(tmp_path / "cache", "other", "float32")
    shutil.copytree(cache_in(tmp_path).folder, other.folder, dirs_exist_ok=True)
    other.refresh()
    content = content_hash(files[0].path.read_bytes())
    assert content in other and other.get(content) is None
    assert "its content is not what was written" in caplog.text


@pytest.mark.parametrize(
    "change",
    [lambda t: t.float(), lambda t: t[0], lambda t: t * torch.nan, lambda t: t[:, :1]],
    ids=["float32", "two dims", "nan", "shape"],
)
def test_what_cannot_be_the_embedding(tmp_path: Path, files, teacher, change, caplog) -> None:
    """A valid hash of another type or shape, of NaN, or of an image of other proportions."""
    fill(cache_in(tmp_path), teacher, files[:2])
    (shard,) = shards(tmp_path)
    content = content_hash(files[0].path.read_bytes())
    tensors = load_file(shard)
    shape = tuple(tensors[content].shape)
    tensors[content] = change(tensors[content]).contiguous()
    save_file(tensors, shard, {"format": store.FORMAT})
    index = shard.parent.parent / "index" / f"{shard.stem}.json"
    rows = json.loads(index.read_text())
    rows["images"][content]["sha256"] = cache_in(tmp_path)._hash({content: tensors[content]})
    index.write_text(json.dumps(rows))
    assert cache_in(tmp_path).get(content, shape) is None
    assert "is damaged (its" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [b"[" * 5000, b"\xff\xfe", b"[]", b'{"format": "fsdino-embeddings-2", "images": {"a": 3}}',
     b'{"format": "fsdino-embeddings-2", "images": {"a": {"name": "a", "sha256": [1]}}}'],
    ids=["deep", "bytes", "list", "rows", "types"],
)  # fmt: skip
def test_a_damaged_index_is_no_index(tmp_path: Path, files, teacher, damage, caplog) -> None:
    """Its shard is computed again."""
    fill(cache_in(tmp_path), teacher, files[:2])
    (index,) = (tmp_path / "cache").rglob("*.json")
    index.write_bytes(damage)
    cache = cache_in(tmp_path)
    assert len(cache) == 0 and f"index {index} cannot be used" in caplog.text
    fill(cache, teacher, files[:2])
    assert len(cache_in(tmp_path)) == 2


def counting(teacher: Teacher, monkeypatch) -> list[int]:
    """How many images each pass of the teacher gets."""
    counts: list[int] = []
    original = Teacher.forward

    def forward(self, images, dtype=torch.float32):
        counts.append(len(images))
        return original(self, images, dtype)

    monkeypatch.setattr(Teacher, "forward", forward)
    return counts


def test_nothing_is_computed_twice(tmp_path: Path, files, teacher, monkeypatch) -> None:
    """Neither in a later call, nor for a copy of an image under another name."""
    counts = counting(teacher, monkeypatch)
    fill(cache_in(tmp_path), teacher, files[:4])
    copy = tmp_path / "images" / "copy.png"
    shutil.copy(files[0].path, copy)
    inventory = fill(cache_in(tmp_path), teacher, [*files, ImageFile("copy.png", copy)])
    assert sum(counts) == IMAGES
    assert inventory.contents[str(copy)] == inventory.contents[files[0].name]


def killed(work: Callable[[], object]) -> int:
    """Do something in a process of its own; returns how it ended."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    return process.exitcode


def test_kill_9_costs_one_shard_at_most(tmp_path: Path, files, teacher, monkeypatch) -> None:
    """Killed while the fifth image is embedded: four are there, whole, and not done again."""

    def kill_at_the_fifth() -> None:
        original, seen = Teacher.forward, []

        def forward(self, images, dtype=torch.float32):
            seen.append(images)
            if len(seen) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, images, dtype)

        Teacher.forward = forward
        fill(cache_in(tmp_path), teacher, files, batch_size=1)

    assert killed(kill_at_the_fifth) == -signal.SIGKILL
    assert len(cache_in(tmp_path)) == 4
    counts = counting(teacher, monkeypatch)
    fill(cache_in(tmp_path), teacher, files)
    assert sum(counts) == 3 and len(cache_in(tmp_path)) == IMAGES


def test_killed_between_shard_and_index(tmp_path: Path, files, teacher, monkeypatch) -> None:
    """A shard without its index does not count, and is replaced by the same."""
    fill(cache_in(tmp_path), teacher, files[:2])
    (index,) = (tmp_path / "cache").rglob("*.json")
    before = load_file(shards(tmp_path)[0])
    index.unlink()
    assert len(cache_in(tmp_path)) == 0
    fill(cache_in(tmp_path), teacher, files[:2])
    (shard,) = shards(tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in load_file(shard).items())


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "index"])
def test_damage_is_found_named_and_mended(tmp_path, files, teacher, caplog, damage) -> None:
    """Whatever happened to a shard: not used, named, and computed again; others stay."""
    fill(cache_in(tmp_path), teacher, files)
    cache = cache_in(tmp_path)
    path = shards(tmp_path)[0]
    content = next(iter(load_file(path)))
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 64
    index = path.parent.parent / "index" / f"{path.stem}.json"
    with caplog.at_level(logging.WARNING):
        if damage == "index":
            index.write_text(index.read_text()[:40])
            cache = cache_in(tmp_path)
        elif damage == "gone":
            path.unlink()
        else:
            path.write_bytes(raw if damage == "flip" else raw[:-100])
        assert cache.get(content) is None
    assert path.stem in caplog.text
    others = [name for other in shards(tmp_path) if other != path for name in load_file(other)]
    lost = cache.drop_shard_of(content)
    assert len(lost) in (1, 2) or damage == "index"
    fill(cache, teacher, files)
    mended = cache_in(tmp_path)
    assert len(mended) == IMAGES and mended.get(content) is not None
    assert all(mended.get(name) is not None for name in others)


@pytest.mark.parametrize("last", [1, 2])
def test_what_another_process_mended_is_read(tmp_path, files, teacher, caplog, last) -> None:
    """A cache that was opened before finds the new shard, of the same name or not, silently."""
    fill(cache_in(tmp_path), teacher, files[:2])
    early, other = cache_in(tmp_path), cache_in(tmp_path)
    content = content_hash(files[0].path.read_bytes())
    other.drop_shard_of(content)
    fill(other, teacher, files[:last], batch_size=1)
    with caplog.at_level(logging.WARNING):
        assert early.get(content) is not None
    assert caplog.text == ""


def test_a_full_disk_loses_nothing(tmp_path: Path, files, teacher, monkeypatch) -> None:
    """One clear error; whole shards stay and the rest is done when there is space again."""
    real, synced = os.fsync, []

    def fails(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 6:  # two shards with their indices, and some folders
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(FsdinoError, match="the disk is full; free space"):
            fill(cache_in(tmp_path), teacher, files, batch_size=1)
    kept = cache_in(tmp_path)
    assert 2 <= len(kept) < IMAGES
    assert not list(tmp_path.rglob(".fsdino-*"))
    counts = counting(teacher, monkeypatch)
    fill(cache_in(tmp_path), teacher, files)
    assert sum(counts) == IMAGES - len(kept)


def test_the_size_is_announced_and_must_be_free(tmp_path, files, teacher, caplog, monkeypatch):
    """Bytes by hand: 16 channels x 8 x 8 x 2 bytes = 2048 an image, before anything is computed."""
    cache = cache_in(tmp_path)
    fill(cache, teacher, files[:3])
    usage = SimpleNamespace(free=4 * 2048)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with caplog.at_level(logging.INFO):
        cache.announce(files, teacher.architecture.most_bytes)
    assert "of 7 images: at most 14.3 kB" in caplog.text
    assert "3 are there, at most 8.2 kB to write, 8.2 kB free" in caplog.text
    usage.free -= 1
    with pytest.raises(FsdinoError, match=r"may take 8\.2 kB, 8\.2 kB are free .*--no-use-cache"):
        cache.announce(files, teacher.architecture.most_bytes)


def test_ctrl_c_keeps_what_is_computed(tmp_path: Path, files, teacher) -> None:
    """A real SIGINT after three images: all three are there, also the one of a half-full shard."""
    done = []

    def report(count: int) -> None:
        done.append(count)
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fill(cache_in(tmp_path), teacher, files, batch_size=1, report=report)
    assert len(cache_in(tmp_path)) == 3


def test_unreadable_images_are_named(tmp_path: Path, files, teacher, caplog) -> None:
    """They cost nothing but themselves."""
    buffer = io.BytesIO()
    Image.fromarray(picture(30, 30)).save(buffer, "JPEG")
    files[2].path.write_bytes(buffer.getvalue()[:300])
    files[3].path.unlink()
    with caplog.at_level(logging.WARNING):
        inventory = fill(cache_in(tmp_path), teacher, files)
    assert set(inventory.unreadable) == {files[2].name, files[3].name}
    assert len(cache_in(tmp_path)) == IMAGES - 2
    assert files[3].name in caplog.text


def test_teachers_do_not_mix(tmp_path: Path, files, teacher) -> None:
    """Another teacher, or another precision, finds nothing in the same folder."""
    fill(cache_in(tmp_path), teacher, files)
    assert len(EmbeddingCache(tmp_path / "cache", "other", "float32")) == 0
    assert len(EmbeddingCache(tmp_path / "cache", "teacher", "bfloat16")) == 0


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    """A file in the way is named, with what to do."""
    (tmp_path / "cache").touch()
    with pytest.raises(FsdinoError, match=r"cannot create .*cache.*compute embeddings on the fly"):
        cache_in(tmp_path)
