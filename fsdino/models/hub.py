"""Files on the Hugging Face hub: found in its local cache, otherwise downloaded into it.

Nothing here is called unless a user typed a model's name. If the hub cannot be reached, one line
says so within seconds; `huggingface_hub` by itself retries for most of a minute. That library is
imported only for downloads, so that listing the models that are here costs nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

from fsdino.errors import first_line
from fsdino.files import make_folder, sha256, write_text
from fsdino.locks import Lock
from fsdino.progress import Progress

logger = logging.getLogger("fsdino.models")

DEADLINE = 8.0  # seconds within which the hub must have answered
STALL = 10.0  # seconds without a byte that end a download
_STEP = 4.0  # seconds for each step of that: a connection, an answer
WEIGHTS_FILE = "model.safetensors"
_MAIN = "main"
_HUB = "https://huggingface.co"
_ON = {"1", "ON", "YES", "TRUE"}
_CHUNK = 2**20
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_ETAG = re.compile(r"[\w-]{1,128}", re.ASCII)  # names a file in the cache
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_REMEDY = "set HF_HOME to another folder"

Answer = TypeVar("Answer")


class UnavailableError(Exception):
    """Why a file cannot be fetched from the hub, in a few words on one line."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository on the hub.

    Attributes:
        repository: "owner/name".
        name: of the file in it.
        revision: branch, tag or commit; None is the branch main.
    """

    repository: str
    name: str = WEIGHTS_FILE
    revision: str | None = None

    @property
    def address(self) -> str:
        """Where a browser can get it."""
        return f"{_HUB}/{self.repository}/resolve/{self.revision or _MAIN}/{self.name}"

    @property
    def page(self) -> str:
        """Where a browser shows the repository's files."""
        return f"{_HUB}/{self.repository}/tree/{self.revision or _MAIN}"


@dataclass(frozen=True)
class _Found:
    """The hub's answer about a file: its address, its version and its size in bytes."""

    url: str
    commit: str
    etag: str
    size: int | None


def cached(file: HubFile) -> Path | None:
    """The file in the local cache of the hub's library, if it is there; no network.

    Looks where `huggingface_hub.try_to_load_from_cache` does, without importing it.
    """
    folder = _folder(file)
    with contextlib.suppress(OSError, ValueError):
        commit = file.revision or _MAIN
        reference = folder / "refs" / commit
        if reference.is_file():
            commit = reference.read_text(encoding="utf-8")
        path = folder / "snapshots" / commit / file.name
        if path.is_file():
            return path
    return None


def check(file: HubFile, *, deadline: float | None = None) -> None:
    """Return if a file is cached, or the hub has it; downloads nothing.

    Args:
        file: which.
        deadline: seconds within which the hub must have answered; None is `DEADLINE`.

    Raises:
        UnavailableError: it is not here and cannot be downloaded.
    """
    if cached(file) is None:
        reach(file, deadline=deadline)


def reach(file: HubFile, *, deadline: float | None = None) -> None:
    """Return if the hub has a file, cached or not.

    Args:
        file: which.
        deadline: seconds within which the hub must have answered; None is `DEADLINE`.

    Raises:
        UnavailableError: it does not.
    """
    _ask(file, deadline)


def fetch(file: HubFile, *, deadline: float | None = None) -> Path:
    """The path of a file, downloaded into the cache unless it is there.

    An interrupted download continues where it stopped. Its progress is shown on stderr.

    Args:
        file: which.
        deadline: seconds within which the hub must have answered; None is `DEADLINE`.

    Raises:
        UnavailableError: it is not here and cannot be downloaded.
        FsdinoError: it cannot be written.
    """
    path = cached(file)
    if path is not None:
        return path
    found = _ask(file, deadline)
    folder = _folder(file)
    blob = folder / "blobs" / found.etag
    snapshot = folder / "snapshots" / found.commit / file.name
    locks = folder.parent / ".locks" / folder.name
    for needed in (blob.parent, snapshot.parent, locks, folder / "refs"):
        make_folder(needed, _REMEDY)
    with Lock(locks / f"{found.etag}.lock", f"the download of {file.address}", _REMEDY, wait=True):
        if not blob.is_file():
            _download(file, found, blob)
        if not snapshot.is_file():
            snapshot.unlink(missing_ok=True)  # a dangling link
            snapshot.symlink_to(os.path.relpath(blob, snapshot.parent))
        if file.revision != found.commit:
            reference = folder / "refs" / (file.revision or _MAIN)
            make_folder(reference.parent, _REMEDY)
            write_text(reference, found.commit)
    return snapshot


