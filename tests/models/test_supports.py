"""Supports: averages over shots, files."""

from __future__ import annotations

import io
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fsdino
from fsdino.errors import CheckpointError, FsdinoError, UsageError
from fsdino.models import supports
from fsdino.models.shots import FittedShot, TokenFit
from fsdino.models.supports import Support
from fsdino.overlay import overlay
from tiny_models import box_mask, episode, picture, tiny_model


def hand_made(shots: int = 2) -> Support:
    """Numbers that tell every tensor and shot apart; the shots' grids differ."""
    grids = [(2, 3), (4, 1), (3, 3)][:shots]
    return Support(
        foreground=torch.arange(shots * 4, dtype=torch.float32).reshape(shots, 4),
        background=-torch.arange(shots * 4, dtype=torch.float32).reshape(shots, 4),
        correlation=tuple((torch.rand(2, 4, *grid),) for grid in grids),
        masks=tuple((torch.rand(*grid),) for grid in grids),
        image_sizes=tuple((10 + k, 20 + k) for k in range(shots)),
        model_fingerprint="0123456789abcdef",
    )


def assert_equal(found: Support, expected: Support) -> None:
    assert found.image_sizes == expected.image_sizes
    assert found.model_fingerprint == expected.model_fingerprint
    for part in ("foreground", "background"):
        assert torch.equal(getattr(found, part), getattr(expected, part))
    for part in ("correlation", "masks"):
        for levels, wanted in zip(getattr(found, part), getattr(expected, part), strict=True):
            pairs = zip(levels, wanted, strict=True)
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def test_features_average_prototypes_over_shots() -> None:
    """K prototypes become one; the shots stay apart, whatever their grids."""
    support = hand_made(2)
    features = support.features(3)
    torch.testing.assert_close(features.foreground, torch.tensor([[2.0, 3.0, 4.0, 5.0]] * 3))
    torch.testing.assert_close(features.background, -torch.tensor([[2.0, 3.0, 4.0, 5.0]] * 3))
    assert [tuple(s.correlation[0].shape) for s in features.shots] == [
        (3, 2, 4, 2, 3),
        (3, 2, 4, 4, 1),
    ]
    assert [tuple(s.masks[0].shape) for s in features.shots] == [(3, 2, 3), (3, 4, 1)]


def test_features_are_expanded_and_not_copied() -> None:
    """K shots of many queries are a stride-0 view: no query pays for a copy."""
    support = hand_made(1)
    shot = support.features(100).shots[0]
    assert shot.correlation[0].data_ptr() == support.correlation[0][0].data_ptr()
    assert shot.correlation[0].stride(0) == 0


@pytest.mark.parametrize("shots", [1, 3])
def test_save_and_load(shots: int, tmp_path: Path) -> None:
    """Everything comes back bit for bit, also over an older file."""
    support = hand_made(shots)
    hand_made(2).save(tmp_path / "cat.safetensors")
    support.save(tmp_path / "cat.safetensors")
    assert_equal(Support.load(str(tmp_path / "cat.safetensors")), support)
    assert [entry.name for entry in tmp_path.iterdir()] == ["cat.safetensors"]


def levelled() -> Support:
    """Two shots of three levels, each with channels of its own, on grids that differ."""
    sizes = [(2, 4, (6, 5)), (3, 8, (3, 3)), (1, 6, (2, 1))]
    return replace(
        hand_made(2),
        correlation=tuple(tuple(torch.rand(n, c, *grid) for n, c, grid in sizes) for _ in "ab"),
        masks=tuple(tuple(torch.rand(grid) for *_, grid in sizes) for _ in "ab"),
    )


def test_save_and_load_levels(tmp_path: Path) -> None:
    """Each level of each shot with its mask; what one query takes has them all."""
    support = levelled()
    support.save(tmp_path / "cat.safetensors")
    assert_equal(Support.load(tmp_path / "cat.safetensors"), support)
    assert "grid 6x5+3x3+2x1" in repr(support)
    shot = support.features(2).shots[1]
    assert [tuple(t.shape) for t in shot.correlation] == [
        (2, 2, 4, 6, 5),
        (2, 3, 8, 3, 3),
        (2, 1, 6, 2, 1),
    ]
    assert torch.equal(shot.masks[1][1], support.masks[1][1])


