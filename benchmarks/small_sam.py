"""A Segment Anything model small enough to be trained here: the teacher of `distillation.py`.

It is `segment_anything`'s own model with few layers. It learns what SAM learned, at its core: a
point or a box on something in an image gives the mask of that thing, of any class. It sees
images of the base classes, and of classes invented from these; nothing of the held-out fold. Its
file has the names of the official ones.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from segment_anything.modeling import PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fsdino.data.episodes import Sample
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.data.procedural.invention import InventedEpisodes
from fsdino.errors import FsdinoError
from fsdino.files import atomic_write
from fsdino.models.checkpoints import load_exactly
from fsdino.models.decoder import MaskDecoder
from fsdino.models.weight_files import read_state_dict
from fsdino.training.distillation.architecture import Architecture
from fsdino.training.distillation.teacher import build_encoder
from fsdino.training.interrupt import Interrupt
from fsdino.training.meta.losses import mask_loss
from fsdino.training.optimisation import adamw, set_learning_rate, warmup_cosine
from fsdino.training.run import CONFIG, Run
from fsdino.training.state import pack, set_random, unpack

FILE = "sam_small.pth"
POINTS = 2  # prompts of an image in a step, beside a box
_SHARED = "mask_decoder.positions."  # of the batched decoder: the prompts' own, once more
_LOG_EVERY, _SAVE_EVERY = 50, 100  # steps


@dataclass(frozen=True)
class Recipe:
    """What the model is, and how it learns.

    Attributes:
        width: channels of the embedding; of decoder and prompts, too.
        decoder_heads, decoder_mlp: of the decoder's transformer.
        encoder_width, depth, heads: of the image encoder; every second block sees the whole image.
        side, patch: of the image and of a token, in pixels.
        window: side of the other blocks' windows, in tokens; less than the grid.
        fold: never seen.
        steps, images_per_step, learning_rate, warmup: AdamW, with cosine decay.
        seed: of weights, images and prompts.
    """

    width: int = 64
    decoder_heads: int = 4
    decoder_mlp: int = 256
    encoder_width: int = 128
    depth: int = 4
    heads: int = 4
    side: int = 128
    patch: int = 8
    window: int = 8
    fold: int = 3
    steps: int = 2000
    images_per_step: int = 16
    learning_rate: float = 1e-3
    warmup: int = 100
    seed: int = 1000


def build(recipe: Recipe, *, batched: bool = False) -> Sam:
    """The model with random weights, drawn from the recipe's seed.

    Args:
        recipe: what to build.
        batched: take this package's decoder for SAM's own, which has the same weights, but can take
            a batch of images with one prompt each; its other masks and its IoU head do not learn.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        shape = Architecture(
            recipe.encoder_width,
            recipe.depth,
            recipe.heads,
            tuple(range(1, recipe.depth, 2)),
            window=recipe.window,
            channels=recipe.width,
            image_size=recipe.side,
            patch_size=recipe.patch,
        )
        encoder = build_encoder(shape)
        width, grid = recipe.width, recipe.side // recipe.patch
        prompts = PromptEncoder(width, (grid, grid), (recipe.side, recipe.side), mask_in_chans=16)
        decoder: SamMaskDecoder
        if batched:
            decoder = MaskDecoder(width, recipe.decoder_heads, recipe.decoder_mlp)
            decoder.positions.load_state_dict(prompts.pe_layer.state_dict())
            prompts.mask_downscaling.requires_grad_(False)
        else:
            transformer = TwoWayTransformer(2, width, recipe.decoder_heads, recipe.decoder_mlp)
            decoder = SamMaskDecoder(
                transformer_dim=width, transformer=transformer, iou_head_hidden_dim=width
            )
        return Sam(encoder, prompts, decoder)


def load(recipe: Recipe, path: Path) -> Sam:
    """The model of a file that `train` wrote, all of it `segment_anything`'s code."""
    sam = build(recipe)
    load_exactly(sam, read_state_dict(path), path)
    return sam.eval()


# ------------------------------------------------------------------------------ what it learns from


