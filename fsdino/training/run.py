"""A run: one folder with its configuration, checkpoints and metrics; resumable at any moment.

```
config.yaml environment.json     what was asked for, and where it ran
checkpoints/00000500.safetensors the last two: tensors, and in the metadata a JSON state, the
                                 configuration and a hash
metrics.jsonl tensorboard/       losses and metrics by step
model/ best/                     the last model and the best one, as `fsdino.load` takes them
lock lock.json                   held by the process that trains there, and which one that is
```

Both training stages keep their work in one. Work is in the checkpoints alone: every other file may
be damaged or missing, and the run continues.
"""

from __future__ import annotations

import contextlib
import json
import logging
import numbers
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fsdino import files
from fsdino.environment import environment
from fsdino.errors import CheckpointError, FsdinoError, UsageError, first_line
from fsdino.locks import Lock
from fsdino.models.checkpoints import check_hash, write_hashed
from fsdino.yaml_files import as_yaml, parse_yaml, read_yaml, write_yaml

logger = logging.getLogger("fsdino.training")

CONFIG, METRICS, ENVIRONMENT = "config.yaml", "metrics.jsonl", "environment.json"
_CHECKPOINTS = "checkpoints"
_CHECKPOINT_NAME = re.compile(r"[0-9]{8,18}\.safetensors")
_LOCK = "lock"
_KEPT = 2
_HEADROOM = 2**20  # bytes that a checkpoint takes beside its tensors, at most
_REMEDY = "pass another --out"


