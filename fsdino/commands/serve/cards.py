"""Parts of the page as HTML. Everything that comes from visitors or files is escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from urllib.parse import quote

from fsdino.clips import ClipInfo
from fsdino.commands.serve.examples import Class, Marked, words
from fsdino.commands.serve.films import MOST_FRAMES, FilmRun
from fsdino.commands.serve.queries import Added, Queries
from fsdino.commands.serve.results import Result, Run
from fsdino.errors import counted
from fsdino.overlay import label_color
from fsdino.sample_photographs import Sample

_NAMED = 12  # photographs that the list of queries names


def hint(text: str) -> str:
    """An instruction."""
    return f'<p class="fs-hint">{escape(text)}</p>'


def tries(samples: Mapping[str, Sample]) -> str:
    """The photographs to begin with: a button each."""
    buttons = [
        _button(
            {"sample": name},
            f'<img src="fsdino/sample/{quote(name)}" alt=""><span>{escape(_title(name))}</span>',
            "fs-try",
            f"Look for what {sample.shows} shows in another photograph",
        )
        for name, sample in samples.items()
    ]
    return f'<div class="fs-tries">{"".join(buttons)}</div>'


def marked(found: Marked) -> str:
    """The mask, and how well the example finds itself."""
    share = f"{100 * float(found.mask.mean()):.1f} % of the photograph"
    quality = found.quality
    number = "" if quality is None else f" {quality:.2f}"
    warning = "" if found.warning is None else f'<p class="fs-warning">{escape(found.warning)}</p>'
    return (
        f'<figure class="fs-figure"><img src="fsdino/picture/{found.key}" '
        'alt="The photograph with the marked object in colour">'
        f"<figcaption>Marked: {share}</figcaption></figure>"
        f'<p class="fs-quality" title="IoU of the object that the example finds in itself">'
        f"Quality of this example: <b>{words(quality)}{number}</b></p>{warning}"
    )


def classes(known: Mapping[str, Class], key: str) -> str:
    """What is looked for: a card for each class."""
    if not known:
        return hint("Nothing yet: mark an object, give it a name, and add it.")
    cards = (_class(name, each, key, [*known]) for name, each in known.items())
    return f'<ul class="fs-classes">{"".join(cards)}</ul>'


def _class(name: str, known: Class, key: str, names: list[str]) -> str:
    pictures = "".join(f'<img src="fsdino/picture/{k}" alt="">' for k in known.keys)
    count = known.support.shots
    shots = counted(count, "example")
    shots = shots if known.shots else f"saved support, {shots}"
    quality = known.support.quality
    said = "" if quality is None else f", quality {quality:.2f} ({words(quality)})"
    address = f"fsdino/support/{key}/{quote(name, safe='')}"
    return (
        f"<li>{_name(name, names)}<small>{shots}{said}</small>"
        f'<span class="fs-pictures">{pictures}</span><span class="fs-actions">'
        f'<a href="{address}" download aria-label="Save {escape(name)} as a file">Save</a>'
        f"{_button({'remove': name}, 'Remove', '', f'Remove {name}')}</span></li>"
    )


def queries(chosen: Queries, added: Added | None = None) -> str:
    """The photographs that are searched, and what was left out."""
    if not chosen:
        text = '<p class="fs-hint">No photographs yet.</p>'
    else:
        more = len(chosen) - _NAMED
        names = ", ".join(escape(query.name) for query in chosen[:_NAMED])
        rest = f" and {more} more" if more > 0 else ""
        count = counted(len(chosen), "photograph")
        clear = _button({"clear": True}, "Clear", "", "Forget these photographs")
        text = f'<p class="fs-queries"><b>{count}</b>: {names}{rest} {clear}</p>'
    said = "" if added is None else added.summary()
    return text + (f'<p class="fs-warning">{escape(said)}</p>' if said else "")


def clip(info: ClipInfo, name: str) -> str:
    """The video that was chosen."""
    height, width = info.size
    seconds = "" if info.seconds is None else f", {info.seconds:.1f} s"
    frames = "" if info.frames is None else f", {info.frames:,} frames"
    more = ""
    if info.frames is not None and info.frames > MOST_FRAMES:
        more = f'<p class="fs-warning">Only the first {MOST_FRAMES:,} frames are searched.</p>'
    said = f"<b>{escape(name)}</b>: {width} × {height}{seconds}{frames}"
    return f'<p class="fs-queries">{said}</p>{more}'


def film_status(run: FilmRun) -> str:
    """How far a run over a video is."""
    if run.total is None:
        return hint(f"Searching: {run.done} frames")
    return _bar(run.done, run.total, "frames")


def film(run: FilmRun, seconds: float) -> str:
    """The video with what was found."""
    summary = run.summary
    assert summary is not None
    names = [*summary["shown_in"]]
    rows = "".join(
        f"<li>{_name(name, names)}in {count} of {summary['frames']} frames</li>"
        for name, count in summary["shown_in"].items()
    )
    said = f"{summary['frames']} frames searched ({seconds:.1f} s)."
    damage = ""
    if summary["damaged"]:
        damage = (
            f'<p class="fs-warning">{counted(summary["damaged"], "damaged part")} of the video '
            f"skipped: {escape(str(summary['damage']))}</p>"
        )
    return (
        f"{hint(said)}{damage}"
        f'<video class="fs-film" controls playsinline preload="auto" '
        f'src="fsdino/film/{run.key}"></video><ul class="fs-scores">{rows}</ul>'
        f'<p><a class="fs-download" href="fsdino/film-archive/{run.key}" '
        'download="fsdino-video.zip">Download everything (.zip)</a><small>the video, a mask for '
        "each frame, and annotations for COCO</small></p>"
    )


def _bar(done: int, total: int, what: str) -> str:
    """A bar, and the numbers."""
    share = 100 * min(done / max(total, 1), 1)
    return (
        f'<p class="fs-hint">Searching: {done:,} of {total:,} {what}</p>'
        f'<div class="fs-bar" role="progressbar" aria-valuenow="{share:.0f}" '
        f'aria-valuemin="0" aria-valuemax="100"><span style="width:{share:.0f}%"></span></div>'
    )


def status(run: Run, seconds: float | None = None) -> str:
    """How far a run is, or how it ended."""
    if seconds is None:
        return _bar(run.done, run.total, "photographs")
    found = sum(any(result.founds) for result in run.results)
    text = f"Found something in {found} of {counted(len(run.results), 'photograph')}"
    text += f"; {len(run.failed)} could not be read" if run.failed else ""
    text += f" ({seconds:.1f} s)."
    if run.done < run.total:
        text = f"Stopped after {run.done} of {run.total}. {text}"
    return hint(text)


def results(run: Run | None, threshold: float) -> str:
    """The answers: each photograph beside its overlay."""
    if run is None:
        return hint("Results appear here.")
    legend = ""
    if len(run.names) > 1:
        names = "".join(f"<li>{_name(name, run.names)}</li>" for name in run.names)
        legend = f'<ul class="fs-legend" aria-label="Colours">{names}</ul>'
    cards = [_card(run, n, result, threshold) for n, result in enumerate(run.results)]
    failed = [
        f'<li class="fs-card fs-failed"><h4>{escape(name)}</h4>'
        f'<p class="fs-warning">{escape(error)}</p></li>'
        for name, error in run.failed.items()
    ]
    return f'{legend}<ul class="fs-results">{"".join([*cards, *failed])}</ul>'


def download(run: Run | None, threshold: float) -> str:
    """The link to the archive; empty before there are results."""
    if run is None or not run.results:
        return ""
    return (
        f'<a class="fs-download" href="fsdino/archive/{run.key}?threshold={threshold:g}" '
        'download="fsdino.zip">Download everything (.zip)</a>'
        "<small>masks, overlays, and annotations for COCO, YOLO and LabelMe</small>"
    )


def _card(run: Run, number: int, result: Result, threshold: float) -> str:
    place = f"{run.key}/{number}"
    name = escape(result.query[0])
    overlay = f"fsdino/overlay/{place}?threshold={threshold:g}"
    scores = "".join(
        f"<li>{_name(each, run.names)}{'found' if found else 'not found'}, score {score:.2f}</li>"
        for each, score, found in zip(result.names, result.scores, result.founds, strict=True)
    )
    return (
        f'<li class="fs-card"><h4 title="{name}">{name}</h4><div class="fs-pair">'
        f'<a href="fsdino/original/{place}" target="_blank">'
        f'<img loading="lazy" src="fsdino/original/{place}" alt="{name}"></a>'
        f'<a href="{overlay}" target="_blank"><img loading="lazy" src="{overlay}" '
        f'alt="{name}, with what was found in colour"></a></div>'
        f'<ul class="fs-scores">{scores}</ul></li>'
    )


def _name(name: str, names: list[str] | tuple[str, ...]) -> str:
    """A class's name beside its colour."""
    red, green, blue = label_color([*names].index(name) + 1)
    return (
        f'<span class="fs-name"><i style="background:rgb({red},{green},{blue})"></i>'
        f"{escape(name)}</span>"
    )


def _button(data: Mapping[str, object], content: str, kind: str, label: str) -> str:
    """A button that sends data to the page's server; `content` is HTML."""
    return (
        f'<button type="button" class="{kind}" data-send="{escape(json.dumps(data))}" '
        f'aria-label="{escape(label)}">{content}</button>'
    )


def _title(name: str) -> str:
    return name.replace("-", " ").capitalize()
