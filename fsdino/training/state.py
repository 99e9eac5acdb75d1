"""What a run changes: trained parameters, the optimiser's and random states."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fsdino.errors import CheckpointError
from fsdino.models.checkpoints import weights_hash


def pack(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What a checkpoint holds: trained parameters, buffers, the optimiser's and random states.

    Frozen parameters stay where they came from. The tensors are the live ones.
    """
    tensors: dict[str, Tensor] = {}
    for title, module in modules.items():
        tensors |= {f"{title}.{name}": value for name, value in _changing(module).items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{slot}": torch.as_tensor(value) for slot, value in slots.items()
        }
    return tensors | random_state()


def unpack(
    tensors: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put back what `pack` took out, but for random states: see `set_random`.

    Raises:
        CheckpointError: it is of another model.
    """
    for title, module in modules.items():
        own = _changing(module)
        found = {
            name.removeprefix(f"{title}."): value
            for name, value in tensors.items()
            if name.startswith(f"{title}.")
        }
        if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in own.items()}:
            raise CheckpointError(f"the checkpoint's {title} is another one: check --out")
        module.load_state_dict(found, strict=False)
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".")
            slots.setdefault(int(index), {})[slot] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def random_state() -> dict[str, Tensor]:
    """States of torch's generators: of the CPU, and of this process's GPU where one is used."""
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def random_among(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `random_state` took, among the tensors of a checkpoint.

    Raises:
        KeyError: it is not there.
    """
    states = {"random.cpu": tensors["random.cpu"]}
    if "random.cuda" in tensors:
        states["random.cuda"] = tensors["random.cuda"]
    return states


def set_random(states: Mapping[str, Tensor]) -> None:
    """Put back what `random_state` took, or a checkpoint that holds it.

    The last step before training continues: a number drawn in between would make it another run.
    """
    torch.set_rng_state(states["random.cpu"])
    if "random.cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["random.cuda"])


@contextlib.contextmanager
def own_random() -> Iterator[None]:
    """Let what is inside draw from torch's generators without a trace."""
    states = random_state()
    try:
        yield
    finally:
        set_random(states)


def frozen_hash(module: nn.Module) -> str:
    """Hash of the parameters that `pack` leaves out, so that a resumed run finds the same ones."""
    return weights_hash({n: p for n, p in module.named_parameters() if not p.requires_grad})


def _changing(module: nn.Module) -> dict[str, Tensor]:
    """The part of a state dict that training changes, or that has no parameter."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}
