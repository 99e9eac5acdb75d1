"""Models by name, folder and hub id; Meta's DINOv2 and SAM files."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from timm.models.vision_transformer import Block

import fsdino
import plain_dinov2 as plain
from fsdino.bench.exactness import norm_error
from fsdino.errors import CheckpointError, UsageError
from fsdino.models import few_shot, hub, registry, zoo
from fsdino.models.encoders import Encoder, create
from fsdino.models.torch_files import TorchFile, View
from tiny_models import SMALL, box_mask, episode, picture, randomise, tiny_config, tiny_model

STEM = {"patch_size": 8, "img_size": 40, "embed_dim": 32, "depth": 2, "num_heads": 2}


def logits_of(model: fsdino.FSDINO) -> torch.Tensor:
    with torch.no_grad():
        return model(*episode(1, 2, side=model.config.image_size))


# ------------------------------------------------------------------------ saving and loading


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"variant": "comp_frozen", "prompt_tokens": 2},
        {"variant": "training_free", "keep_aspect": True},
        {"encoder": "vit_small_patch14_reg4_dinov2", "mean": (0.5, 0.5, 0.5), "contrastive": False},
        {
            "encoder": "vit_tiny_patch16_224",
            "encoder_args": STEM,
            "conv_stem": True,
            "image_size": 40,
        },
    ],
)
def test_save_and_load(changes: dict[str, Any], tmp_path: Path) -> None:
    """The same logits, the same fingerprint, ready in eval mode; supports carry over."""
    model = tiny_model(**changes)
    support = model.encode_support(picture(30, 40), box_mask(30, 40))
    model.save_pretrained(tmp_path / "runs" / "a")
    loaded = fsdino.load(str(tmp_path / "runs" / "a"))
    assert not loaded.training
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert loaded.config == model.config
    assert loaded.fingerprint() == model.fingerprint()
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    query = picture(20, 20, seed=2)
    np.testing.assert_allclose(
        loaded.segment(query, support).probability,
        model.segment(query, support).probability,
        atol=1e-6,
    )


def test_a_model_that_only_python_can_describe_is_not_saved(tmp_path: Path) -> None:
    """Said before a file is written."""
    model = tiny_model(encoder_args={**SMALL, "block_fn": Block})
    assert model.fingerprint() != tiny_model().fingerprint()
    with pytest.raises(UsageError, match="encoder_args hold a class"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_supports_outlive_a_model_that_began_with_downloaded_weights(tmp_path: Path) -> None:
    """`pretrained` says where weights came from; saved and loaded, it is the same model."""
    encoder = tiny_model().encoder
    model = zoo.assemble(tiny_config(pretrained=True), encoder).eval()
    support = model.encode_support(picture(30, 40), box_mask(30, 40))
    model.save_pretrained(tmp_path)
    assert fsdino.load(tmp_path).segment(picture(9, 9), support).mask.shape == (9, 9)


def test_load_in_another_dtype(tmp_path: Path) -> None:
    """The weights are cast; supports of the float32 model stay valid, in either direction."""
    tiny_model().save_pretrained(tmp_path)
    exact, half = fsdino.load(tmp_path), fsdino.load(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.fingerprint() == exact.fingerprint()
    query = picture(20, 20, seed=2)
    for maker, user in ((exact, half), (half, exact)):
        support = maker.encode_support(picture(30, 40), box_mask(30, 40))
        found = user.eval().segment(query, support).probability
        expected = exact.segment(query, support).probability
        assert np.abs(found - expected).mean() < 0.05


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_incomplete_folder(missing: str, tmp_path: Path) -> None:
    """Named by the file that is missing."""
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(CheckpointError, match=f"no {missing}".replace(".", r"\.")):
        fsdino.load(tmp_path)


def edit_config(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 32},
        {"encoder": "no_such_vit"},
        {"encoder": "resnet18", "encoder_args": {}},
        {"encoder_args": {"depth": 0}},
        {"encoder_args": {"wings": 2}},
        {"encoder_args": {"checkpoint_path": "weights.pth"}},
        {"decoder_heads": 3},
        {"decoder_heads": 0},
        {"adapter_heads": 3},
        {"correlation_channels": [5, 7]},
        {"correlation_channels": []},
        {"image_size": 71},
        {"prompt_tokens": 2},
        {"mean": [0.5]},
        {"wings": 2},
        {"std": [0, 0, 0]},
        {"mean": [float("nan"), 0.5, 0.5]},
        {"encoder": "hf-hub:someone/model"},
        {"encoder": "local-dir:/home"},
        {"encoder_args": {**SMALL, "depth": 20000}},
        {"encoder_args": {**SMALL, "depth": 128}},
        {"encoder_args": {**SMALL, "num_heads": 0}},
        {"encoder_args": {**SMALL, "embed_dim": 16384, "depth": 128}},
        {"encoder_args": {**SMALL, "img_size": 16384, "patch_size": 1}},
        {"encoder_args": {"pretrained_cfg": {"file": "weights.pth"}}},
        {"encoder": "vit_giant_patch14_dinov2", "encoder_args": {}},
        {"image_size": 10**9},
        {"correlation_channels": [4096] * 100},
        {"prompt_tokens": 1024, "prompt_hidden": 65536},
        {"decoder_mlp": 65536},
    ],
    ids=str,
)
def test_folder_whose_parts_do_not_fit(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config of another model, or of none, is a CheckpointError of one line.

    It is compared with the weights' header before memory is taken or a tensor read.
    """
    tiny_model().save_pretrained(tmp_path)
    edit_config(tmp_path, **changes)
    monkeypatch.setattr(zoo, "read_weights", None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as caught:
        fsdino.load(tmp_path)
    assert str(caught.value).isprintable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_folder_with_foreign_or_damaged_weights(tmp_path: Path) -> None:
    """Weights of another network, or half a file."""
    tiny_model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        fsdino.load(tmp_path)
    save_file({"conv1.weight": torch.zeros(1)}, weights)
    with pytest.raises(CheckpointError, match=r"unexpected: conv1\.weight"):
        fsdino.load(tmp_path)


def test_every_flipped_bit_of_the_weights_is_damage(tmp_path: Path) -> None:
    """A model that segments a little worse than it should is the worst kind of damage."""
    tiny_model(variant="training_free").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    generator = np.random.default_rng(0)
    for place in generator.integers(header, len(data), 30):
        changed = bytearray(data)
        changed[place] ^= 1 << int(generator.integers(8))
        file.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"model\.safetensors are damaged"):
            fsdino.load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    """They would make every mask empty. The file is intact: its training was not."""
    model = tiny_model()
    with torch.no_grad():
        model.decoder.mask_tokens.weight[0, 0] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"decoder\.mask_tokens\.weight has NaN or infinite"):
        fsdino.load(tmp_path)


