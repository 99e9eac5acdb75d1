"""Episodes of the procedural set's own classes, and the fingerprint of its pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Literal, TypeAlias, get_args

import numpy as np

from fsdino.data.episodes import Episode, EpisodeKey, Provenance, Sample
from fsdino.data.procedural.canvas import render
from fsdino.data.procedural.classes import CLASSES, FOLD_CLASSES, FOLDS, OBJECT_CLASSES, VERSION
from fsdino.data.sampling import check_image_size, check_numbers, random_stream
from fsdino.errors import UsageError

Split: TypeAlias = Literal["train", "val", "base_val"]

_SPLITS: tuple[str, ...] = get_args(Split)


def render_sample(
    class_id: int, key: Sequence[int], image_size: int = 112, name: str | None = None
) -> Sample:
    """Draw one scene with an object of a class.

    Args:
        class_id: 0..95; `OBJECT_CLASSES[class_id]` describes it.
        key: non-negative integers; the same key gives the same scene at every size.
        image_size: side in pixels, at least 32.
        name: the sample's name; default: one made of the arguments.

    Returns:
        A square sample; its mask is the visible part of the object.

    Raises:
        UsageError: an unknown class, a negative number in the key, a size below 32.
    """
    if not 0 <= class_id < CLASSES:
        raise UsageError(f"class_id {class_id}: choose one of 0..{CLASSES - 1}")
    if min(key, default=0) < 0:
        raise UsageError(f"key {tuple(key)}: use integers of at least 0")
    check_image_size(image_size)
    if name is None:
        name = f"procedural-v{VERSION}/class{class_id}/{'-'.join(map(str, key))}@{image_size}"
    kind = OBJECT_CLASSES[class_id]
    rng = random_stream(int(VERSION), class_id, *key)
    image, mask = render(rng, kind, FOLD_CLASSES[kind.fold], image_size)
    return Sample(image=image, mask=mask, name=name, class_id=class_id)


class ProceduralEpisodes:
    """Drawn episodes of one fold; implements `fsdino.data.episodes.Episodes`.

    Classes take turns: every 24 (val) or 72 (otherwise) consecutive episodes ask for each class
    once, in a drawn order. The query and the first k supports of episode i are the same for every
    number of shots K >= k, so that shots can be compared on equal queries.

    Args:
        fold: 0..3, the fold that is held out: classes 24 * fold .. 24 * fold + 23.
        split: "train" draws the classes of the other three folds; "base_val" draws the same
            classes from a stream of its own, to validate without a look at the held-out fold;
            "val" draws the held-out classes.
        shots: supports per episode, at least 1.
        seed: at least 0.
        episodes: how many there are, at least 1.
        image_size: side of the square images in pixels, at least 32.

    Raises:
        UsageError: an argument outside its range.
    """

    def __init__(
        self,
        fold: int,
        split: Split,
        shots: int = 1,
        seed: int = 0,
        episodes: int = 1000,
        image_size: int = 112,
    ) -> None:
        if not 0 <= fold < FOLDS:
            raise UsageError(f"fold {fold}: choose one of 0..{FOLDS - 1}")
        check_numbers(split, shots, seed, episodes)
        check_image_size(image_size)
        self.fold = fold
        self.split: Split = split
        self.shots = shots
        self.seed = seed
        self.image_size = image_size
        self.classes: tuple[int, ...] = tuple(
            kind.class_id for kind in OBJECT_CLASSES if (kind.fold == fold) == (split == "val")
        )
        self.class_names: Mapping[int, str] = {c: OBJECT_CLASSES[c].name for c in self.classes}
        self._episodes = episodes
        self._key = (fold, _SPLITS.index(split), seed)

    def __len__(self) -> int:
        """Return the number of episodes."""
        return self._episodes

    def __getitem__(self, index: int) -> Episode:
        """Draw episode `index`; IndexError outside 0..len - 1."""
        if not 0 <= index < self._episodes:
            raise IndexError(f"episode {index} of {self._episodes}")
        class_id = self._class_of(index)
        query, *supports = (
            render_sample(
                class_id, (*self._key, index, role), self.image_size, self._name(index, role)
            )
            for role in range(1 + self.shots)
        )
        return Episode(query, tuple(supports), class_id, self.class_names[class_id], index)

    def key(self, index: int) -> EpisodeKey:
        """Return what episode `index` is made of; IndexError outside 0..len - 1."""
        if not 0 <= index < self._episodes:
            raise IndexError(f"episode {index} of {self._episodes}")
        query, *supports = (self._name(index, role) for role in range(1 + self.shots))
        return EpisodeKey(self._class_of(index), query, tuple(supports))

    @property
    def provenance(self) -> Provenance:
        """The generator's fingerprint stands for the lists, which it does not need."""
        return Provenance(
            dataset="procedural",
            fold=self.fold,
            split=self.split,
            sampling="seeded",
            lists="generated",
            lists_hash=fingerprint(),
            mask_source="generated",
        )

    def _class_of(self, index: int) -> int:
        """Return the class of an episode; each round has the classes in another order."""
        turn, place = divmod(index, len(self.classes))
        rng = random_stream(int(VERSION), CLASSES, *self._key, turn)
        order = rng.permutation(len(self.classes))
        return self.classes[int(order[place])]

    def _name(self, index: int, role: int) -> str:
        title = "query" if role == 0 else f"support{role}"
        return (
            f"procedural-v{VERSION}/fold{self.fold}/{self.split}/{self.seed}/{index}/"
            f"{title}@{self.image_size}"
        )


@cache
def fingerprint() -> str:
    """Return a SHA-256 over an image and mask of every twelfth class, at 112 pixels.

    Images and masks are averaged over 28 x 28 pixels and rounded to 16 levels before hashing:
    another processor's last bit of a sine changes nothing, another scene does.
    """
    digest = hashlib.sha256(VERSION.encode())
    for sample in _fingerprinted():
        mask = sample.mask[..., None] * np.float64(255)
        stack = np.concatenate([sample.image.astype(np.float64), mask], axis=2)
        means = stack.reshape(4, 28, 4, 28, 4).mean(axis=(1, 3))
        digest.update((means // 16).astype(np.uint8).tobytes())
    return digest.hexdigest()


def exact_fingerprint() -> str:
    """Return a SHA-256 over the same pictures bit for bit; it may differ between platforms."""
    digest = hashlib.sha256(VERSION.encode())
    for sample in _fingerprinted():
        digest.update(sample.image.tobytes())
        digest.update(sample.mask.tobytes())
    return digest.hexdigest()


def _fingerprinted() -> Iterator[Sample]:
    return (render_sample(class_id, (0,), 112) for class_id in range(0, CLASSES, 12))
