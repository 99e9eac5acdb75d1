"""Named protocols: how episodes are drawn, how K shots become one mask, and where it is scored.

Numbers can only be compared within one protocol. Its name is composed of these choices:

* `hsnet` (K masks by vote, and pixels as HSNet's published code computes them), `joint` (one
  forward pass with K supports) or `joint-rounded` (the same on images that PIL has resized, as
  published programs with one pass have it);
* `-original`: scored at each image's own size rather than at the model's square;
* `-seeded`: other seeds or episode counts than the published draws.

PyTorch is imported by what computes, so that a wrong name is said before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from fsdino.data.names import CROSS_DOMAIN
from fsdino.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Fusion = Literal["joint", "vote"]
Sampling = Literal["hsnet", "seeded"]

_FAMILIES: dict[str, Fusion] = {"hsnet": "vote", "joint": "joint"}
_NO_ORIGINAL = ("fss1000", *CROSS_DOMAIN)


@dataclass(frozen=True)
class Protocol:
    """How an evaluation is done.

    The vote is part of HSNet's evaluation (Min, Kang, Cho, ICCV 2021; `data/dataset.py` and
    `model/hsnet.py` of its code), and so are the other rules that it comes with: see `rounded`,
    `aligned` and `decide`.

    Attributes:
        fusion: "joint", or "vote" over the K one-shot masks.
        original_size: score at the images' own sizes.
        sampling: "hsnet" for the published draws, "seeded" for any others.
        resized_by_pil: images are stretched by PIL in joint protocols, too.
    """

    fusion: Fusion = "joint"
    original_size: bool = False
    sampling: Sampling = "hsnet"
    resized_by_pil: bool = False

    @property
    def name(self) -> str:
        """Its name in results."""
        family = next(name for name, fusion in _FAMILIES.items() if fusion == self.fusion)
        family += "-rounded" if self.resized_by_pil and self.fusion == "joint" else ""
        original = "-original" if self.original_size else ""
        return family + original + ("-seeded" if self.sampling == "seeded" else "")

    @property
    def rounded(self) -> bool:
        """Whether images are stretched by PIL, which rounds to bytes, as HSNet's loader does."""
        return self.fusion == "vote" or self.resized_by_pil

    @property
    def pixels(self) -> str:
        """Its name in results: "rounded" or "float"."""
        return "rounded" if self.rounded else "float"

    @property
    def aligned(self) -> bool:
        """Whether the logits' corners are those of the image (`align_corners=True`)."""
        return self.original_size or self.fusion == "vote"

    def resize(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits [B, V, h, w] at the size where they are scored.

        Bilinear, and the only time that logits are resized: a model brings them to that size by its
        own rule unless this protocol has one, which is where corners are aligned.
        """
        from torch.nn.functional import interpolate

        from fsdino.resizing import resize_logits

        if tuple(logits.shape[-2:]) == size:
            return logits
        if not self.aligned:
            return resize_logits(logits, size)
        return interpolate(logits, size, mode="bilinear", align_corners=True)

    def decide(self, logits: Tensor, threshold: float) -> Tensor:
        """The mask of each forward pass, bool, from logits of any shape.

        Votes follow HSNet's argmax over [background, foreground], of which our logit is the
        difference: a logit exactly on the threshold is background. In joint masks it is foreground.

        Args:
            logits: of the foreground.
            threshold: probability, in (0, 1); 0.5 is the argmax.
        """
        import torch

        cut = torch.logit(torch.tensor(threshold)).item()
        return logits > cut if self.fusion == "vote" else logits >= cut

    def check(self, dataset: str) -> None:
        """Raise UsageError where a data set is never scored this way."""
        if self.original_size and dataset in _NO_ORIGINAL:
            family = replace(self, original_size=False).name
            raise UsageError(f"protocol {self.name} is not defined for {dataset}: use {family}")


PROTOCOLS = {
    protocol.name: protocol
    for sampling in ("hsnet", "seeded")
    for original in (False, True)
    for protocol in (
        Protocol("vote", original, sampling),
        Protocol("joint", original, sampling),
        Protocol("joint", original, sampling, resized_by_pil=True),
    )
}


# Protocol and side in pixels of published evaluations. PATNet: Lei et al., ECCV 2022; DCAMA: Shi et
# al., ECCV 2022; Matcher: Liu et al., ICLR 2024; GF-SAM: Zhang et al., NeurIPS 2024.
SYSTEMS: dict[str, tuple[str, int]] = {
    "hsnet": ("hsnet", 400),
    "patnet": ("hsnet", 400),
    "dcama": ("joint-rounded", 384),
    "matcher": ("joint-rounded", 518),
    "gf-sam": ("joint-rounded", 1024),
}


def find(name: str, *, fusion: Fusion | None = None, seeded: bool = False) -> Protocol:
    """The protocol of a name; another fusion and other seeds change the name accordingly.

    Raises:
        UsageError: no protocol has that name.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"unknown protocol {name!r}: choose from {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if fusion is not None:
        protocol = replace(protocol, fusion=fusion)
    return replace(protocol, sampling="seeded") if seeded else protocol


def fuse(votes: Tensor) -> Tensor:
    """One mask bool [B, H, W] from the masks bool [B, V, H, W] of the V forward passes.

    HSNet's vote: the masks are summed, divided by the highest sum in the image (at least 1), and
    thresholded at one half. A single pass keeps its mask.
    """
    import torch

    total = votes.sum(1)  # [B, H, W]
    highest = total.flatten(1).amax(1).clamp_min(1)[:, None, None]
    return torch.div(total, highest) >= 0.5
