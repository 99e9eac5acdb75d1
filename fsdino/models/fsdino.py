"""FS-DINO: the parts put together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fsdino.errors import UsageError
from fsdino.models.adapter import Adapter
from fsdino.models.config import ModelConfig
from fsdino.models.decoder import MaskDecoder
from fsdino.models.encoders import Encoder, Features
from fsdino.models.hypercorrelation import CorrelationPrior
from fsdino.models.prompts import DensePrompt, VisualPrompt, cosine_map, dense_maps
from fsdino.models.refinement import refine
from fsdino.models.segmenter import Segmenter
from fsdino.models.shots import Shot, SupportFeatures, TokenFit
from fsdino.models.training_free import TrainingFree, prototype_score

_LIMIT = 3.0  # of the training-free score as a dense map
_GATE = 0.01  # of the decoder beside that score, before training


class FSDINO(Segmenter):
    """FS-DINO: one frozen encoder and a lightweight segmenter (arXiv 2504.15669).

    Encoder tokens go to SAM's image embedding through the adapter; the supports become a sparse
    prompt (a prototype through a small MLP) and a dense one (prototype similarity and a 4D
    correlation prior); SAM's decoder turns both into a mask. The variant "training_free" has the
    encoder only.

    Args:
        config: what to build; weights are random unless `config.pretrained` or loaded later
            (`fsdino.load`, `fsdino.models.zoo`).
        encoder: reads the images; models may share one.

    Example:
        >>> import torch, fsdino
        >>> from fsdino.models import zoo
        >>> config = fsdino.ModelConfig(encoder="tf_efficientnet_lite0", image_size=64)
        >>> model = zoo.assemble(config)  # with random weights
        >>> images, masks = torch.rand(1, 2, 3, 64, 64), torch.ones(1, 2, 64, 64)
        >>> isinstance(model, fsdino.FSDINO), model(images, masks, images[:, 0]).shape
        (True, torch.Size([1, 1, 64, 64]))
    """

    def __init__(self, config: ModelConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        if config.variant in ("hsnet", "hsnet_head"):
            raise UsageError(f"variant {config.variant!r} is not an FSDINO: use zoo.assemble")
        self.adapter: Adapter | None = None
        self.prior: CorrelationPrior | None = None
        self.visual_prompt: VisualPrompt | None = None
        free = config.variant == "training_free"
        self.score: TrainingFree | None = None
        if config.score_prompt or (free and config.matcher == "correspondence"):
            self.score = TrainingFree(self.encoder.layer_widths)
        if not free:
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
                self.encoder.layer_widths,
            )
        self.dense_prompt = DensePrompt(dense_maps(config), width, self.prior is not None)
        self.decoder = MaskDecoder(width, config.decoder_heads, config.decoder_mlp)
        if config.score_prompt:  # the model begins as the training-free one
            self.gate = nn.Parameter(torch.tensor(_GATE))

    def set_trainable(
        self, *, encoder: bool = False, adapter: bool = False, decoder: bool = True
    ) -> None:
        """Choose what learns. The encoder and, by default, the adapter are frozen.

        The decoder always is in "comp_frozen"; the prompts always learn.
        """
        super().set_trainable(encoder=encoder)
        if self.adapter is not None:
            self.adapter.requires_grad_(adapter)
            self.decoder.requires_grad_(decoder and self.config.variant != "comp_frozen")
            self.decoder.freeze_unused()

    @property
    def fits(self) -> bool:
        """Whether the training-free score is part of the model."""
        return self.score is not None

    def fit(self, shots: Sequence[Shot], places: Sequence[Tensor] | None = None) -> TokenFit | None:
        """What the training-free score fits to the supports, where the model has that."""
        return None if self.score is None else self.score.fit(shots, places)

    def fit_beside(self, fit: TokenFit, others: Sequence[Sequence[Shot]]) -> TokenFit:
        """The training-free score's classifier, with the other classes' objects as background."""
        return fit if self.score is None else self.score.fit_beside(fit, others)

    def decode(self, query: Features, support: SupportFeatures) -> tuple[Tensor, Tensor | None]:
        """Logits of the queries' masks: [B, 1, 4h, 4w], or [B, 1, h, w] by prototypes alone.

        And [B], how likely it is that the object is there, in models with a training-free score.
        """
        bias, temperature = self.config.match_bias, self.config.match_temperature
        score = presence = start = None
        if self.score is not None:
            score, presence = self.score.score(query, support)
            start = refine(score - bias, query.guide)
        if self.adapter is None:
            if start is None:
                start = prototype_score(query, support) - bias
            return start / temperature, presence
        maps = self._dense_maps(query, support, score)
        image = self.adapter(query.shallow)  # [B, width, h, w]
        sparse = image.new_empty(image.shape[0], 0, self.config.width)  # [B, T, width]
        if self.visual_prompt is not None:
            sparse = self.visual_prompt(support.foreground.to(query.last.dtype))
        dense = self.dense_prompt(maps)  # [B, width, h, w]
        logits: Tensor = self.decoder(image, sparse, dense)  # [B, 1, 4h, 4w]
        if start is not None:
            start = self.resize(start, (logits.shape[-2], logits.shape[-1]))
            logits = self.gate * logits + start / temperature
        return logits, presence

    def _dense_maps(
        self, query: Features, support: SupportFeatures, score: Tensor | None
    ) -> Tensor:
        """PCS, the training-free score and the 4D prior, as the model has them: [B, maps, h, w]."""
        dtype = query.last.dtype
        maps = []
        if self.config.cosine_prompt:
            maps.append(cosine_map(query.last, support.foreground).to(dtype))
        if score is not None:
            maps.append(score.clamp(-_LIMIT, _LIMIT).to(dtype))
        if self.prior is not None:
            maps.append(support.each(query, self._prior).mean(0))
        return torch.cat(maps, dim=1)

    def _prior(self, query: Features, shot: Shot) -> Tensor:
        """What the 4D correlation with one shot says about the queries: [B, C, h, w]."""
        assert self.prior is not None
        (asked,), (shown,), (mask,) = query.correlation, shot.correlation, shot.masks
        return self.prior(asked, shown, mask)  # type: ignore[no-any-return]