class Run:
    """The folder of one training run.

    All processes of a run see the same folder; only the first one locks it and writes. It is locked
    before anything in it is read, until `close`, `abandon` or the end of a `with`, which abandons a
    run that an error ended.

    Args:
        folder: created if missing.
        config: plain data, stored as config.yaml and with every checkpoint.
        resume: continue what the folder holds.
        free: settings that may differ on resume: they do not affect results, or the caller checks
            them.
        first: whether this is the process that writes.
        complete: checks a stored configuration, and adds settings that an older version did not
            have; raises UsageError where it cannot be one.
        reasons: what an error adds for a setting that must not differ.

    Attributes:
        before: the configuration that the run was started with; None where it starts now.

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
        first: bool = True,
        complete: Callable[[dict[str, Any]], dict[str, Any]] = dict,
        reasons: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.first = folder, first
        self.before: dict[str, Any] | None = None
        self._config, self._free = _plain(config), free
        self._complete, self._reasons = complete, reasons or {}
        self._board: Any = None
        self._lock: Lock | None = None
        self._made = first and not folder.exists()
        self._started = False  # by this process, and not by an earlier one
        try:
            if first:
                files.make_folder(folder, _REMEDY)
                self._lock = Lock(folder / _LOCK, str(folder), _REMEDY)
            self._open(resume)
        except BaseException:
            self.abandon()
            raise

    def _open(self, resume: bool) -> None:
        stored = self.folder / CONFIG
        holds_run = stored.exists() or bool(self._checkpoints())
        if self.first:
            if holds_run and not resume:
                raise UsageError(
                    f"{self.folder} already holds a run: pass --resume or another --out"
                )
            files.make_folder(self.folder / _CHECKPOINTS, _REMEDY)
            for place in ("", _CHECKPOINTS, "model", "best"):
                files.remove_leftovers(self.folder / place)
        if holds_run:
            self._go_on(stored)
        elif self.first:
            self._started = True
            files.write_json(self.folder / ENVIRONMENT, environment())
            self._write_config()

    def _go_on(self, stored: Path) -> None:
        """Compare the configuration with the stored one, or with that of the checkpoints."""
        before, damage = self._stored_config(stored)
        fixed = [] if before is None else self._fixed_changes(before)
        if before is None or fixed:
            kept = self._kept_config()
            if kept is not None and (before is None or not self._fixed_changes(kept)):
                damage = damage or "is not what its checkpoints were written with"
                before, fixed = kept, self._fixed_changes(kept)
        if fixed:
            reason = next((self._reasons[key] for key in fixed if key in self._reasons), None)
            raise UsageError(
                f"{stored} differs from this configuration in {', '.join(fixed)}: "
                + (reason or "resume with the same configuration, or start in another --out")
            )
        if damage:
            logger.warning("%s %s: written again", stored, damage)
            if before is None and self._checkpoints():
                logger.warning("no checkpoint holds the configuration either: this one is taken")
        self.before = dict(self._config) if before is None else before
        now = _flat(self._config)
        for key, value in _flat(self.before).items():
            if now.get(key) != value:
                logger.info("resuming with %s %s in place of %s", key, now.get(key), value)
        if damage and self.first:
            self._write_config()

    def _stored_config(self, path: Path) -> tuple[dict[str, Any] | None, str]:
        """What config.yaml holds, or None and what is wrong with it."""
        try:
            config = read_yaml(path)
            if not isinstance(config, dict):
                raise ValueError("it holds no settings")
            return self._completed(config), ""
        except FileNotFoundError:
            return None, "is missing"
        except OSError as error:
            return None, f"cannot be read ({error.strerror})"
        except ValueError as error:  # UsageError is one
            return None, f"is damaged ({error})"

    def _kept_config(self) -> dict[str, Any] | None:
        """The configuration in the newest usable checkpoint; None where none holds one."""
        for path in reversed(self._checkpoints()):
            with contextlib.suppress(SafetensorError, OSError, ValueError):
                metadata, _ = _read_checkpoint(path)
                config = files.parse_json(metadata.get("config", "null"))
                if isinstance(config, dict):
                    return self._completed(config)
        return None

    def _completed(self, config: dict[str, Any]) -> dict[str, Any]:
        return _plain(self._complete(config))

    def _fixed_changes(self, before: Mapping[str, Any]) -> list[str]:
        """Settings that differ from those of before, and must not."""
        found, now = _flat(before), _flat(self._config)
        changed = sorted(key for key in {*found, *now} if found.get(key) != now.get(key))
        return [key for key in changed if key.partition(".")[0] not in self._free]

    def _write_config(self) -> None:
        write_yaml(self.folder / CONFIG, self._config)

    def change(self, config: Mapping[str, Any]) -> None:
        """Store another configuration, for what follows.

        Raises:
            FsdinoError: it cannot be written.
        """
        self._config = _plain(config)
        if self.first:
            self._write_config()

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint, whole or not at all; the last two are kept.

        Raises:
            FsdinoError: the disk is full or cannot be written; older checkpoints are as they were.
        """
        if not self.first:
            return
        path = self.folder / _CHECKPOINTS / f"{step:08d}.safetensors"
        self._check_space(sum(t.numel() * t.element_size() for t in tensors.values()))
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {
            "step": str(step),
            "state": json.dumps(state),
            "config": json.dumps(self._config),
        }
        write_hashed(path, kept, metadata)
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
                metadata, tensors = _read_checkpoint(path)
                state = files.parse_json(metadata["state"])
                if not isinstance(state, dict):
                    raise ValueError("its state is not an object")
                return int(metadata["step"]), tensors, state
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                logger.warning(
                    "checkpoint %s is damaged (%s): trying an older one", path, first_line(error)
                )
        if paths:
            raise CheckpointError(
                f"no checkpoint in {self.folder / _CHECKPOINTS} can be read: start again in "
                "another --out"
            )
        return None

    def log(self, step: int, **values: Any) -> None:
        """Append a line to metrics.jsonl, and its numbers to TensorBoard where that is installed.

        TensorBoard's files can be made from the metrics again: an error there gives one
        warning, and the run continues without it.

        Raises:
            FsdinoError: the disk is full or cannot be written.
        """
        if not self.first:
            return
        path = self.folder / METRICS
        try:
            files.append_json_lines(path, [{"step": step, **values}])
        except FsdinoError as error:
            raise type(error)(f"{error}; then rerun with --resume") from error
        try:
            if self._board is None:
                self._board = _tensorboard(self.folder / "tensorboard", step)
            if self._board:
                for name, value in values.items():
                    if isinstance(value, numbers.Real):
                        self._board.add_scalar(name, value, step)
                self._board.flush()
        except Exception as error:  # of the disk, or of versions that do not fit each other
            logger.warning(
                "TensorBoard's files cannot be written (%s): the numbers are in %s",
                first_line(error), path,
            )  # fmt: skip
            self._close_board()
            self._board = False

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps that a resumed run is about to repeat, and lines without a step.

        Raises:
            FsdinoError: the file cannot be read or written.
        """
        path = self.folder / METRICS
        if not self.first or not path.exists():
            return
        rows, _ = files.read_journal(
            path, lambda row: row if isinstance(row.get("step"), int) else None
        )
        files.write_json_lines(path, [row for row in rows if row["step"] <= step])

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if isinstance(error, Exception):
            self.abandon()
        self.close()

    def close(self) -> None:
        """Close TensorBoard's file, and leave the folder to others."""
        self._close_board()
        self._board = None
        if self._lock is not None:
            self._lock.release()

    def abandon(self) -> None:
        """Close after a start that failed, and remove what it wrote: the next one can start.

        Nothing is removed of a run that was there before, or that has a checkpoint.
        """
        worth = bool(self._checkpoints()) or (self.folder / "best").exists()
        self._close_board()
        if self._started and not worth:
            shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)
            with contextlib.suppress(OSError):
                for name in (CONFIG, ENVIRONMENT, METRICS):
                    (self.folder / name).unlink(missing_ok=True)
                (self.folder / _CHECKPOINTS).rmdir()
        self.close()
        if self._made:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # where nothing else is in it

    def _close_board(self) -> None:
        if self._board:
            with contextlib.suppress(Exception):  # its numbers are in metrics.jsonl, too
                self._board.close()

    def _checkpoints(self) -> list[Path]:
        return checkpoint_files(self.folder)

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed + _HEADROOM:
            raise FsdinoError(
                f"the disk of {self.folder} is full: a checkpoint takes {needed / 1e6:.1f} MB, "
                f"{free / 1e6:.1f} MB are free; older checkpoints are kept: free some space and "
                "rerun with --resume"
            )


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints of a run's folder, by step; files of other names are someone else's."""
    try:
        found = [
            path
            for path in (folder / _CHECKPOINTS).iterdir()
            if _CHECKPOINT_NAME.fullmatch(path.name) and path.is_file()
        ]
    except OSError:
        return []
    return sorted(found, key=lambda path: int(path.stem))


def _read_checkpoint(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a checkpoint, verified.

    Raises:
        SafetensorError, OSError, ValueError: it is damaged.
    """
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    check_hash(tensors, metadata)
    return metadata, tensors


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as YAML gives it back."""
    plain: dict[str, Any] = parse_yaml(as_yaml(dict(config)))
    return plain


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
