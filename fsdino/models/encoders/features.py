"""Features, and what every encoder of them has in common."""

from __future__ import annotations

import difflib
import logging
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
import torch.nn.functional as F
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, model_entrypoint
from torch import Tensor, nn

from fsdino.errors import DataError, UsageError, first_line
from fsdino.models import hub
from fsdino.models.config import EncoderWeights, ModelConfig
from fsdino.models.identity import Identified

logger = logging.getLogger("fsdino.models")

T = TypeVar("T")

GUIDE = 4  # pixels of `Features.guide` along the side of a token


@dataclass(frozen=True)
class Features:
    """Tokens of one batch of images; h x w is the token grid.

    Attributes:
        shallow: [B, C, h, w] raw output of the adapter's block.
        last: [B, C, h, w] last block after the final norm.
        correlation: the correlation layers after the final norm, one [B, L_i, C_i, h_i, w_i] for
            each level, from fine to coarse; most encoders have one level, on the token grid. From a
            ViT as `stack_layers` leaves them.
        guide: [B, 3, 4h, 4w] the images themselves in [0, 1], by area means; masks of token scores
            follow its edges.
    """

    shallow: Tensor
    last: Tensor
    correlation: tuple[Tensor, ...]
    guide: Tensor

    def __getitem__(self, index: slice | Tensor) -> Features:
        """The features of some of the images."""
        return self._map(lambda tokens: tokens[index])

    @classmethod
    def cat(cls, parts: Iterable[Features]) -> Features:
        """The images of all parts, in their order; in memory as those of the first part."""
        columns = zip(*(part.tensors() for part in parts), strict=True)
        return cls.of([_cat(column) for column in columns])

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Features:
        """The inverse of `tensors`."""
        shallow, last, *correlation, guide = tensors
        return cls(shallow, last, tuple(correlation), guide)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens, (h, w)."""
        return self.last.shape[-2], self.last.shape[-1]

    def check(self, what: str) -> None:
        """Refuse tokens that are not finite.

        Args:
            what: the image or images, for the message.

        Raises:
            DataError: some are NaN or infinite.
        """
        if not all(tokens.isfinite().all() for tokens in self.tensors()):
            raise DataError(
                f"{what}: the encoder's output is not finite in {self.last.dtype}: use float32 or "
                "bfloat16, or a model with other weights, mean and std"
            )

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order of the fields."""
        return self.shallow, self.last, *self.correlation, self.guide

    def to(self, target: torch.dtype | torch.device) -> Features:
        """The same in another type or place."""
        return self._map(lambda tokens: tokens.to(target))

    def contiguous(self) -> Features:
        """The same with each tensor in the memory order of its dims, as files have them."""
        return self._map(Tensor.contiguous)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Features:
        return Features.of([*map(change, self.tensors())])


