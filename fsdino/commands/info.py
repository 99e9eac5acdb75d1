"""`fsdino info`: what is installed, which devices there are, and which backend runs each op."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fsdino.commands.build import print_extension
from fsdino.commands.options import Json, check_model
from fsdino.tables import print_table

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch", "torchvision", "timm", "triton", "segment-anything", "numpy", "pillow", "safetensors",
    "huggingface-hub", "xformers",
)  # fmt: skip

RUNS, COULD_RUN = "runs", "could run"


@dataclass(frozen=True, kw_only=True)
class Info:
    """Show versions, devices, and which backend would run each op here, and why.

    With a model: its configuration and the number of parameters of each part.
    """

    model: Annotated[
        tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[MODEL]", help_behavior_hint="")
    ] = None
    """Name, folder or hub id (hf:owner/name) of a model."""
    as_json: Json = False
    """Print everything as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        check_model(self.model)
        collected = collect(self.model)
        if self.as_json:
            print(json.dumps(collected))
        else:
            _print_info(collected)
        return 0


def packages() -> dict[str, str | None]:
    """Installed versions; None where a package is missing."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def choices(device: torch.device, dtype: torch.dtype) -> dict[str, dict[str, str]]:
    """For each op, every backend in the order in which `auto` asks.

    The first that can is the one that `RUNS`; the others `COULD_RUN`, or say why not.
    """
    from fsdino import contract
    from fsdino.ops import backends

    table: dict[str, dict[str, str]] = {}
    for op in contract.OPS | contract.COMPOSED:
        row = table[op] = {}
        for name in backends.names():
            reason = backends.why_not(name, op, device, dtype)
            row[name] = reason or (COULD_RUN if RUNS in row.values() else RUNS)
    return table


def measured_choices() -> list[dict[str, Any]]:
    """Where `auto` takes another backend than the first on a device of this machine.

    Op, floating type, architecture, least and most elements of the op's first tensor, backend.
    """
    import torch

    from fsdino.environment import devices
    from fsdino.ops import measured

    here = {measured.architecture(torch.device(name)) for name in devices()}
    return [
        {
            "op": op,
            "dtype": str(dtype).removeprefix("torch."),
            "architecture": architecture,
            "least": least,
            "most": end - 1,
            "backend": backend,
        }
        for (op, dtype, architecture), ranges in measured.MEASURED.items()
        if architecture in here
        for least, end, backend in ranges
    ]


def describe_native() -> dict[str, Any]:
    """The extension behind backend `cpp`, if any, and why others that were found are not used."""
    from fsdino.ops import native

    extension = native.extension()
    return {
        "extension": None if extension is None else extension.to_dict(),
        "problems": list(native.problems()),
    }


def describe_model(name: str) -> dict[str, Any]:
    """Configuration and parameters of a model, by the name that `fsdino.load` takes.

    Raises:
        UsageError: the model is unknown.
        CheckpointError: its files are damaged or of another kind.
    """
    from fsdino.models import zoo

    model = zoo.load(name)
    return {
        "name": name,
        "fingerprint": model.fingerprint(),
        "config": model.config.to_dict(),
        "parameters": {
            part: {"trained": trained, "frozen": frozen}
            for part, (trained, frozen) in zoo.parameter_table(model).items()
        },
    }


def collect(model: str | None = None) -> dict[str, Any]:
    """Everything above, as plain data for JSON."""
    import torch

    from fsdino.environment import devices, environment
    from fsdino.models import zoo

    cpp = describe_native()
    report: dict[str, Any] = {
        "environment": environment(),
        "packages": packages(),
        "devices": devices(),
        "backends": {
            name: {
                str(dtype).removeprefix("torch."): choices(torch.device(name), dtype)
                for dtype in (torch.float32, torch.float16, torch.bfloat16)
            }
            for name in devices()
        },
        "measured": measured_choices(),
        "cpp": cpp,
        "forced_backend": os.environ.get("FSDINO_BACKEND"),
        "models": list(zoo.names()),
    }
    if model is not None:
        report["model"] = describe_model(model)
    return report


def _print_info(collected: Mapping[str, Any]) -> None:
    versions = {**collected["environment"], **collected["packages"]}
    facts = [[name, version or "not installed"] for name, version in versions.items()]
    facts.append(["bundled models", ", ".join(collected["models"]) or "none"])
    print_table(["", ""], facts, numbers=False)
    for device, by_dtype in collected["backends"].items():
        for dtypes, table in _group_equal(by_dtype):
            title = f"backends on {device}, {dtypes}, in auto's order"
            _print_backends(title, table)
    for entry in collected["measured"]:
        print(
            f"measured on {entry['architecture']}: auto takes {entry['backend']} for "
            f"{entry['op']}, {entry['dtype']}, {entry['least']} to {entry['most']} elements"
        )
    _print_native(collected["cpp"])
    if collected["forced_backend"]:
        print(f"FSDINO_BACKEND={collected['forced_backend']} forces that backend")
    model = collected.get("model")
    if model is not None:
        print(f"{model['name']}, fingerprint {model['fingerprint']}")
        facts = [[key, str(value)] for key, value in model["config"].items()]
        print_table(["", ""], facts, numbers=False)
        print_parts(model["parameters"])


def print_parts(parts: Mapping[str, Mapping[str, int]]) -> None:
    """A table on stdout: numbers of trained and frozen parameters of a model's parts."""
    kinds = ("trained", "frozen")
    rows = [[part, *(f"{counts[kind]:,}" for kind in kinds)] for part, counts in parts.items()]
    totals = [f"{sum(counts[kind] for counts in parts.values()):,}" for kind in kinds]
    print_table(["parameters", *kinds], [*rows, ["all", *totals]])


def _print_backends(title: str, table: Mapping[str, Mapping[str, str]]) -> None:
    """What each backend does for each op; below, once, why some cannot."""
    able = (RUNS, COULD_RUN)
    names = list(next(iter(table.values())))
    rows = [
        [op, *(choices[name] if choices[name] in able else "no" for name in names)]
        for op, choices in table.items()
    ]
    print_table(["op", *names], rows, title, numbers=False)
    for name in names:
        groups = _group_equal({op: choices[name] for op, choices in table.items()})
        for ops, choice in groups:
            if choice not in able:
                print(
                    f"{name}: no, {choice}" if len(groups) == 1 else f"{name}: no {ops}, {choice}"
                )


def _print_native(cpp: Mapping[str, Any]) -> None:
    """The extension in use, and why others that were found are not."""
    if cpp["extension"] is not None:
        print_extension(cpp["extension"])
    for problem in cpp["problems"]:
        print(f"C++ kernels, not used: {problem}")


def _group_equal(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Values by key, with the keys of equal neighbours joined."""
    groups: list[tuple[str, Any]] = []
    for key, value in values.items():
        if groups and groups[-1][1] == value:
            groups[-1] = (f"{groups[-1][0]}, {key}", value)
        else:
            groups.append((key, value))
    return groups
