"""A name for the weights of a module: kept by copies, casts and moves, changed by training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fsdino.models.checkpoints import weights_hash
from fsdino.models.weight_files import StateDict

M = TypeVar("M", bound="Identified")
_UNKNOWN = -1  # version of a tensor whose changes PyTorch does not count


class _Mark(NamedTuple):
    """The state of one tensor when its module's weights were hashed.

    PyTorch counts in-place changes, but neither those of fused optimizers nor those through
    `.data`; training of any kind changes the sample.
    """

    version: int
    dtype: torch.dtype
    sample: float  # the element in the middle


class Identified(nn.Module):
    """A module whose weights have a name: a hash of them as they were first loaded.

    Copies (`deepcopy`, pickle, `torch.save`), casts and moves keep the name, although they may
    round the weights. After any other change, and after each switch between training and
    evaluation, the weights are hashed again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._identity: tuple[str, tuple[_Mark, ...]] | None = None

    def own_state(self) -> StateDict:
        """The tensors that are hashed, by the names that files use."""
        return plain_names(self.state_dict())

    def identity(self) -> str:
        """Sixteen hexadecimal digits; cheap unless the weights changed."""
        marks = _marks(self.own_tensors())
        known = self._identity
        if known is None or not _unchanged(known[1], marks):
            known = weights_hash(self.own_state()), marks
            self._identity = known
        return known[0]

    def own_tensors(self) -> list[Tensor]:
        """The same tensors as `own_state`, without names; quicker."""
        return [*self.parameters(), *self.buffers()]

    def set_identity(self, name: str) -> None:
        """Give the present weights the name that their file or their original has."""
        self._identity = name, _marks(self.own_tensors())

    def forget_identity(self) -> None:
        """Forget the name: the weights are hashed again when it is asked for."""
        self._identity = None

    def to_empty(self: M, *args: Any, **options: Any) -> M:
        """As in PyTorch; the name is forgotten, as the weights are gone."""
        super().to_empty(*args, **options)
        for module in self.modules():
            if isinstance(module, Identified):
                module.forget_identity()
        return self

    def _apply(self: M, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> M:
        """Keep the name: PyTorch casts and moves modules by this method."""
        name = None if _on_meta(self.own_tensors()) else self.identity()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if name is not None and not _on_meta(self.own_tensors()):
            self.set_identity(name)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """The state for copies and pickles, with the name but not the marks of these tensors."""
        state = self.__dict__.copy()
        state["_identity"] = None if _on_meta(self.own_tensors()) else (self.identity(), ())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_identity": None, **state})  # type: ignore[no-untyped-call]
        if self._identity is not None:
            self.set_identity(self._identity[0])


def plain_names(state: StateDict) -> StateDict:
    """A state dict without the prefix that `torch.compile` adds to names."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}


def _on_meta(tensors: list[Tensor]) -> bool:
    return any(tensor.is_meta for tensor in tensors)


def _marks(tensors: list[Tensor]) -> tuple[_Mark, ...]:
    return tuple(
        _Mark(_UNKNOWN if t.is_inference() else t._version, t.dtype, sample)
        for t, sample in zip(tensors, _samples(tensors), strict=True)
    )


def _samples(tensors: list[Tensor]) -> list[float]:
    """The middle element of each tensor; one transfer for all on one device."""
    found = [0.0] * len(tensors)
    remote: dict[torch.device, list[int]] = {}
    middles = [t.detach()[tuple([n // 2 for n in t.shape])] if t.numel() else t for t in tensors]
    for index, middle in enumerate(middles):
        if middle.device.type == "cpu":
            found[index] = float(middle) if middle.numel() else 0.0
        elif middle.numel():
            remote.setdefault(middle.device, []).append(index)
    for places in remote.values():
        values = torch.stack([middles[index].float() for index in places]).tolist()
        for index, value in zip(places, values, strict=True):
            found[index] = value
    return found


def _unchanged(before: tuple[_Mark, ...], now: tuple[_Mark, ...]) -> bool:
    return len(before) == len(now) and all(map(_same, before, now))


def _same(before: _Mark, now: _Mark) -> bool:
    """Whether a tensor is unchanged, or only cast (as one part of a module may be)."""
    if before.version != now.version:
        return False
    if before.dtype == now.dtype:
        return before.sample == now.sample
    return float(torch.tensor(before.sample, dtype=before.dtype).to(now.dtype)) == now.sample
