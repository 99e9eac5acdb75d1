"""A model's folder: written whole, read with its damage found, compared name by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fsdino.errors import CheckpointError, FsdinoError
from fsdino.models import checkpoints
from fsdino.models.checkpoints import (
    load_exactly,
    read_config,
    read_weights,
    weights_hash,
    write_folder,
    write_tensors,
)
from fsdino.models.config import ModelConfig

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16)}


def test_weights_are_told_apart_by_their_hash() -> None:
    """By name, value, type and shape; not by the order of names or by memory layout."""
    original = weights_hash(STATE)
    transposed = STATE["a.weight"].T.contiguous().T
    assert original == weights_hash({"b": STATE["b"], "a.weight": transposed})
    for changed in (
        {**STATE, "b": STATE["b"] + 1},
        {**STATE, "b": STATE["b"].half()},
        {**STATE, "a.weight": STATE["a.weight"].reshape(3, 2)},
        {"a.weight": STATE["a.weight"], "c": STATE["b"]},
    ):
        assert weights_hash(changed) != original


def test_load_exactly_loads_what_fits() -> None:
    """Every value arrives."""
    module, state = nn.Linear(3, 2), {"weight": torch.ones(2, 3), "bias": torch.tensor([1.0, 2.0])}
    load_exactly(module, state, "file")
    assert torch.equal(module.weight, state["weight"])
    assert torch.equal(module.bias, state["bias"])


def test_load_exactly_lists_every_difference() -> None:
    """Missing, unexpected and misshapen names in one message; the module stays as it was."""
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = {"0.weight": torch.zeros(2, 4), "0.bias": torch.zeros(2), "1.bias": torch.zeros(2)}
    state.update(wings=torch.zeros(1), tail=torch.zeros(1))
    with pytest.raises(CheckpointError) as caught:
        load_exactly(module, state, "some/file.pth")
    message = str(caught.value)
    assert "some/file.pth" in message
    assert "missing: 1.weight" in message
    assert "unexpected: tail, wings" in message
    assert "0.weight [2, 4] instead of [2, 3]" in message
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_values_that_are_not_finite_are_refused(value: float, dtype: torch.dtype) -> None:
    """By the name of the first such tensor; the module stays as it was."""
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    state = {"weight": torch.ones(2, 3, dtype=dtype), "bias": torch.zeros(2, dtype=dtype)}
    state["bias"][1] = value
    with pytest.raises(CheckpointError, match=r"some\.pth: bias has NaN or infinite values"):
        load_exactly(module, state, "some.pth")
    assert torch.equal(module.weight, before)


def test_values_beyond_the_modules_type_are_refused() -> None:
    """float64 holds numbers that float32 does not."""
    state = {"weight": torch.full((2, 3), 1e300, dtype=torch.float64), "bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match="weight has NaN or infinite values"):
        load_exactly(nn.Linear(3, 2), state, "some.pth")


def test_integers_are_not_taken_for_weights() -> None:
    """As a quantised file has them; batch norm's counter stays an integer."""
    state = {"weight": torch.ones(2, 3, dtype=torch.int8), "bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"weight is torch\.int8, this model's is"):
        load_exactly(nn.Linear(3, 2), state, "some.pth")
    load_exactly(nn.BatchNorm1d(2), nn.BatchNorm1d(2).state_dict(), "some.pth")


def test_names_in_messages_are_printable_and_few() -> None:
    """A foreign file may have ten thousand names, with escape codes in them."""
    state = {f"layer{i}\n\x1b[31m": torch.zeros(1) for i in range(10_000)}
    with pytest.raises(CheckpointError, match="and 9,900 more") as caught:
        load_exactly(nn.Linear(1, 1), state, "some.pth")
    assert str(caught.value).isprintable()


def test_write_and_read_a_folder(tmp_path: Path) -> None:
    """config.json and model.safetensors, parents created, older files replaced."""
    folder = tmp_path / "runs" / "a"
    write_folder(ModelConfig(image_size=126), STATE, folder)
    config = ModelConfig(image_size=98, correlation_layers=(2, 3), pretrained=False)
    write_folder(config, {"c": torch.rand(3, 2).T}, folder)
    assert sorted(entry.name for entry in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert read_config(folder) == config
    assert load_file(folder / "model.safetensors")["c"].shape == (2, 3)


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    """safetensors writes the entries of its metadata in an order of chance."""
    script = (
        "import sys, torch; from fsdino.models.checkpoints import write_folder\n"
        "from fsdino.models.config import ModelConfig\n"
        "identity = {'rest': '0', 'encoder': '1', 'a': '2', 'b': '3', 'c': '4'}\n"
        "write_folder(ModelConfig(), {'a': torch.ones(3)}, sys.argv[1], None, identity)\n"
    )
    for name in ("first", "second"):  # the order is that of a process
        subprocess.run([sys.executable, "-c", script, tmp_path / name], check=True, timeout=100)
    first, second = (tmp_path / name / "model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("said", ["{", "[]", "{}", '{"sha256": 3, "identity": {}}', "null"])
def test_damaged_metadata_is_damage(said: str, tmp_path: Path) -> None:
    """Whatever stands where the hash should be."""
    save_file(STATE, tmp_path / "model.safetensors", {"fsdino": said})
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(tmp_path / "model.safetensors")


def test_a_saved_model_never_downloads_again(tmp_path: Path) -> None:
    """`pretrained` was how its weights began; loading it has them all."""
    write_folder(ModelConfig(pretrained=True), STATE, tmp_path)
    assert not read_config(tmp_path).pretrained


def test_a_write_that_fails_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a file never takes the place of a whole one."""
    write_folder(ModelConfig(), STATE, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def half(_tensors: object, path: Path, *_options: object, **_more: object) -> None:
        Path(path).write_bytes(before[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", half)
    with pytest.raises(FsdinoError):
        write_folder(ModelConfig(image_size=98), {"c": torch.zeros(1)}, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert read_config(tmp_path).image_size == 518
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_written_files_have_the_usual_permissions(tmp_path: Path) -> None:
    """What the umask gives any new file: colleagues can read a model."""
    (tmp_path / "other").touch()
    write_folder(ModelConfig(), STATE, tmp_path)
    expected = (tmp_path / "other").stat().st_mode
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / name).stat().st_mode == expected


def test_writing_over_a_file_is_refused(tmp_path: Path) -> None:
    """A folder cannot be made where a file lies."""
    (tmp_path / "model").write_text("mine")
    with pytest.raises(FsdinoError, match="model"):
        write_folder(ModelConfig(), STATE, tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.parametrize(
    "content", ["", "{", "[1, 2]", "null", "[" * 100_000, "\ufffd\x00", '{"wings": 2}']
)
def test_damaged_config(content: str, tmp_path: Path) -> None:
    """Named, and no traceback of the JSON reader."""
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path)


def test_missing_config(tmp_path: Path) -> None:
    """A folder without one is not a model."""
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_config(tmp_path)


def test_config_file_is_plain_json(tmp_path: Path) -> None:
    """Other programs can read it."""
    write_folder(ModelConfig(), {}, tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    assert data["encoder"] == "vit_base_patch14_dinov2.lvd142m"
    assert data["correlation_channels"] == [16, 64, 128]


def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    """A model folder can be shared: safetensors itself would leave it to its owner alone."""
    (tmp_path / "plain").write_text("")
    write_tensors(tmp_path / "model.safetensors", {"a": torch.zeros(2)}, {})
    modes = [(tmp_path / name).stat().st_mode for name in ("plain", "model.safetensors")]
    assert modes[0] == modes[1]
