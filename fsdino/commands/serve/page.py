"""The page: its layout in Gradio, and which action each part calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsdino.commands.serve import cards
from fsdino.commands.serve.actions import Actions, Parts
from fsdino.commands.serve.engine import Engine
from fsdino.commands.serve.gradio_alone import import_gradio
from fsdino.commands.serve.sessions import Session, Sessions
from fsdino.errors import FsdinoError, is_out_of_memory

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI
else:
    gr = import_gradio()

logger = logging.getLogger("fsdino.commands")

_STATIC = Path(__file__).with_name("static")
_TITLE = "fsdino: few-shot segmentation"
_MOST_WAITING = 64  # calls in the queue
_SECONDS = 12  # that a message stays
# Sends what a button has in `data-send`.
_CLICKS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-send]");
  if (button) trigger("click", JSON.parse(button.dataset.send));
});
"""
_TO_RESULTS = "() => document.getElementById('results').scrollIntoView({behavior: 'smooth'})"
_FONTS = ["ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
_MONOSPACED = ["ui-monospace", "Consolas", "monospace"]


def mount(
    app: FastAPI, engine: Engine, sessions: Sessions, most_images: int, most_bytes: int
) -> FastAPI:
    """Add the page to an application, at its root."""
    blocks = Page(engine, sessions, most_images).blocks
    theme = gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=_FONTS, font_mono=_MONOSPACED
    )
    mounted: FastAPI = gr.mount_gradio_app(
        app, blocks, path="/", theme=theme, css_paths=[_STATIC / "page.css"],
        max_file_size=most_bytes, show_error=False, footer_links=[], run_history=False,
        ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )  # fmt: skip
    return mounted


