"""The methods that photographs are segmented by, and what each answers."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from photo_pairs import Photograph
from photo_statistics import iou
from torch import Tensor, nn

import fsdino
from fsdino import ops
from fsdino.models import zoo
from fsdino.models.encoders import Features
from fsdino.models.prompts import cosine_map
from fsdino.models.segmenter import Segmenter
from fsdino.models.shots import Shot, SupportFeatures
from fsdino.models.tiling import tile_boxes

EVERYTHING, PROTOTYPES, OLD, FREE = "everything", "prototypes", "mutual nearest", "training-free"
TINY, PHOTO = "fsdino-tiny", "fsdino-photo"
TEMPERATURE = 0.1  # of the token scores that are cut at 0; the mask does not depend on it
REMEMBERED = 2**31  # bytes of features that are kept

Score = Callable[[Features, SupportFeatures], Tensor]


@dataclass(frozen=True)
class Trial:
    """One support, and what it is asked.

    Attributes:
        group: class or picture, by which results are averaged.
        shots: the annotated pictures.
        queries: pictures that show the object, with their true masks.
        columns: of each query, where its result is reported.
        without: uint8 [H, W, 3], pictures that do not show the object.
    """

    group: str
    shots: tuple[Photograph, ...]
    queries: tuple[Photograph, ...]
    columns: tuple[str, ...]
    without: tuple[npt.NDArray[np.uint8], ...] = ()

    def support(self) -> int:
        """The same number for the same shots."""
        return hash(tuple((s.image.tobytes(), s.mask.tobytes()) for s in self.shots))

    def is_cut(self) -> bool:
        """Whether tiles of the shots' size differ from the whole picture for any query."""
        sizes = [shot.mask.shape for shot in self.shots]
        height, width = (int(np.median([size[i] for size in sizes])) for i in (0, 1))
        images = [*(query.image for query in self.queries), *self.without]
        return any(
            len(tile_boxes((image.shape[0], image.shape[1]), (height, width))) > 1
            for image in images
        )


@dataclass(frozen=True)
class Answer:
    """What a method says to a trial.

    Attributes:
        ious: of each query, in percent.
        quality: of the support, in [0, 1]; None where the method does not tell.
        scores: of each query, in [0, 1]; likewise.
        found: of each query, whether the method says that the object is there.
        scores_without, found_without: of each picture without the object.
    """

    ious: tuple[float, ...]
    quality: float | None = None
    scores: tuple[float, ...] = ()
    found: tuple[bool, ...] = ()
    scores_without: tuple[float, ...] = ()
    found_without: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: of the row.
        model: what segments; None calls every pixel foreground.
        explains: whether the support's quality and the results' scores are reported.
    """

    name: str
    model: Segmenter | None = None
    explains: bool = False

    def ask(self, trial: Trial, *, tiles: bool = False) -> Answer:
        """Segment every query of a trial, and where the scores are reported the others, too."""
        truths = [(query.mask, query.ignored) for query in trial.queries]
        if self.model is None:
            return Answer(tuple(iou(np.ones_like(t), t, ignored) for t, ignored in truths))
        support = self.model.encode_support(
            [shot.image for shot in trial.shots],
            [shot.mask for shot in trial.shots],
            quality=self.explains,
            warn=False,  # how far it is right is reported
        )
        found = self.model.segment([q.image for q in trial.queries], support, tiles=tiles)
        ious = tuple(iou(f.mask, *truth) for f, truth in zip(found, truths, strict=True))
        if not self.explains:
            return Answer(ious, support.quality)
        without = self.model.segment(list(trial.without), support, tiles=tiles)
        return Answer(
            ious,
            support.quality,
            tuple(float(result.score) for result in found),
            tuple(bool(result.found) for result in found),
            tuple(float(result.score) for result in without),
            tuple(bool(result.found) for result in without),
        )


# --------------------------------------------------------------------- scores that learn nothing


class Scored(Segmenter):
    """A score of tokens, on a model's encoder, cut at 0.

    Args:
        model: whose encoder is shared, with its image size.
        score: of queries and supports, [B, 1, h, w]; positive where the object is likely.
    """

    def __init__(self, model: Segmenter, score: Score) -> None:
        config = dataclasses.replace(model.config, variant="comp", threshold=0.5)
        super().__init__(config, model.encoder)
        self.score = score
        self.eval()

    def decode(self, query: Features, support: SupportFeatures) -> tuple[Tensor, None]:
        return self.score(query, support) / TEMPERATURE, None


def prototypes(query: Features, support: SupportFeatures) -> Tensor:
    """Cosine to the foreground prototype minus cosine to the background's: [B, 1, h, w].

    As in PANet (Wang et al., ICCV 2019); in [-2, 2].
    """
    foreground = cosine_map(query.last, support.foreground)
    return foreground - cosine_map(query.last, support.background)


def mutual_nearest(
    query: Features, support: SupportFeatures, *, without: str | None = None
) -> Tensor:
    """Where do a query token's best matches lie in the support? [B, 1, h, w].

    The mean of three scores: the prototypes', the best foreground match minus the best background
    match, and the votes of mutual nearest neighbours, spread over a 3x3 neighbourhood. Averaged
    over shots; the correlation is averaged over the correlation layers. This was fsdino's own
    training-free score up to 0.2, and is kept to compare with.

    Args:
        query: B queries.
        support: what they are asked for.
        without: the score to leave out: "prototypes", "matches" or "votes".
    """
    matches, votes = zip(*(_match(query, shot) for shot in support.shots), strict=True)
    parts = {
        "prototypes": prototypes(query, support),
        "matches": torch.stack(matches).mean(0),
        "votes": torch.stack(votes).mean(0),
    }
    return torch.stack([part for name, part in parts.items() if name != without]).mean(0)


def _match(query: Features, shot: Shot) -> tuple[Tensor, Tensor]:
    """Contrast of the best matches and votes of the mutual ones, [B, 1, h, w] each."""
    side = torch.where(shot.masks[0] >= 0.5, 1.0, -1.0)  # [B, Hs, Ws]
    volume = ops.correlation4d(query.correlation[0], shot.correlation[0], side.to(query.last.dtype))
    volume = volume.float().mean(1).flatten(1, 2).flatten(2)  # [B, N, M]: sign tells the side
    contrast = volume.amax(2).clamp_min(0) + volume.amin(2).clamp_max(0)  # [B, N]

    similarity = volume.abs()
    to_support, to_query = similarity.argmax(2), similarity.argmax(1)  # [B, N], [B, M]
    tokens = torch.arange(volume.shape[1], device=volume.device)
    mutual = to_query.gather(1, to_support) == tokens
    votes = side.flatten(1).gather(1, to_support) * mutual  # [B, N] in {-1, 0, 1}

    grid = query.last.shape[-2:]
    spread = F.avg_pool2d(votes.unflatten(1, grid)[:, None], 3, stride=1, padding=1)
    return contrast.unflatten(1, grid)[:, None], spread


# ------------------------------------------------------------------------------- the table's rows


def free_without(changes: dict[str, Any], model: Segmenter) -> Segmenter:
    """The training-free model on a model's encoder, with its score changed.

    Whether the object is there is not asked: a part less changes what scores mean.
    """
    free = zoo.training_free(model)
    assert free.score is not None
    free.score = dataclasses.replace(free.score, **changes)
    decode = free.decode
    free.decode = lambda query, support: (decode(query, support)[0], None)
    return free


def unrefined(model: Segmenter) -> Segmenter:
    """The training-free model on a model's encoder, with masks of plainly resized scores."""
    free = zoo.training_free(model)
    assert free.score is not None

    def decode(query: Features, support: SupportFeatures) -> tuple[Tensor, Tensor]:
        score, presence = free.score.score(query, support)
        return score / TEMPERATURE, presence

    free.decode = decode
    return free


