"""How the page looks: its parts in Gradio's terms."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsdino.commands.serve import cards
from fsdino.commands.serve.engine import Engine
from fsdino.commands.serve.gradio_alone import import_gradio

if TYPE_CHECKING:
    from collections.abc import Mapping

    import gradio as gr

    from fsdino.sample_photographs import Sample
else:
    gr = import_gradio()

STATIC = Path(__file__).with_name("static")

_HEAD = (
    '<header class="fs-head"><h1>fsdino</h1><p>Mark an object in one photograph, and find it in '
    "others.</p></header>"
)
# Sends what a button has in `data-send`.
_CLICKS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-send]");
  if (button) trigger("click", JSON.parse(button.dataset.send));
});
"""
_DROP = 132  # pixels, the height of a place to drop files


class Layout:
    """The components, put where they are shown; made inside of a `gradio.Blocks`.

    Args:
        engine: the models.
        samples: the photographs to begin with.
        most_images: photographs that are searched at a time.

    Attributes:
        parts: components that actions change, by name.
        inputs: components that visitors use, by name.
    """

    def __init__(self, engine: Engine, samples: Mapping[str, Sample], most_images: int) -> None:
        self.parts: dict[str, Any] = {}
        self.inputs: dict[str, Any] = {}
        gr.HTML(_HEAD)
        with gr.Tabs() as self.parts["tab"]:
            with gr.Tab("Images", id="images"):
                gr.HTML(
                    cards.hint("New here? Click a photograph: its object is looked for in another.")
                )
                self.inputs["tries"] = _buttons(cards.tries(samples), "tries")
                _step(1, "Show what to look for")
                with gr.Row():
                    self._photograph()
                    self._classes()
                _step(2, "Choose photographs to search")
                with gr.Row():
                    self._queries(engine, most_images)
                _step(3, "Results", "results")
                self._results()
            with gr.Tab("Video", id="video"):
                self._video()

    def _photograph(self) -> None:
        """The photograph to mark, and the tools for it."""
        with gr.Column(scale=3, min_width=320):
            self.inputs["photo"] = _drop("Your photograph", "photo", ["image"])
            self.parts["marker"] = gr.HTML(
                "",
                html_template=(STATIC / "marker.html").read_text(encoding="utf-8"),
                js_on_load=(STATIC / "marker.js").read_text(encoding="utf-8"),
                apply_default_css=False,
                elem_id="marker",
            )
            self.inputs["mask"] = gr.UploadButton(
                "Upload a mask instead",
                file_types=["image"],
                **_small("mask"),
            )

    def _classes(self) -> None:
        """The mask, and what is kept."""
        with gr.Column(scale=2, min_width=300, elem_classes="fs-side"):
            self.parts["preview"] = gr.HTML(cards.hint("The mask appears here."), elem_id="preview")
            with gr.Row(equal_height=True):
                self.inputs["name"] = gr.Textbox(
                    "object", label="What is it?", max_lines=1, min_width=140, elem_id="name"
                )
                self.inputs["keep"] = gr.Button(
                    "Add this example", variant="primary", min_width=140, elem_id="keep"
                )
            self.parts["classes"] = _buttons(cards.classes({}, ""), "classes")
            self.inputs["support"] = gr.UploadButton(
                "Add a saved support (.safetensors)",
                file_types=[".safetensors"],
                **_small("support"),
            )

    def _queries(self, engine: Engine, most_images: int) -> None:
        """The photographs to search, and the model."""
        with gr.Column(scale=3, min_width=320):
            self.inputs["files"] = _drop(
                f"Photographs, up to {most_images}", "files", ["image"], file_count="multiple"
            )
            self.parts["queries"] = _buttons(cards.hint("No photographs yet."), "queries")
        with gr.Column(scale=2, min_width=300):
            self.inputs["shipped"] = gr.Button(
                "Use the photographs that come with fsdino", **_small("shipped")
            )
            self.inputs["model"] = gr.Dropdown(
                [*engine.names],
                value=engine.default,
                label="Model",
                info="fsdino-tiny is for drawings only.",
                filterable=False,
            )
            self.parts["find"] = gr.Button("Find it", variant="primary", elem_id="find")
            self.parts["stop"] = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")

    def _results(self) -> None:
        self.parts["status"] = gr.HTML("", elem_id="status")
        with gr.Row():
            self.parts["threshold"] = gr.Slider(
                0.05,
                0.95,
                0.5,
                step=0.01,
                label="Threshold",
                info="Probability from which a pixel belongs to the object.",
                scale=3,
                min_width=260,
                elem_id="threshold",
            )
            with gr.Column(scale=2, min_width=290):
                self.parts["download"] = gr.HTML("", elem_id="download")
        self.parts["results"] = gr.HTML(cards.results(None, 0.5), elem_id="answers")

    def _video(self) -> None:
        gr.HTML(
            cards.hint(
                "The objects that you have added in the tab Images are followed through a video. "
                "Its first frame can be one of the examples."
            )
        )
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                self.inputs["clip"] = _drop("Your video", "clip", ["video"])
                self.parts["clip"] = gr.HTML("", elem_id="clip-info")
            with gr.Column(scale=2, min_width=300):
                self.inputs["frame"] = gr.Button(
                    "Mark an object in the first frame", elem_id="frame"
                )
                self.parts["follow"] = gr.Button("Follow it", variant="primary", elem_id="follow")
                self.parts["end"] = gr.Button("Stop", variant="stop", visible=False, elem_id="end")
        self.parts["film"] = gr.HTML("", elem_id="film")


def _step(number: int, title: str, anchor: str = "") -> None:
    """A heading."""
    gr.HTML(f'<div class="fs-step" id="{anchor}"><i>{number}</i><h2>{escape(title)}</h2></div>')


def _drop(label: str, name: str, types: list[str], **more: Any) -> Any:
    """A place to drop files."""
    return gr.File(
        label=label, file_types=types, type="filepath", height=_DROP, elem_id=name, **more
    )


def _buttons(html: str, name: str) -> Any:
    """HTML whose buttons call the server."""
    return gr.HTML(html, js_on_load=_CLICKS, elem_id=name)


def _small(name: str) -> dict[str, Any]:
    """What small buttons have in common."""
    return {"size": "sm", "elem_id": name, "elem_classes": "fs-small"}
