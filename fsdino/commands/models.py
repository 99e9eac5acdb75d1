"""`fsdino models`: its options and its table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsdino.commands.options import Json, Name
from fsdino.tables import print_table


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the models that have a name: parts, size, licence, and whether they are on this machine.

    Models on DINOv2 have no trained part. A command that names one downloads its weights
    once, into the cache of the Hugging Face hub (~/.cache/huggingface, or HF_HOME).
    """

    download: Name = None
    """Download the weights of this model now, so that it works without a network later."""
    as_json: Json = False
    """Print the list, or the downloaded model, as JSON."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        import dataclasses

        from fsdino.models import registry

        file = None if self.download is None else registry.download(self.download)
        found = [dataclasses.asdict(model) for model in registry.list_models()]
        if self.download is not None:
            [model] = [model for model in found if model["name"] == self.download]
            if self.as_json:
                print(json.dumps({**model, "file": None if file is None else str(file)}))
            else:
                print(f"{self.download} is here: {file or 'installed with fsdino'}")
        elif self.as_json:
            print(json.dumps(found))
        else:
            _print_models(found)
        return 0


def _print_models(models: Sequence[Mapping[str, Any]]) -> None:
    print_table(
        ["model", "here", "parameters", "size", "licence", "commercial use"],
        [
            [model["name"], "yes" if model["present"] else "no",
             f"{model['parameters'] / 1e6:,.1f} M", f"{model['size'] / 1e6:,.0f} MB",
             model["licence"], "yes" if model["commercial_use"] else "no"]
            for model in models
        ],
        numbers=False,
    )  # fmt: skip
    for model in models:  # no table: addresses are there to be copied
        print(f"{model['name']}: {', '.join(model['parts'])}; {model['source']}")
