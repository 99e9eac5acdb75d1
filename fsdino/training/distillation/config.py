"""The configuration of stage 1: what a recipe of `fsdino distill` holds."""

from __future__ import annotations

from dataclasses import dataclass

from fsdino.errors import UsageError
from fsdino.training.distillation.architecture import ARCHITECTURES
from fsdino.training.recipe import AUTO, DTYPES, Recipe, Schedule

GRIDS = ("teacher", "student")


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
    """One training run of stage 1; the settings of both stages are in `Recipe`.

    Of `model`, the encoder is read and the adapter learns; other parts do not matter. The end of a
    stage counts as a time for `validate_every` and `checkpoint_every`.

    Attributes:
        images: folders, .tar shards (such as SA-1B's, not unpacked), .txt files with a path on each
            line, and images.
        teacher_checkpoint: Segment Anything checkpoint, such as sam_vit_h_4b8939.pth.
        teacher: "vit_b", "vit_l" or "vit_h" that it must hold; "auto" takes what it holds.
        encoder_from: name or folder of a model whose encoder is taken; None starts from the
            model's own (random, or `pretrained`).
        encoder_weights: DINOv2 file of Meta's for the encoder.
        percent: percentage of the images that is used, by a stable hash of their names.
        held_out: share of those that is measured on, by another hash.
        image_sizes: sides in pixels, one stage after another; multiples of the encoder's patch.
        epochs: epochs of each stage; one number is for all.
        batch_size: images of a step, of all processes together.
        images_per_pass: images of one forward and backward pass of a process; the gradients of a
            step's passes add up. None takes all at once.
        loss_grid: where student and teacher are compared: on the grid of the "teacher", to which
            the student's maps are brought, or on that of the "student", to which the teacher's are:
            then a small image has a coarse target. Measurements are on the teacher's in any case.
        use_cache: whether the teacher's embeddings are kept on disk; otherwise they are computed in
            each epoch.
        cache: folder for them, for any number of runs; None is `embeddings` in the run's folder.
        teacher_dtype: floating type of the teacher; "auto" is bfloat16 on GPUs.
        teacher_batch: images of one pass of the teacher.

    Raises:
        UsageError: an invalid value; the message names it.
    """

    free = (*Recipe.free, "cache", "images_per_pass", "teacher_batch")
    paths = (*Recipe.paths, "teacher_checkpoint", "cache")

    warmup: int = 500
    checkpoint_every: int = 500
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
    loss_grid: str = GRIDS[0]
    use_cache: bool = True
    cache: str | None = None
    teacher_dtype: str = AUTO
    teacher_batch: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choices(
            {
                "teacher": (AUTO, *ARCHITECTURES),
                "teacher_dtype": (AUTO, *DTYPES),
                "loss_grid": GRIDS,
            }
        )
        self._check_numbers(at_least_1=("batch_size", "teacher_batch", "images_per_pass"))
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
        """The stages for a number of images: the last batch of a stage is filled up."""
        found: list[Stage] = []
        each = self.epochs * len(self.image_sizes) if len(self.epochs) == 1 else self.epochs
        for size, epochs in zip(self.image_sizes, each, strict=True):
            first = found[-1].last if found else 0
            found.append(Stage(size, first, -(-images * epochs // self.batch_size)))
        return tuple(found)

    def schedule(self, images: int) -> Schedule:
        """When the learning rate rises and falls: once, over all stages."""
        lasts = [stage.last for stage in self.stages(images)]
        return Schedule(lasts[-1], ends=frozenset(lasts))
