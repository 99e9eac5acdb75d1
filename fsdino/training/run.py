"""A run: one folder with its configuration, checkpoints and metrics; resumable at any moment."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fsdino.environment import environment
from fsdino.errors import CheckpointError, FsdinoError, UsageError
from fsdino.images import atomic_write
from fsdino.models.checkpoints import write_tensors

logger = logging.getLogger("fsdino.training")

_KEPT = 2


class Run:
    """The folder of one training run.

    Args:
        folder: created if missing.
        config: plain data, stored as config.yaml.
        resume: continue what the folder holds.

    Raises:
        UsageError: the folder holds a run and `resume` is off, or resuming with another
            configuration.
        FsdinoError: the folder cannot be written.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], *, resume: bool) -> None:
        self.folder = folder
        stored = folder / "config.yaml"
        if stored.exists():
            if not resume:
                raise UsageError(f"{folder} already holds a run: pass --resume or another --out")
            self._check_config(stored, config)
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FsdinoError(f"cannot create {folder}: {error.strerror}") from error
        if not stored.exists():
            with atomic_write(stored) as temporary:
                Path(temporary).write_text(yaml.safe_dump(dict(config), sort_keys=False))
            with atomic_write(folder / "environment.json") as temporary:
                Path(temporary).write_text(json.dumps(environment(), indent=2) + "\n")

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint, whole or not at all; the last two are kept."""
        path = self.folder / "checkpoints" / f"{step:08d}.safetensors"
        metadata = {"step": str(step), "state": json.dumps(state)}
        write_tensors(path, tensors, metadata)
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
                return int(metadata["step"]), tensors, json.loads(metadata["state"])
            except (SafetensorError, KeyError, TypeError, ValueError) as error:
                logger.warning("checkpoint %s is damaged (%s): trying an older one", path, error)
        if paths:
            raise CheckpointError(f"no checkpoint in {self.folder / 'checkpoints'} can be read")
        return None

    def log(self, **values: Any) -> None:
        """Append a line to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps that a resumed run is about to repeat."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [
                line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step
            ]
            with atomic_write(path) as temporary:
                Path(temporary).write_text("".join(kept))

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("[0-9]*.safetensors"))

    def _check_config(self, stored: Path, config: Mapping[str, Any]) -> None:
        before = yaml.safe_load(stored.read_text())
        now = yaml.safe_load(yaml.safe_dump(dict(config)))
        changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if changed:
            raise UsageError(
                f"{stored} differs from this configuration in {', '.join(changed)}: resume with "
                "the same configuration, or start in another --out"
            )
