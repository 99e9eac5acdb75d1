"""What each step of a training run sees: a pure function of configuration and step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from fsdino.data.batches import Batch, collate
from fsdino.data.catalog import open_episodes
from fsdino.data.episodes import Episode, Episodes
from fsdino.data.photographs import PhotographEpisodes, Photographs
from fsdino.data.procedural.invention import InventedEpisodes
from fsdino.data.sampling import Seeded
from fsdino.data.source import FileEpisodes
from fsdino.errors import DataError, UsageError
from fsdino.processes import Processes
from fsdino.training.meta.augment import augment, crowd
from fsdino.training.meta.config import TrainConfig
from fsdino.training.reading import read_ahead

_AHEAD = 4  # steps that each worker prepares in advance
_SPARES = 3  # episodes that may take the place of one that cannot be read


@dataclass(frozen=True, eq=False)
class Step:
    """This process's episodes of a step.

    Attributes:
        batch: B episodes of K shots; None where one could not be read.
        names: of each episode, the names of its K + 1 images, the query's first; all different
            where augmentation changes images.
        total: episodes of the step in all processes.
        bad: why episodes could not be read.
    """

    batch: Batch | None
    names: tuple[tuple[str, ...], ...]
    total: int
    bad: tuple[str, ...]


class Steps(Dataset[Step]):
    """The steps of a run, of which each process gets a share.

    An episode and what augmentation does to it depend on its number in the run alone, so that no
    two processes or steps see the same one, and any number of processes sees the same ones.

    Args:
        config: of the run.
        processes: that share the episodes.

    Raises:
        UsageError, DataError: the data set cannot be opened; see `open_episodes`. The photographs
            cannot be read, or of `photographs` and `photograph_share` one is missing.
    """

    def __init__(self, config: TrainConfig, processes: Processes | None = None) -> None:
        self.config, self.processes = config, processes or Processes()
        self.number = config.steps * config.images_per_step
        # Without validation, no image of your own folder is held out.
        every = config.data == "folder" and not config.validation
        split = "val" if every else "train"
        generated = config.data == "procedural"
        self.sizes = config.sizes
        self.episodes: dict[tuple[int, int], Episodes] = {}
        for shots in set(config.shots):
            for size in self.sizes if generated else (0,):
                self.episodes[shots, size] = open_training(
                    config, shots, self.number * (1 + _SPARES), size if generated else None, split
                )
        self.invented = {
            (shots, size): InventedEpisodes(config.fold, shots, config.seed, size)
            for shots, size in (self.episodes if config.invented else ())
        }
        self.photographs = _open_photographs(config)
        self.regions: dict[tuple[int, int], PhotographEpisodes] = {}
        if self.photographs is not None:
            for shots, size in itertools.product(set(config.shots), self.sizes):
                made = PhotographEpisodes(self.photographs, shots, config.seed, size)
                self.regions[shots, size] = made
        self.classes = self.of(config.shots[0], self.sizes[0]).classes
        self.lists_hash = self.of(config.shots[0], self.sizes[0]).provenance.lists_hash

    @property
    def images(self) -> int:
        """How many distinct images a run draws from, at most."""
        episodes = self.of(self.config.shots[0], self.sizes[0])
        if isinstance(episodes, FileEpisodes) and isinstance(episodes.keys, Seeded):
            pools = episodes.keys.pools.values()
            return min(len({name for pool in pools for name in pool}), self.number)
        return self.number

    def of(self, shots: int, size: int) -> Episodes:
        """The episodes of K shots; generated ones are drawn at a size."""
        return self.episodes[shots, size if self.config.data == "procedural" else 0]

    def __len__(self) -> int:
        """Return the number of steps."""
        return self.config.steps

    def __getitem__(self, step: int) -> Step:
        """Read this process's share of a step."""
        config = self.config
        rng = np.random.default_rng((config.seed, step))
        size, shots = int(rng.choice(self.sizes)), int(rng.choice(config.shots))
        episodes, total = self.of(shots, size), config.episodes_per_step(shots)
        batches: list[Batch] = []
        names: list[tuple[str, ...]] = []
        bad: list[str] = []
        for place in self.processes.share(range(total)):
            own = np.random.default_rng((config.seed, step, place))
            index = step * config.images_per_step + place
            episode: Episode | None
            if config.photograph_share and own.random() < config.photograph_share:
                episode = self.regions[shots, size][index]
            elif config.invented and own.random() < config.invented:
                episode = self.invented[shots, size][index]
            else:
                episode = self._read(episodes, index, bad)
            if episode is None:
                return Step(None, (), total, tuple(bad))
            batch = collate([episode], size)
            found = tuple(sample.name for sample in (episode.query, *episode.supports))
            if config.augment:
                batch = augment(batch, own, config.augment)
            if config.crowded:
                batch = crowd(batch, own, config.crowded)
            if config.augment or config.crowded:
                found = tuple(f"{step}/{place}/{shot}" for shot in range(shots + 1))
            batches.append(batch)
            names.append(found)
        return Step(_join(batches), tuple(names), total, tuple(bad))

    def _read(self, episodes: Episodes, index: int, bad: list[str]) -> Episode | None:
        """An episode, or with `skip_bad` one that no step draws otherwise."""
        for spare in range(1 + _SPARES if self.config.skip_bad else 1):
            try:
                return episodes[index + spare * self.number]
            except DataError as error:
                bad.append(str(error))
        return None

    def load(self, start: int) -> Iterator[Step]:
        """The steps from `start` on; worker processes read ahead."""
        return read_ahead(self, self.config.workers, range(start, self.config.steps), _AHEAD)


def open_training(
    config: TrainConfig, shots: int, episodes: int, size: int | None, split: str = "train"
) -> Episodes:
    """Seeded episodes of a run's data set.

    Raises:
        UsageError, DataError: see `open_episodes`.
    """
    return open_episodes(
        config.data,
        split=split,
        fold=config.fold,
        shots=shots,
        seed=config.seed,
        episodes=episodes,
        sampling="seeded",
        root=_path(config.root),
        splits=_path(config.splits),
        layout=config.layout,
        ignore=config.ignore,
        background=config.background,
        image_size=size,
        skip_bad=config.skip_bad,
    )


def _open_photographs(config: TrainConfig) -> Photographs | None:
    """The photographs of a run that makes episodes from some."""
    if config.photograph_share and config.photographs is None:
        raise UsageError(
            f"photograph_share is {config.photograph_share}: pass a folder as --photographs, or "
            "set it to 0"
        )
    if config.photographs is None:
        return None
    if not config.photograph_share:
        raise UsageError(
            f"photographs {config.photographs}: photograph_share is 0; set it in the recipe or by "
            "--photograph-share, or leave --photographs out"
        )
    return Photographs(config.photographs)


def part(batch: Batch, start: int, stop: int) -> Batch:
    """Some of a batch's episodes."""
    return replace(batch, **{f.name: getattr(batch, f.name)[start:stop] for f in fields(batch)})


def _join(batches: list[Batch]) -> Batch:
    return Batch(
        **{f.name: torch.cat([getattr(batch, f.name) for batch in batches]) for f in fields(Batch)}
    )


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)
