"""The configuration of stage 1: what a recipe of `fsdino distill` holds."""

from __future__ import annotations

from dataclasses import dataclass

from fsdino.errors import UsageError
from fsdino.training.distillation.architecture import ARCHITECTURES
from fsdino.training.recipe import AUTO, DEVICES, DTYPES, Recipe

# Settings that decide no number, or only its rounding: they may differ on resume.
DISTILL_FREE = (
    *("cache", "device", "workers", "threads", "images_per_pass", "teacher_batch"),
    "checkpoint_every",
)
_AT_LEAST_1 = (
    *("batch_size", "teacher_batch", "validate_every", "checkpoint_every", "nan_limit"),
    "images_per_pass",
)
_AT_LEAST_0 = ("warmup", "weight_decay", "threads", "workers", "seed")
_POSITIVE = ("learning_rate", "gradient_clip")


@dataclass(frozen=True)
class Stage:
    """A part of the schedule: images of one size.

    Attributes:
        image_size: side in pixels.
        first: step that it begins with.
        steps: how many there are.
    """

    image_size: int
    first: int
    steps: int

    @property
    def last(self) -> int:
        """The number of steps done at its end."""
        return self.first + self.steps


@dataclass(frozen=True)
class DistillConfig(Recipe):
    """One distillation.

    Attributes:
        model: whose encoder is read and whose adapter learns; other parts do not matter.
        images: folders, tar shards, lists and image files (`corpus.find_images`).
        teacher_checkpoint: a Segment Anything checkpoint.
        teacher: "vit_b", "vit_l" or "vit_h" that it must hold; "auto" takes what it holds.
        encoder_from: name or folder of a model whose encoder is taken; None starts from the
            model's own (random, or `pretrained`).
        encoder_weights: one of Meta's DINOv2 files for the encoder.
        percent: of the images, by a stable hash of their names.
        held_out: share of those that numbers are reported on, by another hash.
        image_sizes: sides in pixels, one stage after another; multiples of the encoder's patch.
        epochs: of each stage; one number is for all.
        batch_size: images of a step, of all processes together.
        images_per_pass: images of one forward and backward pass of a process; the gradients of a
            step's passes add up. None takes all at once.
        learning_rate: peak; linear warm-up, then cosine decay to 1 % of it, over all stages.
        warmup: steps.
        weight_decay: AdamW's, for matrices only.
        gradient_clip: largest gradient norm.
        nan_limit: so many steps in a row without a finite loss stop the run; fewer are skipped.
        use_cache: keep the teacher's embeddings on disk; without, they are computed in each epoch.
        cache: folder for them, for any number of runs; None is `embeddings` in the run's folder.
        seed: of weights and order.
        device: "auto" (a GPU for each process where there is one) or "cpu".
        dtype: of the adapter: "float32", or "bfloat16" under autocast.
        encoder_dtype, teacher_dtype: likewise; "auto" is bfloat16 on GPUs.
        teacher_batch: images in a pass of the teacher.
        threads: CPU threads of the training process; 0 leaves them.
        workers: processes that read images.
        validate_every: steps between measurements on held-out images; the end of a stage is one.
        checkpoint_every: steps.

    Raises:
        UsageError: a value that cannot be meant; the message names it.
    """

    images: tuple[str, ...] = ()
    teacher_checkpoint: str = ""
    teacher: str = AUTO
    encoder_from: str | None = None
    encoder_weights: str | None = None
    percent: float = 100.0
    held_out: float = 0.01
    image_sizes: tuple[int, ...] = (126, 252, 518)
    epochs: tuple[int, ...] = (2,)
    batch_size: int = 32
    images_per_pass: int | None = None
    learning_rate: float = 1e-3
    warmup: int = 500
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    nan_limit: int = 10
    use_cache: bool = True
    cache: str | None = None
    seed: int = 0
    device: str = AUTO
    dtype: str = "float32"
    encoder_dtype: str = AUTO
    teacher_dtype: str = AUTO
    teacher_batch: int = 4
    threads: int = 0
    workers: int = 1
    validate_every: int = 1000
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        self._check_types()
        self._check_choices(
            {
                "teacher": (AUTO, *ARCHITECTURES),
                "device": DEVICES,
                "dtype": DTYPES,
                "encoder_dtype": (AUTO, *DTYPES),
                "teacher_dtype": (AUTO, *DTYPES),
            }
        )
        self._check_numbers(_AT_LEAST_1, _AT_LEAST_0, _POSITIVE)
        if not self.image_sizes or min(self.image_sizes) < 1:
            raise UsageError(f"image_sizes must be sides in pixels, got {self.image_sizes}")
        if len(self.epochs) not in (1, len(self.image_sizes)) or min(self.epochs) < 1:
            raise UsageError(
                f"epochs must be one number of at least 1, or one for each of the "
                f"{len(self.image_sizes)} image_sizes, got {self.epochs}"
            )
        if self.encoder_from is not None and self.encoder_weights is not None:
            raise UsageError("encoder_from and encoder_weights exclude each other: pass one")

    def stages(self, images: int) -> tuple[Stage, ...]:
        """The schedule for so many images: the last batch of a stage is filled up."""
        found: list[Stage] = []
        each = self.epochs * len(self.image_sizes) if len(self.epochs) == 1 else self.epochs
        for size, epochs in zip(self.image_sizes, each, strict=True):
            first = found[-1].last if found else 0
            found.append(Stage(size, first, -(-images * epochs // self.batch_size)))
        return tuple(found)
