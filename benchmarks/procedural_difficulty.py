"""How far cheap tricks get on the drawn episodes: `python benchmarks/procedural_difficulty.py`.

Three ways to segment without having learnt anything are scored on a held-out fold: a colour
histogram matcher, prototypes of a frozen encoder with random weights, and "everything is
foreground". Every choice the first two leave open is made on base classes. The result is a JSON
file that names the generator's version and fingerprint.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import PIL
import timm
import torch
from record import drawn_set
from torch.nn import functional

from fsdino.bench.record import write_record
from fsdino.data import procedural
from fsdino.data.episodes import Episode, Episodes, Image, Mask, Sample
from fsdino.resizing import area_shares

Scores: TypeAlias = npt.NDArray[np.float32]  # [variants, H, W], high where foreground is likely
Scorer: TypeAlias = Callable[[Episode], Scores]

RESULT = Path("benchmarks/results/procedural_difficulty.json")
LIMIT = 25.0
TUNING_SEED = 1
TUNING_EPISODES = 288
GRID_EPISODES = 36
QUANTILES = np.linspace(0.0, 0.98, 25)
ENCODER = "vit_small_patch14_dinov2"
ENCODER_BLOCKS = (0, 2, 5, 8, 11)
ENCODER_SEEDS = (0, 1, 2)


class Tally:
    """Intersections and unions summed per class, for any number of candidates at once."""

    def __init__(self, classes: Sequence[int], candidates: tuple[int, ...]) -> None:
        self.rows = {class_id: row for row, class_id in enumerate(classes)}
        self.intersection = np.zeros((len(classes), *candidates))
        self.union = np.zeros((len(classes), *candidates))

    def add(self, class_id: int, predicted: Mask, truth: Mask) -> None:
        """Add predictions bool [*candidates, H, W] for one query mask bool [H, W]."""
        row = self.rows[class_id]
        both = (predicted & truth).sum(axis=(-2, -1))
        self.intersection[row] += both
        self.union[row] += predicted.sum(axis=(-2, -1)) + truth.sum() - both

    def miou(self) -> npt.NDArray[np.float64]:
        """Return the mean over classes of the IoU, in percent: float64 [*candidates]."""
        iou: npt.NDArray[np.float64] = self.intersection / np.maximum(self.union, 1)
        return 100 * iou.mean(axis=0)


@dataclass(frozen=True)
class Choice:
    """What tuning chose: a variant of the scores, and where to cut them."""

    variant: int
    adaptive: bool  # cut at a quantile of this image, not at one fixed value
    cut: float
    tuned_miou: float

    def __call__(self, scores: Scores) -> Mask:
        """Return the predicted mask bool [1, H, W]."""
        score = scores[self.variant]
        cut = np.quantile(score, self.cut) if self.adaptive else self.cut
        mask: Mask = (score > cut)[None]
        return mask


def tune(scorer: Scorer, episodes: Episodes) -> Choice:
    """Choose variant and cut by mIoU on base classes."""
    samples = np.stack([scorer(episodes[i])[:, ::4, ::4] for i in range(GRID_EPISODES)])
    variants = samples.shape[1]
    fixed = np.quantile(np.swapaxes(samples, 0, 1).reshape(variants, -1), QUANTILES, axis=1).T
    tally = Tally(episodes.classes, (2, variants, len(QUANTILES)))
    for index in range(len(episodes)):
        episode = episodes[index]
        scores = scorer(episode)
        own = np.quantile(scores.reshape(variants, -1), QUANTILES, axis=1).T
        cuts = np.stack([fixed, own])[..., None, None]
        tally.add(episode.class_id, scores[None, :, None] > cuts, episode.query.mask)
    miou = tally.miou()
    adaptive, variant, cut = (int(i) for i in np.unravel_index(miou.argmax(), miou.shape))
    value = QUANTILES[cut] if adaptive else fixed[variant, cut]
    return Choice(variant, bool(adaptive), float(value), float(miou.max()))


def evaluate(scorer: Scorer, choice: Choice, episodes: Episodes) -> float:
    """Return the mIoU of a tuned scorer in percent."""
    tally = Tally(episodes.classes, (1,))
    for index in range(len(episodes)):
        episode = episodes[index]
        tally.add(episode.class_id, choice(scorer(episode)), episode.query.mask)
    return float(tally.miou()[0])


# --------------------------------------------------------------------------------------------
# Colour histograms


def opponent(image: Image) -> Image:
    """Return brightness-free colour, uint8 [H, W, 2]: red-green and yellow-blue shares."""
    colour = image.astype(np.float32) + 1
    share = colour / colour.sum(axis=2, keepdims=True)
    red_green = 0.5 + (share[..., 0] - share[..., 1])
    yellow_blue = 0.5 + (share[..., 0] + share[..., 1]) / 2 - share[..., 2]
    return (np.clip(np.stack([red_green, yellow_blue], axis=2), 0, 1) * 255).astype(np.uint8)


def hsv(image: Image) -> Image:
    """Return uint8 [H, W, 3]: hue, saturation, value."""
    return np.asarray(PIL.Image.fromarray(image).convert("HSV"))


COLOUR_SPACES: dict[str, tuple[Callable[[Image], Image], tuple[int, ...]]] = {
    "rgb": (lambda image: image, (4, 8, 16)),
    "hsv": (hsv, (4, 8, 16)),
    "opponent": (opponent, (8, 16, 32)),
}
WINDOWS = (1, 5, 11, 21, 35)
HISTOGRAM_VARIANTS = tuple(
    f"{space}, {bins} bins, window {window}"
    for space, (_, all_bins) in COLOUR_SPACES.items()
    for bins in all_bins
    for window in WINDOWS
)


def box_mean(image: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Return the mean of [H, W] over odd windows, cut at the borders."""
    reach = window // 2
    result = image
    for axis in (0, 1):
        length = result.shape[axis]
        total = np.insert(np.cumsum(result, axis=axis), 0, 0, axis=axis)
        end = np.minimum(np.arange(length) + reach + 1, length)
        start = np.maximum(np.arange(length) - reach, 0)
        weight = (end - start)[:, None] if axis == 0 else (end - start)[None, :]
        result = (total.take(end, axis=axis) - total.take(start, axis=axis)) / weight
    return result


