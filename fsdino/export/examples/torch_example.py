"""Finds the object of an annotated photograph in another one, with PyTorch alone.

    python examples/torch_example.py . support.jpg support-mask.png query.jpg mask.png

Needs numpy, Pillow and torch.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch._inductor
from PIL import Image, ImageOps


def read(path: str, mode: str) -> torch.Tensor:
    """The pixels of a file: uint8 [H, W, 3] for mode "RGB", [H, W] for "L"."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert(mode)))


def load(path: Path, kind: str) -> Callable[..., tuple[torch.Tensor, ...]]:
    """A graph as a function of its inputs, in their order."""
    if kind == "aoti":
        return torch._inductor.aoti_load_package(str(path))
    return torch.export.load(path).module()


def main(folder: str, support: str, annotation: str, query: str, result: str) -> None:
    """Write the mask of the object in `query`."""
    described = json.loads(Path(folder, "export.json").read_text(encoding="utf-8"))
    if described["kernels"] == "fsdino":
        torch.ops.load_library(Path(folder, "libfsdino_ops.so"))

    def run(name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs of a graph by name; it takes those of the tensors that are its inputs."""
        graph = described["graphs"][name]
        program = load(Path(folder, graph["file"]), described["kind"])
        found = program(*(tensors[slot["name"]] for slot in graph["inputs"]))
        return dict(zip((slot["name"] for slot in graph["outputs"]), found, strict=True))

    image, mask = read(support, "RGB"), read(annotation, "L")
    with torch.no_grad():
        shown = run("support", {
            "image": image[None],
            "mask": mask[None],
            "sizes": torch.tensor([mask.shape]),
            "places": torch.tensor([[0.0, 0.0, 1.0]]),  # photograph 0, from left to right
        })  # fmt: skip
        one_class = {name: tensor[None] for name, tensor in shown.items()}
        found = run("query", {**one_class, "image": read(query, "RGB")})

    score = found["score"].item()
    pixels = (found["probability"][0] >= described["threshold"]) & (score >= 0.1)
    Image.fromarray(pixels.numpy().astype(np.uint8) * 255).save(result)
    print(f"score {score:.3g}" + ("" if score >= 0.1 else ", not found"))


if __name__ == "__main__":
    main(*sys.argv[1:])