class Prompted(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """The steps: images [B, 3, S, S] in 0..255, masks [B, S, S], points [P, B, 2], boxes [B, 4].

    Half of the images show base classes, half show invented ones. Points are (x, y) on the mask;
    boxes are its own, moved by noise as SAM's were. A step depends on its number alone.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        episodes = recipe.steps * recipe.images_per_step
        self.base = ProceduralEpisodes(
            recipe.fold, "train", seed=recipe.seed, episodes=episodes, image_size=recipe.side
        )
        self.invented = InventedEpisodes(recipe.fold, 1, recipe.seed, recipe.side)

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        recipe = self.recipe
        rng = np.random.default_rng((recipe.seed, step))
        first = step * recipe.images_per_step // 2
        samples: list[Sample] = []
        for index in range(first, first + recipe.images_per_step // 2):
            episode = self.base[index] if index % 2 else self.invented[index]
            samples += [episode.query, *episode.supports]
        points = [[point_on(rng, sample.mask) for sample in samples] for _ in range(POINTS)]
        boxes = [box_around(rng, sample.mask) for sample in samples]
        return (
            torch.stack([as_tensor(sample) for sample in samples]),
            torch.stack([torch.from_numpy(sample.mask).float() for sample in samples]),
            torch.tensor(points),
            torch.tensor(boxes),
        )


def as_tensor(sample: Sample) -> Tensor:
    """A sample's image as SAM takes it: float32 [3, H, W] in 0..255."""
    return torch.from_numpy(sample.image).permute(2, 0, 1).float()


def point_on(rng: np.random.Generator, mask: np.ndarray) -> tuple[float, float]:
    """(x, y) of a pixel of a mask, each as likely as the other."""
    rows, columns = np.nonzero(mask)
    chosen = int(rng.integers(len(rows)))
    return float(columns[chosen]), float(rows[chosen])


def box_around(rng: np.random.Generator, mask: np.ndarray) -> tuple[float, ...]:
    """The box (left, top, right, bottom) of a mask; each side moves by a tenth of the extent."""
    rows, columns = np.nonzero(mask)
    box = np.array([columns.min(), rows.min(), columns.max(), rows.max()], dtype=np.float64)
    extent = np.tile(box[2:] - box[:2], 2)
    moved = np.clip(box + 0.1 * extent * rng.standard_normal(4), 0, max(mask.shape) - 1)
    return tuple(moved.tolist())


# ----------------------------------------------------------------------------------------- learning


def predict(sam: Sam, images: Tensor, points: Tensor, boxes: Tensor) -> Tensor:
    """Mask logits of a batch, for a model that is built `batched`.

    Args:
        sam: the model.
        images: [B, 3, S, S] in 0..255.
        points: [P, B, 2], (x, y) in pixels.
        boxes: [B, 4] in pixels.

    Returns:
        [(P + 1) * B, 1, S, S]: for the first point of every image, and so on; last for the boxes.
    """
    embedded = sam.image_encoder(sam.preprocess(images))
    encode = sam.prompt_encoder
    marked = points.flatten(0, 1)[:, None]  # [P * B, 1, 2]
    by_point, _ = encode((marked, torch.ones(marked.shape[:2])), None, None)
    by_box, _ = encode(None, boxes, None)
    sparse = torch.cat([by_point, by_box])  # [(P + 1) * B, 2, C]: a point and none, or two corners
    dense = encode.no_mask_embed.weight[..., None, None]
    rounds = len(sparse) // len(images)
    logits = sam.mask_decoder(embedded.repeat(rounds, 1, 1, 1), sparse, dense)
    size = images.shape[-2:]
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def train(recipe: Recipe, folder: Path, workers: int = 0) -> Path:
    """Train the model, or continue an interrupted run in that folder.

    Args:
        recipe: what to train, and how.
        folder: the run's; see `Run`.
        workers: processes that draw images.

    Returns:
        The file of its weights, in the official layout.

    Raises:
        KeyboardInterrupt: asked to stop; a checkpoint is written.
        FsdinoError: the loss is not finite.
        UsageError: the folder holds a run of another recipe.
    """
    run = Run(folder, dataclasses.asdict(recipe), resume=(folder / CONFIG).exists())
    path = folder / FILE
    if path.exists():
        return path
    sam = build(recipe, batched=True)
    optimizer = adamw(sam.parameters(), recipe.learning_rate, 0.05)
    start, spent = _restore(run, sam, optimizer)
    began = time.process_time()
    steps = DataLoader(
        Prompted(recipe), batch_size=None, sampler=range(start, recipe.steps), num_workers=workers
    )
    with Interrupt() as interrupt:
        for done, batch in enumerate(steps, start=start + 1):
            loss = _step(sam, optimizer, recipe, done - 1, *batch)
            seconds = spent + time.process_time() - began
            if done % _LOG_EVERY == 0 or done == recipe.steps:
                run.log(done, loss=loss, seconds=round(seconds, 1))
            if done % _SAVE_EVERY == 0 or done == recipe.steps or interrupt.asked:
                run.save(done, pack({"sam": sam}, optimizer), {"seconds": seconds})
            if interrupt.asked and done < recipe.steps:
                raise KeyboardInterrupt
    run.close()
    state = {k: v for k, v in sam.state_dict().items() if not k.startswith(_SHARED)}
    with atomic_write(path) as temporary:
        torch.save(state, temporary)
    return path


def _step(
    sam: Sam,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    number: int,
    images: Tensor,
    masks: Tensor,
    points: Tensor,
    boxes: Tensor,
) -> float:
    """Change the weights once; returns the loss."""
    factor = warmup_cosine(number, recipe.steps, recipe.warmup, 0.01)
    set_learning_rate(optimizer, recipe.learning_rate * factor)
    logits = predict(sam, images, points, boxes)
    loss = mask_loss(logits, masks.repeat(POINTS + 1, 1, 1))
    if not loss.isfinite():
        raise FsdinoError(f"step {number}: non-finite loss; lower the learning rate")
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _restore(run: Run, sam: Sam, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Put back the last checkpoint; returns steps done and CPU seconds spent on them."""
    checkpoint = run.load()
    if checkpoint is None:
        run.forget_after(0)
        return 0, 0.0
    step, tensors, state = checkpoint
    unpack(tensors, {"sam": sam}, optimizer)
    set_random(tensors)
    run.forget_after(step)
    return step, state["seconds"]


# ------------------------------------------------------------------------------------ what it knows


@torch.inference_mode()
def point_iou(sam: Sam, episodes: ProceduralEpisodes) -> float:
    """Mean IoU, in percent, of the masks that `Sam.forward` gives for one point on each query."""
    rng = np.random.default_rng(episodes.seed)
    scores = []
    for index in range(len(episodes)):
        sample = episodes[index].query
        asked = {
            "image": as_tensor(sample),
            "original_size": sample.mask.shape,
            "point_coords": torch.tensor([[point_on(rng, sample.mask)]]),
            "point_labels": torch.ones(1, 1),
        }
        found = sam([asked], multimask_output=False)[0]["masks"][0, 0].numpy()
        union = (found | sample.mask).sum()
        scores.append(float((found & sample.mask).sum() / union))
    return 100 * sum(scores) / len(scores)
