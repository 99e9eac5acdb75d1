"""The page: its layout in Gradio, and which action each part calls."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsdino.commands.serve.actions import Actions, Parts
from fsdino.commands.serve.engine import Engine
from fsdino.commands.serve.gradio_alone import import_gradio
from fsdino.commands.serve.layout import STATIC, Layout
from fsdino.commands.serve.sessions import Session, Sessions
from fsdino.errors import FsdinoError, is_out_of_memory

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI
else:
    gr = import_gradio()

logger = logging.getLogger("fsdino.commands")

_TITLE = "fsdino: few-shot segmentation"
_MOST_WAITING = 64  # calls in the queue
_SECONDS = 12  # that a message stays
_TO_RESULTS = "() => document.getElementById('results').scrollIntoView({behavior: 'smooth'})"
_FONTS = ["ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
_MONOSPACED = ["ui-monospace", "Consolas", "monospace"]


def mount(
    app: FastAPI, engine: Engine, sessions: Sessions, most_images: int, most_bytes: int
) -> FastAPI:
    """Add the page to an application, at its root."""
    # Gradio reads this at its import: a second page of a process would use the first one's folder.
    vars(gr.routes)["DEFAULT_TEMP_DIR"] = os.environ["GRADIO_TEMP_DIR"]
    blocks = Page(engine, sessions, most_images).blocks
    theme = gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=_FONTS, font_mono=_MONOSPACED
    )
    mounted: FastAPI = gr.mount_gradio_app(
        app, blocks, path="/", theme=theme, css_paths=[STATIC / "page.css"],
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
        self._sessions, self._actions = sessions, Actions(engine)
        self.blocks = gr.Blocks(title=_TITLE, analytics_enabled=False, fill_width=True)
        with self.blocks:
            layout = Layout(engine, self._actions.samples, most_images)
            self.parts, self._inputs = layout.parts, layout.inputs
            self._wire_examples()
            self._wire_searches()
            self._on(self.blocks.load, lambda a, s: {})  # the visit begins
            self.blocks.unload(self._leave)
        self.blocks.queue(max_size=_MOST_WAITING, default_concurrency_limit=8, api_open=False)

    def _wire_examples(self) -> None:
        """Step 1: what its parts call."""
        parts, inputs, on = self.parts, self._inputs, self._on
        model, name = inputs["model"], inputs["name"]
        self._on_drop("photo", lambda a, s, file: a.open(s, *_file(file)))
        on(
            inputs["mask"].upload,
            lambda a, s, m, file: a.mark_file(s, m, Path(file)),
            model,
            inputs["mask"],
        )
        on(
            inputs["support"].upload,
            lambda a, s, file: a.load_support(s, *_file(file)),
            inputs["support"],
        )
        on(
            inputs["keep"].click,
            lambda a, s, m, text: a.keep(s, m, text),
            model,
            name,
            shown="preview",
        )
        self._on_data(
            parts["marker"].input, lambda a, s, d, m: a.mark(s, m, d), model, shown="preview"
        )
        self._on_data(parts["classes"].click, lambda a, s, d: a.change_class(s, d))

    def _wire_searches(self) -> None:
        """Steps 2 and 3, and the video."""
        parts, inputs, on = self.parts, self._inputs, self._on
        model, threshold = inputs["model"], parts["threshold"]
        self._on_drop("files", lambda a, s, found: a.add(s, [*map(_file, found)]))
        on(inputs["shipped"].click, lambda a, s: a.add_shipped(s))
        self._on_data(parts["queries"].click, lambda a, s, d: a.change_queries(s))
        tried = self._on_data(
            inputs["tries"].click, lambda a, s, d, m: a.try_out(s, m, d), model, shown="preview"
        )
        for begin in (parts["find"].click, tried.success):
            self._on_run(begin, self._search)
            begin(None, js=_TO_RESULTS)
        on(threshold.change, lambda a, s, value: a.show(s, value), threshold)
        self._on_drop("clip", lambda a, s, file: a.open_clip(s, *_file(file)))
        on(inputs["frame"].click, lambda a, s: a.mark_frame(s))
        self._on_run(parts["follow"].click, self._follow)
        for stop in ("stop", "end"):
            on(parts[stop].click, lambda a, s: a.stop(s))

    def _on_drop(self, name: str, action: Callable[..., Parts]) -> None:
        """Call an action with what is dropped, which is then shown elsewhere."""
        drop = self._inputs[name]
        taken = self._on(drop.upload, action, drop)
        taken.then(lambda: None, outputs=drop, show_progress="hidden")

    def _on_run(self, event: Any, call: Callable[..., Iterator[Any]]) -> None:
        """Call what takes long, and changes the page again and again."""
        event(
            call,
            self._inputs["model"],
            [*self.parts.values()],
            concurrency_limit=2,
            concurrency_id="run",
            show_progress="hidden",
        )

    def _on(
        self, event: Any, action: Callable[..., Parts], *inputs: Any, shown: str | None = None
    ) -> Any:
        """Call an action with the visit and the values of some components."""

        def call(request: gr.Request, *values: Any) -> Any:
            return self._answer(request, lambda visit: action(self._actions, visit, *values))

        return self._bind(event, call, inputs, shown)

    def _on_data(
        self, event: Any, action: Callable[..., Parts], *inputs: Any, shown: str | None = None
    ) -> Any:
        """The same for an event that has data, which come before the values."""

        def call(request: gr.Request, event_data: gr.EventData, *values: Any) -> Any:
            data = event_data._data
            return self._answer(request, lambda visit: action(self._actions, visit, data, *values))

        return self._bind(event, call, inputs, shown)

    def _bind(
        self, event: Any, call: Callable[..., Any], inputs: Sequence[Any], shown: str | None = None
    ) -> Any:
        """Let an event call a function; `shown` names the part that fades while it works."""
        fading: dict[str, Any] = {"show_progress": "hidden"}
        if shown is not None:
            fading = {"show_progress": "minimal", "show_progress_on": [self.parts[shown]]}
        return event(call, [*inputs], [*self.parts.values()], trigger_mode="always_last", **fading)

    def _answer(self, request: gr.Request, action: Callable[[Session], Parts]) -> Any:
        """What an action changes; after an error nothing, and the visitor reads why."""
        try:
            return self._updates(action(self._sessions.get(_key(request))))
        except Exception as error:
            _say(error)
            return self._updates({})

    def _search(self, model: str, request: gr.Request) -> Iterator[Any]:
        """Find the classes in the photographs."""
        yield from self._run(
            lambda: self._actions.search(self._sessions.get(_key(request)), model), "running"
        )

    def _follow(self, model: str, request: gr.Request) -> Iterator[Any]:
        """Follow the classes through the video."""
        yield from self._run(
            lambda: self._actions.follow(self._sessions.get(_key(request)), model), "filming"
        )

    def _run(self, begin: Callable[[], Iterator[Parts]], flag: str) -> Iterator[Any]:
        try:
            for parts in begin():
                yield self._updates(parts)
        except Exception as error:
            _say(error)
            yield self._updates({flag: False})

    def _updates(self, parts: Parts) -> list[Any]:
        """For each component its new value, or that it stays as it is."""
        parts = dict(parts)
        for flag, begin, end in (("running", "find", "stop"), ("filming", "follow", "end")):
            if flag in parts:
                runs = parts.pop(flag)
                parts[begin], parts[end] = gr.update(interactive=not runs), gr.update(visible=runs)
        if "tab" in parts:
            parts["tab"] = gr.Tabs(selected=parts["tab"])
        return [parts.get(name, gr.skip()) for name in self.parts]

    def _leave(self, request: gr.Request) -> None:
        """A page was closed."""
        self._sessions.leave(_key(request))


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
