"""The configuration of stage 2: what a recipe of `fsdino train` holds."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from fsdino.data.names import DATASETS, EVALUATION_ONLY, LAYOUTS
from fsdino.errors import UsageError
from fsdino.training.recipe import AUTO, Recipe, Schedule

DATA = tuple(name for name in DATASETS if name not in ("davis17", *EVALUATION_ONLY))
SELECT_ON = ("base", "novel")

_SHARES = ("invented", "photograph_share", "augment", "crowded")


@dataclass(frozen=True)
class TrainConfig(Recipe):
    """One training run of stage 2; the settings of both stages are in `Recipe`.

    Attributes:
        data: data set whose base classes are trained on: pascal5i, pascal5i-leak-safe, coco20i,
            fss1000, folder or procedural.
        root: folder of the data set.
        splits: folder of the published lists; None derives lists from the annotations.
        layout: layout of a folder of your own: auto, class-folders, pairs or labels; see
            docs/data.md.
        ignore: value of its label maps that is not scored, or "none"; None is 255.
        background: value of its label maps that is not a class, or "none"; None is 0.
        fold: fold that is held out of training; 0 where there are no folds.
        steps: optimiser steps. More of them than a finished run has extend it when it is resumed.
        restarts: steps at which the schedule begins again, with a warm-up and a decay of its own;
            extending a finished run adds its last step.
        images_per_step: distinct images in a step, of all processes together. They form episodes
            of K + 1 images, each of which is the query once while the others are its supports.
        episodes_per_batch: episodes of one forward and backward pass of a process; the gradients
            of a step's passes add up. None takes all at once, "auto" what fits into memory.
        shots: numbers of supports from which each step's K is drawn.
        image_sizes: sides in pixels from which that of each step's images is drawn; () means the
            model's.
        invented: share in [0, 1] of the episodes whose class is made up from base classes' textures
            and shapes, for "procedural" only; see `fsdino.data.procedural.invention`.
        photographs: folder of photographs without labels, for `photograph_share`.
        photograph_share: share in [0, 1] of the episodes whose class is a region of one of the
            photographs, with any `data`; `invented` is the share of the others. See
            `fsdino.data.photographs`.
        augment: share in [0, 1] of the episodes that are changed into another class's; see
            `fsdino.training.meta.augment`.
        crowded: share in [0, 1] of the images that are shrunk, with mirror images around: several
            small objects in place of one.
        start_from: name or folder of a model that the run continues, with all its weights.
        encoder_from: name or folder of a model whose encoder is taken; None starts from the
            model's own (random, or `pretrained`).
        encoder_weights: file for the encoder: DINOv2 of Meta's; for HSNet torchvision's file of the
            backbone, or a checkpoint of HSNet's.
        decoder_weights: official SAM file for the decoder.
        adapter_weights: file that `fsdino distill` wrote.
        train_encoder: whether the encoder learns; for small ones that start from scratch.
        train_adapter: whether the adapter learns.
        train_decoder: whether the decoder learns; that of the variant "comp_frozen" never does.
        dice_weight: weight of Dice beside the cross entropy of masks; 0 leaves it out, as HSNet.
        prototype_weight: weight of the loss on prototype similarity within an image, for a trained
            encoder.
        class_weight: weight of the loss on the base class of each foreground token (of the episodes
            whose class no augmentation changed), for a trained encoder.
        contrast_weight: weight of the loss on telling apart the classes of the episodes that share
            a pass, for a trained encoder.
        feature_cache: folder for the features of a frozen encoder; needs `augment` and `crowded` 0.
        skip_bad: whether another episode replaces one of which an image cannot be read, with a
            warning.
        validation: whether the model is scored while it learns, and the best one kept. Otherwise
            all images of a folder of your own are trained on, and the last model counts as the
            best.
        validation_episodes: episodes of a validation.
        validation_shots: K of its episodes.
        select_on: classes that the best model is chosen by: "base", on images that are not trained
            on; or "novel", the held-out classes themselves, as in much of the literature. Results
            of such a model say so.
        patience: validations without a better one that end the run; 0 never does.

    Raises:
        UsageError: an invalid value; the message names it.
    """

    # What these lead to is compared with the run that is resumed.
    free = (
        *Recipe.free,
        *("root", "splits", "photographs", "skip_bad", "episodes_per_batch", "feature_cache"),
        *("steps", "restarts"),
    )
    paths = (
        *Recipe.paths,
        *("root", "splits", "photographs", "decoder_weights", "adapter_weights", "feature_cache"),
    )

    data: str = "procedural"
    root: str | None = None
    splits: str | None = None
    layout: str = "auto"
    ignore: int | str | None = None
    background: int | str | None = None
    fold: int = 0
    steps: int = 10000
    restarts: tuple[int, ...] = ()
    images_per_step: int = 16
    episodes_per_batch: int | str | None = None
    shots: tuple[int, ...] = (1,)
    image_sizes: tuple[int, ...] = ()
    invented: float = 0.0
    photographs: str | None = None
    photograph_share: float = 0.0
    augment: float = 0.0
    crowded: float = 0.0
    start_from: str | None = None
    encoder_from: str | None = None
    encoder_weights: str | None = None
    decoder_weights: str | None = None
    adapter_weights: str | None = None
    train_encoder: bool = False
    train_adapter: bool = False
    train_decoder: bool = True
    dice_weight: float = 1.0
    prototype_weight: float = 0.0
    class_weight: float = 0.0
    contrast_weight: float = 0.0
    feature_cache: str | None = None
    skip_bad: bool = False
    validation: bool = True
    validation_episodes: int = 144
    validation_shots: int = 1
    select_on: str = "base"
    patience: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data in EVALUATION_ONLY:
            raise UsageError(
                f"data {self.data!r} is evaluated on and never trained on: choose {', '.join(DATA)}"
            )
        self._check_choices({"data": DATA, "layout": LAYOUTS, "select_on": SELECT_ON})
        self._check_numbers(
            at_least_1=("steps", "validation_episodes", "validation_shots"),
            at_least_0=(
                *("patience", "fold"),
                *("dice_weight", "prototype_weight", "class_weight", "contrast_weight"),
            ),
        )
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.invented and self.data != "procedural":
            raise UsageError(
                f"invented: only data 'procedural' can, not {self.data!r}; set it to 0"
            )
        self._check_schedule()
        self._check_episodes()
        self._check_frozen()

    def _check_schedule(self) -> None:
        ends = (0, *self.restarts, self.steps)
        if any(later <= earlier for earlier, later in pairwise(ends)):
            raise UsageError(
                f"restarts must be ascending steps between 0 and steps ({self.steps}), got "
                f"{self.restarts}"
            )
        if self.patience and not self.validation:
            raise UsageError("patience counts validations: set it to 0, or leave validation on")
        if self.select_on == "novel" and not self.validation:
            raise UsageError("select_on chooses by validation: leave it out, or validation on")

    def _check_episodes(self) -> None:
        if not self.shots or min(self.shots) < 1:
            raise UsageError(f"shots must be numbers of at least 1, got {self.shots}")
        if self.images_per_step <= max(self.shots):
            raise UsageError(
                f"images_per_step must be greater than the largest of shots, "
                f"got {self.images_per_step} and {self.shots}"
            )
        batch = self.episodes_per_batch
        if not (batch is None or batch == AUTO or (isinstance(batch, int) and batch >= 1)):
            raise UsageError(f"episodes_per_batch must be auto or at least 1, got {batch!r}")
        if self.select_on == "novel" and self.data == "folder":
            raise UsageError("data 'folder' has no novel classes: select_on must be base")

    def _check_frozen(self) -> None:
        if self.model.variant == "training_free":
            raise UsageError("variant 'training_free' has nothing to train: choose another")
        changing = self.train_encoder or self.augment or self.crowded
        if self.feature_cache is not None and changing:
            raise UsageError(
                "feature_cache keeps a frozen encoder's output for unchanged images: set "
                "train_encoder to false, augment and crowded to 0"
            )
        if self.feature_cache is not None and (self.data == "procedural" or self.photograph_share):
            raise UsageError(
                "feature_cache: no generated image comes twice; use data on disk, and set "
                "photograph_share to 0"
            )
        others = ("encoder_from", "encoder_weights", "decoder_weights", "adapter_weights")
        given = [name for name in others if getattr(self, name) is not None]
        if self.start_from is not None and given:
            raise UsageError(f"start_from brings all weights: leave {given[0]} out")
        if self.encoder_from is not None and self.encoder_weights is not None:
            raise UsageError("encoder_from and encoder_weights exclude each other: pass one")

    @property
    def schedule(self) -> Schedule:
        """When the learning rate rises and falls."""
        return Schedule(self.steps, self.restarts, frozenset({*self.restarts, self.steps}))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides of images in pixels."""
        return self.image_sizes or (self.model.image_size,)

    def episodes_per_step(self, shots: int) -> int:
        """Episodes of K shots in a step, of all processes together."""
        return self.images_per_step // (shots + 1)
