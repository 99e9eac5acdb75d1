"""HSNet's numbers by its own harness, which shares no code with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import expected_hsnet
import fsdino
import plain_hsnet
from fsdino.data.catalog import open_episodes
from fsdino.evaluation import protocols
from fsdino.evaluation.evaluate import Settings, evaluate
from fsdino.evaluation.predictors import ModelPredictor
from fsdino.models import hsnet_files
from published_hsnet import answers, drawn, hsnet, keys, published

FOLD, SIDE = 1, 96
EPISODES = {1: 30, 5: 12}  # by shots: 60 and 72 images are read
CLASSES = range(6, 11)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """VOC2012 with 60 photographs a fold, of several sizes: shapes of their class on noise."""
    folder = tmp_path_factory.mktemp("hsnet")
    root, splits = folder / "VOC2012", folder / "splits"
    for part in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    names: dict[str, list[str]] = {"trn": [], "val": []}
    rng = np.random.default_rng(0)
    for part, year in (("trn", 2008), ("val", 2007)):
        for fold in range(4):
            lines = []
            for number in range(12 if part == "trn" else 60):
                stem, own = f"{year}_{100 * fold + number:06d}", 5 * fold + 1 + number % 5
                height, width = 60 + 9 * (number % 8), 150 - 12 * (number % 7)
                image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
                labels = np.zeros((height, width), np.uint8)
                rows, columns = np.ogrid[:height, :width]
                middle = rng.uniform(0.3, 0.7, 2) * (height, width)
                inside = np.hypot(rows - middle[0], columns - middle[1]) < height / (2 + own % 5)
                image[inside] = image[inside] // 4 + 12 * own
                labels[inside] = own
                labels[:2] = 255
                Image.fromarray(image).save(root / "JPEGImages" / f"{stem}.jpg")
                Image.fromarray(labels).save(root / "SegmentationClassAug" / f"{stem}.png")
                lines.append(f"{stem}__{own:02d}")
                names[part].append(stem)
            file = splits / "pascal" / part / f"fold{fold}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(lines) + "\n")
    for name, part in (("train", "trn"), ("val", "val")):
        file = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        file.write_text("".join(f"{stem}\n" for stem in names[part]))
    return root, splits


@pytest.mark.parametrize("backbone", ["resnet50", "vgg16"])
def test_the_harness_has_hsnets_network(backbone: str) -> None:
    """It answers what HSNet's own code answers. The classifier, which never runs, is left at 0."""
    shapes = hsnet(backbone).state_dict()
    network = plain_hsnet.Network({
        name: torch.zeros(shape) if "classifier" in name else drawn(name, shape)
        for name in keys(backbone)
        for shape in [tuple(shapes[hsnet_files.own_name(name)].shape)]
    })  # fmt: skip
    query, supports, masks, logits = answers("query", "supports", "masks", f"{backbone}_logits")
    with torch.no_grad():
        found = network(query, supports[:, 0], masks[:, 0], query.shape[2:])
    assert (found - logits).norm() / logits.norm() < 3e-6


@pytest.fixture(scope="module")
def checkpoint(tree: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn weights on ResNet-50, the last bias moved until half of the pixels are object."""
    path = tmp_path_factory.mktemp("weights") / "best_model.pt"
    published("resnet50").save_hsnet(path)
    state = torch.load(path, weights_only=True)
    network, found = plain_hsnet.Network(state), []
    for number, (query, support) in expected_hsnet.pascal(tree[1], FOLD, 1, 8):
        labels = plain_hsnet.labels_of(tree[0], support)
        mask = (torch.nn.functional.interpolate(labels, (SIDE, SIDE))[:, 0] == number).float()
        images = (plain_hsnet.image_of(tree[0], name, SIDE) for name in (query, support))
        with torch.no_grad():
            logits = network(*images, mask, (SIDE, SIDE))[0]
        found.append(logits[1] - logits[0])
    state["module.hpn_learner.decoder2.2.bias"][1] -= torch.stack(found).median()
    torch.save(state, path)
    return path


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("protocol", ["hsnet", "hsnet-original"])
def test_numbers_are_those_of_its_own_harness(
    tree: tuple[Path, Path], checkpoint: Path, protocol: str, shots: int
) -> None:
    """Sums by class are equal but for pixels that rounding decides, and mIoU agrees to 0.01."""
    root, splits = tree
    asked = expected_hsnet.pascal(splits, FOLD, shots, EPISODES[shots])
    network = plain_hsnet.Network(torch.load(checkpoint, weights_only=True))
    original = protocol == "hsnet-original"
    expected = plain_hsnet.evaluate(network, root, asked, SIDE, original)
    foreground = sum(c.union[1] for c in expected.values()) / sum(
        c.union[1] + c.intersection[0] for c in expected.values()
    )
    assert 0.1 < foreground < 0.9

    episodes = open_episodes(
        "pascal5i", fold=FOLD, shots=shots, root=root, splits=splits, episodes=EPISODES[shots]
    )
    model = fsdino.load(checkpoint)
    settings = Settings(SIDE, protocols.find(protocol))
    rows = evaluate(ModelPredictor(model), episodes, settings).rows
    by_class: dict[int, list[np.ndarray]] = {}
    for row in rows:
        sums = by_class.setdefault(row.class_id, [np.zeros(2, int), np.zeros(2, int)])
        sums[0] += np.array(row.intersection[:2])
        sums[1] += np.array(row.union[:2])
    assert by_class.keys() == expected.keys()
    for number, (intersection, union) in by_class.items():
        counts = expected[number]
        for found, wanted in ((intersection, counts.intersection), (union, counts.union)):
            assert np.abs(found - wanted).max() <= counts.undecided
    ratios = [by_class[n][0][1] / by_class[n][1][1] if n in by_class else 0 for n in CLASSES]
    assert 100 * np.mean(ratios) == pytest.approx(plain_hsnet.miou(expected, CLASSES), abs=0.01)