def middle(levels: Sequence[T]) -> T:
    """Of entries for the levels of `Features.correlation`, that of the one on the token grid."""
    return levels[len(levels) // 2]


def stack_layers(layers: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """Tokens [B, h*w, C] of L layers -> [B, L, C, h, w], as the kernels read them without a copy.

    On the CPU those read maps, on GPUs vectors.
    """
    if layers[0].device.type == "cpu":
        maps = torch.stack([tokens.transpose(1, 2) for tokens in layers], dim=1)
    else:
        maps = torch.stack(list(layers), dim=1).transpose(2, 3)
    return maps.unflatten(3, grid)  # type: ignore[no-any-return]


def _cat(parts: Sequence[Tensor]) -> Tensor:
    """Parts [B, ...] as one, in the memory order of the first."""
    strides = parts[0].stride()
    order = sorted(range(1, parts[0].ndim), key=lambda dim: -strides[dim])
    joined = torch.cat([part.permute(0, *order) for part in parts])
    return joined.permute(0, *(1 + order.index(dim) for dim in range(1, parts[0].ndim)))


class Encoder(Identified):
    """A network that returns tokens of the blocks that a segmenter reads, in one pass.

    Attributes:
        channels: C, of all tokens.
        depth: blocks, which count from 1.
        patch_size: side of a token in pixels.
        shallow_layer: block of `Features.shallow`.
        correlation_layers: blocks of `Features.correlation`, in its order.
        layer_widths: channels of each of these before zeros fill them up to C.
        read_layers: all blocks that are read, ascending.
        mean, std: [3, 1, 1], of the images that the network was trained on.
    """

    channels: int
    depth: int
    patch_size: int
    shallow_layer: int
    correlation_layers: tuple[int, ...]
    layer_widths: tuple[int, ...]
    read_layers: list[int]
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._installed: tuple[EncoderWeights, str] | None = None

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """timm's module."""

    def note_installed(self, weights: EncoderWeights) -> None:
        """Remember that the present weights are those of an installed package."""
        if not any(tensor.is_meta for tensor in self.parameters()):
            self._installed = weights, self.identity()

    def is_installed(self, weights: EncoderWeights | None) -> bool:
        """Whether the weights came from that file of a package and are still the same."""
        if weights is None or self._installed is None:
            return False
        return self._installed == (weights, self.identity())

    def train(self, mode: bool = True) -> Encoder:
        """As in PyTorch; the weights are named again, see `Identified`."""
        if mode != self.training:
            self.forget_identity()
        super().train(mode)
        return self

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """Encode images of one size: [B, 3, H, W] RGB in [0, 1]."""

    @abstractmethod
    def shallow(self, images: Tensor) -> Tensor:
        """`Features.shallow` alone, [B, C, h, w]; the blocks after the adapter's do not run.

        Args:
            images: as in `forward`.
        """

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens along both sides of an image of that many pixels."""

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Layers and channels, (L_i, C_i), of each level of `Features.correlation`."""
        return ((len(self.correlation_layers), self.channels),)

    def level_grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Tokens along both sides of an image of that many pixels, in each level."""
        return (self.grid(height, width),)

    def forward_list(self, images: Sequence[Tensor]) -> list[Features]:
        """Encode images [3, H, W] of different sizes, each with B = 1 in the result."""
        if len({image.shape for image in images}) == 1:
            batch = self(torch.stack(list(images)))
            return [batch[i : i + 1] for i in range(len(images))]
        return [self(image[None]) for image in images]

    def _choose_layers(self, config: ModelConfig) -> None:
        """Set the blocks that are read, by `depth` and the configuration.

        Raises:
            UsageError: there is no such block.
        """
        self.shallow_layer = config.adapter_layer
        self.correlation_layers = config.correlation_layers or tuple(
            range(self.depth - self.depth // 2 + 1, self.depth + 1)
        )
        for layer in (self.shallow_layer, *self.correlation_layers):
            if not 1 <= layer <= self.depth:
                raise UsageError(
                    f"adapter_layer or correlation_layers: {config.encoder} has blocks 1 to "
                    f"{self.depth}, got {layer}"
                )

    def _set_normalisation(self, config: ModelConfig, own: Mapping[str, Any]) -> None:
        """Set `mean` and `std`: the configuration's, or the network's own."""
        for name, value in (("mean", config.mean), ("std", config.std)):
            values = torch.tensor(value or own[name], dtype=torch.float32)
            self.register_buffer(name, values[:, None, None], persistent=False)

    def _guide(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """`Features.guide` of images [B, 3, H, W] with that grid, in the type of the tokens."""
        small = F.adaptive_avg_pool2d(images, (GUIDE * grid[0], GUIDE * grid[1]))
        return small.to(next(self.parameters()).dtype)

    def _normalise(self, images: Tensor) -> Tensor:
        return ((images - self.mean) / self.std).to(next(self.parameters()).dtype)


def create_timm(config: ModelConfig, **further: Any) -> Any:
    """The network that a configuration names, without a classifier.

    Args:
        config: `encoder`, `encoder_args` and `pretrained` are read.
        further: arguments for `timm.create_model` beside `encoder_args`.

    Raises:
        UsageError: timm cannot create it; its weights are not here and cannot be downloaded.
    """
    if config.pretrained:  # timm by itself would retry for most of a minute, and say so
        further["pretrained_cfg_overlay"] = {"file": str(_fetch_weights(config.encoder))}
    try:
        network: Any = timm.create_model(
            config.encoder,
            pretrained=config.pretrained,
            num_classes=0,
            **config.encoder_args,
            **further,
        )
    except UsageError:
        raise
    except Exception as error:  # timm and its layers check arguments in many ways
        reason = f"({type(error).__name__}: {first_line(error)})"
        raise UsageError(
            f"timm cannot create encoder {config.encoder!r} with encoder_args "
            f"{dict(config.encoder_args)} {reason}: change them"
        ) from error
    if config.pretrained:
        licence = network.pretrained_cfg.get("license")
        logger.info("encoder %s: weights of %s", config.encoder, licence)
    return network


def _fetch_weights(encoder: str) -> Path:
    """The weights that timm names for a network, from the hub or its local cache.

    Raises:
        UsageError: they are not here and cannot be downloaded.
    """
    named = get_pretrained_cfg(encoder)
    if named is None or not named.hf_hub_id:
        raise UsageError(
            f"encoder {encoder!r}: timm names no weights of it on the Hugging Face hub: set "
            "pretrained to false and load a file"
        )
    file = hub.HubFile(named.hf_hub_id, named.hf_hub_filename or hub.WEIGHTS_FILE)
    try:
        return hub.fetch(file)
    except hub.UnavailableError as error:
        raise UsageError(
            f"encoder {encoder!r}: its weights cannot be downloaded ({error}): get {file.name} "
            f"from {file.address} in another way, set pretrained to false and load the file with "
            "zoo.load_dinov2 or --encoder-weights"
        ) from error


def timm_module(name: str) -> Mapping[str, Any]:
    """What the file of timm that builds a network defines and imports, by name."""
    module = sys.modules[model_entrypoint(name.partition(".")[0]).__module__]
    return vars(module)


def check_name(name: str) -> None:
    """Check that timm has a model of that name, and of that tag if one is given.

    timm itself would take a name with a scheme as an address to download from, or as a folder.

    Raises:
        UsageError: it has none.
    """
    try:
        if timm.is_model(name):
            get_pretrained_cfg(name)  # raises for a tag that is not registered
            return
    except RuntimeError as error:
        raise UsageError(
            f"unknown encoder {name!r}: {first_line(error)} choose "
            f"{', '.join(sorted(get_arch_pretrained_cfgs(name))) or 'a name without a tag'}"
        ) from error
    near = difflib.get_close_matches(name[:64], timm.list_models(), n=3)
    raise UsageError(
        f"unknown encoder {name!r}: timm has no such model; "
        + (f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them")
    )