def histogram_scores(episode: Episode) -> Scores:
    """Score pixels by the log ratio of their colour's frequency in the supports' fore/background.

    One variant for each of `HISTOGRAM_VARIANTS`.
    """
    scores = []
    for convert, all_bins in COLOUR_SPACES.values():
        query = convert(episode.query.image)
        supports = [(convert(support.image), support.mask) for support in episode.supports]
        for bins in all_bins:
            total = bins ** query.shape[2]
            fore, back = np.full(total, 0.5), np.full(total, 0.5)
            for image, mask in supports:
                codes = colour_codes(image, bins)
                fore += np.bincount(codes[mask], minlength=total)
                back += np.bincount(codes[~mask], minlength=total)
            ratio = np.log(fore / fore.sum()) - np.log(back / back.sum())
            likelihood = ratio[colour_codes(query, bins)]
            scores += [box_mean(likelihood, window) for window in WINDOWS]
    return np.stack(scores).astype(np.float32)


def colour_codes(image: Image, bins: int) -> npt.NDArray[np.int64]:
    """Return the histogram cell of each pixel, int64 [H, W]."""
    codes = np.zeros(image.shape[:2], dtype=np.int64)
    for channel in range(image.shape[2]):
        codes = codes * bins + (image[..., channel].astype(np.int64) * bins >> 8)
    return codes


# --------------------------------------------------------------------------------------------
# Prototypes of a random frozen encoder

PROTOTYPE_VARIANTS = tuple(
    f"block {block}, {centring}, {rule}"
    for block in ENCODER_BLOCKS
    for centring in ("raw", "centred")
    for rule in ("foreground cosine", "foreground minus background cosine")
)