def test_an_object_that_a_coarse_level_misses_is_still_there() -> None:
    """A mask is empty when all levels are."""
    support = levelled()
    fine, *rest = support.masks[1]
    missed = (support.masks[0], (fine, *map(torch.zeros_like, rest)))
    assert replace(support, masks=missed).problem() is None
    empty = (support.masks[0], tuple(map(torch.zeros_like, (fine, *rest))))
    assert replace(support, masks=empty).problem() == "a mask is empty"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: {"masks": (s.masks[0], s.masks[1][:2])}, "shot 2 has another number of levels"),
        (lambda s: {"correlation": (s.correlation[0][:2], s.correlation[1])}, "shot 1 has another"),
        (lambda s: {"masks": (s.masks[0], s.masks[1][::-1])}, "shot 2 has tokens"),
        (lambda s: {"correlation": ((), ()), "masks": ((), ())}, "it has no levels"),
    ],
)
def test_levels_fit_together(change: Any, problem: str) -> None:
    """Every shot has the same levels, each with a mask of its grid."""
    support = levelled()
    found = replace(support, **change(support)).problem()
    assert found is not None and found.startswith(problem)


def test_save_and_load_what_a_model_encoded(tmp_path: Path) -> None:
    """Shots that were encoded in one batch share memory, and an inference-mode tensor is saved."""
    model = tiny_model()
    images = [picture(40, 60, seed) for seed in range(3)]
    support = model.encode_support(images, [box_mask(40, 60)] * 3)
    support.save(tmp_path / "box.safetensors")
    loaded = fsdino.Support.load(tmp_path / "box.safetensors")
    assert_equal(loaded, support)
    query = picture(50, 30, seed=9)
    expected = model.segment(query, support).probability
    found = model.segment(query, loaded).probability
    np.testing.assert_allclose(found, expected, atol=1e-6)  # another memory layout sums otherwise


@pytest.mark.parametrize("source", ["encoded", "loaded"])
def test_a_support_can_be_trained_with(source: str, tmp_path: Path) -> None:
    """Encoded in inference mode, it still takes part in a forward pass that builds gradients."""
    model = tiny_model()
    support = model.encode_support([picture(40, 60)], [box_mask(40, 60)])
    if source == "loaded":
        support.save(tmp_path / "box.safetensors")
        support = Support.load(tmp_path / "box.safetensors")
    _, _, queries = episode(2, 1)
    logits = model.answer(model.encode(queries), [support.features(2)]).logits
    logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_load_refuses_what_is_no_support(tmp_path: Path) -> None:
    """Each error names the file and what to do."""
    with pytest.raises(UsageError, match="nowhere"):
        Support.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(UsageError, match=tmp_path.name):
        Support.load(tmp_path)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(1)}, foreign)
    with pytest.raises(CheckpointError, match=r"foreign.*not written by Support\.save"):
        Support.load(foreign)
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CheckpointError, match="text"):
        Support.load(tmp_path / "text.safetensors")
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(CheckpointError, match="empty"):
        Support.load(tmp_path / "empty.safetensors")


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_load_refuses_a_truncated_file(share: float, tmp_path: Path) -> None:
    """A copy that broke off is an error, not a support with holes."""
    path = tmp_path / "cat.safetensors"
    hand_made().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="cat"):
        Support.load(path)


