"""Finds the object of an annotated photograph in another one, with onnxruntime.

    python examples/onnxruntime_example.py . support.jpg support-mask.png query.jpg mask.png

Needs numpy, Pillow and onnxruntime.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path: str, mode: str) -> np.ndarray:
    """The pixels of a file: uint8 [H, W, 3] for mode "RGB", [H, W] for "L"."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert(mode))


def main(folder: str, support: str, annotation: str, query: str, result: str) -> None:
    """Write the mask of the object in `query`."""
    graphs = {
        name: onnxruntime.InferenceSession(
            Path(folder, f"{name}.onnx"), providers=["CPUExecutionProvider"]
        )
        for name in ("support", "query")
    }
    image, mask = read(support, "RGB"), read(annotation, "L")
    inputs = {
        "image": image[None],
        "mask": mask[None],
        "sizes": np.array([mask.shape], np.int64),
        "places": np.array([[0, 0, 1]], np.float32),  # photograph 0, from left to right
    }
    taken = {slot.name: inputs[slot.name] for slot in graphs["support"].get_inputs()}
    names = [slot.name for slot in graphs["support"].get_outputs()]
    shown = dict(zip(names, graphs["support"].run(names, taken), strict=True))

    asked = {"image": read(query, "RGB")}
    for slot in graphs["query"].get_inputs()[1:]:
        asked[slot.name] = shown[slot.name][None]  # one class; np.stack for several
    probability, score = graphs["query"].run(["probability", "score"], asked)

    metadata = graphs["query"].get_modelmeta().custom_metadata_map
    found = score[0] >= 0.1
    pixels = (probability[0] >= float(metadata["fsdino.threshold"])) & found
    Image.fromarray(np.where(pixels, 255, 0).astype(np.uint8)).save(result)
    print(f"score {score[0]:.3g}" + ("" if found else ", not found"))


if __name__ == "__main__":
    main(*sys.argv[1:])
