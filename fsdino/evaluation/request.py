"""Which episodes an evaluation is on; read and checked without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fsdino.data.catalog import check_episodes, open_episodes
from fsdino.data.episodes import Episodes
from fsdino.errors import UsageError
from fsdino.models.names import DRAWN

if TYPE_CHECKING:
    from fsdino.evaluation.evaluate import Settings

# The bundled model was trained on the other folds of the generated set.
BUNDLED, BUNDLED_DATA, BUNDLED_FOLD = DRAWN, "procedural", 3


@dataclass(frozen=True)
class Request:
    """Which episodes to evaluate on; see `fsdino.data.catalog.open_episodes`.

    Attributes:
        dataset: a name in `fsdino.data.names.DATASETS`.
        root, splits: the data set's folder, and that of the published lists.
        layout, ignore, background: how your own folder is read.
        fold: None is 0, for the generated set 3, on which the bundled model was not trained.
        shots: supports per episode.
        seeds: seeds of the draws, one evaluation for each.
        episodes: number of episodes; None is the protocol's own.
    """

    dataset: str
    root: Path | None = None
    splits: Path | None = None
    fold: int | None = None
    shots: int = 1
    seeds: tuple[int, ...] = (0,)
    episodes: int | None = None
    layout: str = "auto"
    ignore: str | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"seeds must be different numbers, got {self.seeds}")
        if self.fold is None and self.dataset == BUNDLED_DATA:
            object.__setattr__(self, "fold", BUNDLED_FOLD)

    def check(self) -> None:
        """Refuse what `open` would refuse, before any file is read.

        Raises:
            UsageError: a number outside its range, a data set that is not there.
        """
        for seed in self.seeds:
            check_episodes(
                self.dataset,
                fold=self.fold or 0,
                shots=self.shots,
                seed=seed,
                episodes=self.episodes,
                root=self.root,
                splits=self.splits,
                layout=self.layout,
                ignore=self.ignore,
                background=self.background,
            )

    def open(self, settings: Settings) -> list[Episodes]:
        """The episodes of each seed."""
        return [
            open_episodes(
                self.dataset,
                fold=self.fold or 0,
                shots=self.shots,
                seed=seed,
                episodes=self.episodes,
                sampling=settings.protocol.sampling,
                root=self.root,
                splits=self.splits,
                layout=self.layout,
                ignore=self.ignore,
                background=self.background,
                image_size=settings.size if self.dataset == BUNDLED_DATA else None,
                skip_bad=settings.skip_bad,
            )
            for seed in self.seeds
        ]
