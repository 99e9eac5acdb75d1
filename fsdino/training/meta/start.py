"""The model that a run of stage 2 starts from."""

from __future__ import annotations

from fsdino.errors import UsageError
from fsdino.models import zoo
from fsdino.models.config import WEIGHTS_FIELDS
from fsdino.models.segmenter import Segmenter
from fsdino.training.meta.config import TrainConfig


def build(config: TrainConfig) -> Segmenter:
    """The model with the weights that a run starts from; its parts learn as the settings say.

    Raises:
        UsageError: weights for a part that the model does not have, or `start_from` names a model
            that was built otherwise.
        UsageError, CheckpointError: see `fsdino.models.zoo`.
    """
    model = _assemble(config) if config.start_from is None else _load(config, config.start_from)
    model.set_trainable(
        encoder=config.train_encoder,
        adapter=config.train_adapter,
        decoder=config.train_decoder,
    )
    return model


def _assemble(config: TrainConfig) -> Segmenter:
    encoder = zoo.find_encoder(config.model, config.encoder_from, config.encoder_weights)
    model = zoo.assemble(config.model, encoder)
    if config.decoder_weights is not None:
        zoo.load_sam_decoder(model, config.decoder_weights)
    if config.adapter_weights is not None:
        zoo.load_adapter(model, config.adapter_weights)
    return model


def _load(config: TrainConfig, name: str) -> Segmenter:
    model = zoo.load(name)
    found, asked = model.config.to_dict(), config.model.to_dict()
    other = [key for key in asked if found.get(key) != asked[key] and key not in WEIGHTS_FIELDS]
    if other:
        raise UsageError(
            f"start_from: {name} was built with another {other[0]}, {found.get(other[0])!r} and "
            f"not {asked[other[0]]!r}: give its own model section"
        )
    return model