def content(support: Support) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file of the first format, which had no hash."""
    tensors = {"foreground": support.foreground, "background": support.background}
    for k in range(support.shots):
        tensors[f"correlation.{k}"] = support.correlation[k][0]
        tensors[f"masks.{k}"] = support.masks[k][0]
    metadata = {
        "format": "fsdino-support-1",
        "image_sizes": " ".join(f"{h}x{w}" for h, w in support.image_sizes),
        "model_fingerprint": support.model_fingerprint,
    }
    return tensors, metadata


def test_files_of_the_first_format_still_load(tmp_path: Path) -> None:
    """Without a hash; saving writes the newest."""
    support = hand_made()
    tensors, metadata = content(support)
    save_file(tensors, tmp_path / "old.safetensors", metadata=metadata)
    assert_equal(Support.load(tmp_path / "old.safetensors"), support)
    support.save(tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "fsdino-support-5"


@pytest.mark.parametrize(
    "change",
    [
        lambda t, m: t["correlation.1.0"].view(-1)[3].add_(1e-3),
        lambda t, m: t["masks.0.0"].fill_(0.5),
        lambda t, m: t.update({"masks.0.0": t["masks.0.0"].double()}),
        lambda t, m: m.update(image_sizes="10x20 11x22"),
        lambda t, m: m.update(model_fingerprint="1123456789abcdef"),
        lambda t, m: m.update(sha256="0" * 64),
        lambda t, m: m.pop("sha256"),
        lambda t, m: m.update(more="1"),
    ],
)
def test_the_hash_covers_tensors_and_metadata(change: Any, tmp_path: Path) -> None:
    """Plausible values that nobody wrote are damage as well."""
    path = tmp_path / "cat.safetensors"
    hand_made().save(path)
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"cat\.safetensors is damaged .*encode"):
        Support.load(path)


def test_every_flipped_bit_of_the_tensors_is_found(tmp_path: Path) -> None:
    """One in each byte of the file's tail, which holds nothing but numbers."""
    path = tmp_path / "cat.safetensors"
    hand_made().save(path)
    whole = path.read_bytes()
    size = sum(t.numel() * t.element_size() for t in hand_made().tensors())
    for place in range(len(whole) - size, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="not what was written"):
            Support.load(path)