class Page:
    """The page of all visitors.

    Args:
        engine: the models.
        sessions: the visits.
        most_images: photographs that are searched at a time.

    Attributes:
        blocks: in Gradio's terms.
        parts: components that actions change, by name.
    """

    def __init__(self, engine: Engine, sessions: Sessions, most_images: int) -> None:
        self._engine, self._sessions = engine, sessions
        self._actions = Actions(engine)
        self.parts: dict[str, Any] = {}
        self.blocks = gr.Blocks(title=_TITLE, analytics_enabled=False, fill_width=True)
        with self.blocks:
            gr.HTML(
                '<header class="fs-head"><h1>fsdino</h1><p>Mark an object in one photograph, and '
                "find it in others.</p></header>"
            )
            self._images(most_images)
            self.blocks.unload(self._leave)
        self.blocks.queue(max_size=_MOST_WAITING, default_concurrency_limit=8, api_open=False)

    def _images(self, most_images: int) -> None:
        """Steps 1 to 3."""
        parts = self.parts
        model = gr.Dropdown(
            [*self._engine.names], value=self._engine.default, label="Model", render=False,
            info="fsdino-tiny is for drawings only.", filterable=False,
        )  # fmt: skip
        gr.HTML(cards.hint("New here? Click a photograph: its object is looked for in another."))
        tries = gr.HTML(cards.tries(self._actions.samples), js_on_load=_CLICKS, elem_id="tries")

        _step(1, "Show what to look for")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                photo = gr.File(
                    label="Your photograph", file_types=["image"], type="filepath", height=132,
                    elem_id="photo",
                )  # fmt: skip
                parts["marker"] = gr.HTML(
                    "",
                    html_template=(_STATIC / "marker.html").read_text(encoding="utf-8"),
                    js_on_load=(_STATIC / "marker.js").read_text(encoding="utf-8"),
                    apply_default_css=False, elem_id="marker",
                )  # fmt: skip
                mask = gr.UploadButton(
                    "Upload a mask instead",
                    file_types=["image"],
                    size="sm",
                    elem_id="mask",
                    elem_classes="fs-small",
                )
            with gr.Column(scale=2, min_width=300):
                parts["preview"] = gr.HTML(cards.hint("The mask appears here."), elem_id="preview")
                with gr.Row(equal_height=True):
                    name = gr.Textbox(
                        "object", label="What is it?", max_lines=1, min_width=140, elem_id="name"
                    )
                    keep = gr.Button("Add this example", variant="primary", min_width=140,
                                     elem_id="keep")  # fmt: skip
                parts["classes"] = gr.HTML(
                    cards.classes({}, ""), js_on_load=_CLICKS, elem_id="classes"
                )
                support = gr.UploadButton(
                    "Add a saved support (.safetensors)", file_types=[".safetensors"], size="sm",
                    elem_id="support", elem_classes="fs-small",
                )  # fmt: skip

        _step(2, "Choose photographs to search")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                files = gr.File(
                    label=f"Photographs, up to {most_images}", file_count="multiple",
                    file_types=["image"], type="filepath", height=132, elem_id="files",
                )  # fmt: skip
                parts["queries"] = gr.HTML(
                    cards.hint("No photographs yet."), js_on_load=_CLICKS, elem_id="queries"
                )
            with gr.Column(scale=2, min_width=300):
                shipped = gr.Button("Use the photographs that come with fsdino", size="sm",
                                    elem_id="shipped", elem_classes="fs-small")  # fmt: skip
                model.render()
                parts["find"] = gr.Button("Find it", variant="primary", elem_id="find")
                parts["stop"] = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")

        _step(3, "Results", "results")
        parts["status"] = gr.HTML("", elem_id="status")
        with gr.Row():
            parts["threshold"] = gr.Slider(
                0.05, 0.95, 0.5, step=0.01, label="Threshold", scale=3, min_width=260,
                info="Probability from which a pixel belongs to the object.",
                elem_id="threshold",
            )  # fmt: skip
            with gr.Column(scale=2, min_width=290):
                parts["download"] = gr.HTML("", elem_id="download")
        parts["results"] = gr.HTML(cards.results(None, 0.5), elem_id="answers")

        self._wire(photo, mask, name, keep, support, files, shipped, model, tries)

    def _wire(
        self, photo: Any, mask: Any, name: Any, keep: Any, support: Any, files: Any, shipped: Any,
        model: Any, tries: Any,
    ) -> None:  # fmt: skip
        """Tell each part which action it calls."""
        parts, on = self.parts, self._on
        opened = on(photo.upload, lambda a, s, file: a.open(s, *_file(file)), photo)
        added = on(files.upload, lambda a, s, found: a.add(s, [*map(_file, found)]), files)
        for taken, drop in ((opened, photo), (added, files)):  # what was taken is shown elsewhere
            taken.then(lambda: None, outputs=drop, show_progress="hidden")
        on(mask.upload, lambda a, s, m, file: a.mark_file(s, m, Path(file)), model, mask)
        on(support.upload, lambda a, s, file: a.load_support(s, *_file(file)), support)
        on(keep.click, lambda a, s, m, text: a.keep(s, m, text), model, name)
        on(shipped.click, lambda a, s: a.add_shipped(s))
        on(parts["stop"].click, lambda a, s: a.stop(s))
        on(parts["threshold"].change, lambda a, s, value: a.show(s, value), parts["threshold"])
        self._on_data(parts["marker"].input, lambda a, s, d, m: a.mark(s, m, d), model)
        self._on_data(parts["classes"].click, lambda a, s, d: a.change_class(s, d))
        self._on_data(parts["queries"].click, lambda a, s, d: a.change_queries(s))
        tried = self._on_data(tries.click, lambda a, s, d, m: a.try_out(s, m, d), model)
        for begin in (parts["find"].click, tried.success):
            begin(
                self._search, model, [*parts.values()], concurrency_limit=2,
                concurrency_id="search", show_progress="hidden", js=None,
            )  # fmt: skip
            begin(None, js=_TO_RESULTS)

    def _on(self, event: Any, action: Callable[..., Parts], *inputs: Any) -> Any:
        """Call an action with the visit and the values of some components."""

        def call(request: gr.Request, *values: Any) -> Any:
            return self._answer(request, lambda visit: action(self._actions, visit, *values))

        return self._bind(event, call, inputs)

    def _on_data(self, event: Any, action: Callable[..., Parts], *inputs: Any) -> Any:
        """The same for an event that has data, which come before the values."""

        def call(request: gr.Request, event_data: gr.EventData, *values: Any) -> Any:
            data = event_data._data
            return self._answer(request, lambda visit: action(self._actions, visit, data, *values))

        return self._bind(event, call, inputs)

    def _bind(self, event: Any, call: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        return event(
            call, [*inputs], [*self.parts.values()], show_progress="hidden",
            trigger_mode="always_last",
        )  # fmt: skip

    def _answer(self, request: gr.Request, action: Callable[[Session], Parts]) -> Any:
        """What an action changes; after an error nothing, and the visitor reads why."""
        try:
            return self._updates(action(self._sessions.get(_key(request))))
        except Exception as error:
            _say(error)
            return self._updates({})

    def _search(self, model: str, request: gr.Request) -> Iterator[Any]:
        """Find the classes in the photographs."""
        try:
            for parts in self._actions.search(self._sessions.get(_key(request)), model):
                yield self._updates(parts)
        except Exception as error:
            _say(error)
            yield self._updates({"running": False})

    def _updates(self, parts: Parts) -> list[Any]:
        """For each component its new value, or that it stays as it is."""
        parts = dict(parts)
        if "running" in parts:
            running = parts.pop("running")
            parts["find"] = gr.update(interactive=not running)
            parts["stop"] = gr.update(visible=running)
        return [parts.get(name, gr.skip()) for name in self.parts]

    def _leave(self, request: gr.Request) -> None:
        """A page was closed."""
        self._sessions.leave(_key(request))


def _step(number: int, title: str, anchor: str = "") -> None:
    """A heading."""
    gr.HTML(f'<div class="fs-step" id="{anchor}"><i>{number}</i><h2>{escape(title)}</h2></div>')


def _key(request: gr.Request) -> str:
    """What a browser calls its visit."""
    return str(request.session_hash)


def _file(given: str) -> tuple[Path, str]:
    """An uploaded file, and its name."""
    return Path(given), Path(given).name


def _say(error: Exception) -> None:
    """Tell the visitor what is wrong: our own words, or that it is our fault."""
    if isinstance(error, FsdinoError):
        text = str(error)
    elif is_out_of_memory(error):
        text = "this does not fit into memory: use smaller photographs, or fewer classes"
    else:
        logger.error("the page: %s", error, exc_info=error)
        text = "something went wrong here; what you have done so far is kept"
    gr.Warning(escape(text), duration=_SECONDS)
