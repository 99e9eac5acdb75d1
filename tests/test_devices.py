"""Devices and floating types by name: what is taken, and what is refused with a remedy."""

from __future__ import annotations

import pytest
import torch

from fsdino import devices
from fsdino.errors import UsageError


@pytest.mark.parametrize("name", devices.DTYPES)
def test_floating_types(name: str) -> None:
    """A name, and PyTorch's own type, which may also be float64."""
    assert devices.find_dtype(name) is getattr(torch, name)
    assert devices.find_dtype(torch.float64) is torch.float64


@pytest.mark.parametrize("dtype", ["int8", "float64", "half", torch.int32])
def test_other_types_are_refused(dtype: str | torch.dtype) -> None:
    with pytest.raises(UsageError, match=r"unknown dtype '.*': choose float32, float16, bfloat16"):
        devices.find_dtype(dtype)


def test_devices_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "auto" is the CPU; a GPU that is not here is refused."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices.find_device("auto") == devices.find_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match=r"no device 'cuda:1' here \(0 GPUs found\): choose cpu"):
        devices.find_device("cuda:1")


def test_devices_with_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "auto" is one of them; their numbers are 0 and 1."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.find_device("auto") == torch.device("cuda")
    assert devices.find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="no device 'cuda:2' here"):
        devices.find_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:0\n", "mps"])
def test_names_that_are_not_devices(name: str) -> None:
    """Also without PyTorch, which the commands ask before it is imported."""
    with pytest.raises(UsageError, match="choose auto, cpu, cuda or cuda:N"):
        devices.check_device(name)
    with pytest.raises(UsageError, match="choose auto, cpu, cuda or cuda:N"):
        devices.find_device(name)