class RandomPrototypes:
    """Scores query tokens by cosine to the mean support token of fore- and background."""

    def __init__(self, seed: int, image_size: int, episodes: Episodes) -> None:
        torch.manual_seed(seed)
        self.encoder = timm.create_model(
            ENCODER, pretrained=False, img_size=image_size, dynamic_img_size=True
        ).eval()
        self.size = image_size
        queries = [episodes[index].query for index in range(GRID_EPISODES)]
        self.means = torch.zeros(())
        self.means = self.features(queries).mean(dim=(1, 3, 4), keepdim=True)[:, 0]

    @torch.inference_mode()
    def features(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Return tokens [blocks, N, C, h, w]."""
        images = torch.from_numpy(np.stack([sample.image for sample in samples]))
        pixels = (images.permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.225
        found = self.encoder.forward_intermediates(
            pixels, indices=list(ENCODER_BLOCKS), norm=True, intermediates_only=True
        )
        return torch.stack(list(found))

    @torch.inference_mode()
    def __call__(self, episode: Episode) -> Scores:
        """Return one map for each of `PROTOTYPE_VARIANTS`, at the image's size."""
        tokens = self.features([episode.query, *episode.supports])
        masks = torch.from_numpy(np.stack([s.mask for s in episode.supports]))
        cover = area_shares(masks, (tokens.shape[-2], tokens.shape[-1]))[:, None]
        maps = []
        for block, mean in zip(tokens, self.means, strict=True):
            for features in (block, block - mean):
                query = functional.normalize(features[:1], dim=1)
                fore, back = (
                    functional.cosine_similarity(
                        query, prototype(features[1:], weight)[None, :, None, None], dim=1
                    )
                    for weight in (cover, 1 - cover)
                )
                maps += [fore, fore - back]
        score = functional.interpolate(
            torch.stack(maps), (self.size, self.size), mode="bilinear", align_corners=False
        )
        return score[:, 0].numpy()


def prototype(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the mean [C] of tokens [K, C, h, w] weighted by [K, 1, h, w]."""
    return (features * weight).sum(dim=(0, 2, 3)) / weight.sum().clamp_min(1e-6)


# --------------------------------------------------------------------------------------------


def foreground_everywhere(episodes: Episodes) -> float:
    """Return the mIoU in percent of marking every pixel."""
    tally = Tally(episodes.classes, ())
    for index in range(len(episodes)):
        episode = episodes[index]
        truth = episode.query.mask
        tally.add(episode.class_id, np.ones_like(truth), truth)
    return float(tally.miou())


def images_per_second(image_size: int, episodes: int = 150) -> float:
    """Return how many images one process draws per second of its own time."""
    drawn = procedural.ProceduralEpisodes(0, "train", 1, 0, episodes, image_size)
    for class_id in drawn.classes:
        procedural.render_sample(class_id, (0,), image_size)
    start = time.process_time()
    for index in range(episodes):
        drawn[index]
    return 2 * episodes / (time.process_time() - start)


def rows(fold: int, count: int, size: int) -> Iterator[dict[str, Any]]:
    """Yield one row per method."""
    held_out = procedural.ProceduralEpisodes(fold, "val", 1, 0, count, size)
    base = procedural.ProceduralEpisodes(fold, "base_val", 1, TUNING_SEED, TUNING_EPISODES, size)
    yield {"method": "all foreground", "miou": foreground_everywhere(held_out)}
    scorers: list[tuple[str, tuple[str, ...], Scorer]] = [
        ("colour histograms", HISTOGRAM_VARIANTS, histogram_scores)
    ]
    for seed in ENCODER_SEEDS:
        scorer = RandomPrototypes(seed, size, base)
        scorers.append((f"random {ENCODER} prototypes, seed {seed}", PROTOTYPE_VARIANTS, scorer))
    for method, variants, scorer in scorers:
        choice = tune(scorer, base)
        yield {
            "method": method,
            "miou": evaluate(scorer, choice, held_out),
            "miou_base_when_tuned": choice.tuned_miou,
            "chosen": variants[choice.variant],
            "cut": choice.cut,
            "cut_is_quantile_of_image": choice.adaptive,
        }


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--fold", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=112, help="a multiple of 14")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    table = []
    print(f"{'method':<52} {'mIoU':>6} {'base':>6}  chosen on base classes")
    for row in rows(options.fold, options.episodes, options.image_size):
        tuned = row.get("miou_base_when_tuned", float("nan"))
        print(f"{row['method']:<52} {row['miou']:6.2f} {tuned:6.2f}  {row.get('chosen', '')}")
        table.append(row)
    highest = max(row["miou"] for row in table)
    speed = images_per_second(options.image_size)
    print(f"highest {highest:.2f}, limit {LIMIT}; {speed:.0f} images/s on one core")
    write_record(
        options.out,
        "python benchmarks/procedural_difficulty.py",
        **drawn_set(f"fold{options.fold}/val/0"),
        exact_data_fingerprint=procedural.exact_fingerprint(),
        protocol="1-shot, sum of intersections over sum of unions per class, mean, percent",
        episodes=options.episodes,
        image_size=options.image_size,
        tuned_on={"split": "base_val", "seed": TUNING_SEED, "episodes": TUNING_EPISODES},
        limit_miou=LIMIT,
        within_limit=bool(highest <= LIMIT),
        methods=table,
        images_per_second_one_core=round(speed, 1),
        drawn_by={"numpy": np.__version__, "pillow": PIL.__version__},
        timm=timm.__version__,
    )


if __name__ == "__main__":
    main()
