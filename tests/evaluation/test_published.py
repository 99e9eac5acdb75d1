"""The evaluation of HSNet and PATNet, written once more without the package's own."""

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
import expected_patnet
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


def read_image(path: Path) -> Tensor:
    """As torchvision's Resize, then ToTensor: float32 [1, 3, SIDE, SIDE]."""
    with Image.open(path) as image:
        square = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float().div(255)


def read_labels(root: Path, stem: str) -> Tensor:
    with Image.open(root / "SegmentationClassAug" / f"{stem}.png") as image:
        return torch.from_numpy(np.array(image))[None, None].float()


def hard_mask(
    model: Segmenter, query: Path, support: Path, mask: Tensor, size: tuple[int, int]
) -> Tensor:
    """One shot, of a mask [1, SIDE, SIDE]: 0 or 1, by the argmax over both classes at a size."""
    encoded = model.encode(read_image(support))
    asked = model.encode(read_image(query))
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
        votes = torch.zeros(size)
        for support in supports:
            labels = F.interpolate(read_labels(root, support), (SIDE, SIDE), mode="nearest")
            images = [root / "JPEGImages" / f"{stem}.jpg" for stem in (query, support)]
            votes += hard_mask(model, *images, labels[0] == number, size)
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


# ---------------------------------------------------------------------------------- PATNet's sets


def mask_path(root: Path, dataset: str, name: str, class_id: int) -> Path:
    """The mask of an image, by its name below the set's folder."""
    stem = Path(name).stem
    return {
        "deepglobe": root / f"Deepglobe/{class_id + 1}/test/groundtruth/{stem}.png",
        "isic": root / f"ISIC/ISIC2018_Task1_Training_GroundTruth/{stem}_segmentation.png",
        "lung": root / f"LungSegmentation/masks/{stem}_mask.png",
    }[dataset]


def read_binary(path: Path) -> Tensor:
    """0 or 1 at the square: brightness from 128 on, then nearest; float32 [1, SIDE, SIDE]."""
    with Image.open(path) as image:
        gray = torch.from_numpy(np.array(image.convert("L")))
    binary = torch.where(gray < 128, 0, 1)[None, None].float()
    return F.interpolate(binary, (SIDE, SIDE), mode="nearest")[0]


@torch.inference_mode()
def patnet(
    model: Segmenter, root: Path, dataset: str, shots: int, count: int
) -> tuple[float, float]:
    """PATNet's mIoU and share of foreground over the first episodes."""
    classes = expected_patnet.CLASSES[dataset]
    sums, share = np.zeros((2, classes)), []
    for class_id, names in expected_patnet.episodes(root, dataset, shots, count):
        paths = [root / expected_patnet.FOLDERS[dataset] / name for name in names]
        masks = [read_binary(mask_path(root, dataset, name, class_id)) for name in names]
        votes = torch.zeros(SIDE, SIDE)
        for path, mask in zip(paths[1:], masks[1:], strict=True):
            votes += hard_mask(model, paths[0], path, mask, (SIDE, SIDE))
        found, truth = votes / max(float(votes.max()), 1) >= 0.5, masks[0][0] == 1
        sums[:, class_id] += int((found & truth).sum()), int((found | truth).sum())
        share.append(float(found.float().mean()))
    return 100 * float(np.mean(sums[0] / np.maximum(sums[1], 1))), float(np.mean(share))


@pytest.fixture(scope="module")
def cross_domain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small sets, images and masks of several sizes."""
    root = tmp_path_factory.mktemp("cross-domain")
    for dataset, write in expected_patnet.WRITERS.items():
        write(root)
        for class_id in range(expected_patnet.CLASSES[dataset]):
            for path in expected_patnet.paths(root, dataset, class_id + 1):
                name = expected_patnet.image(root, dataset, path)
                code = sum(map(ord, name))
                size = (90 + 7 * (code % 5), 60 + 11 * (code % 9))
                image = root / expected_patnet.FOLDERS[dataset] / name
                for file in (image, mask_path(root, dataset, name, class_id)):
                    with Image.open(file) as stored:
                        stored.resize(size, Image.Resampling.NEAREST).save(file)
    return root


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("dataset", expected_patnet.CLASSES)
def test_cross_domain_scores_are_those_of_patnet(
    cross_domain: Path, dataset: str, shots: int
) -> None:
    """In batches of any size; a class that is not drawn, as here of DeepGlobe, counts 0."""
    model = MODELS["hsnet"]()
    expected, share = patnet(model, cross_domain, dataset, shots, 4)
    assert 0.1 < share < 0.9 and expected > 1
    episodes = open_episodes(dataset, root=cross_domain, shots=shots, episodes=4)
    for batch_size in (1, 3):
        settings = Settings(SIDE, protocols.find("hsnet"), batch_size=batch_size)
        result = evaluate(ModelPredictor(model), episodes, settings)
        assert result.miou == pytest.approx(expected, abs=1e-4)
        assert len(result.per_class) == expected_patnet.CLASSES[dataset]