@pytest.mark.parametrize(
    "metadata",
    [
        {"image_sizes": "10x20 11x21 12x22"},  # one more than there are shots
        {"image_sizes": "10x20"},
        {"image_sizes": ""},
        {"image_sizes": "10x20 wide"},
        {"image_sizes": "10x20 11x21x3"},
        {"image_sizes": "10x20 0x21"},
        {"image_sizes": "10x20 -3x21"},
        {"image_sizes": "10x20 11x99999999999999999999"},
        {"image_sizes": "10x20 11x\u0662"},
        {"image_sizes": None},
        {"model_fingerprint": None},
    ],
)
def test_load_refuses_inconsistent_metadata(metadata: Any, tmp_path: Path) -> None:
    """A file of the right format whose parts do not fit together is damaged."""
    tensors, whole = content(hand_made())
    present = {key: value for key, value in {**whole, **metadata}.items() if value is not None}
    save_file(tensors, tmp_path / "cat.safetensors", metadata=present)
    with pytest.raises(CheckpointError, match="damaged"):
        Support.load(tmp_path / "cat.safetensors")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("foreground", None),
        ("masks.1", None),
        ("foreground", lambda t: t[:1]),
        ("foreground", lambda t: t.flatten()),
        ("background", lambda t: t * torch.nan),
        ("background", lambda t: t.long()),
        ("correlation.0", lambda t: t[:, :, :1]),
        ("correlation.0", lambda t: t[:, :2]),
        ("correlation.0", lambda t: t[:1]),
        ("correlation.1", lambda t: t[None]),
        ("correlation.1", lambda t: t / 0),
        ("masks.0", lambda t: t[:0]),
        ("masks.0", lambda t: t * 0),
        ("masks.0", lambda t: t - 1),
        ("masks.1", lambda t: t * 300),
        ("masks.1", lambda t: t > 0.5),
        ("masks.2", lambda t: torch.ones(2, 2)),
    ],
)
def test_load_refuses_impossible_tensors(name: str, change: Any, tmp_path: Path) -> None:
    """Of the first format, too, which has no hash: it names the file."""
    tensors, metadata = content(hand_made())
    value = tensors.pop(name, None)
    if change is not None:
        tensors[name] = change(value).contiguous()
    save_file(tensors, tmp_path / "cat.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"cat\.safetensors is damaged"):
        Support.load(tmp_path / "cat.safetensors")


@pytest.mark.parametrize(
    "wrong",
    [
        {"foreground": [2**28]},
        {"masks.0": [2**14, 2**14]},
        {"more": [2**28]},
        {"correlation.0": [20, 4, 2**12, 2**12], "masks.0": [2**12, 2**12]},
    ],
    ids=str,
)
def test_what_a_file_claims_is_judged_before_it_is_read(
    wrong: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gigabytes that the disk does not even keep, and whose hash would take seconds."""
    shapes = {
        **{"foreground": [1, 4], "background": [1, 4]},
        **{"correlation.0": [2, 4, 3, 3], "masks.0": [3, 3]},
        **wrong,
    }
    said = {"format": "fsdino-support-2", "model_fingerprint": "0", "image_sizes": "10x20"}
    header: dict[str, Any] = {"__metadata__": {**said, "sha256": "0"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path = tmp_path / "support.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    monkeypatch.setattr(supports, "check_hash", None)
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        Support.load(path)
    assert next(iter(wrong)) in str(caught.value) or "tokens" in str(caught.value)


def test_empty_tensors_are_refused(tmp_path: Path) -> None:
    """All of them empty fit together, and show nothing."""
    support = hand_made()
    tensors, metadata = content(support)
    empty = {name: t[..., :0].contiguous() for name, t in tensors.items()}
    save_file(empty, tmp_path / "cat.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match="damaged"):
        Support.load(tmp_path / "cat.safetensors")


def test_save_into_a_missing_folder_says_so(tmp_path: Path) -> None:
    """One line that names the path; nothing is left behind."""
    with pytest.raises(FsdinoError, match="nowhere") as caught:
        hand_made().save(tmp_path / "nowhere" / "cat.safetensors")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_to_moves_every_tensor() -> None:
    """Features follow the model's dtype; weights between 0 and 1 stay float32."""
    moved = hand_made().to("cpu", torch.bfloat16)
    assert {t.dtype for (t,) in moved.correlation} == {torch.bfloat16}
    assert {t.dtype for (t,) in moved.masks} == {torch.float32}
    meta = fitted().to("meta")
    assert meta.fit is not None and len(meta.fit.shots) == 3
    assert {t.device.type for t in (*meta.tensors(), *meta.fit.tensors())} == {"meta"}


def fitted(shots: int = 2) -> Support:
    """As a model with a training-free score makes it, with a quality."""
    per_channel = [torch.rand(1, 2, 4) for _ in range(3)]
    sides = torch.tensor([[[-1.0, 0], [1, 1], [-1, 1]]])
    seen = tuple(FittedShot(torch.rand(1, 2, 4, 3, 2), sides.clone()) for _ in range(shots + 1))
    fit = TokenFit(*per_channel, torch.rand(1), torch.rand(1, 6), seen)
    return replace(hand_made(shots), fit=fit, quality=0.625)


def test_what_was_fitted_is_kept_in_the_file(tmp_path: Path) -> None:
    support = fitted()
    support.save(tmp_path / "cat.safetensors")
    found = Support.load(tmp_path / "cat.safetensors")
    assert_equal(found, support)
    assert found.quality == 0.625
    assert found.fit is not None and support.fit is not None
    pairs = zip(found.fit.tensors(), support.fit.tensors(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert len(found.fit.shots) == 3


def with_shot(support: Support, batch: int, sides: torch.Tensor) -> Support:
    assert support.fit is not None
    shots = (*support.fit.shots, FittedShot(torch.rand(batch, 2, 4, 3, 2), sides))
    return replace(support, fit=replace(support.fit, shots=shots))


def with_empty_shot(support: Support) -> Support:
    assert support.fit is not None
    empty = FittedShot(torch.rand(1, 2, 4, 0, 2), torch.ones(1, 0, 2))
    return replace(support, fit=replace(support.fit, shots=(*support.fit.shots, empty)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: replace(s, quality=1.5), r"quality leaves \[0, 1\]"),
        (lambda s: replace(s, quality=math.nan), r"quality leaves \[0, 1\]"),
        (lambda s: replace(s, fit=replace(s.fit, levels=torch.rand(1, 5))), "fitted to its tokens"),
        (lambda s: replace(s, fit=replace(s.fit, weight=torch.rand(1, 2, 3))), "fitted to its"),
        (lambda s: replace(s, fit=s.fit.map(lambda t: t / 0)), "NaN or infinity"),
        (lambda s: replace(s, fit=replace(s.fit, shots=s.fit.shots[:1])), "1 of its 2 shots"),
        (lambda s: replace(s, fit=replace(s.fit, shots=())), "0 of its 2 shots"),
        (lambda s: with_shot(s, 1, torch.ones(1, 2, 2)), "fitted shot 4 has tokens"),
        (lambda s: with_shot(s, 1, torch.ones(1)), "fitted shot 4 has tokens"),
        (with_empty_shot, "fitted shot 4 has tokens"),
        (lambda s: with_shot(s, 2, torch.ones(2, 3, 2)), "fitted shot 4 has tokens"),
        (lambda s: with_shot(s, 1, 1.5 * torch.ones(1, 3, 2)), r"fitted shot .* leaves \[-1, 1\]"),
    ],
)
def test_a_damaged_fit_is_named(change: Any, words: str) -> None:
    assert fitted().problem() is None
    problem = change(fitted()).problem()
    assert problem is not None and re.search(words, problem)


def test_repr_is_a_line() -> None:
    """Not the tensors; the quality where it is known."""
    assert repr(hand_made(2)) == "Support(2 shots, grids 2x3, 4x1, model 0123456789abcdef)"
    shown = repr(replace(hand_made(1), quality=0.934))
    assert shown == "Support(1 shot, grid 2x3, quality 0.93, model 0123456789abcdef)"


def test_equality_is_identity_and_content_is_asked_for() -> None:
    """Tensors in a generated `==` would raise; what is measured of a support does not count."""
    one = hand_made()
    other = replace(one, masks=tuple((mask.clone(),) for (mask,) in one.masks), quality=0.5)
    assert one == one and one != other and len({one, other}) == 2
    assert one.same_as(other) and other.same_as(one)
    assert not one.same_as(hand_made(1))
    assert not one.same_as(replace(one, foreground=one.foreground + 1))
    assert not one.same_as(replace(one, foreground=one.foreground.double()))
    assert not one.same_as(replace(one, model_fingerprint="f" * 16))
    assert not one.same_as(replace(one, image_sizes=((1, 1), (1, 1))))
    assert not one.same_as("cat")


def test_a_notebook_shows_the_marked_images(tmp_path: Path) -> None:
    """Small, side by side; a support from a file has none and shows its line."""
    model = tiny_model()
    sizes = [(300, 600), (40, 30), *[(20, 20)] * 12]
    images = [picture(*size) for size in sizes]
    support = model.encode_support(images, [box_mask(*size) for size in sizes])
    assert [p.size for p in support.pictures[:3]] == [(256, 128), (30, 40), (20, 20)]
    shown = support._repr_png_()
    assert shown is not None
    with Image.open(io.BytesIO(shown)) as sheet:
        assert sheet.size == (4 * 256, 3 * 128)
        small = np.asarray(sheet)[:40, 256:286]
    np.testing.assert_array_equal(small, np.asarray(overlay(images[1], box_mask(40, 30))))
    support.save(tmp_path / "cat.safetensors")
    loaded = Support.load(tmp_path / "cat.safetensors")
    assert loaded.same_as(support) and loaded._repr_png_() is None
    assert len(support.to("cpu").pictures) == 14
