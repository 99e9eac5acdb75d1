"""HSNet and its evaluation once more, in plain PyTorch: nothing of the package is imported.

    python tests/plain_hsnet.py best_model.pt VOC2012 SPLITS --fold 0 --shots 5

loads a checkpoint of HSNet's own code, on any of its backbones, draws the published episodes of one
fold of PASCAL-5i and prints mIoU and FB-IoU, as HSNet's `test.py` does; with --original at the
images' own sizes (`--use_original_imgsize`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor

from expected_hsnet import pascal

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
STRIDES = {"4": (2, 2, 2), "3": (4, 2, 2), "2": (4, 4, 2), "4to3": (1, 1, 1), "3to2": (1, 1, 1)}


class Network:
    """HSNet from its state dict: functions of tensors, no modules but the backbone."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        start = "backbone."
        own = {n.removeprefix(start): t for n, t in self.state.items() if n.startswith(start)}
        self.is_vgg = "features.0.weight" in own
        name = "resnet101" if "layer3.22.conv1.weight" in own else "resnet50"
        self.backbone: Any = torchvision.models.get_model("vgg16" if self.is_vgg else name)
        self.backbone.load_state_dict(own)
        self.backbone.eval()

    def features(self, images: Tensor) -> list[list[Tensor]]:
        """Levels 4, 3, 2, each a list of maps [B, C, h, w]."""
        seen: list[Tensor] = []
        if self.is_vgg:
            numbers = (17, 19, 21, 24, 26, 28, 30)
            hooks = [
                self.backbone.features[n].register_forward_hook(
                    lambda _, __, found: seen.append(found.clone())
                )
                for n in numbers
            ]
            self.backbone.features(images)
            counts = (3, 3, 1)
        else:
            # What a bottleneck adds to its branch, and the branch before both are added.
            blocks = [b for n in (2, 3, 4) for b in getattr(self.backbone, f"layer{n}")]
            counts = tuple(len(getattr(self.backbone, f"layer{n}")) for n in (2, 3, 4))
            skipped: list[Tensor] = []
            hooks = []
            for block in blocks:
                hooks.append(
                    block.register_forward_pre_hook(
                        lambda block, given: skipped.append(
                            (block.downsample or torch.nn.Identity())(given[0]).clone()
                        )
                    )
                )
                hooks.append(
                    block.bn3.register_forward_hook(
                        lambda _, __, found: seen.append(found + skipped[-1])
                    )
                )
            self.backbone(images)
        for hook in hooks:
            hook.remove()
        split = [*torch.arange(len(seen)).split(list(counts))]
        return [[seen[i] for i in level] for level in reversed(split)]

    def block(self, name: str, x: Tensor) -> Tensor:
        """Three times: center-pivot 4D convolution, GroupNorm(4), ReLU."""
        for index, stride in enumerate(STRIDES[name]):
            prefix = f"hpn_learner.encoder_layer{name}.{3 * index}"
            norm = f"hpn_learner.encoder_layer{name}.{3 * index + 1}"
            weights = [
                self.state[f"{prefix}.{part}"]
                for part in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias")
            ]
            x = F.group_norm(
                self.convolve(x, *weights, stride),
                4, self.state[f"{norm}.weight"], self.state[f"{norm}.bias"],
            ).relu()  # fmt: skip
        return x

    def convolve(
        self, x: Tensor, over_query: Tensor, bias_query: Tensor, over_support: Tensor,
        bias_support: Tensor, stride: int,
    ) -> Tensor:  # fmt: skip
        b, c, hq, wq, hs, ws = x.shape
        half = over_query.shape[-1] // 2
        kept = x[..., ::stride, ::stride]
        h, w = kept.shape[-2:]
        maps = kept.permute(0, 4, 5, 1, 2, 3).reshape(b * h * w, c, hq, wq)
        first = F.conv2d(maps, over_query, bias_query, padding=half).view(b, h, w, -1, hq, wq)
        maps = x.permute(0, 2, 3, 1, 4, 5).reshape(b * hq * wq, c, hs, ws)
        second = F.conv2d(maps, over_support, bias_support, stride, half)
        second = second.view(b, hq, wq, -1, h, w)
        return first.permute(0, 3, 4, 5, 1, 2) + second.permute(0, 3, 1, 2, 4, 5)

    def __call__(self, query: Tensor, support: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
        """Logits [B, 2, *size] of background and foreground; mask is [B, H, W]."""
        mixed: Any = None
        asked, shown = self.features(query), self.features(support)
        for name, q_level, s_level in zip(("4", "3", "2"), asked, shown, strict=True):
            small = F.interpolate(
                mask[:, None], s_level[0].shape[2:], mode="bilinear", align_corners=True
            )
            volumes = []
            for q, s in zip(q_level, s_level, strict=True):
                s = s * small
                a = q.flatten(2) / (q.flatten(2).norm(dim=1, keepdim=True) + 1e-5)
                b = s.flatten(2) / (s.flatten(2).norm(dim=1, keepdim=True) + 1e-5)
                both = torch.einsum("bcn,bcm->bnm", a, b).clamp(min=0)
                volumes.append(both.view(len(q), *q.shape[2:], *s.shape[2:]))
            squeezed = self.block(name, torch.stack(volumes, 1))
            if mixed is not None:
                b, c, _, _, hs, ws = mixed.shape
                maps = mixed.permute(0, 4, 5, 1, 2, 3).flatten(0, 2)
                wanted = squeezed.shape[2:4]
                maps = F.interpolate(maps, wanted, mode="bilinear", align_corners=True)
                mixed = maps.view(b, hs, ws, c, *wanted).permute(0, 3, 4, 5, 1, 2)
                squeezed = self.block("4to3" if name == "3" else "3to2", squeezed + mixed)
            mixed = squeezed
        x = mixed.flatten(4).mean(-1)
        for part in ("decoder1.0", "decoder1.2", "decoder2.0", "decoder2.2"):
            if part == "decoder2.0":
                wide = (2 * x.shape[2], 2 * x.shape[3])
                x = F.interpolate(x, wide, mode="bilinear", align_corners=True)
            weight, bias = (self.state[f"hpn_learner.{part}.{end}"] for end in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, padding=1)
            x = x if part == "decoder2.2" else x.relu()
        return F.interpolate(x, list(size), mode="bilinear", align_corners=True)


@dataclass
class Counts:
    """Sums over a class's episodes: [background, foreground], and pixels that rounding decides."""

    intersection: np.ndarray
    union: np.ndarray
    undecided: int


def image_of(root: Path, stem: str, side: int) -> Tensor:
    with Image.open(root / "JPEGImages" / f"{stem}.jpg") as image:
        square = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
    return ((pixels - MEAN[:, None, None]) / STD[:, None, None])[None]


def labels_of(root: Path, stem: str) -> Tensor:
    with Image.open(root / "SegmentationClassAug" / f"{stem}.png") as image:
        return torch.from_numpy(np.array(image))[None, None].float()


@torch.no_grad()
def evaluate(
    network: Network, root: Path, asked: Sequence[tuple[int, Sequence[str]]], side: int,
    original: bool,
) -> dict[int, Counts]:  # fmt: skip
    """Counts by class number, of episodes (class, [query, *supports])."""
    found: dict[int, Counts] = {}
    for number, (query, *supports) in asked:
        truth = labels_of(root, query)
        if not original:
            truth = F.interpolate(truth, (side, side), mode="nearest")
        size, agreed, margin = truth.shape[2:], torch.zeros(truth.shape[2:]), []
        for support in supports:
            labels = F.interpolate(labels_of(root, support), (side, side), mode="nearest")
            mask = (labels[:, 0] == number).float()
            images = image_of(root, query, side), image_of(root, support, side)
            logits = network(*images, mask, size)[0]
            agreed += logits.argmax(0)
            margin.append((logits[1] - logits[0]).abs())
        predicted = (agreed / max(float(agreed.max()), 1) >= 0.5).numpy()
        close = torch.stack(margin).amin(0).numpy() < 1e-4
        labels = truth[0, 0].numpy()
        scored, object_ = labels != 255, labels == number
        counts = found.setdefault(number, Counts(np.zeros(2, int), np.zeros(2, int), 0))
        for value in (0, 1):
            p, t = (predicted == value) & scored, (object_ == value) & scored
            counts.intersection[value] += (p & t).sum()
            counts.union[value] += (p | t).sum()
        counts.undecided += int((close & scored).sum())
    return found


def miou(counts: dict[int, Counts], classes: Sequence[int]) -> float:
    """Mean IoU of the foreground over the fold's classes in percent; one not drawn counts 0."""
    found = [counts[c] for c in classes if c in counts]
    return 100 * sum(c.intersection[1] / max(c.union[1], 1) for c in found) / len(classes)


def fb_iou(counts: dict[int, Counts]) -> float:
    """Mean of background's and foreground's IoU over all pixels, in percent."""
    inter, union = (
        sum(getattr(c, part) for c in counts.values()) for part in ("intersection", "union")
    )
    return float(100 * (inter / union).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("checkpoint", "root", "splits"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--size", type=int, default=400)
    parser.add_argument("--original", action="store_true")
    options = parser.parse_args()
    network = Network(torch.load(options.checkpoint, weights_only=True, map_location="cpu"))
    asked = pascal(options.splits, options.fold, options.shots, options.episodes)
    counts = evaluate(network, options.root, asked, options.size, options.original)
    classes = [5 * options.fold + 1 + k for k in range(5)]
    print(f"mIoU {miou(counts, classes):.4f}  FB-IoU {fb_iou(counts):.4f}")


if __name__ == "__main__":
    main()