# What switches each part of the training-free score off.
_PARTS: dict[str, dict[str, Any]] = {
    "classifier": {"ridge": 1e6},
    "matches": {"matches": 0.0},
    "held-out threshold": {"held_out": False},
    "adaptation": {"adapt": False},
    "leaving borders out": {"border": 0.5},
    "the query's classifier": {"own": 0.0},
}

ABLATIONS: dict[str, Callable[[Segmenter], Segmenter]] = {  # row: the model, of the one asked about
    f"{OLD} without {part}": lambda model, part=part: Scored(
        model, partial(mutual_nearest, without=part)
    )
    for part in ("prototypes", "matches", "votes")
} | {f"{FREE} without {part}": partial(free_without, changes) for part, changes in _PARTS.items()}
ABLATIONS[f"{FREE} without refinement"] = unrefined


def methods(model: Segmenter, name: str, *, ablate: bool = False) -> list[Method]:
    """All rows, in the table's order.

    Args:
        model: the model that the table is about; all but fsdino-tiny use its encoder.
        name: its row.
        ablate: whether `ABLATIONS` are rows, too.
    """
    tiny = model if name == TINY else fsdino.load(TINY)
    for encoder in {id(m.encoder): m.encoder for m in (model, tiny)}.values():
        remember(encoder)
    rows = [Method(EVERYTHING), Method(TINY, tiny, explains=True)]
    rows.append(Method(PROTOTYPES, Scored(model, prototypes)))
    rows.append(Method(OLD, Scored(model, mutual_nearest)))
    if ablate:
        rows += [Method(row, build(model)) for row, build in ABLATIONS.items()]
    rows.append(Method(FREE, zoo.training_free(model), explains=True))
    return rows if name == TINY else [*rows, Method(name, model, explains=True)]


def remember(encoder: nn.Module, most_bytes: int = REMEMBERED) -> None:
    """Let an encoder pass each picture once: all methods that share it get the same features.

    The least recently used features are forgotten beyond `most_bytes`.
    """
    plain = encoder.forward_list
    known: OrderedDict[tuple[Any, ...], Features] = OrderedDict()

    def forward_list(images: Sequence[Tensor], *rest: Any) -> list[Features]:
        keys = [(tuple(image.shape), hash(image.numpy().tobytes())) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in known}
        if new:
            known.update(zip(new, plain(list(new.values()), *rest), strict=True))
        found = []
        for key in keys:
            known.move_to_end(key)
            found.append(known[key])
        while sum(map(_bytes, known.values())) > most_bytes and len(known) > 1:
            known.popitem(last=False)
        return found

    encoder.forward_list = forward_list


def _bytes(features: Features) -> int:
    return sum(tensor.nbytes for tensor in features.tensors())


def label(model: str) -> str:
    """A model's row: its name, or the name of its folder."""
    return model if model in zoo.names() else Path(model).name
