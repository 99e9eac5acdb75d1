"""How a model answers a batch of episodes: every distinct image is encoded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from torch import Tensor

from fsdino.data.batches import Batch
from fsdino.errors import DataError
from fsdino.evaluation.questions import Questions
from fsdino.models.encoders import Features
from fsdino.models.segmenter import Segmenter

# A batch of episodes -> mask logits [B, V, h, w], V of which are fused; at another resolution than
# they are scored at, the protocol resizes them.
Predictor = Callable[[Questions], Tensor]

CACHE_BYTES = 2**30
_NAMED = 3  # images that an error names


class FeatureCache:
    """Features of images that will be needed again; the least recently used are dropped first.

    Args:
        limit: maximum size in bytes.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit, self.size = limit, 0
        self._features: OrderedDict[str, Features] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._features)

    def get(self, name: str) -> Features | None:
        """The kept features of an image, or None."""
        if name not in self._features:
            return None
        self._features.move_to_end(name)
        return self._features[name]

    def put(self, name: str, features: Features) -> None:
        """Keep an image's features, and drop others until they fit."""
        self.drop(name)
        self._features[name] = features
        self.size += _bytes(features)
        while self.size > self.limit:
            self.drop(next(iter(self._features)))

    def drop(self, name: str) -> None:
        """Remove an image."""
        features = self._features.pop(name, None)
        if features is not None:
            self.size -= _bytes(features)


class ModelPredictor:
    """A model's logits for batches of episodes.

    Images are encoded one at a time: an image's features have the same bits in every batch and
    process, whether or not they were kept from an earlier batch.

    Args:
        model: in eval mode.
        cache_bytes: maximum size of kept features.
    """

    def __init__(self, model: Segmenter, *, cache_bytes: int = CACHE_BYTES) -> None:
        self.model = model
        self.cache = FeatureCache(cache_bytes)

    def __call__(self, questions: Questions) -> Tensor:
        """Logits [B, V, h, w]: V is 1, or K by vote.

        At the size of the batch; at the model's own resolution where the protocol has a rule of its
        own to resize by.

        Raises:
            DataError: logits or weights are not finite; names the images and the cause.
        """
        batch, keys, protocol = questions.batch, questions.keys, questions.protocol
        assert batch is not None
        features = self._encode(questions, batch)
        query = Features.cat(features[key.query] for key in keys)
        shots = batch.support_masks.shape[1]
        joint = protocol.fusion == "joint"
        together = [range(shots)] if joint else [range(k, k + 1) for k in range(shots)]
        supports = (
            self.model.pool(
                Features.cat(features[key.supports[k]] for key in keys for k in chosen),
                batch.support_masks[:, chosen.start : chosen.stop].flatten(0, 1),
                len(chosen),
            )
            for chosen in together
        )
        height, width = batch.query_images.shape[-2:]
        size = None if protocol.aligned else (height, width)
        names = ["foreground"] * len(together)
        try:
            return self.model.answer(query, supports, size, names=names).logits.float()
        except DataError as error:  # speaks of one query and one support
            raise DataError(f"{_suspects(features, questions)}: {error}") from error

    def _encode(self, questions: Questions, batch: Batch) -> dict[str, Features]:
        """Features of every distinct image of the batch, by name."""
        found: dict[str, Features] = {}
        for row, key in enumerate(questions.keys):
            images = (batch.query_images[row], *batch.support_images[row])
            for name, image in zip(key.names, images, strict=True):
                if name not in found:
                    found[name] = self.cache.get(name) or self.model.encode(image[None])
        for name, features in found.items():
            if name in questions.again:
                self.cache.put(name, features)
            else:
                self.cache.drop(name)
        return found


def _suspects(features: Mapping[str, Features], questions: Questions) -> str:
    """Images whose features are not finite; where all are, the batch's queries."""
    bad = [name for name, found in features.items() if not all(map(_finite, found.tensors()))]
    names = bad or [key.query for key in questions.keys]
    return ", ".join(names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _bytes(features: Features) -> int:
    return sum(t.numel() * t.element_size() for t in features.tensors())
