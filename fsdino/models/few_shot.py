"""From tensors to logits: encode, pool, decode and resize, as every model does them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from huggingface_hub import HfApi
from torch import Tensor

from fsdino.errors import DataError, UsageError, counted
from fsdino.models.checkpoints import write_folder
from fsdino.models.config import ModelConfig
from fsdino.models.encoders import Encoder, Features
from fsdino.models.identity import Identified, plain_names
from fsdino.models.shots import PooledShot, Shot, SupportFeatures, TokenFit, token_mask
from fsdino.resizing import resize_logits

_CLEAREST = 0.005  # of the pixels, which tell presence where the model has no score for it


@dataclass(frozen=True)
class Answer:
    """What a model finds in B queries, each asked for V supports.

    Attributes:
        logits: [B, V, H, W] of the masks, at the size that was asked for.
        coarse: [B, V, h, w], the same at the resolution that the model answers at.
        scored: [B, V] in [0, 1], presence by a score of the model's; None where it has none.
    """

    logits: Tensor
    coarse: Tensor
    scored: Tensor | None

    @property
    def presence(self) -> Tensor:
        """How likely it is that the queries show the objects at all: [B, V] in [0, 1].

        Of a model without a score for that, the mean probability of the clearest 0.5 % of a map.
        """
        if self.scored is not None:
            return self.scored.float()
        flat = self.coarse.float().flatten(2)
        clearest = max(round(_CLEAREST * flat.shape[2]), 1)
        return flat.topk(clearest).values.sigmoid().mean(2)


class FewShotModel(Identified):
    """One encoder, and what reads its tokens: supports and queries in, logits out.

    A model implements `decode`; `fsdino.models.segmenter.Segmenter` adds what is done with images.

    Args:
        config: what to build.
        encoder: reads the images; models may share one.

    Attributes:
        provenance: record of the training (data, fold, what the model was selected on), for
            results; kept by `save_pretrained`.

    Raises:
        UsageError: an `image_size` that is not a multiple of a token's side; an encoder with
            another number of levels than the model reads.
    """

    level_count: ClassVar[int] = 1  # of `Features.correlation`, that the model reads

    def __init__(self, config: ModelConfig, encoder: Encoder) -> None:
        super().__init__()
        if len(encoder.levels) != self.level_count:
            raise UsageError(
                f"variant {config.variant!r} reads tokens of {counted(self.level_count, 'grid')}, "
                f"and this encoder has {len(encoder.levels)}: choose another encoder"
            )
        self.config = config
        self.encoder = encoder
        if config.image_size % self.patch_size and not config.keep_aspect:
            below = max(config.image_size // self.patch_size, 1)
            raise UsageError(
                f"image_size {config.image_size} is not a multiple of {self.patch_size}, the side "
                f"of {config.encoder}'s tokens: choose {below * self.patch_size} or "
                f"{(below + 1) * self.patch_size}"
            )
        self.train_encoder = False
        self.provenance: Mapping[str, Any] | None = None
        self._seen_finite: tuple[Any, ...] | None = None

    def __repr__(self) -> str:
        """One line. `torch.nn.Module.__repr__(model)` lists the layers."""
        count = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"{type(self).__name__}({self.config.encoder}, variant {self.config.variant}, "
            f"{self.config.image_size} pixels, {count / 1e6:.1f} M parameters, {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def patch_size(self) -> int:
        """Pixels per token side."""
        return self.encoder.patch_size

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
        size = (query_images.shape[-2], query_images.shape[-1])
        return self.answer(query, [support], size).logits

    def encode(self, images: Tensor) -> Features:
        """Encode images of one size: [B, 3, H, W] in [0, 1]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_encoder):
            return self.encoder(images)  # type: ignore[no-any-return]

    def encode_list(self, images: Sequence[Tensor]) -> list[Features]:
        """Encode images [3, H, W] of any sizes; see `Encoder.forward_list`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_encoder):
            return self.encoder.forward_list(images)

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
        return query, self.pool(support, support_masks.flatten(0, 1), shots)

    def pool(self, features: Features, masks: Tensor, shots: int) -> SupportFeatures:
        """Encoded supports of B episodes, as `answer` takes them.

        Args:
            features: of B * K images, the K of an episode side by side.
            masks: [B * K, H, W] in [0, 1].
            shots: K.
        """
        whole = PooledShot.of(features, self.level_masks(masks, features))
        parts = whole.by_episode(shots)
        return SupportFeatures.of(parts, self.fit(parts))

    def level_masks(self, masks: Tensor, features: Features) -> tuple[Tensor, ...]:
        """The masks of the tokens of each level of encoded images: [B, h_i, w_i].

        Args:
            masks: [B, H, W] in [0, 1], at the size of the model's input, or for models with one
                level on the token grid already (`resizing.area_share`).
            features: of the images.
        """
        return (token_mask(masks, features.grid),)

    @property
    def fits(self) -> bool:
        """Whether the model fits something to its supports."""
        return False

    def fit(self, shots: Sequence[Shot], places: Sequence[Tensor] | None = None) -> TokenFit | None:
        """What the model fits to the supports of B episodes; None where it fits nothing.

        Args:
            shots: the supports, and other views of them.
            places: [h, w] of each: the number of its image plus horizontal positions in it.
        """
        return None

    def fit_beside(self, fit: TokenFit, others: Sequence[Sequence[Shot]]) -> TokenFit:
        """A fit for which the objects of other classes are background, too.

        Args:
            fit: of `fit`, with B = 1.
            others: the supports of each other class, with B = 1.
        """
        return fit

    def answer(
        self,
        query: Features,
        supports: Iterable[SupportFeatures],
        size: tuple[int, int] | None = None,
        *,
        names: Sequence[str] | None = None,
    ) -> Answer:
        """The one way from features to logits, in training, evaluation and use.

        Args:
            query: B queries.
            supports: the V supports that each of them is asked for; taken one by one.
            size: (H, W) of the logits; None keeps the resolution that the model answers at.
            names: of the supports, for errors. Given where masks are made of the logits: weights
                and logits must then be finite, since NaN would become an empty mask.

        Raises:
            DataError: logits, or the model's weights, are not finite; names the cause.
        """
        if names is not None:
            self._check_weights()
        logits, presences = [], []
        for index, support in enumerate(supports):
            found, presence = self.decode(query, support)
            if names is not None:
                _check_logits(found, query, support, names[index])
            logits.append(found)
            if presence is not None:
                presences.append(presence)
        coarse = torch.cat(logits, 1)
        scored = torch.stack(presences, 1) if presences else None
        return Answer(coarse if size is None else self.resize(coarse, size), coarse, scored)

    @abstractmethod
    def decode(self, query: Features, support: SupportFeatures) -> tuple[Tensor, Tensor | None]:
        """The part that each model implements; callers use `answer`.

        Args:
            query: B queries.
            support: what they are asked for.

        Returns:
            Mask logits [B, 1, h', w'] at a resolution of the model's choice; and [B] in [0, 1], how
            likely it is that the queries show the object at all, or None where the model has
            nothing to say of that beyond its logits.
        """

    def resize(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """How logits [B, V, h, w] come to another size, [B, V, H, W]: see `resize_logits`.

        All masks are made of logits that this has resized, but for protocols of evaluation that
        name a rule of their own.
        """
        return resize_logits(logits, size)

    def _check_weights(self) -> None:
        """Refuse weights that are not finite: some layers turn those into plausible numbers.

        Looked at once, and again after they have changed.
        """
        found = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        version = sum(0 if t.is_inference() else t._version for t in found.values())
        first = next(iter(found.values()))
        state = (version, first.dtype, first.device, first.data_ptr())
        if self._seen_finite == state:
            return
        bad = [
            name
            for name, tensor in found.items()
            if tensor.is_floating_point() and not tensor.isfinite().all()
        ]
        if bad:
            names = ", ".join(bad[:3]) + (", …" if len(bad) > 3 else "")
            raise DataError(
                f"the model's weights hold NaN or infinity ({names}): load them again, or train "
                "from an earlier checkpoint"
            )
        self._seen_finite = state

    def set_trainable(
        self, *, encoder: bool = False, adapter: bool = False, decoder: bool = True
    ) -> None:
        """Choose what learns; the rest of the parts that a model has are frozen."""
        self.requires_grad_(True)
        self.train_encoder = encoder
        self.encoder.requires_grad_(encoder)
        self.train(self.training)

    def train(self, mode: bool = True) -> FewShotModel:
        """As in PyTorch; a frozen encoder stays in eval mode.

        Training changes the model, so its fingerprint is taken again.
        """
        if mode != self.training:
            self.forget_identity()
        self.training = mode
        for name, part in self.named_children():
            part.train(mode and (self.train_encoder or name != "encoder"))
        return self

    def own_tensors(self) -> list[Tensor]:
        """All but the encoder's, which may be shared and has an identity of its own."""
        parts = [part for name, part in self.named_children() if name != "encoder"]
        return [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]

    def own_state(self) -> dict[str, Tensor]:
        """All but the encoder's."""
        state = super().own_state()
        return {name: t for name, t in state.items() if not name.startswith("encoder.")}

    def fingerprint(self) -> str:
        """Hash of configuration and weights: supports of another model are told apart by it.

        Of the configuration, what differs from the defaults; of the weights, as they were first
        loaded. Copies, pickles, casts, moves and files keep it; training, other weights and another
        configuration change it.
        """
        parts = (self.config.digest, self.encoder.identity(), self.identity())
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    def save_pretrained(self, folder: str | os.PathLike[str], *, full: bool = False) -> None:
        """Write config.json, model.safetensors and provenance.json, which `fsdino.load` reads.

        The files keep the fingerprint: that of a cast model is not another one once it is saved.
        An encoder whose weights are those of `config.encoder_weights` is left out, since the
        configuration names them; one that has been trained since is not.

        Args:
            folder: where to; created, with those above it.
            full: write the encoder in any case, so that the model loads without that package.

        Raises:
            FsdinoError: the folder cannot be written.
        """
        identity = {"encoder": self.encoder.identity(), "rest": self.identity()}
        if not full and self.encoder.is_installed(self.config.encoder_weights):
            config, state = self.config, self.own_state()
        else:
            config = dataclasses.replace(self.config, encoder_weights=None)
            state = plain_names(self.state_dict())
        write_folder(config, state, folder, self.provenance, identity)

    def push_to_hub(self, repository: str, *, private: bool = False, full: bool = False) -> str:
        """Upload to the Hugging Face hub.

        Args:
            repository: "owner/name", or "hf:owner/name" as `fsdino.load` takes it.
            private: whether a new repository is.
            full: as in `save_pretrained`.

        Returns:
            Its address.
        """
        repository = repository.removeprefix("hf:")
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, full=full)
            return str(api.upload_folder(repo_id=repository, folder_path=folder))


def _check_logits(logits: Tensor, query: Features, support: SupportFeatures, name: str) -> None:
    """Refuse logits that are not finite.

    Raises:
        DataError: names the cause: the support, the query, or the type they are computed in.
    """
    if logits.isfinite().all():
        return
    if not all(tensor.isfinite().all() for tensor in support.tensors()):
        raise DataError(
            f"support {name!r} holds NaN or infinity: encode it again with encode_support"
        )
    query.check("query")
    raise DataError(
        f"the model's output for support {name!r} is not finite in {query.last.dtype}: "
        "use float32 or bfloat16, or other weights"
    )
