"""Data sets on disk: what they all can do, and episodes of their samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fsdino.data.episodes import Episode, EpisodeKey, Provenance, Sample
from fsdino.data.lists import Lists
from fsdino.errors import UsageError
from fsdino.progress import Report


@dataclass(frozen=True)
class Part:
    """A part of a data set, and its origin.

    Attributes:
        path: relative to the root.
        archive: the official archive or page that it comes from.
        needed: whether the data set cannot be used without it.
        found: whether it exists.
        note: its purpose, or its replacement.
    """

    path: str
    archive: str
    needed: bool
    found: bool
    note: str = ""


@dataclass(frozen=True)
class Found:
    """The result of reading an image with its mask.

    Attributes:
        masked: whether the image has a mask.
        classes: ids of the classes in the mask; None if they were not read.
    """

    masked: bool = True
    classes: frozenset[int] | None = None


@dataclass(frozen=True)
class Places:
    """Possible places of a data set below the root that the user names.

    Attributes:
        inside: folders to search, after the root itself.
        marker: glob pattern of a file in the data set's folder.
        archive: the official archive or page that it comes from.
    """

    inside: tuple[str, ...]
    marker: str
    archive: str

    def find(self, root: Path) -> Path | None:
        """Return the folder that has the marker, or None."""
        for place in ("", *self.inside):
            if next((root / place).glob(self.marker), None) is not None:
                return root / place
        return None

    def tried(self) -> str:
        """The places that were searched, for an error."""
        return ", ".join((Path(place) / self.marker).as_posix() for place in ("", *self.inside))


class Source(Protocol):
    """A data set on disk. Small and picklable: workers get a copy each."""

    @property
    def dataset(self) -> str:
        """Its name in `fsdino.data.names.DATASETS`."""
        ...

    @property
    def root(self) -> Path:
        """The folder that names are relative to."""
        ...

    @property
    def places(self) -> Places:
        """Its possible places below the root that the user names."""
        ...

    @property
    def folds(self) -> int:
        """Number of folds; 0 if there are none."""
        ...

    @property
    def class_names(self) -> Mapping[int, str]:
        """A name for each class id."""
        ...

    def classes(self, fold: int | None, split: str) -> tuple[int, ...]:
        """Ids of a split's classes, in ascending order."""
        ...

    def lists(self, fold: int | None, split: str) -> Lists:
        """The images of a split."""
        ...

    def hsnet(
        self, lists: Lists, classes: Sequence[int], shots: int, episodes: int | None
    ) -> tuple[EpisodeKey, ...]:
        """The episodes of protocol hsnet; None is the protocol's own number."""
        ...

    def file(self, name: str) -> Path:
        """The image file of a sample's name."""
        ...

    def mask_source(self, split: str) -> str:
        """Origin of a split's masks: "published" or "rasterised"."""
        ...

    def make_masks(self, names: Sequence[str]) -> None:
        """Make the missing masks of these images."""
        ...

    def prepare(self, folder: Path | None, report: Report) -> dict[str, Path]:
        """Make all masks and lists that can be made, into a folder (None: the cache).

        Returns the paths of everything that now exists, by title.
        """
        ...

    def read(self, name: str, class_id: int, *, query: bool) -> Sample:
        """Read one image and one class's mask; DataError if it cannot be used."""
        ...

    def unprepared(self) -> str | None:
        """Long work that counting images requires, in words; None if there is none."""
        ...

    def parts(self) -> list[Part]:
        """The required parts, and whether they exist."""
        ...

    def pairs(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        """Every annotated image by name, with a function that checks it or raises DataError."""
        ...

    def described(self) -> dict[str, Any]:
        """How it is read, in words: plain data by title; empty if there is only one layout."""
        ...

    def problems(self) -> list[str]:
        """Problems of files with the annotations of many images; reads these files."""
        ...


class MasksIncluded:
    """What a `Source` answers whose masks are part of the data set, one file for each image."""

    root: Path

    def file(self, name: str) -> Path:
        """A sample is named like its image."""
        return self.root / name

    def mask_source(self, split: str) -> str:
        """The masks are those of the data set."""
        return "published"

    def make_masks(self, names: Sequence[str]) -> None:
        """Nothing to make."""

    def unprepared(self) -> str | None:
        """Nothing takes long."""
        return None

    def described(self) -> dict[str, Any]:
        """There is only one way to read it."""
        return {}

    def problems(self) -> list[str]:
        """No file holds the annotations of many images."""
        return []


def evaluation_only(dataset: str, split: str) -> None:
    """Refuse another split than "val" of a data set without base classes.

    Raises:
        UsageError: the message names the data set.
    """
    if split != "val":
        raise UsageError(
            f"{dataset} is for evaluation only and has no base classes: train on another data set, "
            "such as coco20i"
        )


@dataclass(frozen=True, eq=False)
class FileEpisodes:
    """Episodes of a data set on disk; implements `fsdino.data.episodes.Episodes`.

    Nothing is read before an episode is asked for.
    """

    source: Source
    keys: Sequence[EpisodeKey]
    classes: tuple[int, ...]
    fold: int | None
    shots: int
    seed: int
    provenance: Provenance

    @property
    def class_names(self) -> Mapping[int, str]:
        """A readable name for each of `classes`."""
        names = self.source.class_names
        return {class_id: names[class_id] for class_id in self.classes}

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.keys)

    def __getitem__(self, index: int) -> Episode:
        """Read episode `index`.

        Raises:
            IndexError: outside 0..len - 1.
            DataError: a file is missing or cannot be used; the message names it.
        """
        key = self.key(index)
        query = self.source.read(key.query, key.class_id, query=True)
        supports = tuple(self.source.read(name, key.class_id, query=False) for name in key.supports)
        name = self.source.class_names[key.class_id]
        return Episode(query, supports, key.class_id, name, index)

    def key(self, index: int) -> EpisodeKey:
        """Return the key of episode `index`; IndexError outside 0..len - 1."""
        if not 0 <= index < len(self.keys):
            raise IndexError(f"episode {index} of {len(self.keys)}")
        return self.keys[index]
