"""What every model can do: encode a support, segment images."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from huggingface_hub import HfApi
from PIL import Image
from torch import Tensor

from fsdino import images as pixels
from fsdino import overlay
from fsdino.errors import DataError, SupportWarning, UsageError
from fsdino.images import ImageLike, MaskLike
from fsdino.models import tiling
from fsdino.models.checkpoints import write_folder
from fsdino.models.config import ModelConfig
from fsdino.models.encoders import Encoder, Features, create
from fsdino.models.hypercorrelation import masked_mean
from fsdino.models.identity import Identified, plain_names
from fsdino.models.supports import (
    Shot,
    Support,
    SupportFeatures,
    TokenFit,
    positions,
    token_mask,
)
from fsdino.models.views import View, closer

LEAST_SCORE = 0.1  # below it, a class is not found
# Below these, masks of other images are more often wrong than right: of a single image, which was
# asked for itself, and of several, each of which was asked of the others.
LEAST_QUALITY, LEAST_QUALITY_OF_SEVERAL = 0.7, 0.5
ADVICE = (
    "masks of other images may be poor; more examples, a tighter mask, or an object that stands "
    "out from its surroundings help"
)
_VIEW = 0.6  # of both sides, of a second view of a single support
_SMALL = 0.02  # share of its image, below which the second view is fitted, too
_CLEAREST = 0.005  # of the pixels, by which a model without a score of its own is judged
_BATCH = 8  # queries that share an encoder pass
_CPU_PIXELS = 2**20  # of such a pass on a CPU, where more takes memory and no less time
_MOST_TILES = 2500
_BAND = 2**22  # pixels whose labels are found at once


@dataclass(frozen=True)
class Segmentation:
    """The answer for one query image of H x W pixels.

    Attributes:
        image: uint8 [H, W, 3], the query as it was read.
        probabilities: float32 [N, H, W] in [0, 1], one map per support.
        names: the N supports' names; ("foreground",) for a single unnamed one.
        threshold: probability from which a pixel belongs to a mask.
        scores: N numbers in [0, 1]: how likely it is that each support's class is in the image at
            all. A class below 0.1 is not found: no pixel of the mask or of the labels is its own,
            while its probabilities stay as they are.
    """

    image: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.float32]
    names: tuple[str, ...]
    threshold: float
    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """In [0, 1], the highest of `scores`."""
        return max(self.scores)

    @property
    def founds(self) -> tuple[bool, ...]:
        """Whether each of the N classes is in the image."""
        return tuple(score >= LEAST_SCORE for score in self.scores)

    @property
    def found(self) -> bool:
        """Whether any of the classes is in the image: else the mask is empty."""
        return any(self.founds)

    @property
    def probability(self) -> npt.NDArray[np.float32]:
        """float32 [H, W] in [0, 1]: the highest over the supports."""
        return self.probabilities.max(0)  # type: ignore[no-any-return]

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """bool [H, W]: where any support's class is, of those that were found."""
        inside = np.zeros(self.probabilities.shape[1:], np.bool_)
        for place in self._places():
            inside |= self.probabilities[place] >= self.threshold
        return inside

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64 [H, W]: 0 is background, i the class `names[i - 1]`.

        Of the classes that were found, that of the highest probability, where that passes the
        threshold.
        """
        return self.compact_labels().astype(np.int64)

    def compact_labels(self) -> npt.NDArray[np.integer[Any]]:
        """`labels` in the smallest unsigned type, which large images need: [H, W]."""
        kind = np.min_scalar_type(len(self.names))
        labels = np.zeros(self.probabilities.shape[1:], kind)
        places = self._places()
        if not places:
            return labels
        numbers = np.array(places, kind) + kind.type(1)
        step = max(_BAND // max(labels.shape[1], 1), 1)
        for top in range(0, len(labels), step):
            band = self.probabilities[:, top : top + step]
            if len(places) < len(band):
                band = band[places]
            found = numbers[band.argmax(0)]
            np.copyto(labels[top : top + step], found, where=band.max(0) >= self.threshold)
        return labels

    def _places(self) -> list[int]:
        """Of the classes that were found."""
        return [place for place, found in enumerate(self.founds) if found]

    def overlay(self) -> Image.Image:
        """The query with the classes drawn over it."""
        return overlay.overlay(self.image, self.compact_labels())


class Segmenter(Identified):
    """A model that segments what a support shows: one encoder, and what reads its tokens.

    FSDINO and its baselines are Segmenters.

    Args:
        config: what to build.
        encoder: share an existing encoder instead of creating one.

    Attributes:
        provenance: what training says of itself (data, fold, what it was selected on), for results;
            kept by `save_pretrained`.

    Raises:
        UsageError: an `image_size` that is not a multiple of a token's side.
    """

    def __init__(self, config: ModelConfig, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder or create(config)
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

    @abstractmethod
    def decode(self, query: Features, support: SupportFeatures) -> Tensor:
        """Mask logits [B, 1, h', w'] of B queries at a resolution of the model's choice."""

    def answer(self, query: Features, support: SupportFeatures) -> tuple[Tensor, Tensor | None]:
        """`decode`, and [B] in [0, 1]: how likely it is that the queries show the object at all.

        None where the model has nothing to say of that beyond its logits.
        """
        return self.decode(query, support), None

    def finite_logits(
        self, query: Features, support: SupportFeatures, name: str = "foreground"
    ) -> Tensor:
        """`decode`, for everything that makes masks of logits: NaN would become an empty mask.

        Args and errors are those of `finite_answer`.
        """
        return self.finite_answer(query, support, name)[0]

    def finite_answer(
        self, query: Features, support: SupportFeatures, name: str = "foreground"
    ) -> tuple[Tensor, Tensor | None]:
        """`answer`, of finite logits.

        Args:
            query: B queries.
            support: what they are asked for.
            name: of the support, for the error.

        Raises:
            DataError: logits, or the model's weights, are not finite; names the cause.
        """
        self._check_weights()
        logits, presence = self.answer(query, support)
        if logits.isfinite().all():
            return logits, presence
        prototypes = [support.foreground, support.background]
        shots = [tokens for shot in support.shots for tokens in (shot.correlation, shot.mask)]
        fit = [] if support.fit is None else support.fit.tensors()
        if not all(tokens.isfinite().all() for tokens in (*prototypes, *shots, *fit)):
            raise DataError(
                f"support {name!r} holds NaN or infinity: encode it again with encode_support"
            )
        _check_features(query, "query")
        raise DataError(
            f"the model's output for support {name!r} is not finite in {query.last.dtype}: "
            "use float32 or bfloat16, or other weights"
        )

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

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> Segmenter:
        """As in PyTorch; a frozen encoder stays in eval mode.

        Training changes the model, so its fingerprint is taken again.
        """
        if mode != self.training:
            self.forget_identity()
        self.training = mode
        for name, part in self.named_children():
            part.train(mode and (self.train_encoder or name != "encoder"))
        return self

    @property
    def patch_size(self) -> int:
        """Pixels per token side."""
        return self.encoder.patch_size

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

    def encode(self, images: Tensor) -> Features:
        """Encode images of one size: [B, 3, H, W] in [0, 1]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_encoder):
            return self.encoder(images)  # type: ignore[no-any-return]

    def encode_list(self, images: Sequence[Tensor]) -> list[Features]:
        """Encode images [3, H, W] of any sizes; see `Encoder.forward_list`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_encoder):
            return self.encoder.forward_list(images)

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
        return query, self.pool(support, support_masks.flatten(0, 1), shots)

    def pool(self, features: Features, masks: Tensor, shots: int) -> SupportFeatures:
        """Encoded supports of B episodes, as `decode` takes them.

        Args:
            features: of B * K images, the K of an episode side by side.
            masks: [B * K, H, W] in [0, 1].
            shots: K.
        """
        covers = token_mask(masks, _grid(features))
        by_shot = (-1, shots)
        correlation, cover = (
            features.correlation.unflatten(0, by_shot),
            covers.unflatten(0, by_shot),
        )
        parts = [Shot(correlation[:, k], cover[:, k]) for k in range(shots)]
        return SupportFeatures(
            masked_mean(features.last, covers).unflatten(0, by_shot).mean(1),
            masked_mean(features.last, 1 - covers).unflatten(0, by_shot).mean(1),
            parts,
            self.fit(parts),
        )

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

    @torch.inference_mode()
    def encode_support(
        self,
        images: ImageLike | Sequence[ImageLike],
        masks: MaskLike | Sequence[MaskLike],
        *,
        quality: bool = False,
    ) -> Support:
        """Encode one to any number of annotated images of one class.

        Args:
            images: paths, PIL images, uint8 arrays [H, W, 3] or tensors; any sizes.
            masks: one per image and of its size: bool, 0/1 or 0/255 arrays, PIL, or paths.
            quality: also find out how well the support finds itself (`Support.quality`), and warn
                where that promises little: each image is segmented by the others, a single one
                by a mirrored crop of it seen from nearer.

        Raises:
            UsageError: no image, another number of masks, a mask of another size.
            DataError: an unreadable image, a mask without foreground, weights that are not finite.
        """
        image_list, mask_list = _as_list(images), _as_list(masks)
        if not image_list:
            raise UsageError("no support given: pass at least one image and its mask")
        if len(image_list) != len(mask_list):
            raise UsageError(
                f"{len(image_list)} support images but {len(mask_list)} masks: "
                "pass one mask per image"
            )
        arrays = [pixels.read_image(x, _name("image", k)) for k, x in enumerate(image_list)]
        sizes = [(array.shape[0], array.shape[1]) for array in arrays]
        flags = [
            pixels.read_mask(x, sizes[k], _name("mask", k), image=image_list[k])
            for k, x in enumerate(mask_list)
        ]
        single = len(arrays) == 1
        # A small object has few tokens: from nearer it has more.
        small = single and self.fits and flags[0].mean() < _SMALL
        view = closer(arrays[0], flags[0], _VIEW) if single and (small or quality) else None
        if view is None:
            features = self.encode_list([self._prepare(array) for array in arrays])
            support = self._support(features, flags)
        else:
            features = self.encode_list([self._prepare(a) for a in (*arrays, view.image)])
            support = self._support(features[:1], flags, [(features[1], view)] if small else [])
            flags = [*flags, view.mask]
        if not quality:
            return support
        found = self._quality(features, flags, [1] if single else range(len(flags)))
        support = replace(support, quality=found)
        words = doubt(support)
        if words is not None:
            warnings.warn(f"the support {words}", SupportWarning, stacklevel=3)
        return support

    @torch.inference_mode()
    def encode_objects(self, image: ImageLike, masks: Mapping[str, MaskLike]) -> dict[str, Support]:
        """Encode several objects of one annotated image, each with its mask, in one pass.

        Raises:
            UsageError: a mask of another size than the image.
            DataError: an unreadable image, a mask without foreground.
        """
        array = pixels.read_image(image, "image")
        size = (array.shape[0], array.shape[1])
        flags = {
            name: pixels.read_mask(mask, size, f"mask {name}", image=image)
            for name, mask in masks.items()
        }
        features = self.encode_list([self._prepare(array)])
        return {name: self._support(features, [flag]) for name, flag in flags.items()}

    def _support(
        self,
        features: Sequence[Features],
        flags: Sequence[npt.NDArray[np.bool_]],
        views: Sequence[tuple[Features, View]] = (),
    ) -> Support:
        """Encoded images, each with its mask bool [H, W], and views of the first one."""
        self._check_weights()
        for k, tokens in enumerate(features):
            _check_features(tokens, f"support image {k + 1}")
        pooled = [(f, self._cover(f, flag)) for f, flag in zip(features, flags, strict=True)]
        shots = [Shot(f.correlation, cover) for f, cover in pooled]
        further = [Shot(f.correlation, self._cover(f, view.mask)) for f, view in views]
        places = [k + positions(shot.mask) for k, shot in enumerate(shots)]
        places += [view.places(_grid(f)).to(self.device) for f, view in views]
        return Support(
            torch.cat([masked_mean(f.last, cover) for f, cover in pooled]),
            torch.cat([masked_mean(f.last, 1 - cover) for f, cover in pooled]),
            tuple(shot.correlation[0] for shot in shots),
            tuple(shot.mask[0] for shot in shots),
            tuple((flag.shape[0], flag.shape[1]) for flag in flags),
            self.fingerprint(),
            self.fit([*shots, *further], places),
        )

    def _quality(
        self,
        features: Sequence[Features],
        flags: Sequence[npt.NDArray[np.bool_]],
        asked: Sequence[int],
    ) -> float | None:
        """Mean IoU of some of the encoded images, each segmented by all others.

        None where there is only one.
        """
        if len(features) < 2:
            return None
        ious = []
        for k in asked:
            others = [n for n in range(len(features)) if n != k]
            support = self._support([features[n] for n in others], [flags[n] for n in others])
            logits = self.finite_logits(features[k], support.features(1))[0]
            size = (flags[k].shape[0], flags[k].shape[1])
            found = pixels.resize_back(logits.float(), size).sigmoid_()[0].cpu().numpy()
            inside = found >= self.config.threshold
            ious.append((inside & flags[k]).sum() / max((inside | flags[k]).sum(), 1))
        return float(np.mean(ious))

    def _cover(self, features: Features, flag: npt.NDArray[np.bool_]) -> Tensor:
        """Share of foreground of each token of one image: [1, h, w]."""
        grid = _grid(features)
        return token_mask(pixels.mask_to_tensor(flag, grid).to(self.device)[None], grid)

    @overload
    def segment(  # type: ignore[overload-overlap]  # a path is a sequence, too
        self,
        query: ImageLike,
        support: Support | Mapping[str, Support],
        *,
        threshold: float | None = None,
        tiles: bool = False,
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        query: Sequence[ImageLike],
        support: Support | Mapping[str, Support],
        *,
        threshold: float | None = None,
        tiles: bool = False,
    ) -> list[Segmentation]: ...

    @torch.inference_mode()
    def segment(
        self,
        query: ImageLike | Sequence[ImageLike],
        support: Support | Mapping[str, Support],
        *,
        threshold: float | None = None,
        tiles: bool = False,
    ) -> Segmentation | list[Segmentation]:
        """Segment what the support shows in one image, or in each of a list.

        Args:
            query: image, or list of images; any sizes.
            support: from `encode_support`, or several by name (N-way), which share one encoder
                pass per image.
            threshold: probability from which a pixel belongs to the mask, in (0, 1); None takes
                the model's.
            tiles: cut images larger than the supports into overlapping tiles of the supports'
                size, so that objects appear at the supports' scale.

        Returns:
            A Segmentation at the query's own size, or a list of them.

        Raises:
            UsageError: no support, a support of another model, a threshold outside of (0, 1),
                more tiles than can be meant.
            DataError: an unreadable image, a support that is damaged or has other channels than
                the model's, logits that are not finite.
        """
        named = support if isinstance(support, Mapping) else {"foreground": support}
        self._check_supports(named)
        threshold = self.config.threshold if threshold is None else threshold
        if not 0 < threshold < 1:
            raise UsageError(f"threshold must lie between 0 and 1, got {threshold}")
        queries = _as_list(query)
        arrays = [pixels.read_image(x, _name("query", k)) for k, x in enumerate(queries)]
        dtype = next(self.parameters()).dtype
        supports = {name: s.to(self.device, dtype) for name, s in named.items()}
        for name, encoded in supports.items():
            self._check_content(name, encoded)
        if tiles:
            found = [self._probabilities_tiled(array, supports) for array in arrays]
        else:
            found = []
            for start in range(0, len(arrays), self._batch):
                found += self._probabilities(arrays[start : start + self._batch], supports)
        results = [
            Segmentation(array, maps.cpu().numpy(), tuple(named), threshold, tuple(scores.tolist()))
            for array, (maps, scores) in zip(arrays, found, strict=True)
        ]
        return results if isinstance(query, list | tuple) else results[0]

    @property
    def _batch(self) -> int:
        """How many queries share an encoder pass."""
        if self.device.type != "cpu":
            return _BATCH
        return min(max(_CPU_PIXELS // self.config.image_size**2, 1), _BATCH)

    def _probabilities(
        self, arrays: Sequence[npt.NDArray[np.uint8]], supports: Mapping[str, Support]
    ) -> list[tuple[Tensor, Tensor]]:
        """Per image the maps [N, H, W], at its own size, and the scores [N]."""
        found = []
        for array, features in zip(
            arrays, self.encode_list([self._prepare(a) for a in arrays]), strict=True
        ):
            answers = [self.finite_answer(features, s.features(1), n) for n, s in supports.items()]
            logits = torch.cat([logits[0] for logits, _ in answers])
            size = (array.shape[0], array.shape[1])
            maps = pixels.resize_back(logits.float(), size).sigmoid_()
            scores = [
                _clearest(coarse) if presence is None else presence[0].float()
                for coarse, presence in answers
            ]
            found.append((maps, torch.stack(scores)))
        return found

    def _probabilities_tiled(
        self, array: npt.NDArray[np.uint8], supports: Mapping[str, Support]
    ) -> tuple[Tensor, Tensor]:
        """The blended maps, and the scores of the tile that shows each class best."""
        sizes = [size for s in supports.values() for size in s.image_sizes]
        height, width = (int(np.median([size[i] for size in sizes])) for i in (0, 1))
        boxes = tiling.tile_boxes((array.shape[0], array.shape[1]), (height, width))
        if len(boxes) > _MOST_TILES:
            raise UsageError(
                f"the supports' size, {height} x {width}, cuts a query of {array.shape[0]} x "
                f"{array.shape[1]} into {len(boxes)} tiles, more than {_MOST_TILES}: use larger "
                "support images, or no tiles"
            )
        crops = [array[box.rows, box.columns] for box in boxes]
        found = []
        for start in range(0, len(crops), self._batch):
            found += self._probabilities(crops[start : start + self._batch], supports)
        maps = tiling.blend([m for m, _ in found], boxes, (array.shape[0], array.shape[1]))
        return maps, torch.stack([scores for _, scores in found]).amax(0)

    def _prepare(self, array: npt.NDArray[np.uint8]) -> Tensor:
        """uint8 [H, W, 3] -> [3, h, w] in [0, 1] at the model's size."""
        side, patch = self.config.image_size, self.patch_size
        size = (side, side)
        if self.config.keep_aspect:
            scale = side / max(array.shape[:2])
            height, width = (max(round(n * scale / patch), 1) * patch for n in array.shape[:2])
            size = (height, width)
        return pixels.to_tensor(array, size).to(self.device)

    def _check_supports(self, named: Mapping[str, Support]) -> None:
        if not named or not all(isinstance(support, Support) for support in named.values()):
            raise UsageError("no support given: pass at least one, from encode_support")
        own = self.fingerprint()
        for name, support in named.items():
            if support.model_fingerprint != own:
                raise UsageError(
                    f"support {name!r} was made by another model "
                    f"({support.model_fingerprint}, this one is {own}): "
                    "encode it again with encode_support"
                )

    def _check_content(self, name: str, support: Support) -> None:
        """Refuse what damage or another program put into a support, before it becomes a mask."""
        problem = support.problem()
        if problem is None:
            wanted = (len(self.encoder.correlation_layers), self.encoder.channels)
            found = (support.correlation[0].shape[0], support.foreground.shape[1])
            if wanted != found:
                problem = (
                    f"it has {found[0]} layers of {found[1]} channels, this model has {wanted[0]} "
                    f"of {wanted[1]}"
                )
            elif support.fit is not None and support.fit.mean.shape[1] != wanted[0]:
                problem = f"what was fitted to it has {support.fit.mean.shape[1]} layers"
            elif support.fit is None and self.fits:
                problem = "it was made by an earlier version, which fitted nothing to it"
        if problem is not None:
            raise DataError(
                f"support {name!r} cannot be used: {problem}; encode it again with encode_support"
            )


def _clearest(logits: Tensor) -> Tensor:
    """Mean probability of the clearest pixels of one map of logits, a scalar in [0, 1]."""
    flat = logits.float().flatten()
    return flat.topk(max(round(_CLEAREST * len(flat)), 1)).values.sigmoid().mean()


def doubt(support: Support) -> str | None:
    """What to say of a support of low quality, after its name; of others None."""
    least = LEAST_QUALITY if support.shots == 1 else LEAST_QUALITY_OF_SEVERAL
    if support.quality is None or support.quality >= least:
        return None
    return f"finds itself with an IoU of {support.quality:.2f} only: {ADVICE}"


def _grid(features: Features) -> tuple[int, int]:
    return features.last.shape[-2], features.last.shape[-1]


def _check_features(features: Features, what: str) -> None:
    if not all(tokens.isfinite().all() for tokens in features.tensors()):
        raise DataError(
            f"{what}: the encoder's output is not finite in {features.last.dtype}: use float32 or "
            "bfloat16, or a model with other weights, mean and std"
        )


def _as_list(value: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """One image or mask, or several, as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]  # type: ignore[list-item]


def _name(kind: str, index: int) -> str:
    return f"{kind} {index + 1}"
