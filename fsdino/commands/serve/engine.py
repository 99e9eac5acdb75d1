"""The models that the page's visitors share, one call at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

from fsdino.errors import UsageError, shown
from fsdino.models import registry, zoo
from fsdino.models.segmenter import Segmenter

_MOST_LOADED = 2  # models in memory


class Engine:
    """Models by name, loaded when they are first used.

    Args:
        default: the model that is chosen at first; loaded at once.
        device: of all models.

    Raises:
        UsageError, CheckpointError: the default model cannot be loaded.
    """

    def __init__(self, default: str, device: str = "cpu") -> None:
        self.default = default
        self._device = device
        self._lock = threading.Lock()
        self._loaded = {default: zoo.load(default, device=device)}
        self.names = _choices(default)

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[Segmenter]:
        """A model, for this thread alone until the end of the block.

        Raises:
            UsageError: the page does not offer this model.
            CheckpointError: its files are damaged.
        """
        if name not in self.names:
            raise UsageError(f"model {shown(name)} is not offered here: choose another one")
        with self._lock:
            model = self._loaded.pop(name, None)
            while len(self._loaded) >= _MOST_LOADED:
                del self._loaded[next(iter(self._loaded))]
            model = model or zoo.load(name, device=self._device)
            self._loaded[name] = model  # the last used one comes last
            yield model


def _choices(default: str) -> tuple[str, ...]:
    """The default, and every model that needs no download."""
    here: Sequence[str] = [model.name for model in registry.list_models() if model.present]
    return (default, *(name for name in here if name != default))
