"""A run: one folder with its configuration, checkpoints and metrics; resumable at any moment.

```
config.yaml environment.json     what was asked for, and where it ran
checkpoints/00000500.safetensors the last two: tensors, and in the metadata a JSON state and a hash
metrics.jsonl tensorboard/       losses and metrics by step
model/ best/                     the last model and the best one, as `fsdino.load` takes them
lock                             held by the process that trains there, whose number is in it
```

Both training stages keep their work in one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import numbers
import os
import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fsdino.environment import environment
from fsdino.errors import CheckpointError, FsdinoError, UsageError
from fsdino.files import atomic_write
from fsdino.models.checkpoints import first_line, tensors_sha256, weights_hash, write_tensors

logger = logging.getLogger("fsdino.training")

CONFIG, METRICS = "config.yaml", "metrics.jsonl"
_KEPT = 2
_HEADROOM = 2**20  # bytes that a checkpoint takes beside its tensors, at most


class Run:
    """The folder of one training run.

    All processes of a run see the same folder; only the first writes.

    Args:
        folder: created if missing.
        config: plain data, stored as config.yaml.
        resume: continue what the folder holds.
        free: settings that may differ on resume, as they decide no number.
        main: whether this is the process that writes.

    Raises:
        UsageError: the folder holds a run and `resume` is off, another process is training there,
            or resuming with another configuration.
        FsdinoError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        resume: bool,
        free: Sequence[str] = (),
        main: bool = True,
    ) -> None:
        self.folder, self.main = folder, main
        self._board: Any = None
        self._unlock: Callable[[], Any] | None = None
        stored = folder / CONFIG
        if stored.exists():
            if main and not resume:
                raise UsageError(f"{folder} already holds a run: pass --resume or another --out")
            self._check_config(stored, config, free)
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            if main:
                self._unlock = weakref.finalize(self, os.close, _lock(folder / "lock"))
        except OSError as error:
            raise FsdinoError(
                f"cannot write in {folder}: {error.strerror}; mend that, or name another --out"
            ) from error
        if main:
            for half in (folder / "checkpoints").glob(".fsdino-*"):  # a kill while it was written
                half.unlink()
        if main and not stored.exists():
            with atomic_write(folder / "environment.json") as temporary:
                Path(temporary).write_text(json.dumps(environment(), indent=2) + "\n")
            with atomic_write(stored) as temporary:
                Path(temporary).write_text(yaml.safe_dump(dict(config), sort_keys=False))

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint, whole or not at all; the last two are kept.

        Raises:
            FsdinoError: the disk is full or cannot be written; older checkpoints are as they were.
        """
        if not self.main:
            return
        path = self.folder / "checkpoints" / f"{step:08d}.safetensors"
        self._check_space(sum(t.numel() * t.element_size() for t in tensors.values()))
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"step": str(step), "state": json.dumps(state)}
        write_tensors(path, kept, {**metadata, "sha256": _checksum(kept, metadata)})
        for old in self._checkpoints()[:-_KEPT]:
            old.unlink()

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest usable checkpoint as (step, tensors, state); None if there is none.

        Raises:
            CheckpointError: checkpoints exist, but none can be read.
        """
        paths = self._checkpoints()
        for path in reversed(paths):
            try:
                with safe_open(path, framework="pt") as file:
                    metadata = file.metadata()
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                if metadata.pop("sha256") != _checksum(tensors, metadata):
                    raise ValueError("its content is not what was written")
                return int(metadata["step"]), tensors, json.loads(metadata["state"])
            except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
                logger.warning(
                    "checkpoint %s is damaged (%s): trying an older one", path, first_line(error)
                )
        if paths:
            raise CheckpointError(
                f"no checkpoint in {self.folder / 'checkpoints'} can be read: start anew in "
                "another --out"
            )
        return None

    def log(self, step: int, **values: Any) -> None:
        """Append a line to metrics.jsonl, and its numbers to TensorBoard where that is installed.

        Raises:
            FsdinoError: the disk is full or cannot be written.
        """
        if not self.main:
            return
        path = self.folder / METRICS
        try:
            with path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise FsdinoError(
                f"cannot write {path}: {error.strerror}; mend that and go on with --resume"
            ) from error
        if self._board is None:
            self._board = _tensorboard(self.folder / "tensorboard", step)
        for name, value in values.items():
            if self._board and isinstance(value, numbers.Real):
                self._board.add_scalar(name, value, step)
        if self._board:
            self._board.flush()

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps that a resumed run is about to repeat."""
        path = self.folder / METRICS
        if self.main and path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [
                line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step
            ]
            with atomic_write(path) as temporary:
                Path(temporary).write_text("".join(kept))

    def close(self) -> None:
        """Close TensorBoard's file, and leave the folder to others."""
        if self._board:
            self._board.close()
        self._board = None
        if self._unlock is not None:
            self._unlock()

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("[0-9]*.safetensors"))

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed + _HEADROOM:
            raise FsdinoError(
                f"the disk of {self.folder} is full: a checkpoint takes {needed / 1e6:.1f} MB, "
                f"{free / 1e6:.1f} MB are free; older checkpoints are kept: free some space and "
                "go on with --resume"
            )

    def _check_config(self, stored: Path, config: Mapping[str, Any], free: Sequence[str]) -> None:
        before = yaml.safe_load(stored.read_text())
        now = yaml.safe_load(yaml.safe_dump(dict(config)))
        if not isinstance(before, dict):
            raise CheckpointError(f"{stored} is damaged: start anew in another --out")
        before, now = _flat(before), _flat(now)
        changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        fixed = [key for key in changed if key.partition(".")[0] not in free]
        if fixed:
            raise UsageError(
                f"{stored} differs from this configuration in {', '.join(fixed)}: resume with "
                "the same configuration, or start in another --out"
            )
        for key in changed:
            logger.info("resuming with %s %s in place of %s", key, now.get(key), before.get(key))


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
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_initialized():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


def unpack(
    tensors: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put back what `pack` took out.

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
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])


def frozen_hash(module: nn.Module) -> str:
    """Hash of the parameters that `pack` leaves out, so that a resumed run finds the same ones."""
    return weights_hash({n: p for n, p in module.named_parameters() if not p.requires_grad})


def _lock(path: Path) -> int:
    """An open file, locked until it is closed or this process ends, however it ends.

    The lock is this process's alone: its children do not inherit it. Where the file system has no
    locks, there is none.

    Raises:
        UsageError: another process has it.
        OSError: the file cannot be written.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = os.read(file, 32).decode()
                raise UsageError(
                    f"{path.parent}: another process (number {holder}) is training there: stop it "
                    "or wait for its end, or name another --out"
                ) from None
            logger.debug("no lock on %s: %s", path, error)
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())
    except BaseException:
        os.close(file)
        raise
    return file


def _changing(module: nn.Module) -> dict[str, Tensor]:
    """The part of a state dict that training changes, or that has no parameter."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    return tensors_sha256(tensors, json.dumps(dict(metadata), sort_keys=True))


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sections as names with a point, so that a changed setting can be named."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def _tensorboard(folder: Path, step: int) -> Any:
    """A writer; False, and a word about it, where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info(
            'no TensorBoard here (pip install "fsdino[train]"): the numbers are in %s', METRICS
        )
        return False
    return SummaryWriter(str(folder), purge_step=step)