def _folder(file: HubFile) -> Path:
    """The folder of a repository in the cache, which the hub's own variables place."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{home}/huggingface"
    cache = (
        os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    )
    cache = os.path.expandvars(os.path.expanduser(cache))
    return Path(cache, f"models--{file.repository.replace('/', '--')}")


def is_offline() -> bool:
    """Whether the user has switched off network access for the hub's library."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in _ON


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")


def _ask(file: HubFile, deadline: float | None) -> _Found:
    """Ask the hub about a file.

    Raises:
        UnavailableError: it does not answer in time, or there is no such file.
    """
    if is_offline():
        raise UnavailableError("HF_HUB_OFFLINE is set")
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    deadline = DEADLINE if deadline is None else deadline
    endpoint = _endpoint()
    try:
        url = hf_hub_url(file.repository, file.name, revision=file.revision, endpoint=endpoint)
        answer = _within(
            deadline,
            lambda: get_hf_file_metadata(url, timeout=min(_STEP, deadline), endpoint=endpoint),
        )
    except TimeoutError as error:
        host = urlsplit(endpoint).hostname
        raise UnavailableError(f"{host} does not answer within {deadline:g} s") from error
    except Exception as error:  # the hub's own errors, and those of the library it connects by
        host = urlsplit(endpoint).hostname
        raise UnavailableError(f"{host}: {_words(error)}") from error
    commit, etag = answer.commit_hash or "", answer.etag or ""
    if not _COMMIT.fullmatch(commit) or not _ETAG.fullmatch(etag):
        raise UnavailableError(f"{endpoint} does not answer as the hub does")
    url = hf_hub_url(file.repository, file.name, revision=commit, endpoint=endpoint)
    return _Found(url, commit, etag, answer.size)


def _within(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns within a time: no library's timeout covers looking up a host name.

    Raises:
        TimeoutError: it has not returned; its thread is abandoned.
    """
    answers: queue.SimpleQueue[tuple[Answer | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:  # raised again below, in the caller's thread
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def _download(file: HubFile, found: _Found, blob: Path) -> None:
    """Download a file of the hub, continuing where an earlier download stopped.

    Raises:
        UnavailableError: the download stopped, or its content is not what the hub announced.
    """
    partial = blob.with_name(f"{blob.name}.incomplete")
    done = partial.stat().st_size if partial.is_file() else 0
    if found.size is not None and done > found.size:
        partial.unlink()
        done = 0
    try:
        if found.size is None or done < found.size:
            size = "" if found.size is None else f" ({found.size / 1e6:.0f} MB)"
            logger.info("downloading %s%s to the cache", file.address, size)
            name = f"{file.repository.rpartition('/')[2]}/{file.name}"
            total = None if found.size is None else found.size / 1e6
            with (
                partial.open("ab") as stream,
                Progress(name, total, done=done / 1e6, unit="MB") as progress,
            ):
                _receive(found.url, stream, done, progress)
        if found.size is not None and partial.stat().st_size != found.size:
            raise EOFError("the connection ended early")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{_kept(partial)}; run the same command to continue") from None
    except Exception as error:  # as in _ask, and a full disk
        raise UnavailableError(
            f"the download stopped, {_words(error)}; {_kept(partial)}; call again to continue"
        ) from error
    if _SHA256.fullmatch(found.etag) and sha256(partial) != found.etag:  # as large files have it
        partial.unlink()
        raise UnavailableError("what was downloaded is damaged; the same call fetches it again")
    partial.replace(blob)


def _receive(url: str, stream: BinaryIO, done: int, progress: Progress) -> None:
    """Download from an address and append to a file that has the first `done` bytes."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    # Uncompressed: a byte range of a compressed response would mean something else.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    request = get_session().stream(
        "GET", url, headers=headers, timeout=STALL, follow_redirects=True
    )
    with request as response:
        hf_raise_for_status(response)
        if done and response.status_code != 206:  # the whole file
            stream.truncate(0)
            progress.report(0, progress.total)
        for chunk in response.iter_bytes(_CHUNK):
            stream.write(chunk)
            progress.advance(len(chunk) / 1e6)


def _kept(partial: Path) -> str:
    size = partial.stat().st_size if partial.is_file() else 0
    return f"{size / 1e6:.1f} MB are kept"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the hub's library about what the caller reports."""
    library = logging.getLogger("huggingface_hub")
    before = library.level
    library.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        library.setLevel(before)


def _words(error: Exception) -> str:
    """The kind and the first line of an error."""
    kind = type(error).__name__
    return f"{kind}: {first_line(error)}" if str(error) else kind