def test_weights_without_a_hash_load(tmp_path: Path) -> None:
    """Earlier versions and other programs wrote none."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file), file, {"format": "pt"})
    assert fsdino.load(tmp_path).fingerprint() == model.fingerprint()


def test_the_bundled_weights_are_those_that_were_trained() -> None:
    """The hash of names and bytes that the file had before it got a hash of its own."""
    state = load_file(registry.WEIGHTS / "fsdino-tiny" / "model.safetensors")
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest() == "f4a7a575ae100f2d71003bfb47e8b16e8ff356b02407aac076fb2227f89888a2"


def test_a_web_page_in_place_of_the_weights_is_named(tmp_path: Path) -> None:
    """As a download by a page's address leaves it."""
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(CheckpointError, match="a web page, not weights"):
        fsdino.load(tmp_path)


def test_unknown_names_are_usage_errors(tmp_path: Path) -> None:
    """Neither a bundled model nor a folder; a file is not a model."""
    with pytest.raises(UsageError, match="unknown model 'fsdino-huge'"):
        fsdino.load("fsdino-huge")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"model\.pth is a file, and not a checkpoint"):
        fsdino.load(tmp_path / "model.pth")
    for name in (tmp_path / "no" / "such" / "folder", "", "a" * 5000, "a\0b", "\x1b[31m"):
        with pytest.raises(UsageError, match="unknown model") as caught:
            fsdino.load(name)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_bundled_models_go_by_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the package's weights is a name, also where the current folder has one."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "weights" / "fsdino-small")
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path / "weights")
    (tmp_path / "fsdino-small").mkdir()
    monkeypatch.chdir(tmp_path)
    assert zoo.names() == ("fsdino-small",)
    assert torch.equal(logits_of(fsdino.load("fsdino-small")), logits_of(model))
    with pytest.raises(UsageError, match="choose fsdino-small, dinov2-s"):
        fsdino.load("fsdino-large")


