"""Files of weights of any origin: no pickled code runs, and an error says what they hold."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fsdino.errors import CheckpointError, UsageError
from fsdino.models.checkpoints import (
    write_tensors,
)
from fsdino.models.weight_files import read_metadata, read_state_dict

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16)}


class Bomb:
    """Unpickling it runs a shell command that creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.trace}'",)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.safetensors"])
def test_reads_tensors(name: str, tmp_path: Path) -> None:
    """Both kinds of file, names, values and dtypes."""
    save = save_file if name.endswith("safetensors") else torch.save
    save(STATE, tmp_path / name)
    found = read_state_dict(str(tmp_path / name))
    assert found.keys() == STATE.keys()
    for key, tensor in STATE.items():
        assert torch.equal(found[key], tensor)
        assert found[key].dtype == tensor.dtype


@pytest.mark.parametrize("wrapped", [True, False], ids=["torch.save", "bare pickle"])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights"])
def test_pickled_code_never_runs(wrapped: bool, name: str, tmp_path: Path) -> None:
    """A malicious .pth is an error, whatever it is called, and its command does not run."""
    trace = tmp_path / "executed"
    bomb = {"a.weight": torch.zeros(1), "payload": Bomb(trace)}
    if wrapped:
        torch.save(bomb, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(bomb, protocol=2))
    with pytest.raises(CheckpointError, match="weights"):
        read_state_dict(tmp_path / name)
    assert not trace.exists()
    torch.save(Bomb(trace), tmp_path / "control.pth")
    torch.load(tmp_path / "control.pth", weights_only=False)
    assert trace.exists()  # the command works: it was held back above


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped header"])
def test_damaged_files(name: str, damage: str, tmp_path: Path) -> None:
    """One line that names the file; never a bare exception of a library."""
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(STATE, path)
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"<html>404 not found</html>",
            "cut": data[: len(data) // 2],
            "flipped header": bytes(255 - b for b in data[:16]) + data[16:],
        }[damage]
    )
    with pytest.raises(CheckpointError, match=name) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(1)],
        torch.zeros(1),
        {"model": {"a": torch.zeros(1), "epoch": 3}},
        {"a": torch.zeros(1), "epoch": 3},
        {0: torch.zeros(1)},
        nn.Linear(1, 1),
        "text",
        None,
    ],
    ids=["list", "tensor", "nested", "with numbers", "unnamed", "module", "string", "None"],
)
def test_files_that_hold_something_else(content: Any, tmp_path: Path) -> None:
    """A training checkpoint or a pickled model is not a file of named tensors."""
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        read_state_dict(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<!DOCTYPE html>\n<html><body>\x1b[31mQuota exceeded</body></html>", "a web page"),
        (b"\xef\xbb\xbf\r\n  <HTML><head><title>403</title>", "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "git lfs pull"),
        (b'{"error": "Invalid username or password."}', "JSON"),
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"\x1f\x8b\x08\x00rest", "packed"),
        (b"a" * 257 + b"ustar" + bytes(300), "a tar archive"),
        (b"\x89PNG\r\n\x1a\n", "an image, not weights"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"Not Found", "neither a safetensors file nor one of torch.save's"),
        (bytes(4096), "neither a safetensors file nor one of torch.save's"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_files_that_are_not_weights_are_named(
    name: str, content: bytes, told: str, tmp_path: Path
) -> None:
    """What a download leaves when it goes wrong; never PyTorch's advice to run pickled code."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name) as caught:
        read_state_dict(tmp_path / name)
    message = str(caught.value)
    assert told in message and message.isprintable() and "weights_only" not in message


@pytest.mark.parametrize("wrong", ["weights.pth", "weights.safetensors"])
def test_the_content_decides_what_a_file_is(wrong: str, tmp_path: Path) -> None:
    """A safetensors file named .pth, and the reverse."""
    save = torch.save if wrong.endswith("safetensors") else save_file
    save(STATE, tmp_path / wrong)
    assert read_state_dict(tmp_path / wrong).keys() == STATE.keys()


def test_headers_of_any_length_are_recognised(tmp_path: Path) -> None:
    """The length comes first in a safetensors file: its bytes may look like another format's."""
    for length in range(60, 200):
        save_file({"a": torch.zeros(1)}, tmp_path / "weights", {"note": "x" * length})
        assert read_state_dict(tmp_path / "weights").keys() == {"a"}


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"\x1b[31m","shape":[1],"data_offsets":[0,4]}}',
    ],
    ids=["deep", "overflow", "beyond the file", "shared", "negative", "escape code"],
)
def test_safetensors_headers_that_claim_too_much(header: bytes, tmp_path: Path) -> None:
    """Damaged, in one line."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="are damaged") as caught:
        read_state_dict(path)
    assert str(caught.value).isprintable()


def test_special_files_are_not_waited_for(tmp_path: Path) -> None:
    """A pipe that nobody writes, a device that never ends."""
    os.mkfifo(tmp_path / "weights.pth")
    for path in (tmp_path / "weights.pth", Path("/dev/zero")):
        with pytest.raises(UsageError, match="not a regular file"):
            read_state_dict(path)


# ------------------------------------------------------------------------------ wrapped weights


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"model": STATE, "epoch": 3}, "taken from [model]"),
        ({"state_dict": STATE, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, "[state_"),
        ({"teacher": prefixed("backbone.")}, "without the prefix 'backbone.'"),
        ({"teacher": {**prefixed("backbone."), "dino_head.w": torch.zeros(1)}}, "out: dino_head"),
        ({"state_dict": {"model": prefixed("module.")}}, "taken from [state_dict][model]"),
        ({"odd": STATE}, "taken from [odd]"),
        (prefixed("module."), "without the prefix 'module.'"),
        (prefixed("_orig_mod."), "without the prefix '_orig_mod.'"),
        (prefixed("module._orig_mod."), "without the prefix '_orig_mod.'"),
        (prefixed("module.backbone."), "without the prefix 'backbone.'"),
        ({"teacher": STATE, "loss": {"center": torch.zeros(2)}}, "taken from [teacher]"),
    ],
    ids=range(11),
)
def test_wrapped_weights_are_unwrapped_and_said(
    content: Any, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As DINO, timm, Lightning, DDP and torch.compile write them."""
    torch.save(content, tmp_path / "weights.pth")
    found = read_state_dict(tmp_path / "weights.pth")
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())
    assert told in caplog.text


