"""FS-DINO: the parts put together."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from huggingface_hub import HfApi
from torch import Tensor

from fsdino.errors import UsageError
from fsdino.models.adapter import Adapter
from fsdino.models.checkpoints import write_folder
from fsdino.models.config import ModelConfig
from fsdino.models.decoder import MaskDecoder
from fsdino.models.encoder import Encoder, Features
from fsdino.models.hypercorrelation import CorrelationPrior, masked_mean
from fsdino.models.prompts import DensePrompt, VisualPrompt, cosine_map, dense_maps
from fsdino.models.segmenter import Segmenter
from fsdino.models.supports import Shot, SupportFeatures, token_mask
from fsdino.models.training_free import correspondence_score, prototype_score


class FSDINO(Segmenter):
    """One frozen encoder and a lightweight segmenter (arXiv 2504.15669).

    Encoder tokens go to SAM's image embedding through the adapter; the supports become a sparse
    prompt (a prototype through a small MLP) and a dense one (prototype similarity and a 4D
    correlation prior); SAM's decoder turns both into a mask. The variant "training_free" has the
    encoder only.

    Args:
        config: what to build; weights are random unless `config.pretrained` or loaded later
            (`fsdino.load`, `fsdino.models.zoo`).
        encoder: share an existing encoder instead of creating one.
    """

    def __init__(self, config: ModelConfig, encoder: Encoder | None = None) -> None:
        super().__init__(config)
        self.encoder = encoder or Encoder(config)
        if config.image_size % self.patch_size and not config.keep_aspect:
            raise UsageError(
                f"image_size {config.image_size} is no multiple of {self.patch_size}, the patch "
                f"size of {config.encoder}: choose {config.image_size // self.patch_size} or "
                f"{config.image_size // self.patch_size + 1} times that"
            )
        self.train_encoder = False
        self.adapter: Adapter | None = None
        self.prior: CorrelationPrior | None = None
        self.visual_prompt: VisualPrompt | None = None
        if config.variant != "training_free":
            self._build_segmenter(config)
        self.set_trainable()

    def _build_segmenter(self, config: ModelConfig) -> None:
        channels, width = self.encoder.channels, config.width
        self.adapter = Adapter(channels, width, config.adapter_width, config.adapter_heads)
        if config.visual_prompt:
            self.visual_prompt = VisualPrompt(
                channels, width, config.prompt_hidden, config.prompt_tokens
            )
        if config.uses_correlation:
            self.prior = CorrelationPrior(
                len(self.encoder.correlation_layers),
                config.correlation_channels,
                config.correlation_stride,
                config.contrastive,
            )
        self.dense_prompt = DensePrompt(dense_maps(config), width, self.prior is not None)
        self.decoder = MaskDecoder(width, config.decoder_heads, config.decoder_mlp)

    def set_trainable(self, *, encoder: bool = False, adapter: bool = False) -> None:
        """Choose what learns. The encoder and, by default, the adapter are frozen.

        The decoder is frozen in "comp_frozen"; the prompts always learn.
        """
        self.requires_grad_(True)
        self.train_encoder = encoder
        self.encoder.requires_grad_(encoder)
        if self.adapter is not None:
            self.adapter.requires_grad_(adapter)
            self.decoder.requires_grad_(self.config.variant != "comp_frozen")
            self.decoder.freeze_unused()
        self.train(self.training)

    def train(self, mode: bool = True) -> FSDINO:
        """As in PyTorch; a frozen encoder stays in eval mode."""
        super().train(mode)
        self.encoder.train(mode and self.train_encoder)
        return self

    @property
    def patch_size(self) -> int:
        """Pixels per token side."""
        return self.encoder.patch_size

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors, which `fsdino.load` reads.

        Raises:
            FsdinoError: the folder cannot be written.
        """
        write_folder(self.config, self.state_dict(), folder)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload to the Hugging Face hub as "owner/name"; returns the address."""
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repository, folder_path=folder))

    def encode(self, images: Tensor) -> Features:
        """Encode images of one size: [B, 3, H, W] in [0, 1]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_encoder):
            return self.encoder(images)  # type: ignore[no-any-return]

    def encode_list(self, images: Sequence[Tensor]) -> list[Features]:
        """Encode images [3, H, W] of any sizes; see `Encoder.forward_list`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_encoder):
            return self.encoder.forward_list(images)

    def decode(self, query: Features, support: SupportFeatures) -> Tensor:
        """Logits of the queries' masks: [B, 1, 4h, 4w], or [B, 1, h, w] when training-free."""
        if self.adapter is None:
            score = (
                correspondence_score if self.config.matcher == "correspondence" else prototype_score
            )
            return (score(query, support) - self.config.match_bias) / self.config.match_temperature
        dtype = query.last.dtype
        maps = []
        if self.config.cosine_prompt:
            maps.append(cosine_map(query.last, support.foreground).to(dtype))
        if self.prior is not None:
            shots = [self.prior(query.correlation, s.correlation, s.mask) for s in support.shots]
            maps.append(torch.stack(shots).mean(0))
        image = self.adapter(query.shallow)
        sparse = image.new_empty(len(image), 0, self.config.width)
        if self.visual_prompt is not None:
            sparse = self.visual_prompt(support.foreground.to(dtype))
        return self.decoder(image, sparse, self.dense_prompt(torch.cat(maps, dim=1)))  # type: ignore[no-any-return]

    def forward(
        self, support_images: Tensor, support_masks: Tensor, query_images: Tensor
    ) -> Tensor:
        """Logits of the query masks at the queries' size, [B, 1, H, W].

        Args:
            support_images: [B, K, 3, H, W] RGB in [0, 1].
            support_masks: [B, K, H, W] in [0, 1].
            query_images: [B, 3, H, W].
        """
        query, support = self.encode_episodes(support_images, support_masks, query_images)
        logits = self.decode(query, support)
        return F.interpolate(logits, query_images.shape[-2:], mode="bilinear", align_corners=False)

    def encode_episodes(
        self, support_images: Tensor, support_masks: Tensor, query_images: Tensor
    ) -> tuple[Features, SupportFeatures]:
        """One encoder pass over the queries and supports of a batch of episodes."""
        batch, shots = support_images.shape[:2]
        supports = support_images.flatten(0, 1)
        if supports.shape[1:] == query_images.shape[1:]:
            features = self.encode(torch.cat([query_images, supports]))
            query, support = features[:batch], features[batch:]
        else:
            query, support = self.encode(query_images), self.encode(supports)
        return query, pool_supports(support, support_masks.flatten(0, 1), shots)


def pool_supports(features: Features, masks: Tensor, shots: int) -> SupportFeatures:
    """Encoded supports of B episodes, as `FSDINO.decode` takes them.

    Args:
        features: of B * K images, the K of an episode side by side.
        masks: [B * K, H, W] in [0, 1].
        shots: K.
    """
    grid = (features.last.shape[-2], features.last.shape[-1])
    covers = token_mask(masks, grid)
    by_shot = (-1, shots)
    correlation, cover = features.correlation.unflatten(0, by_shot), covers.unflatten(0, by_shot)
    return SupportFeatures(
        masked_mean(features.last, covers).unflatten(0, by_shot).mean(1),
        masked_mean(features.last, 1 - covers).unflatten(0, by_shot).mean(1),
        [Shot(correlation[:, k], cover[:, k]) for k in range(shots)],
    )