def test_load_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id is fetched: the files of a model, and nothing that could be pickled."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "snapshot")
    asked: list[tuple[str, str | None, list[str]]] = []

    def snapshot_download(
        repository: str, *, revision: str | None, allow_patterns: list[str]
    ) -> str:
        asked.append((repository, revision, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(zoo, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "reach", lambda file: None)
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits_of(fsdino.load("hf:someone/model")), logits_of(model))
    fsdino.load("hf:someone/model@v1.0")
    files = ["config.json", "model.safetensors", "provenance.json"]
    assert asked == [("someone/model", None, files), ("someone/model", "v1.0", files)]
    model.save_pretrained("runs/a")
    for name in ("runs/b", "someone/model", "hf:model", "hf:", "hf:a/b/c", "hf:../a", "hf:a/b@"):
        with pytest.raises(UsageError, match="hf:owner/name"):
            fsdino.load(name)
    with pytest.raises(UsageError, match=r"no such folder or file; did you mean runs/a\?"):
        fsdino.load("runs/aa")
    assert len(asked) == 2  # a mistyped folder is not looked up anywhere


@pytest.mark.parametrize(
    "error",
    [LocalEntryNotFoundError("offline"), HFValidationError("bad id"), ConnectionError("no route")],
    ids=lambda error: type(error).__name__,
)
def test_hub_that_cannot_be_reached(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline is a usage error with a remedy, and no traceback."""

    def snapshot_download(*_args: Any, **_options: Any) -> str:
        raise error

    monkeypatch.setattr(zoo, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "reach", lambda file: None)
    with pytest.raises(UsageError, match="someone/model") as caught:
        fsdino.load("hf:someone/model")
    assert "\n" not in str(caught.value)


def test_a_model_of_the_hub_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was downloaded before is used; else one line names the files and their address."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(zoo, "snapshot_download", lambda *_, **__: pytest.fail("asks the hub"))
    address = "https://huggingface.co/someone/model/tree/main"
    words = rf"\(HF_HUB_OFFLINE is set\): get config.json and model.safetensors from {address} "
    with pytest.raises(UsageError, match=words) as caught:
        fsdino.load("hf:someone/model")
    assert str(caught.value).isprintable()
    model = tiny_model()
    model.save_pretrained(tmp_path / "models--someone--model" / "snapshots" / "abc")
    (tmp_path / "models--someone--model" / "refs").mkdir()
    (tmp_path / "models--someone--model" / "refs" / "main").write_text("abc")
    assert torch.equal(logits_of(fsdino.load("hf:someone/model")), logits_of(model))


@pytest.fixture
def small_dinov2(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder of the models on DINOv2 has four blocks of 24 channels."""
    monkeypatch.setattr(
        zoo,
        "ModelConfig",
        lambda encoder, **options: fsdino.ModelConfig(encoder, encoder_args=SMALL, **options),
    )


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("form", ["Meta's", "timm's", "cached"])
def test_models_on_dinov2_by_name(
    form: str,
    registers: int,
    small_dinov2: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Meta's file, timm's file, or what the hub's cache has: the same model, its licence said."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    tag = "_reg4" if registers else ""
    config = tiny_config(encoder=f"vit_base_patch14{tag}_dinov2.lvd142m", variant="training_free")
    expected = zoo.assemble(config).eval()
    state = plain.random_state(dim=24, depth=4, registers=registers, side=5)
    torch.save(state, tmp_path / "meta.pth")
    zoo.load_dinov2(expected.encoder, tmp_path / "meta.pth")
    path: Path | None = tmp_path / "meta.pth"
    if form != "Meta's":
        folder = tmp_path / f"models--timm--{config.encoder}" / "snapshots" / "main"
        folder.mkdir(parents=True)
        path = folder / "model.safetensors"
        save_file(expected.encoder.network.state_dict(), path)
    if form == "cached":
        path = None
    name = "dinov2-b-reg" if registers else "dinov2-b"
    with caplog.at_level("INFO", "fsdino"):
        model = fsdino.load(name, weights=path, image_size=70)
    assert (model.config.variant, model.config.image_size) == ("training_free", 70)
    assert not model.training
    found, wanted = model.encoder.state_dict(), expected.encoder.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert "Apache-2.0" in caplog.text
    half = fsdino.load(name, weights=path, image_size=70, dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.fingerprint() == model.fingerprint()


def test_a_model_on_dinov2_of_real_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ViT-S as timm publishes it, from the hub's cache: the size that the list says, 518 pixels."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    network = timm.create_model("vit_small_patch14_dinov2.lvd142m", num_classes=0)
    folder = tmp_path / "models--timm--vit_small_patch14_dinov2.lvd142m" / "snapshots" / "main"
    folder.mkdir(parents=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    [info] = [info for info in fsdino.list_models() if info.name == "dinov2-s"]
    assert info.present
    size = (folder / "model.safetensors").stat().st_size
    assert info.size <= size <= 1.001 * info.size  # the header comes on top
    model = fsdino.load("dinov2-s")
    assert model.config.image_size == 518
    assert sum(p.numel() for p in model.parameters()) == info.parameters
    assert torch.equal(model.encoder.network.blocks[11].attn.qkv.weight,
                       network.blocks[11].attn.qkv.weight)  # fmt: skip


def test_a_model_on_dinov2_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line that names the files, their addresses and the option; nothing is built before."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(zoo, "assemble", lambda *_: pytest.fail("the model is built"))
    with pytest.raises(UsageError) as caught:
        fsdino.load("dinov2-l-reg")
    message = str(caught.value)
    assert message.isprintable()
    for words in (
        "HF_HUB_OFFLINE is set",
        "get model.safetensors from https://huggingface.co/timm/vit_large_patch14_reg4_dinov2."
        "lvd142m/resolve/main/model.safetensors",
        "dinov2_vitl14_reg4_pretrain.pth from https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/"
        "dinov2_vitl14_reg4_pretrain.pth",
        "weights=FILE",
        "--weights FILE",
    ):
        assert words in message
    assert capfd.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "file.pth"}, "weights file.pth needs a model without trained parts"),
        ({"image_size": 98}, "image_size 98 needs a model without trained parts, such as dinov2-b"),
        ({"device": "tpu"}, "unknown device 'tpu': choose auto, cpu, cuda or cuda:N"),
        ({"device": "mps"}, "device 'mps' is not supported: choose auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:99"}, "no device 'cuda:99' here"),
        ({"device": 1.5}, "unknown device '1.5'"),
        ({"dtype": "float8"}, "unknown dtype 'float8': choose float32, float16, bfloat16"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"dtype": torch.int8}, "unknown dtype 'torch.int8'"),
    ],
)
def test_options_of_load(options: dict[str, Any], words: str) -> None:
    """Wrong ones are said before anything is read."""
    with pytest.raises(UsageError) as caught:
        fsdino.load("fsdino-tiny", **options)
    assert words in str(caught.value)