def test_plain_weights_are_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Names that only look like a prefix stay."""
    state = {"modular.a": torch.zeros(1), "model.b": torch.zeros(1), "c": torch.zeros(1)}
    torch.save(state, tmp_path / "weights.pth")
    assert read_state_dict(tmp_path / "weights.pth").keys() == state.keys()
    assert not caplog.records


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"teacher": STATE, "student": STATE}, "several sets of weights (student, teacher)"),
        ({"a": STATE, "b": STATE}, "several sets of weights (a, b)"),
        ({**prefixed("backbone."), "decoder.w": torch.zeros(1)}, "other parts (decoder)"),
        ({"model": {}, "epoch": 3}, "epoch: int, model: dict"),
        ({}, "nothing"),
    ],
    ids=range(5),
)
def test_ambiguous_checkpoints_list_what_they_hold(content: Any, told: str, tmp_path: Path) -> None:
    """Nothing is chosen by chance."""
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(tmp_path / "weights.pth")
    assert told in str(caught.value)


def test_missing_files_and_folders_are_usage_errors(tmp_path: Path) -> None:
    """The path is wrong, not the file."""
    with pytest.raises(UsageError, match=r"nowhere\.pth: no such file"):
        read_state_dict(tmp_path / "nowhere.pth")
    with pytest.raises(UsageError, match="folder"):
        read_state_dict(tmp_path)


def test_reads_what_a_file_says_of_itself(tmp_path: Path) -> None:
    """Of safetensors; other files say nothing, damaged ones are an error."""
    path = tmp_path / "weights.safetensors"
    write_tensors(path, STATE, {"encoder": "x"})
    assert read_metadata(path) == {"encoder": "x"}
    save_file(STATE, path)
    assert read_metadata(path) == {}
    torch.save(STATE, tmp_path / "weights.pth")
    assert read_metadata(tmp_path / "weights.pth") == {}
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors are damaged"):
        read_metadata(path)
