"""The images of an episode: the published draws, and seeded ones.

Protocol `hsnet` (Min et al., "Hypercorrelation Squeeze for Few-Shot Segmentation", ICCV 2021, and
its repository) draws all episodes of a run from one NumPy legacy generator, in order. Here that
generator is private to a call and the whole sequence is drawn at once, so that workers, processes
and batches cannot change it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fsdino.data.episodes import EpisodeKey
from fsdino.errors import DataError, UsageError

HSNET_SEED = 0
SPLITS = ("train", "val", "base_val")
MIN_IMAGE_SIZE = 32  # side of generated images in pixels

Pools = Mapping[int, Sequence[str]]  # class -> names of its images
# Class and image -> names of the image's objects, None for those that cannot be used.
Objects = Callable[[int, str], Sequence[str | None]]
_MOST_DRAWS = 10_000  # for one episode


def hsnet_in_turn(
    queries: Sequence[tuple[str, int]], pools: Pools, shots: int, episodes: int
) -> tuple[EpisodeKey, ...]:
    """Query k is item k modulo the list's length; supports are drawn (PASCAL-5i, FSS-1000).

    Args:
        queries: (image, class) in the list's order.
        pools: images that supports are drawn from, by class, in the order of the draws.
        shots: supports per episode; they may repeat, but none is the query.
        episodes: number of episodes.

    Raises:
        DataError: a class with fewer than two images.
    """
    check_pools(pools, {class_id for _, class_id in queries})
    random = np.random.RandomState(HSNET_SEED)
    keys = []
    for k in range(episodes):
        query, class_id = queries[k % len(queries)]
        keys.append(_hsnet_key(random, class_id, query, pools[class_id], shots))
    return tuple(keys)


def hsnet_by_class(
    classes: Sequence[int], pools: Pools, shots: int, episodes: int
) -> tuple[EpisodeKey, ...]:
    """Class, query and supports are drawn, in this order (COCO-20i).

    Args and errors as for `hsnet_in_turn`; `classes` in ascending order.
    """
    check_pools(pools, classes)
    random = np.random.RandomState(HSNET_SEED)
    keys = []
    for _ in range(episodes):
        class_id = classes[_draw(random, len(classes))]
        pool = pools[class_id]
        query = pool[_draw(random, len(pool))]
        keys.append(_hsnet_key(random, class_id, query, pool, shots))
    return tuple(keys)


def class_in_turn(
    classes: Sequence[int], pools: Pools, shots: int, episodes: int
) -> tuple[EpisodeKey, ...]:
    """Episode k asks for class k modulo their number; query, supports are drawn (Matcher, PATNet).

    Args and errors as for `hsnet_by_class`.
    """
    check_pools(pools, classes)
    random = np.random.RandomState(HSNET_SEED)
    keys = []
    for k in range(episodes):
        class_id = classes[k % len(classes)]
        pool = pools[class_id]
        query = pool[_draw(random, len(pool))]
        keys.append(_hsnet_key(random, class_id, query, pool, shots))
    return tuple(keys)


def object_in_turn(
    classes: Sequence[int], pools: Pools, shots: int, episodes: int, objects: Objects
) -> tuple[EpisodeKey, ...]:
    """Classes take turns; an image is drawn, and then one of its objects (PASCAL-Part).

    Both are drawn again if the object cannot be used, and the image alone if it is already in the
    episode.

    Args and errors as for `class_in_turn`; also a DataError if a class has too few images for an
    episode, or hardly any with an object that can be used.

    Args:
        objects: names of the objects in an image that may be of a class, in the order of the draws;
            None for those that cannot be used.
    """
    check_pools(pools, classes)
    random = np.random.RandomState(HSNET_SEED)
    keys = []
    for k in range(episodes):
        class_id = classes[k % len(classes)]
        pool = pools[class_id]
        if len(set(pool)) <= shots:
            raise DataError(
                f"class {class_id} has {len(set(pool))} different images, an episode needs "
                f"{shots + 1}: use fewer shots, or get the lists again"
            )
        drawn: dict[str, str] = {}  # object by image
        for _ in range(_MOST_DRAWS):
            image = pool[_draw(random, len(pool))]
            if image in drawn:
                continue
            found = objects(class_id, image)
            name = found[_draw(random, len(found))]
            if name is not None:
                drawn[image] = name
            if len(drawn) > shots:
                break
        else:
            raise DataError(
                f"class {class_id}: {_MOST_DRAWS} draws found {len(drawn)} of {shots + 1} images "
                "with an object that can be used: use fewer shots, or get the annotations again"
            )
        query, *supports = drawn.values()
        keys.append(EpisodeKey(class_id, query, tuple(supports)))
    return tuple(keys)


def object_by_class(
    classes: Sequence[int],
    pools: Pools,
    shots: int,
    episodes: int,
    objects: Callable[[int, str], Sequence[str]],
) -> tuple[EpisodeKey, ...]:
    """Class, query, its object, and then each support and its object are drawn (PACO-Part).

    Supports may repeat, but none is of the query's image.

    Args and errors as for `hsnet_by_class`.

    Args:
        objects: names of the objects in an image that are of a class, in the order of the draws.
    """
    check_pools(pools, classes)
    random = np.random.RandomState(HSNET_SEED)
    keys = []
    for _ in range(episodes):
        class_id = classes[_draw(random, len(classes))]
        pool = pools[class_id]
        query = pool[_draw(random, len(pool))]
        drawn = [_drawn(random, objects(class_id, query))]
        while len(drawn) <= shots:
            image = pool[_draw(random, len(pool))]
            if image != query:
                drawn.append(_drawn(random, objects(class_id, image)))
        keys.append(EpisodeKey(class_id, drawn[0], tuple(drawn[1:])))
    return tuple(keys)


def _drawn(random: np.random.RandomState, names: Sequence[str]) -> str:
    return names[_draw(random, len(names))]


def _hsnet_key(
    random: np.random.RandomState, class_id: int, query: str, pool: Sequence[str], shots: int
) -> EpisodeKey:
    supports: list[str] = []
    while len(supports) < shots:
        name = pool[_draw(random, len(pool))]
        if name != query:
            supports.append(name)
    return EpisodeKey(class_id, query, tuple(supports))


def _draw(random: np.random.RandomState, count: int) -> int:
    """Without replacement a list is permuted whole; `choice(count)` would be another stream."""
    return int(random.choice(count, 1, replace=False)[0])


@dataclass(frozen=True)
class Seeded(Sequence[EpisodeKey]):
    """Keys for any seed and number of episodes, each drawn when it is needed.

    Classes take turns: N consecutive episodes of N classes use each class once, in a random order.
    Supports differ from each other if the class has enough images, and those of fewer shots are
    the first of those of more.

    Args:
        pools: images that supports are drawn from, by class.
        split, shots, seed, episodes: see `fsdino.data.catalog.open_episodes`.
        queries: images that queries are drawn from, of the same classes; None is `pools`.

    Raises:
        DataError: a class with fewer than two images.
    """

    pools: Pools
    split: str
    shots: int
    seed: int
    episodes: int
    queries: Pools | None = None

    def __post_init__(self) -> None:
        check_pools(self.pools, self.pools)

    def __len__(self) -> int:
        """Return the number of episodes."""
        return self.episodes

    def __getitem__(self, index: int) -> EpisodeKey:  # type: ignore[override]
        """Draw key `index`; IndexError outside 0..len - 1."""
        if not 0 <= index < self.episodes:
            raise IndexError(f"episode {index} of {self.episodes}")
        class_id = self._class_of(index)
        pool = self.pools[class_id]
        random = self._random(1, index)
        queries = pool if self.queries is None else self.queries[class_id]
        query = queries[int(random.integers(len(queries)))]
        others = [name for name in dict.fromkeys(pool) if name != query]
        order = random.permutation(len(others))
        supports = tuple(others[order[shot % len(others)]] for shot in range(self.shots))
        return EpisodeKey(class_id, query, supports)

    def __iter__(self) -> Iterator[EpisodeKey]:
        """Yield all keys in order."""
        return map(self.__getitem__, range(self.episodes))

    def _class_of(self, index: int) -> int:
        classes = sorted(self.pools)
        turn, place = divmod(index, len(classes))
        return classes[int(self._random(0, turn).permutation(len(classes))[place])]

    def _random(self, purpose: int, number: int) -> np.random.Generator:
        """A separate stream for each turn and each episode."""
        return random_stream(SPLITS.index(self.split), self.seed, purpose, number)


def random_stream(*key: int) -> np.random.Generator:
    """The random stream of a key, whose numbers no other key's depend on.

    Args:
        key: integers of at least 0: what is drawn, its version, seeds, indices.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def check_pools(
    pools: Pools,
    classes: Iterable[int],
    names: Mapping[int, str] | None = None,
    dataset: str | None = None,
) -> None:
    """Check that episodes can be drawn.

    Args:
        pools: images by class.
        classes: classes of the episodes.
        names: names of the classes, for the error.
        dataset: name of the data set, for the remedy.

    Raises:
        DataError: no class, or a class with fewer than two images.
    """
    counts = {class_id: len(set(pools.get(class_id, ()))) for class_id in sorted(classes)}
    few = {class_id: count for class_id, count in counts.items() if count < 2}
    if few or not counts:
        found = [f"class {class_id} has {count}" for class_id, count in few.items()]
        shown = ", ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
        named = [f"{c} is {names[c]}" for c in [*few][:6] if names and names[c] != str(c)]
        titles = f" ({', '.join(named)})" if named else ""
        remedy = "check the split lists, and the root with `fsdino data check`"
        if dataset == "folder":
            remedy = "add images with masks, or remove the class"
        raise DataError(
            f"{shown or 'no class has any'} images, an episode needs two{titles}: {remedy}"
        )


def check_numbers(split: str, shots: int, seed: int, episodes: int | None) -> None:
    """Refuse arguments outside their range.

    Raises:
        UsageError: the message names the argument.
    """
    if split not in SPLITS:
        raise UsageError(f"split {split!r}: choose one of {', '.join(SPLITS)}")
    for title, number, least in (("shots", shots, 1), ("seed", seed, 0), ("episodes", episodes, 1)):
        if number is not None and number < least:
            raise UsageError(f"{title} {number}: use at least {least}")


def check_image_size(image_size: int) -> None:
    """Refuse a size of generated images that is too small.

    Raises:
        UsageError: names the least side.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise UsageError(f"image_size {image_size}: use at least {MIN_IMAGE_SIZE} pixels")
