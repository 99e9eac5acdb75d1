"""Stage 2: train the segmenter on episodes of base classes."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fsdino.data.episodes import Batch, Episodes, collate
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.errors import CheckpointError, FsdinoError, UsageError
from fsdino.evaluation.evaluate import Settings, evaluate
from fsdino.evaluation.predictors import predictor
from fsdino.models import zoo
from fsdino.models.config import ModelConfig
from fsdino.models.segmenter import Segmenter, pool_supports
from fsdino.models.training_free import prototype_score
from fsdino.training.augment import augment
from fsdino.training.losses import TokenClassifier, mask_loss, prototype_loss
from fsdino.training.run import Run

logger = logging.getLogger("fsdino.training")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        model: what to train.
        data: "procedural".
        fold: held out of training.
        steps: optimiser steps.
        images_per_step: distinct images in a step. They form episodes of K + 1 images, each of
            which is the query once while the others are its supports.
        shots: K of each step is drawn from these.
        image_sizes: side of each step's images is drawn from these; () means the model's.
        augment: share in [0, 1] of the episodes that are changed into another class's; see
            `fsdino.training.augment`.
        learning_rate: peak; linear warm-up, then cosine decay to 1 % of it.
        warmup: steps.
        weight_decay: AdamW's, for matrices only.
        gradient_clip: largest gradient norm.
        encoder_from: name or folder of a model whose encoder is taken; None starts from the
            model's own (random, or `pretrained`).
        train_encoder: learn the encoder too, for small ones that start from scratch.
        train_adapter: learn the adapter too.
        prototype_weight, class_weight: weights of the two losses that shape a trained encoder, by
            prototype similarity and by the base class of each foreground token (of the episodes
            that augmentation left as they are).
        seed: of weights, episodes and schedule.
        threads: CPU threads of the training process.
        workers: processes that prepare episodes; the episodes do not depend on it.
        validate_every: steps; on base classes, from a stream of its own.
        validation_episodes: how many.
        checkpoint_every: steps.
    """

    model: ModelConfig
    data: str = "procedural"
    fold: int = 0
    steps: int = 10000
    images_per_step: int = 16
    shots: tuple[int, ...] = (1,)
    image_sizes: tuple[int, ...] = ()
    augment: float = 0.0
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    encoder_from: str | None = None
    train_encoder: bool = False
    train_adapter: bool = False
    prototype_weight: float = 0.0
    class_weight: float = 0.0
    seed: int = 0
    threads: int = 0
    workers: int = 1
    validate_every: int = 1000
    validation_episodes: int = 144
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        if self.data != "procedural":
            raise UsageError(f"unknown data {self.data!r}: choose procedural")
        for name in ("shots", "image_sizes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("steps", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.augment <= 1:
            raise UsageError(f"augment must be in [0, 1], got {self.augment}")
        if not self.shots or min(self.shots) < 1:
            raise UsageError(f"shots must be numbers of at least 1, got {self.shots}")
        if self.images_per_step <= max(self.shots):
            raise UsageError(
                f"images_per_step must be greater than the largest of shots, "
                f"got {self.images_per_step} and {self.shots}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML."""
        data = dataclasses.asdict(self)
        data["model"] = self.model.to_dict()
        return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}

    @classmethod
    def from_yaml(cls, path: Path) -> TrainConfig:
        """Read a recipe.

        Raises:
            UsageError: the file is missing, no YAML, or has settings that cannot be meant.
        """
        try:
            data = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UsageError(f"recipe {path} cannot be read: {error}") from error
        if not isinstance(data, Mapping) or "model" not in data:
            raise UsageError(f"recipe {path}: expected settings with a `model` section")
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise UsageError(f"recipe {path}: unknown settings {', '.join(unknown)}")
        try:
            return cls(**{**data, "model": ModelConfig.from_dict(data["model"])})
        except (TypeError, CheckpointError, UsageError) as error:
            raise UsageError(f"recipe {path}: {error}") from error


class _Steps(Dataset[Batch]):
    """The batch of each step, a pure function of configuration and step."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.sizes = config.image_sizes or (config.model.image_size,)

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> Batch:
        config = self.config
        rng = np.random.default_rng((config.seed, step))
        size, shots = int(rng.choice(self.sizes)), int(rng.choice(config.shots))
        number = config.images_per_step // (shots + 1)
        episodes = ProceduralEpisodes(
            config.fold,
            "train",
            shots=shots,
            seed=config.seed,
            episodes=config.steps * config.images_per_step,
            image_size=size,
        )
        first = step * config.images_per_step
        batch = collate([episodes[first + i] for i in range(number)], size)
        return augment(batch, rng, config.augment) if config.augment else batch


class Trainer:
    """Trains one configuration in one run folder.

    Args:
        config: what to train.
        folder: the run's; see `Run`.
        resume: continue from the folder's newest checkpoint.
        report: called after every step with (step, loss, validation mIoU or None).
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        *,
        resume: bool = False,
        report: Callable[[int, float, float | None], None] | None = None,
    ) -> None:
        self.config, self.report = config, report
        self.run = Run(folder, config.to_dict(), resume=resume)
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        encoder = zoo.load(config.encoder_from).encoder if config.encoder_from else None
        self.model = zoo.build(config.model, encoder)
        self.model.set_trainable(encoder=config.train_encoder, adapter=config.train_adapter)
        self.classifier: TokenClassifier | None = None
        if config.class_weight:
            classes = ProceduralEpisodes(config.fold, "train").classes
            self.classifier = TokenClassifier(self.model.encoder.channels, classes)
        self.optimizer = torch.optim.AdamW(self._groups(), lr=config.learning_rate)
        self.miou: float | None = None
        self.start = self._restore()

    def fit(self) -> Segmenter:
        """Train to the end; the result lies in `folder/model`."""
        config = self.config
        self.model.train()
        began = time.monotonic()
        for step, batch in zip(range(self.start, config.steps), self._batches(), strict=True):
            loss = self._step(step, batch)
            done = step + 1
            if done % config.validate_every == 0 or done == config.steps:
                self.miou = self._validate()
                seconds = round(time.monotonic() - began, 1)
                self.run.log(step=done, loss=loss, base_miou=self.miou, seconds=seconds)
            elif done % 50 == 0:
                self.run.log(step=done, loss=loss)
            if done % config.checkpoint_every == 0 or done == config.steps:
                self._save(done)
            if self.report is not None:
                self.report(done, loss, self.miou)
        self.model.eval()
        self.model.save_pretrained(self.run.folder / "model")
        return self.model

    def _step(self, step: int, batch: Batch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._schedule(step)
        loss = self._loss(batch)
        if not torch.isfinite(loss):
            raise FsdinoError(
                f"the loss became {loss.item()} at step {step}: resume with a lower learning_rate"
            )
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        return loss.item()

    def _loss(self, batch: Batch) -> Tensor:
        episodes, shots = batch.support_images.shape[:2]
        group = shots + 1
        images = torch.cat([batch.query_images[:, None], batch.support_images], 1).flatten(0, 1)
        masks = torch.cat([batch.query_masks[:, None], batch.support_masks], 1).flatten(0, 1)
        query = self.model.encode(images)  # one pass over the distinct images
        # Image i of an episode is the query once; the others, in turn, are its supports.
        first = torch.arange(episodes)[:, None, None] * group
        turn = (torch.arange(group)[:, None] + torch.arange(1, group)) % group  # [K + 1, K]
        others = (first + turn).flatten()
        support = pool_supports(query[others], masks[others], shots)
        logits = F.interpolate(
            self.model.decode(query, support),
            images.shape[-2:],
            mode="bilinear",
            align_corners=False,
        )
        loss = mask_loss(logits, masks)
        if self.config.prototype_weight:
            score = prototype_score(query, support)
            loss = loss + self.config.prototype_weight * prototype_loss(score, masks)
        if self.classifier is not None:
            class_ids = batch.class_ids.repeat_interleave(group)
            loss = loss + self.config.class_weight * self.classifier(query.last, masks, class_ids)
        return loss

    def _schedule(self, step: int) -> float:
        warmup, steps = self.config.warmup, self.config.steps
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(steps - warmup, 1)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))

    def _validate(self) -> float:
        config = self.config
        episodes: Episodes = ProceduralEpisodes(
            config.fold,
            "base_val",
            seed=config.seed,
            episodes=config.validation_episodes,
            image_size=config.model.image_size,
        )
        self.model.eval()
        result = evaluate(predictor(self.model), episodes, Settings(config.model.image_size))
        self.model.train()
        return result.miou

    def _batches(self) -> Iterator[Batch]:
        loader: DataLoader[Batch] = DataLoader(
            _Steps(self.config),
            batch_size=None,
            sampler=range(self.start, self.config.steps),
            num_workers=self.config.workers,
            prefetch_factor=4 if self.config.workers else None,
        )
        return iter(loader)

    def _groups(self) -> list[dict[str, Any]]:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if self.classifier is not None:
            trained += self.classifier.parameters()
        matrices = [p for p in trained if p.ndim > 1]
        vectors = [p for p in trained if p.ndim <= 1]
        return [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]

    def _save(self, step: int) -> None:
        tensors: dict[str, Tensor] = {
            f"model.{name}": value for name, value in self.model.state_dict().items()
        }
        if self.classifier is not None:
            tensors["classifier.prototypes"] = self.classifier.prototypes.detach()
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        tensors["random_state"] = torch.get_rng_state()
        self.run.save(step, tensors, {"miou": self.miou})

    def _restore(self) -> int:
        checkpoint = self.run.load()
        if checkpoint is None:
            return 0
        step, tensors, state = checkpoint
        self.model.load_state_dict(
            {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        )
        if self.classifier is not None:
            self.classifier.load_state_dict({"prototypes": tensors["classifier.prototypes"]})
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, slot = name.split(".")
                slots.setdefault(int(index), {})[slot] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        torch.set_rng_state(tensors["random_state"])
        self.miou = state["miou"]
        self.run.forget_after(step)
        logger.info("resuming %s at step %d", self.run.folder, step)
        return step
