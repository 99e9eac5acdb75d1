"""HSNet's evaluation, written once more without the package's own: the same masks by protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import expected_hsnet
from data_sets import write_voc
from fsdino.data.catalog import open_episodes
from fsdino.evaluation import protocols
from fsdino.evaluation.evaluate import Settings, evaluate, predict_masks
from fsdino.evaluation.predictors import ModelPredictor
from fsdino.evaluation.questions import load
from fsdino.models import zoo
from fsdino.models.segmenter import Segmenter
from tiny_models import SIDE, randomise, tiny_config, tiny_model

FOLD, EPISODES = 1, 6
Mask = npt.NDArray[np.bool_]


def hsnet_head() -> Segmenter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = zoo.assemble(tiny_config(variant="hsnet_head"))
    randomise(model, 1)
    with torch.no_grad():
        model.after[-1].bias += 0.077  # about half of the pixels become foreground
    return model.eval()


MODELS: dict[str, Callable[[], Segmenter]] = {
    "full": lambda: tiny_model(7),
    "hsnet": hsnet_head,
    "correspondence": lambda: zoo.training_free(tiny_model(), "correspondence"),
    "prototype": lambda: zoo.training_free(tiny_model(), "prototype"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """VOC2012 with noise of several sizes for images, so that every step's rounding shows."""
    folder = tmp_path_factory.mktemp("published")
    root, splits = folder / "VOC2012", folder / "splits"
    write_voc(root, splits)
    for number, path in enumerate(sorted((root / "JPEGImages").glob("*.jpg"))):
        rng = np.random.default_rng(number)
        height, width = 50 + 7 * (number % 9), 120 - 11 * (number % 7)
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST).save(path)
        labels = root / "SegmentationClassAug" / f"{path.stem}.png"
        with Image.open(labels) as mask:
            mask.resize((width, height), Image.Resampling.NEAREST).save(labels)
    return root, splits


# The evaluator: PIL, the model's public parts and PyTorch; nothing of fsdino.data or .evaluation.


def read_image(root: Path, stem: str) -> Tensor:
    """As torchvision's Resize, then ToTensor: float32 [1, 3, SIDE, SIDE]."""
    with Image.open(root / "JPEGImages" / f"{stem}.jpg") as image:
        square = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float().div(255)


def read_labels(root: Path, stem: str) -> Tensor:
    with Image.open(root / "SegmentationClassAug" / f"{stem}.png") as image:
        return torch.from_numpy(np.array(image))[None, None].float()


def hard_mask(
    model: Segmenter, root: Path, query: str, support: str, number: int, size: tuple[int, int]
) -> Tensor:
    """One shot: 0 or 1, by the argmax over [background, foreground] at a size."""
    mask = (F.interpolate(read_labels(root, support), (SIDE, SIDE), mode="nearest") == number)[0]
    encoded = model.encode(read_image(root, support))
    asked = model.encode(read_image(root, query))
    logit = model.answer(asked, [model.pool(encoded, mask.float(), 1)]).logits
    two = torch.cat([torch.zeros_like(logit), logit], dim=1)
    two = F.interpolate(two, size, mode="bilinear", align_corners=True)
    return two.argmax(dim=1)[0]


@torch.inference_mode()
def published(
    model: Segmenter,
    tree: tuple[Path, Path],
    asked: Sequence[tuple[int, Sequence[str]]],
    original: bool,
) -> list[tuple[Mask, Mask, Mask]]:
    """Prediction, truth and ignored pixels of each episode, by HSNet's rules.

    Asked for are classes, each with the names of a query and its supports.
    """
    root, found = tree[0], []
    for number, (query, *supports) in asked:
        truth = read_labels(root, query)
        if not original:
            truth = F.interpolate(truth, (SIDE, SIDE), mode="nearest")
        size = (truth.shape[2], truth.shape[3])
        votes = sum(hard_mask(model, root, query, s, number, size).float() for s in supports)
        mask = votes / max(float(votes.max()), 1) >= 0.5
        truth = truth[0, 0]
        found.append((mask.numpy(), (truth == number).numpy(), (truth == 255).numpy()))
    return found


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("protocol", ["hsnet", "hsnet-original"])
@pytest.mark.parametrize("name", MODELS)
def test_masks_are_those_of_the_published_evaluation(
    tree: tuple[Path, Path], name: str, protocol: str, shots: int
) -> None:
    """Pixel by pixel in every episode, and so are the counts that mIoU is made of."""
    model = MODELS[name]()
    asked = expected_hsnet.pascal(tree[1], FOLD, shots, EPISODES)
    expected = published(model, tree, asked, protocol.endswith("original"))
    assert 0.1 < np.mean([mask.mean() for mask, _, _ in expected]) < 0.9
    episodes = open_episodes("pascal5i", fold=FOLD, shots=shots, root=tree[0], splits=tree[1])
    settings = Settings(SIDE, protocols.find(protocol), batch_size=1)
    groups = [[index] for index in range(EPISODES)]
    batches = load(episodes, groups, size=SIDE, protocol=settings.protocol)
    for questions, (mask, truth, ignore) in zip(batches, expected, strict=True):
        [found] = predict_masks(ModelPredictor(model), questions, settings)
        assert np.array_equal(found.numpy(), mask)
        assert np.array_equal(questions.truths[0].numpy() & ~ignore, truth)
        assert np.array_equal(questions.ignores[0].numpy(), ignore)


def test_rows_count_the_published_masks(tree: tuple[Path, Path]) -> None:
    """What the evaluation keeps of each episode; batches and ignored pixels included."""
    model, protocol = MODELS["prototype"](), protocols.find("hsnet-original", seeded=True)
    episodes = open_episodes(
        "pascal5i", fold=FOLD, root=tree[0], splits=tree[1], episodes=EPISODES, sampling="seeded"
    )
    asked = [(episodes.key(i).class_id, episodes.key(i).names) for i in range(EPISODES)]
    expected = published(model, tree, [(n, [Path(p).stem for p in ps]) for n, ps in asked], True)
    rows = evaluate(ModelPredictor(model), episodes, Settings(SIDE, protocol)).rows
    for row, (mask, truth, ignore) in zip(rows, expected, strict=True):
        assert row.intersection[1] == np.count_nonzero(mask & truth & ~ignore)
        assert row.union[1] == np.count_nonzero((mask | truth) & ~ignore)