def test_devices_and_types_by_name(tmp_path: Path) -> None:
    """As the command line takes them; PyTorch's own objects, too."""
    tiny_model().save_pretrained(tmp_path)
    for device in ("auto", "cpu", torch.device("cpu")):
        for dtype in ("float16", torch.float16):
            model = fsdino.load(tmp_path, device=device, dtype=dtype)
            assert {p.dtype for p in model.parameters()} == {torch.float16}
            auto = "cuda" if torch.cuda.is_available() else "cpu"
            expected = auto if device == "auto" else "cpu"
            assert {p.device.type for p in model.parameters()} == {expected}


def test_the_default_is_for_photographs() -> None:
    assert fsdino.load().fingerprint() == fsdino.load("fsdino-photo").fingerprint()


def test_push_to_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository is made, and a whole model of two files is uploaded."""
    calls: list[tuple[str, Any]] = []

    class Api:
        def create_repo(self, repository: str, **options: Any) -> None:
            calls.append(("create", (repository, options)))

        def upload_folder(self, *, repo_id: str, folder_path: str) -> str:
            files = {entry.name for entry in Path(folder_path).iterdir()}
            tensors = load_file(Path(folder_path) / "model.safetensors")
            calls.append(("upload", (repo_id, files, tensors.keys())))
            return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr(few_shot, "HfApi", Api)
    model = tiny_model(variant="comp")
    for repository in ("someone/model", "hf:someone/model"):
        address = model.push_to_hub(repository, private=True)
        assert address == "https://huggingface.co/someone/model"
    files = {"config.json", "model.safetensors"}
    assert (
        calls
        == [
            ("create", ("someone/model", {"private": True, "exist_ok": True})),
            ("upload", ("someone/model", files, model.state_dict().keys())),
        ]
        * 2
    )


# ---------------------------------------------------------------------------- DINOv2's files


DINO = {"embed_dim": 8, "depth": 4, "num_heads": 2}


def dinov2_file(folder: Path, registers: int = 0, **changes: torch.Tensor | None) -> Path:
    state = plain.random_state(dim=8, depth=4, registers=registers)
    for name, tensor in changes.items():
        if tensor is None:
            del state[name.replace("__", ".")]
        else:
            state[name.replace("__", ".")] = tensor
    path = folder / "dinov2_vits14_pretrain.pth"
    torch.save(state, path)
    return path


def dinov2_encoder(name: str = "vit_small_patch14_dinov2") -> Encoder:
    return create(fsdino.ModelConfig(encoder=name, encoder_args=DINO))


def test_dinov2_file_with_a_missing_or_unexpected_name(tmp_path: Path) -> None:
    """Listed; only `mask_token` is a leftover."""
    path = dinov2_file(tmp_path, blocks__2__ls1__gamma=None, head__weight=torch.zeros(1))
    with pytest.raises(CheckpointError) as caught:
        zoo.load_dinov2(dinov2_encoder(), path)
    assert "missing: blocks.2.ls1.gamma" in str(caught.value)
    assert "unexpected: head.weight" in str(caught.value)


def test_dinov2_file_of_another_size_or_kind(tmp_path: Path) -> None:
    """A reg file is not for a plain encoder, nor the reverse, nor S for B."""
    with pytest.raises(CheckpointError, match="unexpected: reg_token"):
        zoo.load_dinov2(dinov2_encoder(), dinov2_file(tmp_path, registers=4))
    with pytest.raises(CheckpointError, match="missing: reg_token"):
        zoo.load_dinov2(dinov2_encoder("vit_small_patch14_reg4_dinov2"), dinov2_file(tmp_path))
    wide = create(fsdino.ModelConfig(encoder_args={**DINO, "embed_dim": 16}))
    with pytest.raises(CheckpointError, match=r"cls_token \[1, 1, 8\] instead of \[1, 1, 16\]"):
        zoo.load_dinov2(wide, dinov2_file(tmp_path))
    with pytest.raises(CheckpointError):
        path = dinov2_file(tmp_path, registers=4, pos_embed=None)
        zoo.load_dinov2(dinov2_encoder("vit_small_patch14_reg4_dinov2"), path)


def test_malicious_dinov2_file(tmp_path: Path) -> None:
    """The official names around a payload: nothing runs, nothing is loaded."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch '{tmp_path / 'executed'}'",)

    torch.save({**plain.random_state(dim=8, depth=4), "x": Bomb()}, tmp_path / "dinov2.pth")
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        zoo.load_dinov2(dinov2_encoder(), tmp_path / "dinov2.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_dinov2_file_fills_every_weight(dtype: torch.dtype, tmp_path: Path) -> None:
    """Nothing keeps its random initialisation, whichever type the file has."""
    state = plain.random_state(dim=8, depth=4)
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save({name: tensor.to(dtype) for name, tensor in state.items()}, path)
    encoder = dinov2_encoder()
    zoo.load_dinov2(encoder, path)
    loaded = encoder.vit.state_dict()
    assert loaded.keys() == state.keys() - {"mask_token"}
    assert all(torch.equal(loaded[name], state[name].to(dtype).float()) for name in loaded)


@pytest.mark.parametrize("wrapper", ["model", "teacher", "state_dict"])
def test_wrapped_dinov2_weights_are_unwrapped(
    wrapper: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As DINOv2's own training writes them: `teacher`, with `backbone.` and two heads."""
    plainly, wrapped = dinov2_encoder(), dinov2_encoder()
    path = dinov2_file(tmp_path)
    zoo.load_dinov2(plainly, path)
    state = {f"module.backbone.{k}": v for k, v in torch.load(path, weights_only=True).items()}
    heads = {f"module.{head}.last_layer": torch.zeros(2) for head in ("dino_head", "ibot_head")}
    torch.save({wrapper: {**state, **heads}, "iteration": 5}, path)
    zoo.load_dinov2(wrapped, path)
    assert plainly.identity() == wrapped.identity()
    assert f"taken from [{wrapper}]" in caplog.text
    assert "left out: dino_head, ibot_head" in caplog.text


# ------------------------------------------------------------------------------- SAM's files


def sam_file(folder: Path, width: int = 16, without: str = "", **extra: torch.Tensor) -> Path:
    """A tiny SAM's own state dict, with every part that the official files have."""
    transformer = TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=32, num_heads=2)
    sam = Sam(
        ImageEncoderViT(
            img_size=32, patch_size=8, embed_dim=8, depth=2, num_heads=2, out_chans=width,
            use_rel_pos=True, window_size=2, global_attn_indexes=(1,),
        ),
        PromptEncoder(
            embed_dim=width, image_embedding_size=(4, 4), input_image_size=(32, 32), mask_in_chans=4
        ),
        MaskDecoder(transformer_dim=width, transformer=transformer, iou_head_hidden_dim=width),
    )  # fmt: skip
    randomise(sam, seed=5)
    state = {name: tensor for name, tensor in sam.state_dict().items() if name != without}
    path = folder / "sam_vit_b_01ec64.pth"
    torch.save({**state, **extra}, path)
    return path


def test_sam_file_fills_the_whole_decoder(tmp_path: Path) -> None:
    """Every name of `mask_decoder.*` and the positions' matrix; the rest of the model stays."""
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = sam_file(tmp_path)
    zoo.load_sam_decoder(model, path)
    state = torch.load(path, weights_only=True)
    decoder = model.decoder.state_dict()
    matrix = "positional_encoding_gaussian_matrix"
    assert torch.equal(
        decoder.pop(f"positions.{matrix}"), state[f"prompt_encoder.pe_layer.{matrix}"]
    )
    expected = {
        n.removeprefix("mask_decoder."): t for n, t in state.items() if "mask_decoder." in n
    }
    assert decoder.keys() == expected.keys()
    assert all(torch.equal(decoder[name], tensor) for name, tensor in expected.items())
    for name, tensor in model.state_dict().items():
        assert name.startswith("decoder.") or torch.equal(tensor, before[name])


def test_segmenting_with_sams_decoder_equals_sam(tmp_path: Path) -> None:
    """From the file to the mask: our decoder with our prompts, and SAM's own predict_masks."""
    model = tiny_model()
    path = sam_file(tmp_path)
    zoo.load_sam_decoder(model, path)
    seen: dict[str, torch.Tensor] = {}

    def keep(_module: object, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.update(zip(("image", "sparse", "dense", "mask"), (*args, output), strict=True))

    model.decoder.register_forward_hook(keep)
    logits_of(model)
    transformer = TwoWayTransformer(depth=2, embedding_dim=16, mlp_dim=32, num_heads=2)
    sams = MaskDecoder(transformer_dim=16, transformer=transformer, iou_head_hidden_dim=16).eval()
    prompts = PromptEncoder(
        embed_dim=16, image_embedding_size=(5, 5), input_image_size=(32, 32), mask_in_chans=4
    )
    state = torch.load(path, weights_only=True)
    for part, prefix in ((sams, "mask_decoder."), (prompts.pe_layer, "prompt_encoder.pe_layer.")):
        part.load_state_dict(
            {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        )
    with torch.no_grad():
        masks, _ = sams.predict_masks(
            seen["image"], prompts.get_dense_pe(), seen["sparse"], seen["dense"]
        )
    assert norm_error(seen["mask"], masks[:, :1]) < 1e-5


def test_sam_file_with_a_missing_or_unexpected_name(tmp_path: Path) -> None:
    """Listed; only the image encoder and the unused prompt parts are leftovers."""
    missing = "mask_decoder.output_upscaling.0.weight"
    path = sam_file(tmp_path, without=missing, **{"text_encoder.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError) as caught:
        zoo.load_sam_decoder(tiny_model(), path)
    assert "missing: output_upscaling.0.weight" in str(caught.value)
    assert "unexpected: text_encoder.weight" in str(caught.value)
    matrix = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    with pytest.raises(CheckpointError, match="missing: positions"):
        zoo.load_sam_decoder(tiny_model(), sam_file(tmp_path, without=matrix))


def test_a_wrapped_sam_file_is_unwrapped(tmp_path: Path) -> None:
    """As fine-tuned ones often are: in `model`, with `module.` before each name."""
    first, second = tiny_model(), tiny_model(seed=1)
    path = sam_file(tmp_path)
    zoo.load_sam_decoder(first, path)
    state = torch.load(path, weights_only=True)
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 1}, path)
    zoo.load_sam_decoder(second, path)
    for name, tensor in first.decoder.state_dict().items():
        assert torch.equal(second.decoder.state_dict()[name], tensor)


def test_sam_file_of_another_width(tmp_path: Path) -> None:
    """The official width is 256: a narrower model says so."""
    with pytest.raises(CheckpointError, match=r"instead of"):
        zoo.load_sam_decoder(tiny_model(), sam_file(tmp_path, width=32))


def test_training_free_has_no_decoder_to_load(tmp_path: Path) -> None:
    """Named, with the variants that have one."""
    with pytest.raises(UsageError, match=r"training_free.*choose full"):
        zoo.load_sam_decoder(tiny_model(variant="training_free"), sam_file(tmp_path))


@pytest.mark.parametrize("variant", ["full", "comp_frozen"])
def test_loading_keeps_what_is_frozen(variant: str, tmp_path: Path) -> None:
    """Loading official weights does not change what learns."""
    model = tiny_model(variant=variant)
    before = zoo.parameter_table(model)
    zoo.load_sam_decoder(model, sam_file(tmp_path))
    assert zoo.parameter_table(model) == before


def test_official_weights_make_it_another_model(tmp_path: Path) -> None:
    """Supports from before the weights were loaded do not fit any more."""
    model = zoo.assemble(tiny_config(encoder_args=DINO)).eval()
    for load in (
        lambda: zoo.load_sam_decoder(model, sam_file(tmp_path)),
        lambda: zoo.load_dinov2(model.encoder, dinov2_file(tmp_path)),
    ):
        support = model.encode_support(picture(20, 20), box_mask(20, 20))
        load()
        with pytest.raises(UsageError, match="another model"):
            model.segment(picture(9, 9), support)


def test_parameter_table_by_hand() -> None:
    """(trained, frozen) per part; nothing is counted twice or left out."""
    model = tiny_model(variant="comp")
    table = zoo.parameter_table(model)
    assert table["visual_prompt"] == ((24 * 8 + 8) + (8 * 16 + 16), 0)
    assert table["dense_prompt"] == (16 + 16, 0)
    assert table["encoder"][0] == table["adapter"][0] == 0
    assert sum(map(sum, table.values())) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("part", ["dinov2", "sam", "adapter"])
@pytest.mark.parametrize("wrong", ["name", "shape", "dtype"])
def test_weights_are_compared_before_they_are_read(
    part: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may claim gigabytes that the disk does not even keep."""
    model = tiny_model()
    module, load = {
        "dinov2": (model.encoder.vit, lambda path: zoo.load_dinov2(model.encoder, path)),
        "sam": (model.decoder, lambda path: zoo.load_sam_decoder(model, path)),
        "adapter": (model.adapter, lambda path: zoo.load_adapter(model, path)),
    }[part]
    state = dict(module.state_dict())
    name = next(iter(state))
    changed = {
        "name": {"more": torch.zeros(1)},
        "shape": {name: torch.zeros(9, 9, 9)},
        "dtype": {name: state[name].to(torch.int32)},
    }
    torch.save({**state, **changed[wrong]}, tmp_path / "weights.pth")
    monkeypatch.setattr(TorchFile, "tensor", lambda *_: pytest.fail("it was read"))
    found = {"name": "unexpected: more", "shape": f"{name} [9, 9, 9]", "dtype": "torch.int32"}
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "weights.pth")
    assert found[wrong] in str(caught.value)


def test_of_sams_files_the_decoder_alone_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image encoder of the largest has two gigabytes."""
    model, read, original = tiny_model(), [], TorchFile.tensor

    def tensor(file: TorchFile, view: View) -> torch.Tensor:
        read.append(view.shape)
        return original(file, view)

    monkeypatch.setattr(TorchFile, "tensor", tensor)
    zoo.load_sam_decoder(model, sam_file(tmp_path))
    expected = [tuple(tensor.shape) for tensor in model.decoder.state_dict().values()]
    assert sorted(read) == sorted(expected)


def test_positions_of_another_shape_are_named(tmp_path: Path) -> None:
    """The first is added to the class token only if they fit each other."""
    encoder = dinov2_encoder("vit_small_patch14_reg4_dinov2")
    for wrong in (torch.zeros(3), torch.zeros(1, 5, 9), torch.zeros(1, 0, 8)):
        with pytest.raises(CheckpointError, match=r"of another shape: .*pos_embed"):
            zoo.load_dinov2(encoder, dinov2_file(tmp_path, registers=4, pos_embed=wrong))


def test_adapter_weights(tmp_path: Path) -> None:
    """The adapter's tensors by name; those of another one, and a missing file, are refused."""
    model, other = tiny_model(1), tiny_model(2)
    expected = {name: value.clone() for name, value in other.adapter.state_dict().items()}
    save_file(expected, tmp_path / "adapter.safetensors")
    zoo.load_adapter(model, tmp_path / "adapter.safetensors")
    for name, value in model.adapter.state_dict().items():
        assert torch.equal(value, expected[name])
    with pytest.raises(CheckpointError, match="do not fit this model"):
        zoo.load_adapter(tiny_model(adapter_width=16), tmp_path / "adapter.safetensors")
    with pytest.raises(UsageError, match="no such file"):
        zoo.load_adapter(model, tmp_path / "missing.safetensors")
    with pytest.raises(UsageError, match="has no adapter"):
        zoo.load_adapter(tiny_model(variant="training_free"), tmp_path / "adapter.safetensors")


def test_what_training_says_stays_with_the_model(tmp_path: Path) -> None:
    """It does not change the fingerprint; another model in the folder does not inherit it."""
    model = tiny_model()
    assert model.provenance is None
    before = model.fingerprint()
    model.provenance = {"data": "coco20i", "fold": 2, "selected_on": "base classes"}
    model.save_pretrained(tmp_path)
    again = fsdino.load(tmp_path)
    assert again.provenance == model.provenance and again.fingerprint() == before
    (tmp_path / "provenance.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"provenance.json is damaged"):
        fsdino.load(tmp_path)
    tiny_model().save_pretrained(tmp_path)
    assert fsdino.load(tmp_path).provenance is None
