"""Batches of episodes, read ahead by worker processes, with the truth where it is scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fsdino.data.batches import Batch, collate
from fsdino.data.episodes import Episode, EpisodeKey, Episodes
from fsdino.errors import DataError
from fsdino.evaluation.protocols import Protocol

_AHEAD = 2  # batches that each worker prepares in advance


@dataclass(frozen=True, eq=False)
class Questions:
    """A batch of B episodes.

    Attributes:
        batch: at the model's size; None if no episode of the batch could be read.
        protocol: how K shots are fused, and whether the model or the protocol resizes logits.
        keys: keys of the B episodes.
        truths: of each query, bool [H, W] at the size where it is scored.
        ignores: likewise, True for pixels that are not annotated.
        again: names of images that later batches will need.
        bad: reasons by episode for those that could not be read; they are not among the B.
    """

    batch: Batch | None
    protocol: Protocol
    keys: tuple[EpisodeKey, ...]
    truths: tuple[Tensor, ...]
    ignores: tuple[Tensor, ...]
    again: frozenset[str]
    bad: Mapping[int, str]


def load(
    episodes: Episodes,
    groups: Sequence[Sequence[int]],
    *,
    size: int,
    protocol: Protocol,
    workers: int = 0,
) -> Iterator[Questions]:
    """Batches of the episodes in each group, in order; `workers` processes read ahead.

    Args:
        episodes: those of any data set.
        groups: indices of the episodes that share a batch.
        size: side in pixels that images are stretched to.
        protocol: decides how images are stretched, and the size that the truth is given at.
        workers: number of processes that read ahead; 0 reads in this process.
    """
    return iter(
        DataLoader(
            _Groups(episodes, groups, size, protocol),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=_AHEAD if workers else None,
        )
    )


class _Groups(Dataset[Questions]):
    def __init__(
        self, episodes: Episodes, groups: Sequence[Sequence[int]], size: int, protocol: Protocol
    ) -> None:
        self.episodes, self.groups = episodes, groups
        self.size, self.protocol = size, protocol
        self.last_use = {
            name: place
            for place, group in enumerate(groups)
            for index in group
            for name in episodes.key(index).names
        }

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, place: int) -> Questions:
        read: list[Episode] = []
        bad = {}
        for index in self.groups[place]:
            try:
                read.append(self.episodes[index])
            except DataError as error:  # raised by the caller, with its own message
                bad[index] = str(error)
        batch = collate(read, self.size, rounded=self.protocol.rounded) if read else None
        keys = tuple(self.episodes.key(episode.index) for episode in read)
        names = {name for key in keys for name in key.names}
        again = frozenset(name for name in names if self.last_use[name] > place)
        return Questions(batch, self.protocol, keys, *self._truths(batch, read), again, bad)

    def _truths(
        self, batch: Batch | None, read: Sequence[Episode]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        if batch is None:
            return (), ()
        if not self.protocol.original_size:
            return tuple(batch.query_masks > 0), tuple(batch.query_ignore)
        masks = tuple(torch.from_numpy(episode.query.mask.copy()) for episode in read)
        ignores = tuple(
            torch.zeros_like(mask)
            if episode.query.ignore is None
            else torch.from_numpy(episode.query.ignore.copy())
            for mask, episode in zip(masks, read, strict=True)
        )
        return masks, ignores
